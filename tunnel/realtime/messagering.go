package realtime

import (
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

// messageRing carries handshake messages from the inbound thread to the control side: one writer, one reader,
// no lock, no allocation.
type messageRing struct {
	messages [ringSize]message
	head     atomic.Uint64 // next to read
	tail     atomic.Uint64 // next to write
}

const ringSize = 256

// put is for the inbound thread. It returns false if the ring is full.
func (r *messageRing) put(p []byte, from *datagram.Sockaddr, src netip.Addr) bool {
	t := r.tail.Load()
	if t-r.head.Load() == ringSize {
		return false
	}
	m := &r.messages[t%ringSize]
	m.n, m.from, m.src = copy(m.b[:], p), *from, src
	r.tail.Store(t + 1)
	return true
}

// get is for the control side. It returns false if the ring is empty.
func (r *messageRing) get(m *message) bool {
	h := r.head.Load()
	if h == r.tail.Load() {
		return false
	}
	*m = r.messages[h%ringSize]
	r.head.Store(h + 1)
	return true
}

func (r *messageRing) len() int { return int(r.tail.Load() - r.head.Load()) }
