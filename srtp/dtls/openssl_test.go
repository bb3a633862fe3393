package dtls_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
	"ringway/srtp/suite"
	"ringway/test/polltest"
)

// OpenSSL is the other end: an implementation that shares no line with ours. It prints the exported keys.

// onLoopback runs an endpoint on a socket of its own.
func onLoopback(t *testing.T, c *dtls.Certificate) (*dtls.Endpoint, netip.AddrPort, <-chan dtls.Event) {
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	events := make(chan dtls.Event, 8)
	e := dtls.New(dtls.Config{
		Certificate: c,
		Send: func(_ dtls.Leg, to netip.AddrPort, datagram []byte) {
			_, _ = socket.WriteToUDPAddrPort(datagram, to) // closed at the end
		},
		Notify: func(event dtls.Event) { events <- event },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() {
		assert.NoError(t, e.Run(ctx))
		done <- struct{}{}
	}()
	go func() {
		b := make([]byte, dtls.MaxDatagram)
		for {
			n, from, err := socket.ReadFromUDPAddrPort(b)
			if err != nil {
				done <- struct{}{}
				return
			}
			e.Receive(boxLeg, from, b[:n])
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = socket.Close()
		<-done
		<-done
	})
	return e, socket.LocalAddr().(*net.UDPAddr).AddrPort(), events
}

// peerCertificate makes one with OpenSSL, and what OpenSSL says its fingerprint is.
func peerCertificate(t *testing.T, kind ...string) (file string, fingerprint string) {
	if testing.Short() {
		t.Skip("needs openssl")
	}
	file = filepath.Join(t.TempDir(), "peer.pem")
	args := append([]string{"req", "-x509", "-nodes", "-subj", "/CN=phone", "-days", "1",
		"-keyout", file, "-out", file + ".crt"}, kind...)
	out, err := exec.Command("openssl", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, err := os.ReadFile(file + ".crt")
	require.NoError(t, err)
	key, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append(text, key...), 0o600))
	out, err = exec.Command("openssl", "x509", "-in", file, "-noout", "-fingerprint", "-sha256").Output()
	require.NoError(t, err)
	_, value, ok := strings.Cut(string(out), "=")
	require.True(t, ok)
	return file, "SHA-256 " + strings.TrimSpace(value)
}

// openssl runs a command of it that lives until the test ends. Its lines come in the channel; bye ends it in peace.
func openssl(t *testing.T, args ...string) (printed <-chan string, bye func()) {
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe() // at the end of its input it says goodbye
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		for range lines {
		}
		_ = cmd.Wait()
	})
	return lines, func() { _ = in.Close() }
}

// find waits for a line with the text, and returns what is behind it.
func find(t *testing.T, lines <-chan string, text string) string {
	t.Helper()
	var all []string
	limit := time.After(time.Minute)
	for {
		select {
		case l, ok := <-lines:
			require.True(t, ok, "no line with %q in:\n%s", text, strings.Join(all, "\n"))
			if _, rest, ok := strings.Cut(l, text); ok {
				return strings.TrimSpace(rest)
			}
			all = append(all, l)
		case <-limit:
			require.Fail(t, "no line", "with %q in:\n%s", text, strings.Join(all, "\n"))
		}
	}
}

// material is what OpenSSL prints for our keys: the client's key, the server's, the client's salt, the server's.
func material(k *dtls.Keys, r dtls.Role) string {
	client, server := k.Send, k.Receive
	if r == dtls.Server {
		client, server = server, client
	}
	var all []byte
	for _, b := range [][]byte{client.Master, server.Master, client.Salt, server.Salt} {
		all = append(all, b...)
	}
	return strings.ToUpper(hex.EncodeToString(all))
}

var opensslNames = map[suite.Suite]string{
	suite.AES128CMHMACSHA180: "SRTP_AES128_CM_SHA1_80",
	suite.AES128CMHMACSHA132: "SRTP_AES128_CM_SHA1_32",
	suite.AEADAES128GCM:      "SRTP_AEAD_AES_128_GCM",
	suite.AEADAES256GCM:      "SRTP_AEAD_AES_256_GCM",
}

func exported(s suite.Suite) []string {
	return []string{"-use_srtp", opensslNames[s], "-keymatexport", "EXTRACTOR-dtls_srtp",
		"-keymatexportlen", fmt.Sprint(2 * (s.KeyLen() + s.SaltLen()))}
}

var kinds = map[string][]string{
	"ecdsa": {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
	"rsa":   {"-newkey", "rsa:2048"},
}

// suitesWith are all with one kind of certificate, and one with the other.
func suitesWith(kind string) []suite.Suite {
	if kind == "rsa" {
		return dtls.Suites()[:1]
	}
	return dtls.Suites()
}

func expectKeys(t *testing.T, events <-chan dtls.Event) *dtls.Keys {
	t.Helper()
	select {
	case e := <-events:
		require.NoError(t, e.Err)
		return e.Keys
	case <-time.After(time.Minute):
		require.Fail(t, "no keys")
	}
	return nil
}

func agreed(t *testing.T, r dtls.Role, fingerprint string, remote netip.AddrPort) dtls.Agreement {
	f, err := dtls.ParseFingerprint(fingerprint)
	require.NoError(t, err)
	return dtls.Agreement{Role: r, Fingerprints: []dtls.Fingerprint{f}, Remote: remote}
}

func TestWithOpenSSLAsClient(t *testing.T) {
	for kind, args := range kinds {
		file, fingerprint := peerCertificate(t, args...)
		for _, s := range suitesWith(kind) {
			t.Run(kind+" "+s.String(), func(t *testing.T) {
				e, address, events := onLoopback(t, newCertificate(t))
				_, _, err := e.Start(boxLeg, agreed(t, dtls.Server, fingerprint, phoneAddress))
				require.NoError(t, err)
				lines, _ := openssl(t, append([]string{"s_client", "-dtls1_2", "-connect", address.String(),
					"-cert", file, "-key", file}, exported(s)...)...)
				keys := expectKeys(t, events)
				assert.Equal(t, s, keys.Suite)
				assert.Equal(t, find(t, lines, "Keying material:"), material(keys, dtls.Server))
			})
		}
	}
}

func TestWithOpenSSLAsServer(t *testing.T) {
	for kind, args := range kinds {
		file, fingerprint := peerCertificate(t, args...)
		for _, s := range suitesWith(kind) {
			t.Run(kind+" "+s.String(), func(t *testing.T) {
				lines, _ := openssl(t, append([]string{"s_server", "-dtls1_2", "-accept", "127.0.0.1:0", "-verify", "1",
					"-cert", file, "-key", file}, exported(s)...)...)
				remote := netip.MustParseAddrPort(find(t, lines, "ACCEPT "))
				e, _, events := onLoopback(t, newCertificate(t))
				_, _, err := e.Start(boxLeg, agreed(t, dtls.Client, fingerprint, remote))
				require.NoError(t, err)
				keys := expectKeys(t, events)
				assert.Equal(t, s, keys.Suite)
				assert.Equal(t, find(t, lines, "Keying material:"), material(keys, dtls.Client))
			})
		}
	}
}

// Our fingerprint is what OpenSSL computes, in each hash.
func TestFingerprintIsOpenSSLs(t *testing.T) {
	if testing.Short() {
		t.Skip("needs openssl")
	}
	text, err := dtls.NewCertificate()
	require.NoError(t, err)
	c, err := dtls.ParseCertificate(text)
	require.NoError(t, err)
	for _, hash := range []string{"sha224", "sha256", "sha384", "sha512"} {
		cmd := exec.Command("openssl", "x509", "-noout", "-fingerprint", "-"+hash)
		cmd.Stdin = strings.NewReader(string(text))
		out, err := cmd.Output()
		require.NoError(t, err)
		_, value, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
		theirs, err := dtls.ParseFingerprint(strings.Replace(hash, "sha", "sha-", 1) + " " + value)
		require.NoError(t, err)
		assert.Equal(t, theirs, c.Fingerprint([]dtls.Fingerprint{theirs}))
		assert.Equal(t, theirs.String(), c.Fingerprint([]dtls.Fingerprint{theirs}).String())
	}
}

// An authenticated goodbye ends the association, once.
func TestGoodbye(t *testing.T) {
	file, fingerprint := peerCertificate(t, kinds["ecdsa"]...)
	e, address, events := onLoopback(t, newCertificate(t))
	a := agreed(t, dtls.Server, fingerprint, phoneAddress)
	number, _, err := e.Start(boxLeg, a)
	require.NoError(t, err)
	lines, bye := openssl(t, append([]string{"s_client", "-dtls1_2", "-connect", address.String(),
		"-cert", file, "-key", file}, exported(suite.AEADAES128GCM)...)...)
	expectKeys(t, events)
	find(t, lines, "Keying material:")
	bye()
	select {
	case event := <-events:
		assert.ErrorIs(t, event.Err, dtls.ErrClosed)
		assert.Equal(t, number, event.Association)
		assert.Nil(t, event.Keys)
	case <-time.After(time.Minute):
		require.Fail(t, "no goodbye")
	}
	again, kept, err := e.Start(boxLeg, a)
	require.NoError(t, err)
	assert.False(t, kept, "a closed association is not kept")
	assert.NotEqual(t, number, again)
}

// A client that has no use_srtp, and one that has no certificate, get no keys.
func TestPeerWithoutWhatIsNeeded(t *testing.T) {
	file, fingerprint := peerCertificate(t, kinds["ecdsa"]...)
	for name, args := range map[string][]string{
		"use_srtp":    {"-cert", file, "-key", file},
		"certificate": {"-use_srtp", "SRTP_AEAD_AES_128_GCM"},
	} {
		t.Run(name, func(t *testing.T) {
			e, address, events := onLoopback(t, newCertificate(t))
			_, _, err := e.Start(boxLeg, agreed(t, dtls.Server, fingerprint, phoneAddress))
			require.NoError(t, err)
			openssl(t, append([]string{"s_client", "-dtls1_2", "-connect", address.String()}, args...)...)
			polltest.Require(t, func() bool { return e.Counters().Rejected == 1 }, time.Minute, 5*time.Millisecond)
			assert.Zero(t, e.Counters().Established)
			assert.Empty(t, events)
		})
	}
}
