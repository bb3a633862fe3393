package wireguardgo

import (
	"fmt"
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
	"ringway/units"
)

// Flow queues before the device, where flows can still be distinguished. On a WAN that is shaped
// (tunnel.Bounds.FlowPackets) the device's one reader does all of it, in readFair (readfair.go):
//
//  1. readThrough: while nothing waits and there is space behind, read the TUN straight into the device's
//     buffers, as without flow queues
//  2. fillQueues: else move what the TUN has to the flow queues at once, so that its own queue, which drops
//     blindly, stays empty
//  3. release: while there is space, and the line is not busy for long yet (flowqueue.Pace), give the device
//     what the flow queues choose
//  4. awaitSpace: else wait for the TUN or for space, whichever comes first
//
// Space is what flowqueue.Limit leaves of what is under way: inside the device (gate.go counts each packet in
// and out) and in the sockets' send buffers, which a packet leaves when it leaves the WAN's leaf (SIOCOUTQ).
// That is in the kernel's own measure, truesize. The kernel signals that a packet left by making the socket
// writable again, as long as less than half its send buffer is in use, so the limit stays below that. A
// watcher for each socket, on a descriptor of its own so that no sender waits for it, ends the reader's wait.

const (
	// What the kernel charges for a packet beside its bytes: the sk_buff and what skb_shared_info, alignment and
	// headers take.
	chargeBuff = 256
	chargeHead = 16 + 48 + 320
	// chargeFull is what a packet of the usual MTU is charged.
	chargeFull = 2048 + chargeBuff

	limitHold = time.Second // as in byte queue limits
	// What may be under way, in milliseconds at the WAN's rate, and a packet more. A shaped leaf pauses for a
	// packet's time after each packet, so on a slow line one packet at a time keeps it busy, which byte queue
	// limits, made for drivers, would mistake for starvation. On a fast line a millisecond disturbs nobody, and
	// waiting for space costs CPU time.
	minLimit, maxLimit = 1, 4
	maxReads           = 64 // packets read before the device gets the next
)

// charge is about what the kernel charges a socket for a message of n bytes.
func charge(n int) int {
	size := 512
	for size < n+chargeHead && size < 1<<16 {
		size *= 2
	}
	return size + chargeBuff
}

// fair is the flow queues and what bounds what is behind them. The device's reader owns it but for what is
// atomic.
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

	waiting   atomic.Bool  // the reader waits for space or the TUN
	wakeBelow atomic.Int64 // while it waits: what may be under way at most to end that
	wakeup    func()

	watch [2]*os.File // the sockets again, to learn when they drain
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
	rate        units.BitRate // of the WAN; 0 = not known
	slow        bool          // a packet takes long enough that its time is worth knowing
	hard        int           // what may be under way to all sites together, those with slow lines, too
}

// fairStatus is for other goroutines.
type fairStatus struct {
	on                           atomic.Bool
	packets, bytes, flows, limit atomic.Int64
	marked                       atomic.Uint64
}

func newFair(h *hub, b *bind) (*fair, error) {
	f := &fair{hub: h, gate: h.out, start: time.Now(), now: &fairBounds{},
		queue: flowqueue.New(flowqueue.Config{}, rand.Uint64()),
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

// setBounds changes the bounds. The reader applies them when it next has something to do.
func (f *fair) setBounds(b tunnel.Bounds, mtu int) {
	n := &fairBounds{on: b.FlowPackets > 0}
	if n.on {
		wire := mtu + tunnel.OverheadIPv6
		n.queue = flowqueue.Config{Packets: b.FlowPackets, Bytes: b.FlowPackets * 2048, Quantum: mtu,
			CoDel: flowqueue.CoDelFor(b.Rate, wire)}
		n.most, n.hard = b.SendBuffer-1, b.SendBuffer-1
		n.rate, n.slow = b.Rate, flowqueue.Paced(b.Rate, wire)
		if b.Rate > 0 {
			ms := int(b.Rate / 8000 * chargeFull / units.BitRate(wire))
			n.most, n.least = min(n.most, maxLimit*ms), minLimit*ms
		}
		n.most = max(n.most, 1)
		n.least = min(max(n.least, chargeFull), n.most)
	}
	f.wanted.Store(n)
	f.seen.limit.CompareAndSwap(0, int64(n.least))
	f.seen.on.Store(n.on)
	f.wake()
}

// ready reports whether packets go through flow queues. The reader calls it before each read.
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

// underWay is what was given to the device and has not left the WAN's queue, except what sites with slow
// lines have there.
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

// space is how much more may be under way. At 0 one more packet may; below 0, none.
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

// give notes that a packet of n bytes is given to the device.
func (f *fair) give(charge, n int) {
	f.limit.Give(charge)
	if f.now.slow {
		f.pace.Give(f.clock(), n+tunnel.OverheadIPv4, f.waited)
	}
}

// free reports whether the reader's wait is over.
func (f *fair) free() bool { return f.gate.open() && f.hasSpace() }

func (f *fair) hasSpace() bool {
	return int64(f.underWay()) <= f.wakeBelow.Load() && (!f.sites.needed.Load() || f.sites.freed.Load())
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

// listen waits for socket i to drain, each time the reader waits for space.
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
			return f.hasSpace()
		})
		if err != nil {
			return
		}
		if f.gate.open() {
			f.wake()
		}
	}
}

// run watches all sockets until the engine closes.
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

// publish makes the queue's counters visible.
func (f *fair) publish() {
	q := f.queue
	f.hub.drops.add(dropQueueDelay, int(q.Delayed-f.drops.Delayed))
	f.hub.drops.add(dropQueueFull, int(q.Overflowed-f.drops.Overflowed))
	f.drops = q.Counters
	f.seen.packets.Store(int64(q.Len()))
	f.seen.bytes.Store(int64(q.Bytes()))
	f.seen.flows.Store(int64(q.Active()))
	f.seen.limit.Store(int64(f.limit.Now()))
	f.seen.marked.Store(q.Marked)
}

// status describes the flow queues; nil if there are none.
func (f *fair) status() *tunnel.FlowStatus {
	if !f.seen.on.Load() {
		return nil
	}
	return &tunnel.FlowStatus{Packets: uint64(f.seen.packets.Load()), Bytes: uint64(f.seen.bytes.Load()),
		Flows:  int(f.seen.flows.Load()),
		Marked: f.seen.marked.Load(), Limit: uint64(f.seen.limit.Load()), SlowSites: f.sites.many(), Note: f.sites.note()}
}
