package realtime

import (
	"sync/atomic"
	"time"

	"ringway/tunnel/path"
)

// laterRing keeps the ciphertext of copies that are sent by the path that is used, path.CopyDelay after what they are
// copies of: a burst of loss is over by then. The outbound thread writes and reads it; no other does more than ask
// whether something waits, and has the thread woken: every path.LookEvery while there are calls, so a copy is sent 20
// to 30 ms after the packet. It is bounded, and made when it is first needed.
type laterRing struct {
	packets    [laterRingSize]laterPacket
	head, tail atomic.Uint64
}

const (
	laterRingSize = 512  // of more than 200 calls in 40 ms; 800 kB
	laterSize     = 1536 // bytes of ciphertext: media is shorter
	// laterAtMost is how old a copy may be: later it is of no use to a phone.
	laterAtMost = 5 * path.CopyDelay
)

type laterPacket struct {
	peer *peer
	at   int64
	tos  uint8
	n    int
	b    [laterSize]byte
}

// waiting reports whether something is in the ring, which may be nil.
func (r *laterRing) waiting() bool { return r != nil && r.head.Load() != r.tail.Load() }

// makeLater makes the ring. It is for the control side.
func (o *outbound) makeLater() {
	if o.later.Load() == nil {
		o.later.Store(new(laterRing))
	}
}

// keepForLater keeps a copy of a packet.
func (o *outbound) keepForLater(p *outPacket, now int64) {
	r := o.later.Load()
	if r == nil || len(p.wire) > laterSize || r.tail.Load()-r.head.Load() == laterRingSize {
		p.peer.copies.unsent.Add(1)
		return
	}
	t := r.tail.Load()
	k := &r.packets[t%laterRingSize]
	k.peer, k.at, k.tos, k.n = p.peer, now, p.tos, copy(k.b[:], p.wire)
	r.tail.Store(t + 1)
}

// sendLater sends the copies that are due.
func (o *outbound) sendLater(now int64) {
	r := o.later.Load()
	for o.takeDue(r, now) {
		n := uint64(o.n)
		o.sendDue(now)
		r.release(n)
	}
}

// takeDue makes a batch of copies that are due, from the head of the ring, where they stay until they are sent. It
// reports whether there are any, one that is dropped included.
func (o *outbound) takeDue(r *laterRing, now int64) bool {
	o.n = 0
	head, tail := r.head.Load(), r.tail.Load()
	for i := head; i < tail && o.n < outBatch; i++ {
		k := &r.packets[i%laterRingSize]
		if time.Duration(now-k.at) < path.CopyDelay {
			break
		}
		to := k.peer.endpoint.Load()
		if to == nil || k.peer.gone.Load() || time.Duration(now-k.at) > laterAtMost {
			if o.n > 0 { // what is in the batch is released first
				break
			}
			k.peer.copies.unsent.Add(1)
			r.release(1)
			continue
		}
		o.packets[o.n] = outPacket{peer: k.peer, to: to, wire: k.b[:k.n], tos: k.tos, copied: copiedLater}
		o.n++
	}
	return o.n > 0
}

func (o *outbound) sendDue(now int64) {
	o.sendBatch(now)
	o.n = 0
}

// release gives up the n oldest packets.
func (r *laterRing) release(n uint64) {
	h := r.head.Load()
	for i := h; i < h+n; i++ {
		r.packets[i%laterRingSize].peer = nil
	}
	r.head.Store(h + n)
}
