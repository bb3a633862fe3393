package series

import (
	"math/bits"
)

const (
	// words of 64 sequence numbers that a series remembers: ten seconds at 50 packets a second. What comes later counts
	// as lost.
	words = 8

	// A larger step of the sequence number, either way, is a restart if the next packet goes on from there (RFC 3550,
	// appendix A.1). It is no loss.
	maxDropout = 3000

	// firstCycle is where extended sequence numbers begin, so that a packet before the first one has one, too.
	firstCycle = 1 << 16
	// lastSequence ends a series: after a year at 50 packets a second, or much sooner where somebody skips as many as
	// he can.
	lastSequence = 1 << 31
)

// entry is one series. What every packet needs comes first, in one cache line, and a word's bits are all in another.
type entry struct {
	last    int64  // when a packet came, ns
	highest uint32 // extended sequence number
	born    uint32
	clock

	window [words]word

	// What follows is touched once in 64 packets, or when something is odd.
	lowest uint32 // of this run: where counting began
	// Sums over what has left the window, and over runs that a restart ended.
	expected, arrivedOut, passedOut uint32

	copies   uint32 // packets that came again
	late     uint32 // packets that came when their place was forgotten, or that fit nowhere
	restarts uint32
	restart  uint32 // sequence number that would prove one; above 16 bits: none
	dropped  [Reasons]uint32

	began int64
	peer  uint32
	name  name
	_     [8]byte // whole lines
}

// word is what became of 64 sequence numbers in a row, a bit for each.
type word struct{ arrived, passed uint64 }

// begin makes e a new series.
func (e *entry) begin(h header, n name, peer, born uint32, now int64) {
	*e = entry{born: born, name: n, peer: peer, began: now, last: now}
	e.start(h.sequence)
	e.clock.start(h.payload, h.time, now)
}

const noRestart = 1 << 16

// start begins a run with its first packet.
func (e *entry) start(sequence uint16) {
	e.highest = firstCycle + uint32(sequence)
	e.lowest, e.restart = e.highest, noRestart
	e.window = [words]word{}
	e.set(e.highest)
}

// set notes that a sequence number arrived. It reports whether that is the first time.
func (e *entry) set(extended uint32) (first bool) {
	w, bit := &e.window[extended>>6%words], uint64(1)<<(extended&63)
	first = w.arrived&bit == 0
	w.arrived |= bit
	return first
}

// holds reports whether the window still has a sequence number.
func (e *entry) holds(extended uint32) bool { return extended>>6+words > e.highest>>6 }

// unproven reports whether but one sequence number has come.
func (e *entry) unproven() bool { return e.highest == e.lowest && e.restarts == 0 }

// count takes the next packet, and returns its extended sequence number. ok is false if the packet is a copy, or has no
// place in the series.
func (e *entry) count(sequence uint16, now int64) (extended uint32, ok bool) {
	e.last = now
	step := int16(sequence - uint16(e.highest))
	if step > 0 && step < maxDropout && e.highest < lastSequence {
		extended = e.highest + uint32(step)
		if extended>>6 != e.highest>>6 {
			e.leave(e.highest>>6, extended>>6)
		}
		e.highest = extended
		e.set(extended)
		return extended, true
	}
	if extended = e.highest - uint32(-int32(step)); step > 0 || !e.holds(extended) {
		return e.jump(sequence)
	}
	if !e.set(extended) {
		e.copies++
		return 0, false
	}
	e.lowest = min(e.lowest, extended)
	return extended, true
}

// leave sums up the words that leave the window when another one becomes the last.
func (e *entry) leave(last, next uint32) {
	for w := max(last, next-words) + 1; w <= next; w++ {
		e.forget(w % words)
	}
}

func (e *entry) forget(at uint32) {
	w := &e.window[at]
	e.arrivedOut += uint32(bits.OnesCount64(w.arrived))
	e.passedOut += uint32(bits.OnesCount64(w.passed))
	*w = word{}
}

// jump takes a packet that is far from the others: a late one, or the first after a restart.
func (e *entry) jump(sequence uint16) (extended uint32, ok bool) {
	if uint32(sequence) != e.restart {
		e.late++
		e.restart = uint32(sequence + 1)
		return 0, false
	}
	e.expected += e.highest - e.lowest + 1
	for w := range uint32(words) {
		e.forget(w)
	}
	e.restarts++
	e.clock.lose()
	e.start(sequence)
	return e.highest, true
}
