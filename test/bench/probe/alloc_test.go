package probe

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// With the collector off nothing would take garbage away, and a run of an hour would end in it.
func TestNothingIsAllocatedForAPacket(t *testing.T) {
	c := Config{Run: 7, TOS: 0xb8, Paths: []Ends{{"127.0.0.1", "127.0.0.1"}},
		Shape: Shape{Streams: 10, Interval: time.Millisecond, Size: 172, Length: 100 * time.Millisecond, Paths: 1}}
	r, err := newReceiver(c)
	require.NoError(t, err)
	defer r.close()
	at, err := unix.Getsockname(r.fd)
	require.NoError(t, err)
	c.Port = at.(*unix.SockaddrInet4).Port
	s, err := newSender(c)
	require.NoError(t, err)
	defer s.close()
	all := s.slots
	perRun := len(all) / 11 // AllocsPerRun calls once more than it counts
	stop := make(chan struct{})
	assert.Zero(t, testing.AllocsPerRun(10, func() {
		s.slots, all = all[:perRun], all[perRun:]
		_ = s.run(0, stop) // the time is past: every packet is due at once
	}), "sending")
	assert.Zero(t, s.unsent, "%v", s.firstError)
	packet, control := make([]byte, 172), make([]byte, controlSize)
	template(packet, 7)
	assert.Zero(t, testing.AllocsPerRun(100, func() { r.note(packet, control) }), "receiving")
	assert.Len(t, r.arrivals, 101)
}

// A receiver has room for twice what is to come; what is beyond is counted and not noted.
func TestArrivalsHaveABound(t *testing.T) {
	r, err := newReceiver(Config{Run: 7, Paths: []Ends{{"127.0.0.1", "127.0.0.1"}},
		Shape: Shape{Streams: 1, Interval: time.Millisecond, Size: 172, Length: 2 * time.Millisecond, Paths: 1}})
	require.NoError(t, err)
	defer r.close()
	packet := make([]byte, 172)
	template(packet, 7)
	for range 10 {
		r.note(packet, nil)
	}
	assert.Len(t, r.arrivals, 4)
	assert.Equal(t, 6, r.tooMany)
	select {
	case <-r.complete:
	default:
		t.Error("as many came as were to come")
	}
}
