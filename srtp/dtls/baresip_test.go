package dtls_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
	"ringway/srtp/stream"
)

const baresipConfig = `sip_listen 127.0.0.1:0
net_interface 127.0.0.1
rtcp_mux yes
audio_source aufile,DIR/tone.wav
audio_player aubridge,nul
module_path /usr/lib/baresip/modules
module g711.so
module aufile.so
module aubridge.so
module dtls_srtp.so
module_app account.so
module_app menu.so
`

// A call from baresip, to either answer: its media opens with the keys.
func TestWithBaresip(t *testing.T) {
	if testing.Short() {
		t.Skip("needs baresip")
	}
	for _, setup := range []dtls.Setup{dtls.Active, dtls.Passive} {
		t.Run(setup.String(), func(t *testing.T) { callFromBaresip(t, setup) })
	}
}

func callFromBaresip(t *testing.T, setup dtls.Setup) {
	local := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	signalling, err := net.ListenUDP("udp4", local)
	require.NoError(t, err)
	defer signalling.Close()
	media, err := net.ListenUDP("udp4", local)
	require.NoError(t, err)
	defer media.Close()

	dir := t.TempDir()
	account := "<sip:phone@127.0.0.1>;regint=0;mediaenc=dtls_srtp;audio_codecs=PCMU/8000/1\n"
	config := strings.ReplaceAll(baresipConfig, "DIR", dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tone.wav"), silence(time.Minute), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "accounts"), []byte(account), 0o600))
	var log bytes.Buffer
	baresip := exec.Command("baresip", "-4", "-f", dir, "-e",
		"/dial sip:box@"+signalling.LocalAddr().String())
	baresip.Stdout, baresip.Stderr = &log, &log
	require.NoError(t, baresip.Start())
	defer func() {
		_ = baresip.Process.Kill()
		_ = baresip.Wait()
		if t.Failed() {
			t.Logf("baresip said:\n%.4000s", &log)
		}
	}()

	offer, answer := takeInvite(t, signalling)
	certificate := newCertificate(t)
	ours := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"+
		"m=audio %d %s 0\r\na=rtpmap:0 PCMU/8000\r\na=rtcp-mux\r\na=setup:%s\r\na=fingerprint:%s\r\n",
		media.LocalAddr().(*net.UDPAddr).Port, strings.Fields(line(t, offer, "m=audio "))[1], setup,
		certificate.Fingerprint([]dtls.Fingerprint{fingerprintOf(t, offer)}))

	events := make(chan dtls.Event, 2)
	e := dtls.New(dtls.Config{
		Certificate: certificate,
		Send: func(_ dtls.Leg, to netip.AddrPort, d []byte) {
			_, _ = media.WriteToUDPAddrPort(d, to)
		},
		Notify: func(event dtls.Event) { events <- event },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		assert.NoError(t, e.Run(ctx))
	}()
	defer func() {
		cancel()
		<-ended
	}()
	offered, err := dtls.ParseSetup(line(t, offer, "a=setup:"))
	require.NoError(t, err)
	role, err := dtls.Agree(offered, setup, false)
	require.NoError(t, err)
	port, err := strconv.Atoi(strings.Fields(line(t, offer, "m=audio "))[0])
	require.NoError(t, err)
	answer(ours)
	_, _, err = e.Start(boxLeg, dtls.Agreement{
		Role: role, Fingerprints: []dtls.Fingerprint{fingerprintOf(t, offer)},
		Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)),
	})
	require.NoError(t, err)

	var receiver *stream.Receiver
	opened, b, out := 0, make([]byte, 2048), make([]byte, 2048)
	require.NoError(t, media.SetReadDeadline(time.Now().Add(time.Minute)))
	for began := time.Now(); opened < 15; {
		n, from, err := media.ReadFromUDPAddrPort(b)
		require.NoError(t, err, "%d opened; %+v", opened, e.Counters())
		if receiver == nil {
			select {
			case event := <-events:
				require.NoError(t, event.Err)
				_, receive, err := event.Keys.Streams()
				require.NoError(t, err)
				receiver = stream.NewReceiver(receive)
			default:
			}
		}
		switch k := dtls.Sort(b[:n]); {
		case k == dtls.DTLS:
			e.Receive(boxLeg, from, b[:n])
		case k == dtls.Media && receiver != nil && b[1]&0x7f == 0: // PCMU, not RTCP
			packet, err := receiver.Open(out, b[:n], int64(time.Since(began)))
			require.NoError(t, err)
			assert.Len(t, packet, 172)
			opened++
		}
	}
}

// silence is a WAV file of 16 bits and 8 kHz.
func silence(length time.Duration) []byte {
	n := uint32(length.Seconds() * 8000 * 2)
	b := binary.LittleEndian.AppendUint32([]byte("RIFF"), 36+n)
	b = append(b, "WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00"...)
	b = binary.LittleEndian.AppendUint32(b, 8000)
	b = binary.LittleEndian.AppendUint32(b, 16000)
	b = append(b, "\x02\x00\x10\x00data"...)
	return append(binary.LittleEndian.AppendUint32(b, n), make([]byte, n)...)
}

// takeInvite waits for an INVITE, and returns its description, and how to answer it.
func takeInvite(t *testing.T, s *net.UDPConn) (offer string, answer func(string)) {
	b := make([]byte, 65536)
	require.NoError(t, s.SetReadDeadline(time.Now().Add(time.Minute)))
	n, from, err := s.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	head, offer, ok := strings.Cut(string(b[:n]), "\r\n\r\n")
	require.True(t, ok)
	require.True(t, strings.HasPrefix(head, "INVITE "), head)
	return offer, func(body string) {
		reply := "SIP/2.0 200 OK\r\n"
		for l := range strings.SplitSeq(head, "\r\n") {
			switch name, _, _ := strings.Cut(l, ":"); name {
			case "Via", "From", "Call-ID", "CSeq":
				reply += l + "\r\n"
			case "To":
				reply += l + ";tag=box\r\n"
			}
		}
		reply += fmt.Sprintf("Contact: <sip:%s>\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s",
			s.LocalAddr(), len(body), body)
		_, err := s.WriteToUDPAddrPort([]byte(reply), from)
		require.NoError(t, err)
	}
}

// line is what follows the prefix in a description.
func line(t *testing.T, description, prefix string) string {
	for l := range strings.SplitSeq(description, "\r\n") {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return rest
		}
	}
	require.Fail(t, "no line", "%s in\n%s", prefix, description)
	return ""
}

func fingerprintOf(t *testing.T, description string) dtls.Fingerprint {
	f, err := dtls.ParseFingerprint(line(t, description, "a=fingerprint:"))
	require.NoError(t, err)
	return f
}
