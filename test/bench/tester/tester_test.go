package tester

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTrialIsHeldToItsRange(t *testing.T) {
	good := Trial{Sizes: []int{MinSize, MaxSize}, Rate: 1000, Length: 1500 * time.Millisecond}
	require.NoError(t, good.Check())
	assert.Equal(t, 1500, good.Packets())
	for want, change := range map[string]func(*Trial){
		"a trial without a packet size":                       func(t *Trial) { t.Sizes = nil },
		"packets of 43 bytes (allowed: 44-1500)":              func(t *Trial) { t.Sizes[1] = 43 },
		"packets of 1501 bytes (allowed: 44-1500)":            func(t *Trial) { t.Sizes[1] = 1501 },
		"0 packets a second (allowed: 1-5000000)":             func(t *Trial) { t.Rate = 0 },
		"6000000 packets a second (allowed: 1-5000000)":       func(t *Trial) { t.Rate = 6e6 },
		"0 packets in a trial (allowed: 1-268435456)":         func(t *Trial) { t.Length = time.Microsecond },
		"300000000 packets in a trial (allowed: 1-268435456)": func(t *Trial) { t.Rate, t.Length = 3e6, 100*time.Second },
	} {
		bad := good
		bad.Sizes = append([]int(nil), good.Sizes...)
		change(&bad)
		assert.EqualError(t, bad.Check(), want)
	}
}

// Each packet counts once, and only where it belongs.
func TestReceiverKeepsItsBooks(t *testing.T) {
	r := &receiver{trial: 7, seen: make([]uint64, 2)}
	packet := func(trial uint32, number uint64) []byte {
		b := make([]byte, headerSize)
		putHeader(b, trial, number)
		return b
	}
	for _, n := range []uint64{0, 127, 3, 3, 0} {
		r.note(packet(7, n))
	}
	r.note(packet(6, 1))                 // an earlier trial's straggler
	r.note(packet(7, 128))               // more than there are
	r.note(packet(7, 1<<63))             // and far more
	r.note([]byte("hello"))              // short
	r.note(make([]byte, 4*len("hello"))) // no magic
	assert.Equal(t, Received{Packets: 3, Duplicates: 2, Strangers: 5}, r.count)
}

func TestOverflowIsReadFromTheControlMessage(t *testing.T) {
	var b [unix.SizeofCmsghdr + 8]byte
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SO_RXQ_OVFL
	h.SetLen(unix.SizeofCmsghdr + 4)
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr:], 42)
	assert.EqualValues(t, 42, dropped(b[:]))
	assert.Zero(t, dropped(b[:unix.SizeofCmsghdr]))
	h.Type = unix.SO_TIMESTAMPNS
	assert.Zero(t, dropped(b[:]))
}

func TestMainSaysWhoStartsIt(t *testing.T) {
	err := Main(strings.NewReader(""), io.Discard)
	assert.ErrorContains(t, err, "only `ringway bench` starts the tester")
	err = Main(strings.NewReader("{\n"), io.Discard)
	assert.ErrorContains(t, err, "read the tester's configuration")
	err = Main(strings.NewReader(`{"local":"fd00::1","remote":"here"}`+"\n"), io.Discard)
	assert.EqualError(t, err, `open the sending socket: ParseAddr("here"): unable to parse IP`)
}

// A packet is as long as the trial says with the headers of its family, and one that would have no room for
// the tester's own is refused.
func TestSizesAreOfWholePackets(t *testing.T) {
	for _, c := range []struct {
		at             string
		headers, least int
	}{{"127.0.0.1", 28, 44}, {"::1", 48, 64}} {
		l, err := net.ListenPacket("udp", net.JoinHostPort(c.at, "0"))
		require.NoError(t, err)
		defer l.Close()
		s, err := newSender(Config{Local: c.at, Remote: c.at, Port: l.LocalAddr().(*net.UDPAddr).Port, Load: true})
		require.NoError(t, err)
		defer s.close()
		_, err = s.do(request{Trial: Trial{Sizes: []int{c.least - 1}, Rate: 100, Length: 10 * time.Millisecond}})
		require.EqualError(t, err, fmt.Sprintf("packets of %d bytes (allowed: %d-1500)", c.least-1, c.least))
		a, err := s.do(request{Trial: Trial{Sizes: []int{200}, Rate: 100, Length: 10 * time.Millisecond}})
		require.NoError(t, err)
		assert.Equal(t, 1, a.Sent.Packets, a.Sent.Error)
		require.NoError(t, l.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, _, err := l.ReadFrom(make([]byte, 2000))
		require.NoError(t, err)
		assert.Equal(t, 200-c.headers, n, c.at)
	}
}
