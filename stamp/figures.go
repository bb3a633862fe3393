package stamp

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"ringway/quality"
)

// Figures evaluates a Result. Forward is from here to there.
type Figures struct {
	RoundTrip quality.Summary // its Voice is meaningless: nobody listens to a round trip
	Forward   Direction
	Backward  Direction
	Lost      Lost
	Clocks    Clocks
	DSCPThere map[uint8]int // code points of questions as they arrived there, where the far end reports them
	DSCPHere  map[uint8]int // code points of answers as they arrived here
	TTLThere  uint8         // lowest TTL of a question as it arrived there
	FarTime   time.Duration // the longest that the far end held a packet; part of no delay
	BadReply  int           // answers with extensions that are malformed
}

// Direction is one way. Its Delay is one only where Clocks.OneWay; else it stands for its variation alone.
type Direction struct {
	quality.Summary
	Sent, Received int     // of the whole probe: what was lost before it could be sent back is in
	Loss           float64 // share of Sent
}

// Lost says how many packets did not come back, and where they were lost.
type Lost struct {
	Sent, Total       int
	Forward, Backward int
	Unknown           int  // after the last answer, or all of them if the far end does not count
	Stateful          bool // the far end counts by itself
	Reordered         int  // round trip
	Duplicates        int
}

// Clocks says which figures the two clocks allow.
type Clocks struct {
	OneWay    bool          // both clocks are said to be synchronized
	Error     time.Duration // then: the largest error of both together
	DriftPPM  float64       // else: how fast they ran apart
	DriftFuzz float64       // how far that may be off, ppm
	Drift     bool          // it exceeds that, and was corrected
	Negative  int64         // packets that arrived before they were sent, by synchronized clocks
	NoTAI     bool          // the far end stamps in TAI, and this kernel does not know how far that is from UTC
	Statement string        // all of this as text
}

// Figures evaluates the result.
func (r *Result) Figures() Figures {
	f := Figures{DSCPThere: map[uint8]int{}, DSCPHere: map[uint8]int{}}
	f.account(r)
	shift := r.clocks(&f)

	rtt := make([]quality.Stream[int], len(r.Streams))
	there, back := make([]quality.Stream[int], len(r.Streams)), make([]quality.Stream[int], len(r.Streams))
	for i, s := range r.Streams {
		rtt[i] = quality.Stream[int]{Key: i, Duplicates: s.Duplicates, Reordered: s.Reordered}
		lostThere := gaps(s, f.Lost.Stateful)
		for n, p := range s.Packets {
			if p.Sent == 0 {
				continue
			}
			seq, sent := int64(n), quality.Timestamp(p.Sent)
			if p.Received == 0 {
				gone := quality.Packet{Seq: seq, Sent: sent, Lost: true}
				rtt[i].Packets = append(rtt[i].Packets, gone)
				// A loss that cannot be placed counts in both directions: neither may look better than it was.
				if where := lostThere[n]; where != lostBackward {
					there[i].Packets = append(there[i].Packets, gone)
				}
				if where := lostThere[n]; where != lostForward {
					back[i].Packets = append(back[i].Packets, gone)
				}
				continue
			}
			rtt[i].Packets = append(
				rtt[i].Packets, quality.Packet{Seq: seq, Sent: sent, Received: sent.Add(p.RoundTrip())},
			)
			in, out := quality.Timestamp(p.ThereIn).Add(-shift(p)), quality.Timestamp(p.ThereOut).Add(-shift(p))
			there[i].Packets = append(there[i].Packets, quality.Packet{Seq: seq, Sent: sent, Received: in})
			back[i].Packets = append(
				back[i].Packets, quality.Packet{Seq: seq, Sent: out, Received: quality.Timestamp(p.Received)},
			)
		}
		there[i].Reordered, back[i].Reordered = reordered(s)
	}
	f.RoundTrip = quality.Summarize(rtt, quality.G711)
	f.Forward.Summary, f.Backward.Summary = quality.Summarize(there, quality.G711), quality.Summarize(back, quality.G711)
	l := f.Lost
	f.Forward.count(l.Sent, l.Forward+l.Unknown)
	f.Backward.count(l.Sent-l.Forward, l.Backward+l.Unknown)
	if f.Clocks.OneWay {
		f.Clocks.Negative = f.Forward.Delay.Negative() + f.Backward.Delay.Negative()
	}
	f.Clocks.Statement = f.Clocks.words(r)
	return f
}

func (d *Direction) count(sent, lost int) {
	d.Sent, d.Received = sent, sent-lost
	if sent > 0 {
		d.Loss = float64(lost) / float64(sent)
	}
}

// account counts what came back, and what the far end reports.
func (f *Figures) account(r *Result) {
	f.TTLThere = 255
	// A far end that counts by itself shows it: by its counters, or by a number that is not the sender's.
	for _, s := range r.Streams {
		for n, p := range s.Packets {
			if p.Received != 0 && (p.Far.Counted || p.FarSeq != uint32(n)) {
				f.Lost.Stateful = true
			}
		}
	}
	for _, s := range r.Streams {
		f.Lost.Duplicates += s.Duplicates
		f.Lost.Reordered += s.Reordered
		where := gaps(s, f.Lost.Stateful)
		for n, p := range s.Packets {
			if p.Sent == 0 {
				continue
			}
			f.Lost.Sent++
			if p.Received == 0 {
				f.Lost.Total++
				switch where[n] {
				case lostForward:
					f.Lost.Forward++
				case lostBackward:
					f.Lost.Backward++
				default:
					f.Lost.Unknown++
				}
				continue
			}
			if p.Far.SawDSCP {
				f.DSCPThere[p.Far.DSCP]++
			}
			if p.Far.BadReply {
				f.BadReply++
			}
			f.DSCPHere[p.DSCP]++
			f.TTLThere = min(f.TTLThere, p.TTL)
			f.FarTime = max(f.FarTime, time.Duration(p.ThereOut-p.ThereIn))
		}
	}
}

type whereLost uint8

const (
	lostSomewhere whereLost = iota
	lostForward
	lostBackward
)

// gaps places what was lost. Between two answers the far end's own numbers tell how many questions it saw:
// those were lost on the way back. Which of a gap's packets it saw nobody knows; their number is right, and
// the first of a gap stand for those lost on the way there. After the last answer nothing is known.
func gaps(s Stream, stateful bool) map[int]whereLost {
	out := map[int]whereLost{}
	if !stateful {
		return out
	}
	last, farNext := -1, uint32(0) // a new session's numbers begin at zero
	for n, p := range s.Packets {
		if p.Received == 0 {
			continue
		}
		var missing []int
		for m := last + 1; m < n; m++ {
			if s.Packets[m].Sent != 0 {
				missing = append(missing, m)
			}
		}
		seen := int(max(0, min(int64(p.FarSeq)-int64(farNext), int64(len(missing)))))
		for i, m := range missing {
			out[m] = lostForward
			if i >= len(missing)-seen {
				out[m] = lostBackward
			}
		}
		last, farNext = n, p.FarSeq+1
	}
	return out
}

// reordered counts answers that overtook one another, by the far end's numbers: there, arrivals after a
// later question (its numbers go by arrival); back, arrivals here after a later answer.
func reordered(s Stream) (there, back int) {
	type arrival struct {
		far uint32
		at  int64
	}
	var highest uint32
	var arrivals []arrival
	for i, p := range s.Packets {
		if p.Received == 0 {
			continue
		}
		if len(arrivals) > 0 && p.FarSeq < highest {
			there++
		}
		highest = max(highest, p.FarSeq)
		arrivals = append(arrivals, arrival{p.FarSeq, s.Packets[i].Received})
	}
	slices.SortStableFunc(arrivals, func(a, b arrival) int { return int(a.at - b.at) })
	highest = 0
	for _, a := range arrivals {
		if a.far < highest {
			back++
		}
		highest = max(highest, a.far)
	}
	return there, back
}

// Bounds of the estimate of drift: shorter runs, or fewer packets, only show noise.
const (
	driftWindows = 12
	minDriftSpan = 3 * time.Second
	driftPackets = 100
)

// clocks says which figures the two clocks allow, and gives how far the far one is ahead. If both are
// synchronized, nothing is corrected. Otherwise the offset is that of the packet with the shortest round
// trip, both ways taken as equally long, and its drift is a line through the fastest packets of each
// window: two crystals drift apart by up to 100 µs per second, which would look like delay variation.
func (r *Result) clocks(f *Figures) (ahead func(Packet) time.Duration) {
	none := func(Packet) time.Duration { return 0 }
	c := &f.Clocks
	c.OneWay = r.Before.Synchronized && r.After.Synchronized && f.Lost.Total < f.Lost.Sent

	all := answered{first: math.MaxInt64}
	farError := time.Duration(0)
	for p := range r.received() {
		far, ok := p.Error.Max()
		c.NoTAI = c.NoTAI || p.Error.Format() == PTP && r.Before.TAI == 0
		c.OneWay = c.OneWay && ok && p.Error.Synchronized() && !c.NoTAI
		farError = max(farError, far)
		all.add(p)
	}

	switch {
	case all.fastest == nil:
		c.OneWay = false
		return none
	case c.OneWay && r.ClockMoved.Abs() < time.Millisecond:
		c.Error = max(r.Before.MaxError, r.After.MaxError) + farError
		return none
	}
	c.OneWay = false
	base, at, slope := offset(all.fastest), all.fastest.Sent, r.drift(c, all)
	return func(p Packet) time.Duration {
		return time.Duration(math.Round(base + slope*float64(p.Sent-at)))
	}
}

// answered summarizes the packets that came back.
type answered struct {
	n           int
	first, last int64 // times of sending
	fastest     *Packet
}

func (a *answered) add(p *Packet) {
	a.n++
	a.first, a.last = min(a.first, p.Sent), max(a.last, p.Sent)
	if a.fastest == nil || p.RoundTrip() < a.fastest.RoundTrip() {
		a.fastest = p
	}
}

// received iterates over the packets that came back.
func (r *Result) received() iter.Seq[*Packet] {
	return func(yield func(*Packet) bool) {
		for i := range r.Streams {
			for k := range r.Streams[i].Packets {
				if p := &r.Streams[i].Packets[k]; p.Received != 0 && !yield(p) {
					return
				}
			}
		}
	}
}

// offset is how far the far clock is ahead, if p took equally long both ways.
func offset(p *Packet) float64 {
	return (float64(p.ThereIn-p.Sent) + float64(p.ThereOut-p.Received)) / 2
}

// drift is how fast the far clock runs away from this one; 0 if the run is too short, or the drift too
// small, to tell.
func (r *Result) drift(c *Clocks, all answered) (slope float64) {
	span := all.last - all.first
	if span < int64(minDriftSpan) || all.n < driftPackets {
		return 0
	}
	var fastest [driftWindows]*Packet
	for p := range r.received() {
		w := min(driftWindows-1, int((p.Sent-all.first)*driftWindows/span))
		if fastest[w] == nil || p.RoundTrip() < fastest[w].RoundTrip() {
			fastest[w] = p
		}
	}

	// The median of all slopes (Theil-Sen): a window whose fastest packet was slow does not tilt the line.
	var slopes []float64
	for i, a := range fastest {
		for _, b := range fastest[i+1:] {
			if a != nil && b != nil && b.Sent > a.Sent {
				slopes = append(slopes, (offset(b)-offset(a))/float64(b.Sent-a.Sent))
			}
		}
	}
	// By how much the fastest packet of a window was slower than the fastest of all: all of it may be in
	// one direction.
	var waits []float64
	for _, p := range fastest {
		if p != nil {
			waits = append(waits, float64(p.RoundTrip()-all.fastest.RoundTrip())/2)
		}
	}
	if len(slopes) == 0 {
		return 0
	}

	slices.Sort(slopes)
	slices.Sort(waits)
	slope = slopes[len(slopes)/2]
	c.DriftPPM, c.DriftFuzz = slope*1e6, waits[len(waits)/2]/float64(span)*1e6
	if c.Drift = math.Abs(c.DriftPPM) > c.DriftFuzz; !c.Drift {
		return 0
	}
	return slope
}

// words puts it into a sentence.
func (c Clocks) words(r *Result) string {
	switch {
	case r.ClockMoved.Abs() >= time.Millisecond:
		return fmt.Sprintf(
			"this machine's clock was set by %s during the run: no figure can be trusted; run it again.",
			r.ClockMoved.Round(time.Microsecond),
		)
	case c.OneWay && c.Negative > 0:
		return fmt.Sprintf(
			"both clocks report to be synchronized, together to within %s; but %d packets arrived before they were "+
				"sent, so they are not. Of the one-way figures only the variation can be trusted.",
			c.Error, c.Negative,
		)
	case c.OneWay:
		return fmt.Sprintf(
			"both clocks are synchronized, together to within %s: one-way delay is accurate to that; its variation "+
				"and the round trip do not depend on it.",
			c.Error,
		)
	}
	var who string
	there := false
	for _, s := range r.Streams {
		for _, p := range s.Packets {
			there = there || p.Received != 0 && p.Error.Synchronized()
		}
	}
	here := r.Before.Synchronized && r.After.Synchronized
	switch {
	case c.NoTAI && here && there:
		who = "the far end stamps in TAI, and this kernel was not told how far that is from UTC"
	case !here && !there:
		who = "neither clock is synchronized"
	case !here:
		who = "this machine's clock is not synchronized"
	default:
		who = "the far end's clock is not synchronized"
	}
	drift := "too short a run to see how they drift"
	if c.Drift {
		drift = fmt.Sprintf("they drift by %.2f ± %.2f ppm, which is corrected", c.DriftPPM, c.DriftFuzz)
	} else if c.DriftFuzz > 0 {
		drift = fmt.Sprintf("no drift shows above ± %.2f ppm", c.DriftFuzz)
	}
	return fmt.Sprintf(
		"%s: no one-way delay, only its variation, which needs no common clock (%s). "+
			"MOS takes each way's minimum delay as half of the minimum round trip.",
		who, drift,
	)
}
