package wireguardgo

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/flowqueue"
)

// Flow queues in front of the device, where flows can still be told apart. On a WAN that is shaped (tunnel.Bounds.FlowPackets) the
// device's one reader does all of it, in readFair:
//  1. while nothing waits and there is room behind: read the TUN straight into the device's buffers, as without flow queues
//  2. else take what the TUN has into the flow queues, at once, so that its own queue, which drops blindly, stays empty
//  3. while there is room, and the line is not busy for long yet (flowqueue.Pace): give the device what the flow queues choose
//  4. else wait for the TUN or for room, whichever comes first
//
// Room is what flowqueue.Limit leaves of what is under way: inside the device (gate.go counts each packet in and out) and in the
// sockets' send buffers, which a packet leaves when it leaves the WAN's leaf (SIOCOUTQ). That is in the kernel's own measure,
// truesize. The kernel tells that a packet left by making the socket writable again, as long as less than half its send
// buffer is in use, so the limit stays below that; a watcher a socket, on a descriptor of its own so that no sender waits for it,
// hears it and ends the reader's wait.

const (
	// What the kernel charges for a packet beside its bytes: the sk_buff and what skb_shared_info, alignment and headers take.
	chargeBuff = 256
	chargeHead = 16 + 48 + 320
	// chargeFull is what a packet of the usual MTU is charged.
	chargeFull = 2048 + chargeBuff

	limitHold = time.Second // as in byte queue limits
	// What may be under way, in milliseconds at the WAN's rate, and a packet more. A leaf that is shaped has a packet's time after it
	// let one go until it may let the next go, so on a slow line one packet at a time keeps it busy, which byte queue limits, made
	// for drivers, would take for starved. On a fast one a millisecond disturbs nobody, and waiting for room costs.
	limitLeast, limitMost = 1, 4
	takeMost              = 64 // packets read before the device gets the next
)

// charge is about what the kernel charges a socket for a message of n bytes.
func charge(n int) int {
	size := 512
	for size < n+chargeHead && size < 1<<16 {
		size *= 2
	}
	return size + chargeBuff
}

// fair is the flow queues and what bounds what is behind them. The device's reader owns it but for what is atomic.
type fair struct {
	hub    *hub
	gate   *gate
	start  time.Time
	wanted atomic.Pointer[fairBounds]
	now    *fairBounds // what queue and limit are set to
	queue  *flowqueue.Queue
	limit  *flowqueue.Limit
	pace   flowqueue.Pace
	waited bool         // packets waited while the line was busy
	sent   atomic.Int64 // by clock: when a packet last came to the WAN's queue; only where the line is slow

	sites accounts

	waiting atomic.Bool  // the reader, for room or the TUN
	room    atomic.Int64 // while it waits: the most that may be under way to end that
	wakeup  func()

	watch [2]*os.File // the sockets again, to hear when they drain
	conns [2]syscall.RawConn
	kicks [2]chan struct{}

	pause time.Duration
	drops flowqueue.Counters // those that are counted already
	seen  fairStatus
}

// fairBounds is what a set of bounds means for flow queues.
type fairBounds struct {
	on          bool
	queue       flowqueue.Config
	least, most int
	rate        uint64 // the WAN's, bit/s; 0 = not known
	slow        bool   // a packet takes long enough that its time is worth knowing
	hard        int    // what may be under way to all sites together, those with slow lines, too
}

// fairStatus is for other goroutines.
type fairStatus struct {
	on                           atomic.Bool
	packets, bytes, flows, limit atomic.Int64
	marked                       atomic.Uint64
}

func newFair(h *hub, b *bind) (*fair, error) {
	f := &fair{hub: h, gate: h.out, start: time.Now(), now: &fairBounds{}, queue: flowqueue.New(flowqueue.Config{}, rand.Uint64()),
		limit: flowqueue.NewLimit(1, 1, limitHold)}
	for i, base := range b.base {
		if base == nil {
			continue
		}
		fd, err := descriptor.Duplicate(base)
		if err == nil {
			err = unix.SetNonblock(fd, true)
			f.watch[i] = os.NewFile(uintptr(fd), base.Name())
		}
		if err == nil {
			f.conns[i], err = f.watch[i].SyscallConn()
		}
		if err != nil {
			f.close()
			return nil, fmt.Errorf("duplicate the UDP socket: %w", err)
		}
		f.kicks[i] = make(chan struct{}, 1)
	}
	f.sites.open(f.conns)
	return f, nil
}

// close lets the watchers end.
func (f *fair) close() {
	for _, w := range f.watch {
		if w != nil {
			w.Close()
		}
	}
}

// setBounds is taken over by the reader when it next has something to do.
func (f *fair) setBounds(b tunnel.Bounds, mtu int) {
	n := &fairBounds{on: b.FlowPackets > 0}
	if n.on {
		wire := mtu + tunnel.OverheadIPv6
		n.queue = flowqueue.Config{Packets: b.FlowPackets, Bytes: b.FlowPackets * 2048, Quantum: mtu, CoDel: flowqueue.CoDelFor(b.Rate, wire)}
		n.most, n.hard = b.SendBuffer-1, b.SendBuffer-1
		n.rate, n.slow = b.Rate, flowqueue.Paced(b.Rate, wire)
		if b.Rate > 0 {
			ms := int(b.Rate / 8000 * chargeFull / uint64(wire))
			n.most, n.least = min(n.most, limitMost*ms), limitLeast*ms
		}
		n.most = max(n.most, 1)
		n.least = min(max(n.least, chargeFull), n.most)
	}
	f.wanted.Store(n)
	f.seen.limit.CompareAndSwap(0, int64(n.least))
	f.seen.on.Store(n.on)
	f.wake()
}

// ready says whether packets go through flow queues. The reader calls it before each read.
func (f *fair) ready() bool {
	if w := f.wanted.Load(); w != f.now {
		f.now = w
		if w.on {
			f.queue.Set(w.queue)
			f.limit.Set(w.least, w.most)
			f.pace.Set(w.rate)
		}
		f.sites.set(w.on, w.hard)
	}
	return f.now.on || f.queue.Len() > 0
}

func (f *fair) clock() time.Duration { return time.Since(f.start) }

// underWay is what has been given to the device and has not left the WAN's queue, less what sites with slow lines have there.
func (f *fair) underWay() int { return f.allUnderWay() - f.sites.heldBack() }

func (f *fair) allUnderWay() int {
	n := int(f.gate.charged.Load())
	for _, c := range f.conns {
		if c != nil {
			n += f.unsent(c)
		}
	}
	return n
}

func (f *fair) unsent(c syscall.RawConn) (n int) {
	_ = c.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

// space is how much more may be under way; below 0 nothing. At 0 a packet still may.
func (f *fair) space() int {
	now, all := f.clock(), f.allUnderWay()
	f.sites.look(f, now, all == 0)
	n := all - f.sites.heldBack()
	f.limit.Look(now, n)
	if n <= 0 && f.now.slow {
		f.pace.Left(now, time.Duration(f.sent.Load()))
	}
	return min(f.limit.Now()-n, f.now.hard-all)
}

// give notes that the device gets a packet of n bytes.
func (f *fair) give(charge, n int) {
	f.limit.Give(charge)
	if f.now.slow {
		f.pace.Give(f.clock(), n+tunnel.OverheadIPv4, f.waited)
	}
}

// free says whether what the reader waits for has come.
func (f *fair) free() bool { return f.gate.open() && f.roomy() }

func (f *fair) roomy() bool {
	return int64(f.underWay()) <= f.room.Load() && (!f.sites.needed.Load() || f.sites.freed.Load())
}

// wake ends the reader's wait.
func (f *fair) wake() {
	if f.waiting.CompareAndSwap(true, false) && f.wakeup != nil {
		f.wakeup()
	}
}

// left is called when packets have left the device.
func (f *fair) left() {
	if w := f.wanted.Load(); w != nil && w.slow {
		f.sent.Store(int64(f.clock()))
	}
	if f.waiting.Load() && f.free() {
		f.wake()
	}
}

// listen hears when socket i drains, each time the reader waits for room.
func (f *fair) listen(i int) {
	for {
		select {
		case <-f.hub.closed:
			return
		case <-f.kicks[i]:
		}
		err := f.conns[i].Write(func(uintptr) bool {
			if !f.waiting.Load() {
				return true
			}
			f.sites.drain(true)
			return f.roomy()
		})
		if err != nil {
			return
		}
		if f.gate.open() {
			f.wake()
		}
	}
}

// run listens at all sockets until the engine closes.
func (f *fair) run() {
	var all sync.WaitGroup
	for i := range f.conns {
		if f.conns[i] != nil {
			all.Go(func() { f.listen(i) })
		}
	}
	all.Go(func() { <-f.hub.closed; f.close() })
	all.Wait()
}

// note publishes what the queue counts.
func (f *fair) note() {
	q := f.queue
	f.hub.drops.add(dropQueueDelay, int(q.Delayed-f.drops.Delayed))
	f.hub.drops.add(dropQueueFull, int(q.Crowded-f.drops.Crowded))
	f.drops = q.Counters
	f.seen.packets.Store(int64(q.Len()))
	f.seen.bytes.Store(int64(q.Bytes()))
	f.seen.flows.Store(int64(q.Active()))
	f.seen.limit.Store(int64(f.limit.Now()))
	f.seen.marked.Store(q.Marked)
}

// status is the flow queues' for people; nil where there are none.
func (f *fair) status() *tunnel.FlowStatus {
	if !f.seen.on.Load() {
		return nil
	}
	return &tunnel.FlowStatus{Packets: uint64(f.seen.packets.Load()), Bytes: uint64(f.seen.bytes.Load()), Flows: int(f.seen.flows.Load()),
		Marked: f.seen.marked.Load(), Limit: uint64(f.seen.limit.Load()), SlowSites: f.sites.many(), Note: f.sites.note()}
}

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
