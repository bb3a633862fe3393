package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// wires is a pair of connected ends.
func wires(t *testing.T) (a, b *wire) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var out [2]*wire
	for i, fd := range pair {
		c, err := asConn(fd)
		require.NoError(t, err)
		out[i], err = newWire(c, true)
		require.NoError(t, err)
		t.Cleanup(func() { out[i].close() })
	}
	return out[0], out[1]
}

func TestALongMessageArrivesWholeWithItsDescriptors(t *testing.T) {
	a, b := wires(t)
	text := strings.Repeat("public_key=0123\n", 100_000) // a hub's
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	sent := make(chan error, 1)
	go func() { sent <- a.write(message{Type: typeSet, Text: text}, []int{int(null.Fd())}, time.Minute) }()
	m, files, from, err := b.read()
	require.NoError(t, err)
	require.NoError(t, <-sent)
	defer closeFDs(files...)
	assert.Equal(t, text, m.Text)
	assert.Equal(t, ProtocolMajor, m.Version)
	assert.Equal(t, os.Getpid(), from.PID, "by the kernel's word")
	require.Len(t, files, 1)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(files[0], &st))
	assert.EqualValues(t, unix.Mkdev(1, 3), st.Rdev)
}

func TestAPeerThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	a, _ := wires(t)
	err := a.write(message{Type: typeSet, Text: strings.Repeat("x", 4<<20)}, nil, 50*time.Millisecond)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestAnEndlessMessageIsRefused(t *testing.T) {
	var a assembler
	packet := append([]byte{'+'}, make([]byte, frameSize)...)
	for {
		if _, _, err := a.add(packet); err != nil {
			assert.ErrorIs(t, err, errTooLong)
			break
		}
		require.LessOrEqual(t, a.buf.Len(), maxMessage)
	}
}

// The three requests that let any daemon replace any plane never change their form.
func TestTheFrozenRequestsKeepTheirForm(t *testing.T) {
	for typ, want := range map[string]string{
		typeHello: `{"v":1,"type":"hello","id":7}`, typeFiles: `{"v":1,"type":"fds","id":7}`, typeQuit: `{"v":1,"type":"quit","id":7}`,
	} {
		b, err := json.Marshal(message{Version: 1, Type: typ, ID: 7})
		require.NoError(t, err)
		assert.Equal(t, want, string(b))
	}
	m, err := decodeMessage([]byte(`{"v":3,"type":"hello","id":7,"hello":{"major":3,"minor":9,"class":"voice","pid":12,"running":true,"interface":"rw-voice","news":[1]},"more":{}}`))
	require.NoError(t, err, "fields of a newer plane are ignored")
	assert.Equal(t, 3, m.Hello.Major)
	assert.Equal(t, tunnel.Voice, m.Hello.Class)
}

// A plane of another major version, played by this test, with real descriptors.
func TestAnIncompatiblePlaneIsReplacedOnItsDevices(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, letGo := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	pid := status(t, s).PlanePID
	letGo()
	link := b.ns.Run("ip", "-o", "link", "show", "rw-data")

	s, _ = b.supervise(b.config(tunnel.Data))
	s.op.Lock()
	s.speaks = ProtocolMajor + 1 // this daemon is the newer one
	s.op.Unlock()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.NotEqual(t, pid, s.current().proc.pid)
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
	assert.Equal(t, link, b.ns.Run("ip", "-o", "link", "show", "rw-data"), "the device was kept")
	assert.Contains(t, b.log.String(), "does not fit")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`.{"v":1,"type":"hello","id":1,"watch":true}`))
	f.Add([]byte(`.{"v":1,"type":"start","start":{"engine":"fake","mtu":1420,"text":"private_key=00\n"}}`))
	f.Add([]byte(`.{"v":1,"type":"handshake","keys":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`))
	f.Add([]byte(`+{"v":1`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		var a assembler
		whole, done, err := a.add(p)
		if err != nil || !done {
			return
		}
		m, err := decodeMessage(whole)
		if err != nil {
			return
		}
		s := &server{wires: map[*wire]bool{}, quit: make(chan struct{})}
		s.log = newPushLog(s)
		answer, files := s.handle(&wire{}, m) // without an engine: every answer, no panic
		assert.Empty(t, files)
		_, err = json.Marshal(answer)
		require.NoError(t, err)
	})
}

func FuzzControl(f *testing.F) {
	f.Add(unix.UnixRights(9999))
	f.Add(bytes.Repeat([]byte{0}, 16))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if bytes.Contains(oob, []byte{1, 0, 0, 0, 1, 0, 0, 0}) {
			return // would name descriptors of this process, and close them
		}
		_, _, _ = parseControl(oob)
	})
}
