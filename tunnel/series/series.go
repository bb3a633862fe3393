// Package series counts the packets of media that an engine forwards, by flow and source (SSRC): which sequence
// numbers arrived, which of them went on, and how even they came. From that follow loss and jitter of each call, and
// where its packets were lost: what did not arrive was lost before this box, what arrived and did not go on was lost
// in it.
//
//  1. Arrive reads the header of RTP (packet.go), finds the series, and sets the bit of the sequence number
//     (window.go)
//  2. Pass sets the second bit when the packet has gone on; Drop counts why it did not
//  3. Copy hands series out, a few at a time (copy.go)
//  4. a Comparer compares them with what the far end tells (report.go)
//
// A Table has one direction. It does no I/O, takes no lock and allocates nothing once made: its owner is the thread
// that has the direction's turn. Its memory is bounded. What is not RTP, or comes when the table is full, passes
// without being counted.
package series

import (
	"sync/atomic"
	"time"
)

const (
	// probes bounds the search for a series: what does not fit there is not counted.
	probes = 16
	// forgetAfter is how long a silent series stays: whoever reads them has had it by then.
	forgetAfter = time.Minute
	// unprovenFor is how long a series of one packet keeps others out. A flood of packets with changing ports or sources
	// makes many of those.
	unprovenFor = time.Second
)

// Bounds of a table.
const (
	MinSeries = 1 << 10
	MaxSeries = 1 << 14
)

// Table holds the series of one direction.
type Table struct {
	seed    Seed
	slots   []slot
	shift   int
	entries []entry // the first made are in use
	made    int
	born    uint32 // counts series, so that a Mark knows its own
	beyond  uint64 // packets that were not counted, since there was no space
}

// slot leads from a series to its entry. Entries are apart, so that those in use lie together: the memory of a large
// table is touched only as far as it is needed.
type slot struct {
	id    uint64 // 0: was never used
	entry uint32
}

// numbers has the series of each table of a process begin at numbers of their own.
var numbers atomic.Uint32

// New makes a table for that many series, rounded up to a power of two, at most half of which should be in use.
func New(seed Seed, series int) *Table {
	n, shift := MinSeries, 64-10
	for n < min(series, MaxSeries) {
		n, shift = 2*n, shift-1
	}
	return &Table{born: numbers.Add(1) << 20, seed: seed, slots: make([]slot, n), shift: shift, entries: make([]entry, n)}
}

// Mark is one packet that was counted. The zero value is one that was not.
type Mark struct {
	entry    uint32 // from 1 on
	born     uint32
	sequence uint32 // extended
}

// Arrive counts a packet that came, from or to a peer. now is in ns of a monotonic clock. packet is an IP packet with
// a header of whole length.
func (t *Table) Arrive(packet []byte, peer uint32, now int64) Mark {
	h, ok := t.seed.read(packet)
	if !ok {
		return Mark{}
	}
	s := &t.slots[h.id>>t.shift&uint64(len(t.slots)-1)] // most are where they belong
	at := s.entry
	if s.id != h.id {
		var fresh bool
		if at, fresh = t.find(h.id, now); at == none {
			return Mark{}
		}
		if fresh {
			return t.begin(h, packet, at, peer, now)
		}
	}
	e := &t.entries[at]
	sequence, ok := e.count(h.sequence, now)
	if !ok {
		return Mark{}
	}
	e.measure(h.payload, h.time, now)
	return Mark{entry: at + 1, born: e.born, sequence: sequence}
}

// begin begins a series with its first packet.
func (t *Table) begin(h header, packet []byte, at, peer uint32, now int64) Mark {
	t.born++
	e := &t.entries[at]
	e.begin(h, nameOf(packet), peer, t.born, now)
	return Mark{entry: at + 1, born: e.born, sequence: e.highest}
}

// Pass says that a packet has gone on.
func (t *Table) Pass(m Mark) {
	if m.entry == 0 {
		return
	}
	if e := &t.entries[m.entry-1]; e.born == m.born && e.holds(m.sequence) {
		w := &e.window[m.sequence>>6%words]
		w.passed |= 1 << (m.sequence & 63) & w.arrived // a restart may have come in between
	}
}

// Drop says why a packet will not go on.
func (t *Table) Drop(m Mark, why Reason) {
	if m.entry == 0 {
		return
	}
	if e := &t.entries[m.entry-1]; e.born == m.born {
		e.dropped[why]++
	}
}

// Reason is why this box dropped a packet. The engine says which there are.
type Reason uint8

// Reasons is how many there may be.
const Reasons = 8

const none = ^uint32(0)

// find returns the entry of a series; fresh: one that it may have from now on.
func (t *Table) find(id uint64, now int64) (at uint32, fresh bool) {
	mask := uint64(len(t.slots) - 1)
	home := id >> t.shift
	for i := range uint64(probes) {
		s := &t.slots[(home+i)&mask]
		if s.id == id {
			return s.entry, false
		}
		if s.id == 0 { // slots are never freed, so it is not behind this one
			s.id, s.entry = id, uint32(t.made)
			t.made++
			return s.entry, true
		}
	}
	return t.replace(id, now)
}

// replace gives a new series the place of one that has ended.
func (t *Table) replace(id uint64, now int64) (at uint32, fresh bool) {
	mask := uint64(len(t.slots) - 1)
	home := id >> t.shift
	for i := range uint64(probes) {
		s := &t.slots[(home+i)&mask]
		e := &t.entries[s.entry]
		silent := now - e.last
		if silent > int64(forgetAfter) || e.unproven() && silent > int64(unprovenFor) {
			s.id = id
			return s.entry, true
		}
	}
	t.beyond++
	return none, false
}

// Beyond is how many packets were not counted, since there was no space for their series.
func (t *Table) Beyond() uint64 { return t.beyond }
