package wireguardgo

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
	"ringway/tunnel/flowqueue"
)

// An account for each site, where there are several, of what is under way to it. A site whose line is slower
// than ours (its class in the WAN's queues has a low ceiling) keeps its packets there for long, and what is
// unsent in the socket does not say whose they are.
//
//  1. admit counts a packet in, in the kernel's measure, as for all sites together
//  2. Send has the last packet of each batch marked: the kernel puts its number and time into the socket's
//     error queue when the packet goes to the network card (SO_TIMESTAMPING). Packets of a site leave its leaf
//     in order, so all before it have left, too, or were dropped there
//  3. the time that it took says what may be under way to the site (flowqueue.SiteLimit); while more is, the
//     flow queues pass over it
//  4. what such a site has under way does not count where all together are (fair.underWay), since it waits
//     for its own line
//
// What is lost without a trace is found when nothing at all is under way, or when a full account has not
// changed for a second. Network cards that report nothing (blind) are found that way, too; then everything is
// as with one account.

const (
	// So much of a site's line may be under way: more than maxLimit, or the WAN would look slow.
	siteWait = 8 * time.Millisecond
	heldFor  = 100 * time.Millisecond // since it was last full
	lostFor  = time.Second
	// blindAfter is how many marked packets may leave unreported until the card counts as one that reports none.
	blindAfter = 64

	maxMarks   = 1024 // on their way
	drainBatch = 32   // taken from the error queue at once

	blindNote = "the WAN's network card does not report which packets left (SO_TIMESTAMPING): " +
		"a site with a slow line can delay data to others"
)

// account is a peer's. Its counters only grow.
type account struct {
	given atomic.Int64 // to the device, by the TUN's reader
	lost  atomic.Int64 // in the device
	sent  atomic.Int64 // to the socket, or dropped before it
	left  atomic.Int64 // of sent, what has also left the WAN's queue
	limit atomic.Int64 // what may be under way now
	wants atomic.Bool  // the reader has packets for it

	// The TUN's reader's own.
	heldUntil time.Duration
	seen      int64 // left, at seenAt
	seenAt    time.Duration
}

func (a *account) underWay() int { return int(a.given.Load() - a.lost.Load() - a.left.Load()) }

func (a *account) full() bool { return int64(a.underWay()) > a.limit.Load() }

// settle counts all that was given as gone.
func (a *account) settle() {
	all := a.given.Load() - a.lost.Load()
	a.sent.Store(all)
	a.left.Store(all)
}

// mark belongs to one marked packet.
type mark struct {
	peer     *peer
	upTo     int64 // account.sent, this packet included
	underWay int   // to the site then, this packet included
	at       int64 // when it was sent, wall clock, ns
	id       uint32
}

// accounts are what all accounts have in common.
type accounts struct {
	on     atomic.Bool // packets are marked and accounts kept
	able   bool        // the kernel marks packets
	blind  atomic.Bool
	needed atomic.Bool // the reader waits for a site that is full
	freed  atomic.Bool // one is no longer full

	full func(site uint32) bool // for flowqueue, which would allocate it for each packet
	now  time.Duration          // of the reader's look

	held  atomic.Pointer[[]*peer] // sites that were full a moment ago; the reader's
	table *table                  // that held is of
	hard  atomic.Int64

	// mu guards what follows. It is held while a marked packet is sent, so that its number is known before it
	// leaves.
	mu         sync.Mutex
	conns      [2]syscall.RawConn
	next       [2]uint32 // number of the socket's next marked packet
	marks      [2][maxMarks]mark
	unanswered int

	msgs    [drainBatch]datagram.Message
	control [drainBatch][datagram.SentControlSize]byte
	which   int
	drainFD func(fd uintptr)
}

// open has the kernel number the marked packets of sockets from 0.
func (s *accounts) open(conns [2]syscall.RawConn) {
	const flags = unix.SOF_TIMESTAMPING_SOFTWARE | unix.SOF_TIMESTAMPING_OPT_ID | unix.SOF_TIMESTAMPING_OPT_TSONLY
	s.conns, s.able = conns, true
	s.held.Store(new([]*peer))
	s.full, s.drainFD = s.isFull, s.drainSocket
	for _, c := range conns {
		if c == nil {
			continue
		}
		_ = c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING, 0) // end the numbers of an earlier engine
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING, flags) != nil {
				s.able = false
			}
		})
	}
}

// set applies the bounds. The reader calls it.
func (s *accounts) set(on bool, hard int) {
	s.hard.Store(int64(hard))
	s.blind.Store(!s.able)
	if !on {
		s.on.Store(false)
		s.held.Store(new([]*peer))
	}
}

// heldBack is what is under way to sites with slow lines.
func (s *accounts) heldBack() (n int) {
	if !s.on.Load() {
		return 0
	}
	for _, p := range *s.held.Load() {
		n += max(p.account.underWay(), 0)
	}
	return n
}

// some reports whether a site was full a moment ago.
func (s *accounts) some() bool { return len(*s.held.Load()) > 0 }

func (s *accounts) many() int { return len(*s.held.Load()) }

func (s *accounts) note() string {
	if s.blind.Load() {
		return blindNote
	}
	return ""
}

// look brings the accounts up to date before the reader decides. idle: nothing is under way.
func (s *accounts) look(f *fair, now time.Duration, idle bool) {
	s.now = now
	t := f.hub.peers.now.Load()
	if t != s.table {
		s.table = t
		s.keep(func(p *peer) bool { return t.slot(p.slot) == p })
	}
	on := f.now.on && len(t.byKey) > 1 && !s.blind.Load()
	if on != s.on.Load() {
		s.on.Store(on)
		for _, p := range t.bySlot {
			if p != nil {
				p.account.settle()
			}
		}
		if !on {
			s.held.Store(new([]*peer))
		}
	}
	if on {
		s.drain(false)
		if idle {
			s.settleAll(t)
		}
		if s.some() {
			s.keep(func(p *peer) bool { return p.account.heldUntil > now })
		}
	}
	s.freed.Store(false)
	f.queue.Unpark(s.full)
}

// settleAll counts all that was marked as gone: nothing is under way.
func (s *accounts) settleAll(t *table) {
	s.mu.Lock()
	unanswered := s.unanswered
	s.mu.Unlock()
	if unanswered == 0 {
		return
	}
	s.drain(true) // what left a moment ago
	s.mu.Lock()
	if s.unanswered >= blindAfter {
		s.blind.Store(true)
	}
	s.mu.Unlock()
	for _, p := range t.bySlot {
		if p != nil && p.account.underWay() != 0 {
			p.account.settle()
		}
	}
}

// keep has only those held that are wanted.
func (s *accounts) keep(wanted func(*peer) bool) {
	was := *s.held.Load()
	if !slices.ContainsFunc(was, func(p *peer) bool { return !wanted(p) }) {
		return
	}
	now := slices.DeleteFunc(slices.Clone(was), func(p *peer) bool { return !wanted(p) })
	s.held.Store(&now)
}

// isFull reports whether a site may have no more now, and remembers that. The reader calls it.
func (s *accounts) isFull(site uint32) bool {
	if !s.on.Load() {
		return false
	}
	p := s.table.slot(site)
	if p == nil || !p.fresh.Load() {
		return false
	}
	a := &p.account
	a.wants.Store(true) // before it is checked, or what leaves in the meantime would not wake the reader
	if !a.full() {
		a.wants.Store(false)
		a.seenAt, a.seen = s.now, a.left.Load()
		return false
	}
	if left := a.left.Load(); left != a.seen {
		a.seen, a.seenAt = left, s.now
	} else if s.now-a.seenAt > lostFor {
		a.settle()
	}
	if a.heldUntil = s.now + heldFor; !slices.Contains(*s.held.Load(), p) {
		now := append(slices.Clone(*s.held.Load()), p)
		s.held.Store(&now)
	}
	return true
}

// mark counts a batch as sent, and returns how to mark its last packet. A mark without a peer means not at all.
func (s *accounts) mark(h *hub, bufs [][]byte) (m mark) {
	charged := int64(0)
	slot := uint32(tagNone)
	for _, b := range bufs {
		if t := getTag(b); t >= tagPeer && t < tagInbound && isData(b) {
			slot = t
			charged += int64(getCharge(b))
		}
	}
	if charged == 0 {
		return m
	}
	p := h.peers.now.Load().slot(slot - tagPeer)
	if p == nil {
		return m
	}
	m.upTo = p.account.sent.Add(charged)
	if s.on.Load() {
		m.peer, m.at = p, time.Now().UnixNano()
		m.underWay = max(int(m.upTo-p.account.left.Load()), int(charged))
	}
	return m
}

// send is sendmmsg of messages whose last is marked.
func (s *accounts) send(fd uintptr, to *socket, msgs []datagram.Message, m *mark) (int, unix.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, errno := sendmmsg(fd, msgs)
	if errno == 0 && n == len(msgs) {
		m.id = s.next[to.which]
		s.marks[to.which][m.id%maxMarks] = *m
		s.next[to.which]++
		s.unanswered++
	}
	return n, errno
}

// drain reads what the kernel reports about packets that left. Unless it must, it leaves that to a goroutine that
// is doing so already.
func (s *accounts) drain(must bool) {
	if !s.on.Load() {
		return
	}
	if must {
		s.mu.Lock()
	} else if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	for i, c := range s.conns {
		if c != nil && s.next[i] > 0 {
			s.which = i
			_ = c.Control(s.drainFD)
		}
	}
}

func (s *accounts) drainSocket(fd uintptr) {
	for {
		for i := range s.msgs {
			h := &s.msgs[i].Header
			h.Control = &s.control[i][0]
			h.SetControllen(datagram.SentControlSize)
		}
		n, errno := recvErrors(fd, s.msgs[:])
		if errno != 0 {
			return
		}
		for i, m := range s.msgs[:max(n, 0)] {
			if id, at, ok := datagram.ReadSent(s.control[i][:min(int(m.Header.Controllen), datagram.SentControlSize)]); ok {
				s.answer(id, at)
			}
		}
		if n < len(s.msgs) {
			return
		}
	}
}

// answer notes that the marked packet of that number left.
func (s *accounts) answer(id uint32, at int64) {
	s.unanswered = 0
	next := &s.next[s.which]
	if int32(id-*next) >= 0 { // the kernel numbered a packet that it then refused
		*next = id + 1
		return
	}
	m := &s.marks[s.which][id%maxMarks]
	if m.id != id || m.peer == nil {
		return
	}
	p := m.peer
	m.peer = nil
	a := &p.account
	for {
		left := a.left.Load()
		if m.upTo <= left || a.left.CompareAndSwap(left, m.upTo) {
			break
		}
	}
	limit := max(int(a.limit.Load()), chargeFull)
	took := time.Duration(at - m.at)
	a.limit.Store(int64(flowqueue.SiteLimit(limit, int(s.hard.Load()), m.underWay, took, siteWait)))
	if a.wants.Load() && !a.full() {
		s.freed.Store(true)
	}
}
