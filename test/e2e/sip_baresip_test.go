package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/cmplx"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// ways are how phones and PBXs speak with each other. A lab whose phones have IPv4 has IPv6 for them as well.
var ways = []struct {
	transport string
	family    lab.Family
}{{"udp", lab.IPv4}, {"tcp", lab.IPv4}, {"udp", lab.IPv6}, {"tcp", lab.IPv6}}

// sipHost is a host of the lab as SIP names it.
func sipHost(name string, f lab.Family) string {
	if f == lab.IPv6 {
		return "[" + lab.AddressOf(name, f) + "]"
	}
	return lab.AddressOf(name, f)
}

// Calls from one baresip to another through both boxes, over UDP and over TCP, over IPv4 and over IPv6: what one phone
// plays is in what the other one records, in both directions, and nothing is left behind.
func TestBaresip(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	for _, way := range ways {
		t.Run(way.transport+" "+string(way.family), func(t *testing.T) {
			atA, atB := "phone-a@"+sipHost(lab.PhoneA, way.family), "phone-b@"+sipHost(lab.PhoneB, way.family)
			account := func(name string) string {
				return "<sip:" + name + ";transport=" + way.transport + ">;regint=0;answermode=auto"
			}
			a := startBaresip(t, l.Host(lab.PhoneA), account(atA), 440)
			b := startBaresip(t, l.Host(lab.PhoneB), account(atB), 1000)
			ears := hearing(t, l)
			a.do("dial", "sip:"+atB+";transport="+way.transport)
			a.wait("CALL_ESTABLISHED")
			ears.until(40)
			for _, side := range []string{"a", "b"} {
				list := callsOf(t, l.Edge(side))
				require.Len(t, list, 1, "edge-%s", side)
				assert.Equal(t, []string{"phone-a", "phone-b", "confirmed"},
					[]string{list[0].From, list[0].To, list[0].State})
				assert.Equal(t, [2]string{lab.AddressOf(lab.PhoneA, way.family), lab.AddressOf(lab.PhoneB, way.family)},
					list[0].Hops)
				holesSettle(t, l.Edge(side), 4)
			}
			a.do("hangup", "")
			a.wait("CALL_CLOSED")
			b.wait("CALL_CLOSED")
			noHoles(t, l)
			ears.unharmed()
			a.hears(1000)
			b.hears(440)
			for _, side := range []string{"a", "b"} {
				assert.Zero(t, callsStatus(t, l.Edge(side)).Refused, "edge-%s", side)
			}
		})
	}
}

// baresipPorts are where baresip's media comes from and goes to; those of SIPp are not heard by the phones' kernels.
var baresipPorts = capture.Ports{Low: 30000, High: 30100}

// baresip is one that runs on a phone, led over its control connection (ctrl_tcp).
type baresip struct {
	t      *testing.T
	name   string
	dir    string // of its recordings, as the test reaches it
	ctrl   net.Conn
	events chan baresipEvent
	came   []baresipEvent // and was not waited for yet
}

// baresipEvent is what ctrl_tcp sends: an event, or the response to a command.
type baresipEvent struct {
	Event    bool   `json:"event"`
	Type     string `json:"type"`
	Param    string `json:"param"`
	Response bool   `json:"response"`
	OK       bool   `json:"ok"`
	Data     string `json:"data"`
}

const (
	baresipControl = 4444
	baresipRate    = 8000 // samples a second, of the files and of G.711
	baresipConfig  = `poll_method epoll
sip_listen ADDRESS:5060
call_local_timeout 120
call_max_calls 4
audio_path /nonexistent
audio_source aufile,DIR/tone.wav
audio_player aubridge,ADDRESS
audio_alert aubridge,alert
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
audio_buffer 20-160
rtp_tos 184
rtp_ports 30000-30100
rtcp_mux no
jitter_buffer_delay 5-10
snd_path DIR
ctrl_tcp_listen 127.0.0.1:4444
module_path /usr/lib/baresip/modules
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module_tmp uuid.so
module_tmp account.so
module_app menu.so
module_app ctrl_tcp.so
`
)

// startBaresip starts one on a phone, with one account, that plays a tone of so many Hz; the test ends it. It uses the
// family of the account's address. more are lines of its config.
func startBaresip(t *testing.T, h *lab.Host, account string, frequency float64, more ...string) *baresip {
	t.Helper()
	family, only := lab.IPv4, "-4"
	if strings.Contains(account, "[") {
		family, only = lab.IPv6, "-6"
	}
	inside := lab.MachineDir + "/baresip-" + strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	b := &baresip{t: t, name: h.Name, dir: h.Path(inside), events: make(chan baresipEvent, 64)}
	require.NoError(t, os.MkdirAll(b.dir, 0o755))
	config := strings.NewReplacer("ADDRESS", sipHost(h.Name, family), "DIR", inside).Replace(baresipConfig)
	config = strings.Join(append(more, config), "\n") // of two lines with one key the first counts
	for name, text := range map[string][]byte{
		"config": []byte(config), "accounts": []byte(account + "\n"), "tone.wav": tone(frequency),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(b.dir, name), text, 0o644))
	}
	p, err := h.Spawn("baresip", h.Command("baresip", only, "-f", inside))
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(p.Log)
			t.Logf("baresip on %s said:\n%s\nand %v", h.Name, text, b.came)
		}
		p.Signal(unix.SIGKILL)
		<-p.Ended
	})
	require.NoError(t, h.WaitTCP(within(t, 10*time.Second), baresipControl))
	require.NoError(t, h.Do(func() (err error) {
		b.ctrl, err = net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(baresipControl))
		return err
	}))
	t.Cleanup(func() { b.ctrl.Close() })
	go b.read()
	return b
}

// read takes the netstrings of ctrl_tcp.
func (b *baresip) read() {
	defer close(b.events)
	r := bufio.NewReader(b.ctrl)
	for {
		length, err := r.ReadString(':')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
		if err != nil {
			return
		}
		var e baresipEvent
		text := make([]byte, n+1) // with the comma
		for at := 0; at < len(text); {
			k, err := r.Read(text[at:])
			if err != nil {
				return
			}
			at += k
		}
		if json.Unmarshal(text[:n], &e) == nil {
			b.events <- e
		}
	}
}

// do sends a command and waits for its response.
func (b *baresip) do(command, params string) {
	b.t.Helper()
	text, err := json.Marshal(map[string]string{"command": command, "params": params})
	require.NoError(b.t, err)
	_, err = fmt.Fprintf(b.ctrl, "%d:%s,", len(text), text)
	require.NoError(b.t, err)
	e := b.next("the response to "+command, func(e baresipEvent) bool { return e.Response })
	require.True(b.t, e.OK, "%s: %s %s: %s", b.name, command, params, e.Data)
}

// wait waits for an event.
func (b *baresip) wait(kind string) {
	b.t.Helper()
	b.next(kind, func(e baresipEvent) bool { return e.Event && e.Type == kind })
}

// next waits for what comes and has not been waited for yet.
func (b *baresip) next(what string, good func(baresipEvent) bool) baresipEvent {
	b.t.Helper()
	if i := slices.IndexFunc(b.came, good); i >= 0 {
		e := b.came[i]
		b.came = slices.Delete(b.came, i, i+1)
		return e
	}
	limit := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-b.events:
			require.True(b.t, ok, "%s: baresip closed its control connection before %s", b.name, what)
			if good(e) {
				return e
			}
			b.came = append(b.came, e)
		case <-limit:
			require.Fail(b.t, "baresip: no "+what, "%s; but %v", b.name, b.came)
		}
	}
}

// hears demands that what was recorded of the far end in the latest call is its tone: the frequency has most of the
// power.
func (b *baresip) hears(frequency float64) {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir, "dump-*-dec.wav"))
	require.NoError(b.t, err)
	require.Len(b.t, files, 1, "recordings of %s", b.name)
	samples := samplesOf(b.t, files[0])
	require.NoError(b.t, os.Remove(files[0])) // the next one may get the same name, which has the second
	// from the middle, which is neither the beginning of the call nor its end
	require.Greater(b.t, len(samples), baresipRate/4, "%s recorded too little", b.name)
	middle := samples[len(samples)/2-baresipRate/16:][:baresipRate/8]
	part := powerAt(middle, frequency)
	assert.Greater(b.t, part, 0.8, "%s: the part of %v Hz in what it heard", b.name, frequency)
	assert.Less(b.t, powerAt(middle, frequency*1.37), 0.05, "%s: of another frequency", b.name)
	b.t.Logf("%s heard %d samples, %.3f of their power at %v Hz", b.name, len(samples), part, frequency)
}

// powerAt is the part of the samples' power that is at a frequency (Goertzel).
func powerAt(samples []float64, frequency float64) float64 {
	w := 2 * math.Pi * frequency / baresipRate
	var s1, s2, power float64
	for _, x := range samples {
		s1, s2 = x+2*math.Cos(w)*s1-s2, s1
		power += x * x
	}
	if power == 0 {
		return 0
	}
	amplitude := cmplx.Abs(complex(s1, 0) - cmplx.Exp(complex(0, -w))*complex(s2, 0))
	return 2 * amplitude * amplitude / (float64(len(samples)) * power)
}

const wavHeader = 44

// tone is a WAV file with half a minute of a tone: the longest call here.
func tone(frequency float64) []byte {
	const n = 30 * baresipRate
	out := wavHead(2 * n)
	for i := range n {
		x := int16(12000 * math.Sin(2*math.Pi*frequency*float64(i)/baresipRate))
		out = binary.LittleEndian.AppendUint16(out, uint16(x))
	}
	return out
}

// wavHead is the head of a WAV file with so many bytes of samples.
func wavHead(bytes int) []byte {
	le := binary.LittleEndian
	out := append(le.AppendUint32([]byte("RIFF"), uint32(wavHeader-8+bytes)), "WAVEfmt "...)
	out = le.AppendUint32(out, 16)
	for _, v := range []uint16{1, 1} { // PCM, one channel
		out = le.AppendUint16(out, v)
	}
	out = le.AppendUint32(le.AppendUint32(out, baresipRate), 2*baresipRate)
	out = le.AppendUint16(le.AppendUint16(out, 2), 16)
	return le.AppendUint32(append(out, "data"...), uint32(bytes))
}

// samplesOf reads a WAV file of 16-bit samples.
func samplesOf(t *testing.T, path string) (all []float64) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Greater(t, len(b), wavHeader)
	for at := wavHeader; at+1 < len(b); at += 2 {
		all = append(all, float64(int16(binary.LittleEndian.Uint16(b[at:]))))
	}
	return all
}
