package realtime

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"ringway/tunnel/datagram"
)

// message is a handshake message on its way to the control side.
type message struct {
	n    int
	b    [initiationSize]byte
	from datagram.Sockaddr
	src  netip.Addr // our address
}

// ring carries handshake messages from the inbound thread to the control side: one writer, one reader, no lock, no memory.
type ring struct {
	slots [ringSize]message
	head  atomic.Uint64 // next to read
	tail  atomic.Uint64 // next to write
}

const ringSize = 256

// put is for the inbound thread. False: it is full.
func (r *ring) put(p []byte, from *datagram.Sockaddr, src netip.Addr) bool {
	t := r.tail.Load()
	if t-r.head.Load() == ringSize {
		return false
	}
	m := &r.slots[t%ringSize]
	m.n, m.from, m.src = copy(m.b[:], p), *from, src
	r.tail.Store(t + 1)
	return true
}

// get is for the control side.
func (r *ring) get(m *message) bool {
	h := r.head.Load()
	if h == r.tail.Load() {
		return false
	}
	*m = r.slots[h%ringSize]
	r.head.Store(h + 1)
	return true
}

func (r *ring) waiting() int { return int(r.tail.Load() - r.head.Load()) }

// seed keeps strangers from choosing whose place they share.
func (s *sources) seed() {
	var b [8]byte
	_, _ = rand.Read(b[:])
	s.key = binary.LittleEndian.Uint64(b[:])
}
