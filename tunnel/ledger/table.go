package ledger

import (
	"math"
	"time"

	"ringway/units"
)

// The table of flows: a hash table with linear probing, at most half full. The control side allocates it,
// sized by what the budgets can carry: 1.5 MiB at a hub of a thousand sites, 96 KiB at a branch.

const (
	minCall  = 24_000  // bit/s: G.729 with three frames a packet; the table is sized by it
	minSlots = 1 << 10 // powers of two
	maxSlots = 1 << 14
)

// A flow that has hardly begun and stops was no call. One that goes on without pauses has ended, or is on
// hold, when it has been silent for two seconds. A pause makes longer ones likely: with silence suppression
// no packet may come for as long as nobody speaks (G.729, Annex B, sends when the noise changes; RFC 3389
// leaves it to the sender). RTCP comes every 5 s, and up to 7.5 s are in order (RFC 3550, section 6.2).
const (
	newFlowSilence = 200 * time.Millisecond
	minSilence     = 2 * time.Second
	maxSilence     = 10 * time.Second
	pauseFactor    = 4 // of the longest pause
)

// Bounds that keep an entry at 96 bytes.
const (
	maxGap     = int64(maxSilence)/pauseFactor + 1
	maxLowPeak = math.MaxUint32
)

// entry is one flow that is in. Times are those of the engine's clock, in ns.
type entry struct {
	id          uint64 // 0: the slot is free
	site        *Account
	line        *Line // that it is charged to
	reservation *Reservation
	last        int64 // packet, or when the place was reserved
	since       int64
	tat         int64  // theoretical arrival time (GCRA): before it the flow is ahead of its rate
	active      int64  // ns of sound in this period
	bytes       int64  // on the wire, in this period
	cost        int64  // bit/s
	gap         uint32 // longest pause, ns
	lowPeak     uint32 // highest of the periods below cost, bit/s
	perByte     uint32 // ns that a byte takes at cost and the headroom
	packets     uint8  // counts to 255
	low         uint8  // periods below cost
	young       bool   // not measured yet
	rtcp        bool   // RTCP or ICMP
}

// charge sets what the flow costs: a reserved one never less than its reservation.
func (e *entry) charge(cost int64) {
	if e.reservation != nil {
		cost = max(cost, e.reservation.cost)
	}
	e.add(cost - e.cost)

	const bits = 8 * int64(time.Second)
	e.perByte = uint32(min(bits/max(cost+cost/headroom, 1), math.MaxUint32))
}

// add changes the cost, and with it the sums that it is part of.
func (e *entry) add(n int64) {
	e.cost += n
	e.site.sum(e.rtcp).Add(n)
	e.line.add(e.rtcp, n)
}

// moveTo charges the flow to another line.
func (e *entry) moveTo(line *Line) {
	if e.line == line {
		return
	}
	e.line.add(e.rtcp, -e.cost)
	e.line = line
	line.add(e.rtcp, e.cost)
}

// wasMisjudged reports whether the flow was admitted for less than it takes, if that is so in its first period.
func (e *entry) wasMisjudged() bool {
	return e.young && !e.rtcp && e.reservation == nil && e.site.flows.Load() > 1
}

// allowedSilence is for how long the flow may be silent without losing its place.
func (e *entry) allowedSilence() int64 {
	switch {
	case e.reservation != nil:
		return math.MaxInt64
	case e.rtcp:
		return int64(maxSilence)
	case e.packets == 1:
		return int64(newFlowSilence)
	}
	return min(max(pauseFactor*int64(e.gap), int64(minSilence)), int64(maxSilence))
}

type table struct {
	slots  []entry
	n      int // entries
	cursor int // of sweep
}

// newTable makes a table for what rate carries, in bit/s; RTCP is a flow of its own.
func newTable(rate units.BitRate) *table {
	n := minSlots
	for n < maxSlots && units.BitRate(n) < 4*rate/minCall {
		n *= 2
	}
	return &table{slots: make([]entry, n)}
}

func (t *table) full() bool { return 2*t.n >= len(t.slots) }

func (t *table) home(id uint64) int { return int(id & uint64(len(t.slots)-1)) }

// find returns the flow's slot, or the free one for it.
func (t *table) find(id uint64) *entry {
	for i := t.home(id); ; i++ {
		e := &t.slots[i&(len(t.slots)-1)]
		if e.id == id || e.id == 0 {
			return e
		}
	}
}

// enter counts in the flow that was written to a free slot.
func (t *table) enter(e *entry, cost int64) {
	t.n++
	if !e.rtcp {
		e.site.flows.Add(1)
	}
	if e.reservation != nil {
		e.site.reserved.Add(1)
	}
	e.charge(cost)
}

// evict removes a flow; where its place was reserved, its reservation says why it is lost.
func (t *table) evict(e *entry, why State) {
	if r := e.reservation; r != nil {
		r.state.Store(int32(why))
	}
	t.remove(e)
}

func (t *table) remove(e *entry) {
	for i := t.home(e.id); ; i++ {
		if at := i & (len(t.slots) - 1); &t.slots[at] == e {
			t.removeAt(at)
			return
		}
	}
}

// removeAt frees slot i, and moves up entries that would not be found behind a free slot.
func (t *table) removeAt(i int) {
	e := &t.slots[i]
	e.add(-e.cost)
	if !e.rtcp {
		e.site.flows.Add(-1)
	}
	if e.reservation != nil {
		e.reservation.placed = false
		e.site.reserved.Add(-1)
	}

	mask := len(t.slots) - 1
	for j := i; ; {
		j = (j + 1) & mask
		if t.slots[j].id == 0 {
			break
		}
		if (j-t.home(t.slots[j].id))&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = entry{}
	t.n--
}

// sweep checks the next n slots for flows that have lost their place.
func (t *table) sweep(n int, now int64) {
	for range min(n, len(t.slots)) {
		t.cursor = (t.cursor + 1) & (len(t.slots) - 1)
		e := &t.slots[t.cursor]
		if e.id == 0 {
			continue
		}
		if e.site.gone.Load() {
			if e.reservation != nil {
				e.reservation.state.Store(int32(LostSite))
			}
			t.removeAt(t.cursor)
		} else if now-e.last > e.allowedSilence() {
			t.removeAt(t.cursor) // what moves up is checked in the next round
		}
	}
}

// newest returns the newest flow of a site or of a line.
func (t *table) newest(site *Account, line *Line) (newest *entry) {
	for i := range t.slots {
		e := &t.slots[i]
		if e.id == 0 || e.rtcp || e.site != site && (line == nil || e.line != line) {
			continue
		}
		if newest == nil || e.since > newest.since {
			newest = e
		}
	}
	return newest
}

// copyFrom takes over the flows of a smaller table.
func (t *table) copyFrom(old *table) {
	for i := range old.slots {
		if e := &old.slots[i]; e.id != 0 {
			*t.find(e.id) = *e
			t.n++
		}
	}
}
