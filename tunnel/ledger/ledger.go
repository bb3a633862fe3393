// Package ledger decides which flows of media may leave for a site. Each site has a voice budget, and a WAN
// may have one for all its sites together (tunnel.Admission). The queue behind the engine polices media as a
// whole: over budget, every call would lose packets. So only admitted flows pass, first come, first served,
// and the packets of all others are dropped before they are encrypted. Each end guards what it sends.
//
//  1. A flow is identified by a hash of its addresses and ports (flow.go). What it costs on the provider's
//     meter is taken from its first packet, as if 50 of them came each second, until it has been measured.
//  2. A new flow is admitted if its cost fits beside those of the flows that are in, in the site's budget
//     and in the line's. After a refusal, new flows must first show that they go on (candidate.go): ports that
//     change with each packet must not take the place that a finished call leaves.
//  3. An admitted flow stays in. It may send a quarter more than its cost (GCRA), and beyond that what is
//     free. A flow that turns out in its first second to need more than is free was admitted by mistake, and is
//     evicted.
//  4. A silent flow loses its place after a while (maxSilence), unless the place is reserved (reservation.go).
//  5. Where a budget has shrunk, the newest flows are evicted first, reserved or not.
//
// The ledger does no I/O, takes no lock and allocates nothing. Its owner is whoever holds the outbound
// direction's turn; what others read is atomic. Its memory is bounded: budgets.go.
package ledger

import (
	"time"
)

const (
	assumedInterval     = 20 * time.Millisecond // between packets of a new flow: RFC 3551, section 4.2, and all phones
	assumedRTCPInterval = time.Second

	measurePeriod = time.Second // of sound, over which a cost is measured
	longestPause  = 200 * time.Millisecond

	mediaBurst = 500 * time.Millisecond // that may arrive at once: what waited while a plane was replaced
	rtcpBurst  = 5 * time.Second        // a few reports in a row
	headroom   = 4                      // a flow may send 1/headroom more than its cost

	// The cost of a flow remains at its peak until it has been lower for so many periods: a silent
	// speaker will speak again.
	lowPeriods = 30

	provingTime   = time.Second // after a refusal new flows must show that they go on
	evictInterval = 20 * time.Millisecond
	minCost       = 400 // bit/s: flows that send nothing cannot fill the table
	overBudget    = 16  // evict above 1/overBudget more than the budget: measurements are not exact

	sweepPerPacket = 2 // slots checked for silent flows with each packet
	// Before a new flow is refused, so many slots are checked, at most so often: a branch's whole table, in some
	// 10 µs.
	sweepBeforeRefusal = 1 << 10
	sweepInterval      = 5 * time.Millisecond
)

// Ledger holds the flows that are in.
type Ledger struct {
	seed       Seed
	budgets    *Budgets // that the entries are charged to
	table      *table
	candidates candidates

	evictedAt int64 // when a flow was last evicted
	sweptAt   int64 // when silent flows were last looked for before a refusal
}

// New makes an empty ledger.
func New(seed Seed) *Ledger { return &Ledger{seed: seed} }

// Admit decides whether a packet for a site may leave. packet is the inner packet, size that of the outer
// one, IP header included. now is in ns of a monotonic clock.
func (l *Ledger) Admit(budgets *Budgets, site *Account, b *Budget, packet []byte, size int, now int64) bool {
	if budgets != l.budgets {
		l.use(budgets)
	}
	l.table.sweep(sweepPerPacket, now)

	id := l.seed.Packet(packet)
	wire := b.line.wire(size)
	e := l.table.find(id)
	if e.id != 0 && e.site != site { // the network belongs to another site now
		l.table.evict(e, LostSite)
		e = l.table.find(id)
	}
	if e.id == 0 {
		return l.admitNew(e, id, b, site, isRTCP(packet), wire, now)
	}
	return l.pass(e, b, wire, now)
}

// use charges all entries to new budgets.
func (l *Ledger) use(budgets *Budgets) {
	if l.table != budgets.table {
		if l.table != nil {
			budgets.table.copyFrom(l.table)
		}
		l.table = budgets.table
	}
	l.budgets = budgets

	for i := range l.table.slots {
		e := &l.table.slots[i]
		if e.id == 0 {
			continue
		}
		if b := e.site.budget.Load(); b != nil {
			e.moveTo(b.line)
		}
	}
}

// admitNew admits a flow, or refuses its packet. e is the slot for it.
func (l *Ledger) admitNew(e *entry, id uint64, b *Budget, site *Account, rtcp bool, wire, now int64) bool {
	interval := assumedInterval
	if rtcp {
		interval = assumedRTCPInterval
	}
	cost := bitRate(wire, int64(interval))

	// RTCP comes too seldom to show that it goes on.
	refusedAt := site.refusedAt.Load()
	proven := rtcp || refusedAt == 0 || now-refusedAt > int64(provingTime)

	c := l.candidates.find(id, now)
	if c != nil {
		cost = c.observe(cost, wire, now)
		proven = proven || c.proven()
	}
	cost = max(cost, minCost)

	in := proven && l.fits(b, site, rtcp, cost)
	if proven && !in && now-l.sweptAt >= int64(sweepInterval) {
		l.sweptAt = now
		l.table.sweep(sweepBeforeRefusal, now)
		in, e = l.fits(b, site, rtcp, cost), l.table.find(id)
	}
	if !in {
		if c == nil {
			l.candidates.add(id, wire, now)
		}
		site.refuse(rtcp, now)
		return false
	}

	if c != nil {
		*c = candidate{}
	}
	*e = entry{
		id:      id,
		site:    site,
		line:    b.line,
		last:    now,
		since:   now,
		packets: 1,
		bytes:   wire,
		young:   true,
		rtcp:    rtcp,
	}
	l.table.enter(e, cost)
	e.tat = now + wire*int64(e.perByte)
	site.at.Store(now)
	return true
}

// fits reports whether a new flow of that cost has a place.
func (l *Ledger) fits(b *Budget, site *Account, rtcp bool, cost int64) bool {
	if l.table.full() {
		return false
	}
	// The only flow of a site is admitted whatever the assumption says: then it is measured.
	only := !rtcp && site.flows.Load() == 0 && !b.line.bounded
	return only || b.fits(site, rtcp, cost) == Held
}

// pass decides about a packet of a flow that is in, and measures the flow.
func (l *Ledger) pass(e *entry, b *Budget, wire, now int64) bool {
	e.moveTo(b.line) // another WAN is in use

	pause := now - e.last
	e.last = now
	if e.packets < 255 {
		e.packets++
	}
	if pause > int64(e.gap) {
		e.gap = uint32(min(pause, maxGap))
	}
	if !e.rtcp {
		pause = min(pause, int64(longestPause))
	}
	if e.active += pause; e.active >= int64(measurePeriod) && !l.measure(e, b, now) {
		return false
	}

	burst := int64(mediaBurst)
	if e.rtcp {
		burst = int64(rtcpBurst)
	}
	tat := max(e.tat, now)
	if tat-now > burst {
		if !l.grow(e, b, wire, now) {
			return false
		}
		tat = now
	}
	e.tat = tat + wire*int64(e.perByte)
	e.bytes += wire

	if !e.rtcp {
		l.enforce(e.site, b, now)
	}
	return true // also if it was this flow that was evicted: its next packet is not
}

// grow lets a flow that is ahead of its rate have what is free, or drops its packet.
func (l *Ledger) grow(e *entry, b *Budget, wire, now int64) bool {
	want := max(bitRate(e.bytes+wire, max(e.active, int64(mediaBurst))), e.cost+e.cost/2)
	if b.fits(e.site, e.rtcp, want-e.cost) == Held {
		e.charge(want)
		return true
	}
	if e.wasMisjudged() {
		l.evictMisjudged(e, want, now)
	} else {
		e.site.refuse(e.rtcp, now)
	}
	return false
}

// measure ends a period, in which e.bytes came in e.active. It reports whether the flow is still in.
func (l *Ledger) measure(e *entry, b *Budget, now int64) bool {
	rate := max(bitRate(e.bytes, e.active), minCost)
	misjudged := e.wasMisjudged()
	young := e.young
	e.active, e.bytes, e.young = 0, 0, false
	e.site.at.Store(now)

	switch {
	case rate > e.cost+e.cost/10:
		e.low, e.lowPeak = 0, 0
		if b.fits(e.site, e.rtcp, rate-e.cost) == Held {
			e.charge(rate)
		} else if misjudged {
			l.evictMisjudged(e, rate, now)
			return false
		}

	case rate >= e.cost-e.cost/10: // unchanged: arrival times vary
		e.low, e.lowPeak = 0, 0

	case young && int64(e.gap) <= int64(longestPause) || e.rtcp:
		// A flow that pauses may have begun with silence, and will need more: that one keeps its first cost for a
		// while.
		e.charge(rate)

	default:
		e.lowPeak = max(e.lowPeak, uint32(min(rate, maxLowPeak)))
		if e.low++; e.low >= lowPeriods {
			e.charge(int64(e.lowPeak))
			e.low, e.lowPeak = 0, 0
		}
	}
	return true
}

// evictMisjudged removes a flow that was admitted for less than it takes, and keeps in mind what that is.
func (l *Ledger) evictMisjudged(e *entry, cost, now int64) {
	l.candidates.addEvicted(e.id, cost, now)
	e.site.refuse(false, now)
	l.table.remove(e)
}

// enforce evicts the newest flow of a site or a line that is over budget, one at a time.
func (l *Ledger) enforce(site *Account, b *Budget, now int64) {
	if limit := b.limit.media; site.media.Load() > limit+limit/overBudget && site.flows.Load() > 1 {
		l.evictNewest(site, nil, now)
	} else if limit := b.line.limit.media; b.line.bounded && b.line.taken.media > limit+limit/overBudget {
		l.evictNewest(nil, b.line, now)
	}
}

// evictNewest removes the newest flow of a site or of a line.
func (l *Ledger) evictNewest(site *Account, line *Line, now int64) {
	if now-l.evictedAt < int64(evictInterval) {
		return
	}
	l.evictedAt = now

	e := l.table.newest(site, line)
	if e == nil {
		return
	}
	why := LostSiteBudget
	if line != nil {
		why = LostLineBudget
	}
	l.candidates.addEvicted(e.id, e.cost, now)
	l.table.evict(e, why)
}

// bitRate is n bytes in so many ns, in bit/s.
func bitRate(n, ns int64) int64 { return n * 8 * int64(time.Second) / ns }
