package wireguardgo

import (
	"errors"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// readFair is Read with flow queues.
func (t *tunDevice) readFair(bufs [][]byte, sizes []int, offset, last, returned int) (int, error) {
	f := t.fair
	passed := false
	pass := func() bool { // once, as in Read
		passed = passed || t.place.pass(last, returned)
		return passed
	}
	for f.ready() {
		select {
		case <-f.hub.closed:
			return 0, os.ErrClosed
		default:
		}
		if !f.now.on { // not any more: what waits goes first
			if !pass() {
				return 0, os.ErrClosed
			}
			f.queue.Unpark(f.sites.full)
			n := t.dequeue(bufs, sizes, offset, math.MaxInt)
			f.note()
			if n > 0 {
				t.last = n
				return n, nil
			}
			continue
		}
		space := f.space()
		now := f.clock()
		early := f.pace.Early(now)
		if f.queue.Len() == 0 && space >= 0 && early <= 0 && !f.sites.some() {
			if f.queue.Active() > 0 { // nobody is behind any more
				f.queue.Pop(0, nil)
				f.note()
			}
			f.waited = false
			// Only the device may be busy, not the WAN: then it is waited for as ever, and costs no more than ever.
			if !pass() {
				return 0, os.ErrClosed
			}
			n, err := t.take(bufs, sizes, offset)
			if err != nil {
				return 0, err
			}
			if t.admit(bufs[:n], sizes, offset) > 0 {
				t.last = n
				return n, nil
			}
			continue
		}
		for range takeMost {
			if !t.readable(0) {
				break
			}
			if err := t.enqueue(bufs, sizes, offset); err != nil {
				return 0, err
			}
		}
		f.note()
		f.waited = f.waited || f.queue.Ready() && f.pace.Busy(now)
		if early > 0 && space >= 0 {
			t.readable(early)
			continue
		}
		if space >= 0 && f.gate.open() && f.queue.Ready() {
			n := t.dequeue(bufs, sizes, offset, space)
			f.note()
			if n > 0 {
				f.pause = 0
				t.last = n
				return n, nil
			}
			continue // all of it went nowhere
		}
		over, err := t.await(bufs, sizes, offset)
		if err != nil {
			return 0, err
		}
		if over { // nothing came back for long: as at the gate, one goes through all the same
			if n := t.dequeue(bufs[:1], sizes, offset, 0); n > 0 {
				t.last = n
				return n, nil
			}
		}
	}
	return 0, nil
}

// take reads packets from the TUN, and waits for them; none when it was woken.
func (t *tunDevice) take(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.native.Read(bufs, sizes, offset)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = t.native.File().SetReadDeadline(time.Time{})
		return 0, nil
	}
	return t.took(n, err)
}

// readable says whether the TUN has a packet, and waits that long for one. It cannot be woken, but is exact where Go's timers have milliseconds.
func (t *tunDevice) readable(wait time.Duration) bool {
	p := [1]unix.PollFd{{Fd: int32(t.poll), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(wait))
	n, _ := unix.Ppoll(p[:], &ts, nil)
	return n > 0
}

// enqueue moves what the TUN has to the flow queues, and waits for it.
func (t *tunDevice) enqueue(bufs [][]byte, sizes []int, offset int) error {
	n, err := t.take(bufs, sizes, offset)
	if err != nil {
		return err
	}
	table, now := t.hub.peers.now.Load(), t.fair.clock()
	for i, b := range bufs[:n] {
		p := b[offset:][:sizes[i]]
		if len(p) > maxPacket {
			t.hub.drops.add(dropOversized, 1)
			continue
		}
		dst, ok := destination(p)
		if !ok {
			continue
		}
		to := table.lookup(dst)
		if to == nil {
			t.hub.drops.add(dropNoSite, 1)
			continue
		}
		t.fair.queue.Push(now, p, to.slot)
	}
	return nil
}

// dequeue gives the device what the flow queues choose, until space is used, and a packet more.
func (t *tunDevice) dequeue(bufs [][]byte, sizes []int, offset, space int) (n int) {
	f := t.fair
	now := f.clock()
	for n < len(bufs) && space >= 0 {
		sizes[n] = f.queue.PopWhere(now, bufs[n][offset:], f.sites.full)
		if sizes[n] == 0 {
			break
		}
		if t.admit(bufs[n:n+1], sizes[n:n+1], offset) == 0 {
			continue
		}
		space -= getCharge(bufs[n])
		n++
		if !f.gate.open() {
			break
		}
	}
	if n > 0 {
		f.waited = false
	}
	return n
}

// await waits until the TUN has a packet, which goes to the flow queues, or there is room. over: neither came for so long that
// what is inside the device may have been lost there.
func (t *tunDevice) await(bufs [][]byte, sizes []int, offset int) (over bool, err error) {
	f, g := t.fair, t.fair.gate
	limit := f.limit.Now()
	f.room.Store(int64(limit - min(limit/4, limit-min(limit, 8*chargeFull)))) // far from the limit not for each packet
	f.pause = min(max(2*f.pause, pauseMin), pauseMax)
	_ = t.native.File().SetReadDeadline(time.Now().Add(f.pause))
	f.sites.needed.Store(!f.queue.Ready() && (f.queue.Len() > 0 || f.sites.some()))
	f.waiting.Store(true)
	defer func() {
		f.waiting.Store(false)
		_ = t.native.File().SetReadDeadline(time.Time{})
	}()
	f.sites.drain(true)
	if f.free() {
		return false, nil
	}
	for i := range f.kicks {
		if f.kicks[i] != nil {
			select {
			case f.kicks[i] <- struct{}{}:
			default:
			}
		}
	}
	packets := f.queue.Len()
	if err := t.enqueue(bufs, sizes, offset); err != nil {
		return false, err
	}
	if f.queue.Len() != packets || !f.waiting.Load() {
		f.pause = 0
		return false, nil
	}
	// Neither. What waits for the kernel is not lost.
	if g.open() || g.blocked() || f.allUnderWay() > int(g.charged.Load()) {
		return false, nil
	}
	if f.pause == pauseMax {
		t.place.stuck()
	}
	return true, nil
}
