// Package flowqueue keeps apart packets that will share one path: flow queues with CoDel (RFC 8290, RFC
// 8289), fair between flows, between the hosts that send them and between the sites they go to; and the limit
// on what may be under way behind the queues, as byte queue limits set it for a driver. It is pure: no clock,
// no kernel, no locks. One goroutine owns a Queue.
package flowqueue

import (
	"time"
)

const (
	flowCount = 1024 // as fq_codel has it by default
	hostCount = 1024
	siteCount = 256

	// A flow's quantum is shared by its host's flows, up to so many: below that part of it, rounds would be too
	// many.
	maxShare = 48

	bufferSize = 2048 // enough for a packet of any ordinary MTU
	maxFree    = 128  // buffers that an empty queue keeps
)

// Config bounds a queue.
type Config struct {
	Packets int // that wait at most; at least 1
	Bytes   int // of memory that they take at most
	Quantum int // bytes that a flow may send in a round: one packet's
	CoDel
}

// Counters count what happened to packets. They only grow.
type Counters struct {
	Marked     uint64 // went on with a mark that the queue is long (ECN)
	Delayed    uint64 // dropped by CoDel: their flow's queue has been long for too long
	Overflowed uint64 // dropped because all together exceeded the bounds
}

// Queue is a set of flow queues. The zero value is not usable.
type Queue struct {
	Counters
	c     Config
	flows [flowCount]flow
	fresh list // flows that have just begun: they are served first, once
	old   list

	parked [siteCount]list // flows that wait until their site may have more, by its place
	places []uint16        // of siteCount, that have such

	packets, bytes, memory, active int

	hostFlows [hostCount]uint16 // active flows of a host
	hostSite  [hostCount]uint16 // where a host is counted: two hosts behind two sites may share their place
	siteHosts [siteCount]uint16 // hosts with active flows to a site
	sites     int               // with active flows

	free *packet
	kept int
	seed uint64
}

// flow is a queue of its own: packets of one connection, or of the few that share its hash.
type flow struct {
	head, tail *packet
	next       *flow
	listed     bool
	begun      bool // when it was parked, it had just begun
	bytes      int
	deficit    int
	host, site uint16
	codel      state
}

// packet is a copy of one, in memory that is reused.
type packet struct {
	next *packet
	at   time.Duration
	n    int
	site uint32
	buf  []byte
}

// list is a list of flows, first in, first out.
type list struct{ head, tail *flow }

func (l *list) push(f *flow) {
	f.next = nil
	if l.tail == nil {
		l.head = f
	} else {
		l.tail.next = f
	}
	l.tail = f
}

func (l *list) pop() *flow {
	f := l.head
	if l.head = f.next; l.head == nil {
		l.tail = nil
	}
	f.next = nil
	return f
}

// New makes an empty queue. seed keys the hash of flows, so that nobody can choose with whom to collide.
func New(c Config, seed uint64) *Queue {
	q := &Queue{seed: seed, places: make([]uint16, 0, siteCount)}
	q.Set(c)
	return q
}

// Set changes the bounds. What waits beyond them is dropped at the next Push.
func (q *Queue) Set(c Config) {
	c.Packets, c.Bytes, c.Quantum = max(c.Packets, 1), max(c.Bytes, 1<<16), max(c.Quantum, 1)
	q.c = c
}

// Len is how many packets wait.
func (q *Queue) Len() int { return q.packets }

// Bytes is how many bytes wait.
func (q *Queue) Bytes() int { return q.bytes }

// Active is how many flows have packets waiting, or had a moment ago.
func (q *Queue) Active() int { return q.active }

// Push queues a copy of an IP packet for a site. Where it does not fit, packets of the longest flow are
// dropped, its oldest first, so that the sender that sends too much learns of it soonest.
func (q *Queue) Push(now time.Duration, p []byte, site uint32) {
	k := classify(p, site, q.seed)
	f := &q.flows[k.flow]
	if !f.listed {
		f.listed, f.host, f.site = true, k.host, k.site
		q.begin(f)
		f.deficit = q.quantum(f)
		q.fresh.push(f)
	}
	m := q.take(len(p))
	m.at, m.site, m.n = now, site, copy(m.buf[:cap(m.buf)], p)
	if f.tail == nil {
		f.head = m
	} else {
		f.tail.next = m
	}
	f.tail = m
	f.bytes += m.n
	q.packets++
	q.bytes += m.n
	for q.packets > q.c.Packets || q.memory > q.c.Bytes {
		q.put(q.cut(q.longest()))
		q.Overflowed++
	}
}

// Pop copies the next packet to dst and returns its length; 0 when none waits. dst has room for any packet
// that was pushed.
func (q *Queue) Pop(now time.Duration, dst []byte) int { return q.PopWhere(now, dst, nil) }

// PopWhere is Pop that passes over sites that may have no more (full). Their flows are parked
// until Unpark.
func (q *Queue) PopWhere(now time.Duration, dst []byte, full func(site uint32) bool) int {
	for {
		from := &q.fresh
		if from.head == nil {
			if from = &q.old; from.head == nil {
				return 0
			}
		}
		f := from.head
		if full != nil && f.head != nil && full(f.head.site) {
			f.begun = from == &q.fresh
			q.park(from.pop())
			continue
		}
		if f.deficit <= 0 {
			f.deficit += q.quantum(f)
			q.old.push(from.pop())
			continue
		}
		m := q.codel(f, now)
		if m == nil {
			from.pop()
			if from == &q.fresh && q.old.head != nil {
				q.old.push(f) // or a flow that is never long would always be new (RFC 8290, section 4.2)
			} else {
				q.end(f)
			}
			continue
		}
		f.deficit -= m.n
		n := copy(dst, m.buf[:m.n])
		q.put(m)
		return n
	}
}

// park sets aside a flow that has a packet. It keeps what it may still send in its round.
func (q *Queue) park(f *flow) {
	place := uint16(f.head.site % siteCount)
	if q.parked[place].head == nil {
		q.places = append(q.places, place)
	}
	q.parked[place].push(f)
}

// Unpark returns flows to service whose sites are no longer full.
func (q *Queue) Unpark(full func(site uint32) bool) {
	var places [siteCount]uint16
	n := copy(places[:], q.places)
	q.places = q.places[:0]
	for _, place := range places[:n] {
		l := q.parked[place]
		q.parked[place] = list{}
		for l.head != nil {
			switch f := l.pop(); {
			case f.head != nil && full(f.head.site):
				q.park(f)
			case f.begun:
				q.fresh.push(f)
			default:
				q.old.push(f)
			}
		}
	}
}

// Ready reports whether there may be a packet that is not parked.
func (q *Queue) Ready() bool { return q.fresh.head != nil || q.old.head != nil }

// quantum is what a flow may send in a round: hosts of a site are equal, whatever the number of their flows,
// and so are sites.
func (q *Queue) quantum(f *flow) int {
	share := max(int(q.hostFlows[f.host]), 1)
	if q.sites > 1 {
		share *= max(int(q.siteHosts[f.site]), 1)
	}
	return max(q.c.Quantum/min(share, maxShare), 1)
}

func (q *Queue) begin(f *flow) {
	q.active++
	if q.hostFlows[f.host]++; q.hostFlows[f.host] == 1 {
		q.hostSite[f.host] = f.site
		if q.siteHosts[f.site]++; q.siteHosts[f.site] == 1 {
			q.sites++
		}
	}
}

func (q *Queue) end(f *flow) {
	f.listed = false
	q.active--
	if q.hostFlows[f.host]--; q.hostFlows[f.host] == 0 {
		site := q.hostSite[f.host]
		if q.siteHosts[site]--; q.siteHosts[site] == 0 {
			q.sites--
		}
	}
}

// longest is the flow with the most bytes. At least one packet must wait.
func (q *Queue) longest() (longest *flow) {
	look := func(l *list) {
		for f := l.head; f != nil; f = f.next {
			if longest == nil || f.bytes > longest.bytes {
				longest = f
			}
		}
	}
	look(&q.fresh)
	look(&q.old)
	for _, place := range q.places {
		look(&q.parked[place])
	}
	return longest
}

// cut removes a flow's first packet; nil if it has none.
func (q *Queue) cut(f *flow) *packet {
	m := f.head
	if m == nil {
		return nil
	}
	if f.head = m.next; f.head == nil {
		f.tail = nil
	}
	m.next = nil
	f.bytes -= m.n
	q.packets--
	q.bytes -= m.n
	return m
}

func (q *Queue) take(n int) *packet {
	if m := q.free; m != nil && n <= bufferSize {
		q.free, m.next = m.next, nil
		q.kept--
		q.memory += cap(m.buf)
		return m
	}
	m := &packet{buf: make([]byte, max(n, bufferSize))}
	q.memory += cap(m.buf)
	return m
}

// put takes back a packet's memory. A busy queue keeps what it will need soon, one that is nearly empty a little.
func (q *Queue) put(m *packet) {
	q.memory -= cap(m.buf)
	if len(m.buf) > bufferSize || q.kept >= max(maxFree, q.packets) {
		return
	}
	m.next, q.free = q.free, m
	q.kept++
}
