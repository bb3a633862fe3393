package wireguardgo

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// The device package queues a thousand batches on the way out, and each packet in them waits as long as those
// before it need. The gate bounds that from outside: a packet is counted in when we hand it to the device,
// and counted out when it comes back to us at the socket.
//
// What the device drops on the way never comes back. So each buffer carries a tag in its tail, beyond any
// packet: a buffer that the device offers us for a new packet while it still has its tag was dropped inside,
// and is counted out then. While the gate is full, nothing new is read, so that no buffer is offered.
// Therefore a full gate lets one batch through after a pause: at once if as many buffers came back as the
// batch before took, and the more rarely the longer nothing comes back. The garbage collector empties the
// pool: a finalizer counts out what goes that way.
//
// Inbound nothing waits for the kernel, so there is no gate: buffers.go bounds the memory, and the tags count
// what the device refuses.

const (
	tagAt     = 65520 // in a buffer of device.MaxMessageSize
	tagEnd    = tagAt + 4
	markAt    = tagEnd // not 0: the buffer has our finalizer
	markEnd   = markAt + 1
	chargeAt  = markEnd // what the packet counts for beside itself (fair.go)
	chargeEnd = chargeAt + 4
	maxPacket = 65000 // of one packet, so that it never reaches the tag

	tagNone    = 0
	tagPeer    = 1 // + slot of the peer: outbound
	tagInbound = 1 << 31

	minPause = time.Millisecond
	maxPause = 64 * time.Millisecond
)

// tag finds the tag of a buffer that the device package allocated; nil for any other memory.
func tag(buf []byte) []byte {
	if cap(buf) < markEnd {
		return nil
	}
	return buf[tagAt:tagEnd:tagEnd]
}

func getTag(buf []byte) uint32 {
	if t := tag(buf); t != nil {
		return binary.NativeEndian.Uint32(t)
	}
	return tagNone
}

func setTag(buf []byte, v uint32) {
	if t := tag(buf); t != nil {
		binary.NativeEndian.PutUint32(t, v)
	}
}

func getCharge(buf []byte) int {
	if cap(buf) < chargeEnd {
		return 0
	}
	return int(binary.NativeEndian.Uint32(buf[chargeAt:chargeEnd:chargeEnd]))
}

func setCharge(buf []byte, n int) {
	if cap(buf) >= chargeEnd {
		binary.NativeEndian.PutUint32(buf[chargeAt:chargeEnd:chargeEnd], uint32(n))
	}
}

// gate counts the outbound packets inside the device.
type gate struct {
	limit   atomic.Int64
	inside  atomic.Int64
	charged atomic.Int64 // what they are charged
	waiting atomic.Int32
	wake    chan struct{}
	closed  <-chan struct{}
	// blocked reports that the packets inside wait for the kernel. Then they are not lost, and a full gate stays
	// closed.
	blocked func() bool
}

func newGate(closed <-chan struct{}, limit int, blocked func() bool) *gate {
	g := &gate{wake: make(chan struct{}, 1), closed: closed, blocked: blocked}
	g.setLimit(limit)
	return g
}

func (g *gate) setLimit(n int) { g.limit.Store(int64(max(n, 1))) }

// enter counts in n packets, and what they are charged.
func (g *gate) enter(n, charged int) {
	g.charged.Add(int64(charged))
	g.inside.Add(int64(n))
}

// leave counts out n packets.
func (g *gate) leave(n, charged int) {
	if n == 0 {
		return
	}
	g.charged.Add(-int64(charged))
	g.inside.Add(-int64(n))
	if g.waiting.Load() > 0 && g.open() {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

func (g *gate) open() bool { return g.inside.Load() < g.limit.Load() }

// turnstile is the TUN reader's place at the gate.
type turnstile struct {
	g     *gate
	timer *time.Timer
	pause time.Duration
	// stuck is called when nothing has come back for maxPause although the kernel would take it.
	stuck func()
}

// pass waits until the gate lets a batch in. It returns false when the engine closes. last is the size of the
// last batch, returned how many dropped packets' buffers the device offers in its place.
func (t *turnstile) pass(last, returned int) bool {
	g := t.g
	if g.open() {
		t.pause = 0
		return true
	}
	if last > 0 && returned >= last {
		t.pause = 0
		return true // what is inside does come back, but not to us: one more batch takes no more memory
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	t.pause = min(max(2*t.pause, minPause), maxPause)
	if t.timer == nil {
		t.timer = time.NewTimer(t.pause)
	} else {
		t.timer.Reset(t.pause)
	}
	defer t.timer.Stop()
	for !g.open() {
		select {
		case <-g.closed:
			return false
		case <-g.wake:
		case <-t.timer.C:
			if g.blocked() {
				t.timer.Reset(t.pause)
				continue
			}
			if t.pause == maxPause {
				t.stuck()
			}
			return true
		}
	}
	t.pause = 0
	return true
}
