package media

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel/turn"
)

// Options of a relay.
type Options struct {
	Sockets [sides]Sockets // by Side; duplicated: the caller closes its own
	// Alone says that the process has nothing else to do: the threads are pinned (package tunnel/turn).
	Alone   bool
	Threads int // of each side, 1 to 4; 0: one for each processor, up to that many

	// Changed is told what the next process has to know, from one goroutine. An account that is not kept before the
	// process ends may cost a key: it must not wait longer than a few thousand packets of one source take. nil: nobody
	// is told.
	Changed func(Update)
	// DTLS is given packets of DTLS, from one goroutine. The packet is borrowed until it returns. nil: they are dropped.
	DTLS func(leg uint64, from netip.AddrPort, packet []byte)
	// Begin is called before anything is read: what waits in the sockets is for pairs that it sets. nil: there are none.
	Begin func(*Relay)

	longest time.Duration // tests: how long a packet may wait; 0: maxWait
}

// Relay forwards the media of pairs of legs until it is closed. All methods are safe for concurrent use; none has a
// forwarding thread wait.
type Relay struct {
	alone bool
	since time.Time

	workers  [sides]*worker
	out      [sides][families]int
	table    table
	total    drops // of packets of no leg
	changed  func(Update)
	received func(uint64, netip.AddrPort, []byte)

	mu      sync.Mutex       // of the control side; no thread takes it
	pairs   map[uint64]*pair // by leg
	owners  map[wiper]uint64 // legs, by stream
	started bool
	gone    map[string]uint64 // drops of legs that were removed, by reason

	goneTotals Totals // of such legs

	sendMu sync.Mutex // of SendDTLS
	slot   [slotSize]byte

	notifyFD      int
	notifications *os.File
	updates, dtls chan struct{}
	collector     turn.Collector
	running       sync.WaitGroup // threads
	tasks         sync.WaitGroup
	closing       sync.Once
	closed        chan struct{} // when it is to end
	done          chan struct{} // when it has ended
}

// New starts a relay without legs.
func New(o Options) (*Relay, error) {
	r := &Relay{
		alone: o.Alone, since: time.Now(), changed: o.Changed, received: o.DTLS,
		pairs: map[uint64]*pair{}, owners: map[wiper]uint64{}, gone: map[string]uint64{}, notifyFD: -1,
		updates: make(chan struct{}, 1), dtls: make(chan struct{}, 1),
		closed: make(chan struct{}), done: make(chan struct{}),
	}
	for i := range r.out {
		r.out[i] = [families]int{-1, -1}
	}
	if err := r.open(o); err != nil {
		r.release()
		return nil, err
	}
	if o.Begin != nil {
		o.Begin(r)
	}
	r.start()
	return r, nil
}

// clock never goes back, and is never 0.
func (r *Relay) clock() int64 { return int64(time.Since(r.since)) + 1 }

func (r *Relay) open(o Options) error {
	if o.Threads < 0 || o.Threads > 4 {
		return fmt.Errorf("%d threads of a side (allowed 0-4)", o.Threads)
	}
	cpus, err := turn.UsableProcessors(o.Threads)
	if err != nil {
		return err
	}
	for side := range sides {
		in := [families]int{-1, -1}
		for v6 := range families {
			if in[v6], err = duplicate(o.Sockets[side].In[v6]); err == nil {
				r.out[side][v6], err = duplicate(o.Sockets[side].Out[v6])
			}
			if err != nil {
				for _, fd := range in {
					closeFD(fd)
				}
				return err
			}
		}
		if r.workers[side], err = newWorker(r, side, in, cpus); err != nil {
			for _, fd := range in {
				closeFD(fd)
			}
			return err
		}
	}
	if o.longest > 0 {
		for _, w := range r.workers {
			w.forward.longest = o.longest
		}
	}
	if r.notifyFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	r.notifications = os.NewFile(uintptr(r.notifyFD), "notifications")
	return nil
}

func (r *Relay) start() {
	r.mu.Lock()
	r.started = true
	r.mu.Unlock()
	threads := 0
	for _, w := range r.workers {
		threads += len(w.Threads)
		r.collector.Directions = append(r.collector.Directions, w.Direction)
	}
	r.collector.Closed, r.collector.Must = r.closed, mustCollect
	if r.alone {
		turn.Configure(threads)
		r.tasks.Go(r.collector.Run)
	}
	r.running.Add(threads)
	for _, w := range r.workers {
		w.Start(w.loop, r.running.Done)
	}
	r.tasks.Go(r.handleNotifications)
	r.tasks.Go(func() { r.drain(r.updates, r.tellUpdates) })
	r.tasks.Go(func() { r.drain(r.dtls, r.tellDTLS) })
}

// Close ends the relay and wipes all keys.
func (r *Relay) Close() {
	r.closing.Do(func() {
		close(r.closed)
		for _, w := range r.workers {
			w.Stop()
		}
		r.running.Wait()
		r.notifications.Close()
		r.tasks.Wait()
		r.tellUpdates() // what the threads said last
		r.tellLast()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.table.replace(r.pairs, nil)
		for _, p := range r.pairs {
			for _, s := range p.streams() { // a pair is there twice: wiping twice does no harm
				s.Wipe()
			}
		}
		clear(r.pairs)
		r.release()
		close(r.done)
	})
	<-r.done
}

// release closes descriptors. A relay that never started has not all of them.
func (r *Relay) release() {
	for _, w := range r.workers {
		if w == nil {
			continue
		}
		w.Close()
		for _, fd := range w.in {
			closeFD(fd)
		}
	}
	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	for i := range r.out {
		for v6 := range r.out[i] {
			closeFD(r.out[i][v6])
			r.out[i][v6] = -1
		}
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// notify wakes the control side. It is for forwarding threads: a raw write to an eventfd wakes a goroutine without
// the scheduler.
func (r *Relay) notify() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(r.notifyFD), uintptr(unsafe.Pointer(&eventfdOne)), 8)
}

var eventfdOne uint64 = 1

func (r *Relay) handleNotifications() {
	var b [8]byte
	for {
		if _, err := r.notifications.Read(b[:]); err != nil {
			return
		}
		for _, w := range r.workers {
			if q := w.request.Load(); q != nil && q.served.Load() {
				w.request.Store(nil)
				close(q.answered)
			}
		}
		for _, c := range []chan struct{}{r.updates, r.dtls} {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

// drain empties a kind of ring whenever it is told to.
func (r *Relay) drain(told <-chan struct{}, tell func()) {
	for {
		select {
		case <-r.closed:
			return
		case <-told:
			tell()
		}
	}
}

func (r *Relay) tellUpdates() {
	for _, w := range r.workers {
		for ring := w.forward.updates; ring.first() != nil; ring.drop() {
			if r.changed != nil {
				r.changed(ring.first().update())
			}
		}
	}
}

// tellLast tells the next process what was sent and heard to the end. No thread runs.
func (r *Relay) tellLast() {
	if r.changed == nil {
		return
	}
	var last []Update
	r.mu.Lock()
	for id := range r.pairs {
		f := flowOf(r.pairs, id)
		if s := f.state.sender; s != nil {
			a := s.Account()
			last = append(last, Update{Leg: f.to.ID, Sent: &a})
		}
		if s := f.state.receiver; s != nil {
			heard := s.Heard()
			for i := range heard {
				heard[i].Exact = true
			}
			last = append(last, Update{Leg: id, Heard: heard})
		}
	}
	r.mu.Unlock()
	for _, u := range last {
		r.changed(u)
	}
}

func (r *Relay) tellDTLS() {
	for _, w := range r.workers {
		for ring := w.forward.dtls; ring.first() != nil; ring.drop() {
			d := ring.first()
			if r.received != nil {
				r.received(d.leg, d.from, d.packet[:d.n])
			}
			d.of.dtlsWaiting.Add(-1)
		}
	}
}

// askLocked has a side's thread do something between two packets, and returns when it is done.
func (r *Relay) askLocked(side Side, do func()) error {
	select {
	case <-r.closed:
		return ErrClosed
	default:
	}
	q := &request{do: do, answered: make(chan struct{})}
	w := r.workers[side]
	w.request.Store(q)
	w.Wake()
	select {
	case <-q.answered:
		return nil
	case <-r.closed:
		return ErrClosed
	}
}

// quiescePoll is how often to look whether the threads have gone on.
const quiescePoll = 200 * time.Microsecond

// quiesceLocked returns when no thread can hold anything of an earlier table.
func (r *Relay) quiesceLocked() {
	var then, now []uint64
	for _, w := range r.workers {
		then = w.Rounds(then)
	}
	t := time.NewTicker(quiescePoll)
	defer t.Stop()
	for {
		now = now[:0]
		for _, w := range r.workers {
			now = w.Rounds(now)
		}
		passed := true
		for i := range then {
			passed = passed && turn.Passed(then[i], now[i])
		}
		if passed {
			return
		}
		select {
		case <-t.C:
		case <-r.closed:
			r.running.Wait()
			return
		}
	}
}

// Set joins two legs, or changes what is known of them: what arrives on one leaves by the other. A pair that either
// leg was in before ends. Streams that are given again go on where they are, and counters of a leg go on; the keys of
// streams that are not given again are wiped before Set returns. On an error nothing has changed, and the streams are
// the caller's.
func (r *Relay) Set(a, b Leg) error { return r.Replace(a, b) }

// Replace is Set, and ends the pairs that the other legs given are in, too, in one step: the streams of these may be
// among those of a and b, and go on.
func (r *Relay) Replace(a, b Leg, others ...uint64) error {
	for _, l := range []*Leg{&a, &b} {
		if err := l.check(); err != nil {
			return fmt.Errorf("leg %d: %w", l.ID, err)
		}
	}
	if a.ID == b.ID {
		return fmt.Errorf("leg %d cannot be joined with itself", a.ID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.closed:
		return ErrClosed
	default:
	}
	before := map[uint64]*pair{}
	for _, id := range append([]uint64{a.ID, b.ID}, others...) {
		if p := r.pairs[id]; p != nil {
			for _, f := range p.flows {
				before[f.from.ID] = p
			}
		} else if id != a.ID && id != b.ID {
			return fmt.Errorf("leg %d: %w", id, ErrUnknownLeg)
		}
	}
	if err := r.checkLocked(before, a, b); err != nil {
		return err
	}

	next := joined(before, a, b, r.clock())
	if moves(before, next) {
		// A stream goes on, but on another thread: between them it belongs to nobody.
		r.replaceLocked(before, nil)
	}
	r.replaceLocked(before, next)
	r.forgetLocked(before, next)
	return nil
}

// Remove ends the pair that a leg is in. When it returns, nothing of it is forwarded and its keys are wiped.
func (r *Relay) Remove(leg uint64) error { return r.remove(leg, false) }

// Detach ends the pair that a leg is in. When it returns, nothing of it is forwarded, and its streams are the caller's
// as they are: for a later Set, or to be wiped.
func (r *Relay) Detach(leg uint64) error { return r.remove(leg, true) }

func (r *Relay) remove(leg uint64, keep bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pairs[leg]
	if p == nil {
		return ErrUnknownLeg
	}
	before := map[uint64]*pair{p.flows[0].from.ID: p, p.flows[1].from.ID: p}
	r.replaceLocked(before, nil)
	if keep {
		r.forgetLocked(before, p)
	} else {
		r.forgetLocked(before, nil)
	}
	return nil
}

// checkLocked checks that no other leg is at the addresses, and that the streams are nobody else's.
func (r *Relay) checkLocked(before map[uint64]*pair, a, b Leg) error {
	if len(r.pairs)-len(before)+2 > maxLegs {
		return fmt.Errorf("more than %d legs", maxLegs)
	}
	type place struct {
		side Side
		at   netip.AddrPort
	}
	taken := map[place]uint64{}
	streams := map[wiper]uint64{}
	add := func(l *Leg) error {
		for _, at := range []netip.AddrPort{l.Local, l.LocalRTCP} {
			if !at.IsValid() {
				continue
			}
			other, is := taken[place{l.Side, at}]
			if p := r.table.find(l.Side, at); p != nil && before[p.from.ID] == nil {
				other, is = p.from.ID, true
			}
			if is {
				return fmt.Errorf("leg %d: leg %d has %s already", l.ID, other, at)
			}
			taken[place{l.Side, at}] = l.ID
		}
		for _, s := range l.streams() {
			other, is := streams[s]
			if owner, known := r.owners[s]; known && before[owner] == nil {
				other, is = owner, true
			}
			if is {
				return fmt.Errorf("leg %d: leg %d has the same keys", l.ID, other)
			}
			streams[s] = l.ID
		}
		return nil
	}
	return errors.Join(add(&a), add(&b))
}

// replaceLocked takes pairs out and puts one in; nil is none. When it returns, no thread has anything of the others.
func (r *Relay) replaceLocked(before map[uint64]*pair, next *pair) {
	for id, p := range before {
		delete(r.pairs, id)
		for _, s := range p.streams() {
			delete(r.owners, s)
		}
	}
	if next != nil {
		for _, f := range next.flows {
			r.pairs[f.from.ID] = next
			for _, s := range f.from.streams() {
				r.owners[s] = f.from.ID
			}
		}
	}
	r.table.replace(before, next)
	if r.started {
		r.quiesceLocked()
	}
}

// forgetLocked wipes the streams that a pair does not have, and keeps the counts of legs that are no more.
func (r *Relay) forgetLocked(before map[uint64]*pair, keep *pair) {
	kept := map[any]bool{}
	for _, s := range keep.streams() {
		kept[s] = true
	}
	for id, p := range before {
		for _, s := range p.streams() {
			if !kept[s] {
				s.Wipe()
			}
		}
		if r.pairs[id] != nil {
			continue
		}
		for _, f := range p.flows {
			if f.from.ID == id {
				f.from.drops.addTo(r.gone)
				r.goneTotals.add(f.from)
			}
		}
	}
}

// flowLocked is the flow from a leg.
func (r *Relay) flowLocked(leg uint64) (*flow, *flow, error) {
	p := r.pairs[leg]
	if p == nil {
		return nil, nil, ErrUnknownLeg
	}
	if p.flows[0].from.ID == leg {
		return p.flows[0], p.flows[1], nil
	}
	return p.flows[1], p.flows[0], nil
}

// SendDTLS sends a packet of DTLS to a leg, to where it is sent media. It is not for many packets a second.
func (r *Relay) SendDTLS(leg uint64, packet []byte) error {
	r.mu.Lock()
	in, _, err := r.flowLocked(leg)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	e := in.from
	if !e.DTLS {
		return fmt.Errorf("leg %d does not speak DTLS", leg)
	}
	headers := headersOf(e.Local.Addr())
	if len(packet) > maxPacket || classify(packet) != kindDTLS {
		return fmt.Errorf("leg %d: not a packet of DTLS", leg)
	}

	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	wire := r.slot[:headers+copy(r.slot[headers:], packet)]
	towards := e.towards(false)
	putHeaders(wire, e.Local, towards, e.DSCP)
	fd, to := r.out[e.Side][familyV6], unix.Sockaddr(&unix.SockaddrInet6{Addr: towards.Addr().As16()})
	if towards.Addr().Is4() {
		fd, to = r.out[e.Side][familyV4], &unix.SockaddrInet4{Addr: towards.Addr().As4()}
	}
	if fd < 0 {
		e.drops.add(dropUnreachable)
		return fmt.Errorf("send DTLS to leg %d: no socket for %s", leg, towards)
	}
	if err := unix.Sendto(fd, wire, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to); err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			e.drops.add(sendReason(errno))
		}
		return fmt.Errorf("send DTLS to leg %d: %w", leg, err)
	}
	e.sentPackets.Add(1)
	e.sentBytes.Add(uint64(len(packet)))
	return nil
}
