package wireguardgo

import (
	"errors"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// readFair is Read with flow queues. Each step either returns packets for the device, or says what to do next.
func (t *tunDevice) readFair(bufs [][]byte, sizes []int, offset, last, returned int) (int, error) {
	f := t.fair
	passed := false
	pass := func() bool { // once, as in Read
		passed = passed || t.place.pass(last, returned)
		return passed
	}

	for f.ready() {
		if f.hub.isClosed() {
			return 0, os.ErrClosed
		}
		if !f.now.on { // no longer: what waits goes first
			if !pass() {
				return 0, os.ErrClosed
			}
			f.queue.Unpark(f.sites.full)
			if n := t.release(bufs, sizes, offset, math.MaxInt); n > 0 {
				return n, nil
			}
			continue
		}

		space := f.space()
		now := f.clock()
		early := f.pace.Early(now)
		if f.queue.Len() == 0 && space >= 0 && early <= 0 && !f.sites.some() {
			// Only the device may be busy, not the WAN: then waiting for it costs no more than without flow queues.
			if !pass() {
				return 0, os.ErrClosed
			}
			if n, err := t.readThrough(bufs, sizes, offset); n > 0 || err != nil {
				return n, err
			}
			continue
		}

		if err := t.fillQueues(bufs, sizes, offset); err != nil {
			return 0, err
		}
		f.waited = f.waited || f.queue.Ready() && f.pace.Busy(now)
		if early > 0 && space >= 0 {
			t.readable(early)
			continue
		}
		if space >= 0 && f.gate.open() && f.queue.Ready() {
			if n := t.release(bufs, sizes, offset, space); n > 0 {
				f.pause = 0
				return n, nil
			}
			continue // all of it was dropped
		}

		n, err := t.awaitSpace(bufs, sizes, offset)
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// readThrough reads the TUN straight into the device's buffers, past the empty flow queues. 0: nothing was
// read that the device may have.
func (t *tunDevice) readThrough(bufs [][]byte, sizes []int, offset int) (int, error) {
	f := t.fair
	if f.queue.Active() > 0 { // all flows have been served
		f.queue.Pop(0, nil)
		f.publish()
	}
	f.waited = false

	n, err := t.take(bufs, sizes, offset)
	if err != nil || t.admit(bufs[:n], sizes, offset) == 0 {
		return 0, err
	}
	t.last = n
	return n, nil
}

// fillQueues moves what the TUN has to the flow queues, without waiting.
func (t *tunDevice) fillQueues(bufs [][]byte, sizes []int, offset int) error {
	for range maxReads {
		if !t.readable(0) {
			break
		}
		if err := t.enqueue(bufs, sizes, offset); err != nil {
			return err
		}
	}
	t.fair.publish()
	return nil
}

// release returns what the flow queues choose, to be given to the device.
func (t *tunDevice) release(bufs [][]byte, sizes []int, offset, space int) int {
	n := t.dequeue(bufs, sizes, offset, space)
	t.fair.publish()
	if n > 0 {
		t.last = n
	}
	return n
}

// awaitSpace waits for the TUN or for space. If neither comes for long, it returns one packet all the same,
// as the gate does.
func (t *tunDevice) awaitSpace(bufs [][]byte, sizes []int, offset int) (int, error) {
	over, err := t.await(bufs, sizes, offset)
	if err != nil || !over {
		return 0, err
	}
	n := t.dequeue(bufs[:1], sizes, offset, 0)
	if n > 0 {
		t.last = n
	}
	return n, nil
}

// take waits for packets of the TUN and reads them. It reads none if it was woken.
func (t *tunDevice) take(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.native.Read(bufs, sizes, offset)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = t.native.File().SetReadDeadline(time.Time{})
		return 0, nil
	}
	return t.took(n, err)
}

// readable reports whether the TUN has a packet, and waits so long for one. It cannot be woken, but it is exact
// where Go's timers have milliseconds.
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

// await waits until the TUN has a packet, which goes to the flow queues, or there is space. over: neither came
// for so long that what is inside the device may have been lost there.
func (t *tunDevice) await(bufs [][]byte, sizes []int, offset int) (over bool, err error) {
	f, g := t.fair, t.fair.gate
	limit := f.limit.Now()
	// Far from the limit not for each packet.
	f.wakeBelow.Store(int64(limit - min(limit/4, limit-min(limit, 8*chargeFull))))
	f.pause = min(max(2*f.pause, minPause), maxPause)
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
	if f.pause == maxPause {
		t.place.stuck()
	}
	return true, nil
}
