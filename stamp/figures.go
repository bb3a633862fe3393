package stamp

import (
	"fmt"
	"math"
	"slices"
	"time"

	"ringway/quality"
)

// Figures is a result in what an engineer reads. Forward is from here to there.
type Figures struct {
	RoundTrip quality.Summary // its Voice means nothing: nobody listens to a round trip
	Forward   Direction
	Backward  Direction
	Lost      Lost
	Clocks    Clocks
	DSCPThere map[uint8]int // code points that questions arrived there with, where the far end says
	DSCPHere  map[uint8]int // that answers arrived here with
	TTLThere  uint8         // least TTL of a question when it arrived there
	FarTime   time.Duration // longest that the far end held a packet: not in any delay
	BadReply  int           // answers with extensions that are malformed
}

// Direction is one way. Its Delay is one only where Clocks.OneWay; else it stands for its variation alone.
type Direction struct {
	quality.Summary
	Sent, Received int     // of the whole probe: what was lost before it could be sent back is in
	Loss           float64 // share of Sent
}

// Lost says how many packets did not come back, and where they went.
type Lost struct {
	Sent, Total       int
	Forward, Backward int
	Unknown           int  // after the last answer, or everywhere where the far end does not count
	Stateful          bool // the far end counts by itself
	Reordered         int  // round trip
	Duplicates        int
}

// Clocks says what the clocks allow.
type Clocks struct {
	OneWay    bool          // both clocks say that they are synchronized
	Error     time.Duration // then: the most that both together may be off
	DriftPPM  float64       // else: how fast they ran apart
	DriftFuzz float64       // how far that may be off, ppm
	Drift     bool          // it shows above that, and was taken out
	Negative  int64         // packets that arrived before they were sent, by synchronized clocks
	NoTAI     bool          // the far end stamps in TAI, and this kernel does not know how far that is from UTC
	Statement string        // all of this in words
}

// Figures counts.
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
				// What nobody can place counts in both directions: neither may look better than it was.
				if where := lostThere[n]; where != lostBackward {
					there[i].Packets = append(there[i].Packets, gone)
				}
				if where := lostThere[n]; where != lostForward {
					back[i].Packets = append(back[i].Packets, gone)
				}
				continue
			}
			rtt[i].Packets = append(rtt[i].Packets, quality.Packet{Seq: seq, Sent: sent, Received: sent.Add(p.RoundTrip())})
			in, out := quality.Timestamp(p.ThereIn).Add(-shift(p)), quality.Timestamp(p.ThereOut).Add(-shift(p))
			there[i].Packets = append(there[i].Packets, quality.Packet{Seq: seq, Sent: sent, Received: in})
			back[i].Packets = append(back[i].Packets, quality.Packet{Seq: seq, Sent: out, Received: quality.Timestamp(p.Received)})
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

// account counts what came back and what the far end says of it.
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

// gaps places what was lost. Between two answers the far end's own numbers tell how many questions it saw: those were lost
// on the way back. Which of a gap's packets it saw nobody knows; their number is right, and the first of a gap stand for those lost on
// the way there. After the last answer nothing is known.
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

// reordered counts answers that overtook one another, by the far end's numbers: there, arrivals after a later question
// (its numbers go by arrival); back, arrivals here after a later answer.
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

// Bounds of what is told about drift: shorter or thinner runs show noise.
const (
	driftWindows = 12
	driftLeast   = 3 * time.Second
	driftPackets = 100
)

// clocks says what the two clocks allow, and gives what the far one is ahead by. Where both are synchronized nothing is taken off.
// Else the offset is that of the packets that were fastest both ways, with both ways taken as equally long, and its drift is a line
// through the fastest of each window: two crystals run apart by up to 100 µs a second, which would be taken for variation.
func (r *Result) clocks(f *Figures) (ahead func(Packet) time.Duration) {
	c := &f.Clocks
	c.OneWay = r.Before.Synchronized && r.After.Synchronized && f.Lost.Total < f.Lost.Sent
	var fastest *Packet
	var first, last int64
	n := 0
	each := func(do func(p *Packet)) {
		for i := range r.Streams {
			for k := range r.Streams[i].Packets {
				if p := &r.Streams[i].Packets[k]; p.Received != 0 {
					do(p)
				}
			}
		}
	}
	there := time.Duration(0)
	each(func(p *Packet) {
		n++
		far, ok := p.Error.Max()
		c.NoTAI = c.NoTAI || p.Error.Format() == PTP && r.Before.TAI == 0
		c.OneWay = c.OneWay && ok && p.Error.Synchronized() && !c.NoTAI
		there = max(there, far)
		if fastest == nil || p.RoundTrip() < fastest.RoundTrip() {
			fastest = p
		}
		if first == 0 || p.Sent < first {
			first = p.Sent
		}
		last = max(last, p.Sent)
	})
	if fastest == nil {
		c.OneWay = false
		return func(Packet) time.Duration { return 0 }
	}
	if c.OneWay && r.ClockMoved.Abs() < time.Millisecond {
		c.Error = max(r.Before.MaxError, r.After.MaxError) + there
		return func(Packet) time.Duration { return 0 }
	}
	c.OneWay = false
	offset := func(p *Packet) float64 {
		return (float64(p.ThereIn-p.Sent) + float64(p.ThereOut-p.Received)) / 2
	}
	slope := 0.0
	if span := last - first; span >= int64(driftLeast) && n >= driftPackets {
		var best [driftWindows]*Packet
		each(func(p *Packet) {
			w := min(driftWindows-1, int((p.Sent-first)*driftWindows/span))
			if best[w] == nil || p.RoundTrip() < best[w].RoundTrip() {
				best[w] = p
			}
		})
		// The median of all slopes (Theil and Sen): a window whose fastest packet was slow does not turn the line.
		var slopes []float64
		for i, a := range best {
			for _, b := range best[i+1:] {
				if a != nil && b != nil && b.Sent > a.Sent {
					slopes = append(slopes, (offset(b)-offset(a))/float64(b.Sent-a.Sent))
				}
			}
		}
		// What the fastest of a window waited more than the fastest of all, it may have waited one way alone.
		var waits []float64
		for _, p := range best {
			if p != nil {
				waits = append(waits, float64(p.RoundTrip()-fastest.RoundTrip())/2)
			}
		}
		if len(slopes) > 0 {
			slices.Sort(slopes)
			slices.Sort(waits)
			slope = slopes[len(slopes)/2]
			c.DriftPPM, c.DriftFuzz = slope*1e6, waits[len(waits)/2]/float64(span)*1e6
			if c.Drift = math.Abs(c.DriftPPM) > c.DriftFuzz; !c.Drift {
				slope = 0
			}
		}
	}
	base, at := offset(fastest), fastest.Sent
	return func(p Packet) time.Duration {
		return time.Duration(math.Round(base + slope*float64(p.Sent-at)))
	}
}

// words says it.
func (c Clocks) words(r *Result) string {
	switch {
	case r.ClockMoved.Abs() >= time.Millisecond:
		return fmt.Sprintf("this machine's clock was set by %s during the run: no figure of it is to be trusted; run it again.", r.ClockMoved.Round(time.Microsecond))
	case c.OneWay && c.Negative > 0:
		return fmt.Sprintf("both say they are synchronized, together to within %s; but %d packets arrived before they were sent, so they are not. Of the one-way figures only the variation is to be believed.", c.Error, c.Negative)
	case c.OneWay:
		return fmt.Sprintf("both are synchronized, together to within %s: one-way delay is exact to that, its variation and the round trip are not touched by it.", c.Error)
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
		drift = fmt.Sprintf("they drift by %.2f ± %.2f ppm, which is taken out", c.DriftPPM, c.DriftFuzz)
	} else if c.DriftFuzz > 0 {
		drift = fmt.Sprintf("no drift shows above ± %.2f ppm", c.DriftFuzz)
	}
	return fmt.Sprintf("%s: no one-way delay, only its variation, which needs no common clock (%s). MOS takes each way's least delay as half of the least round trip.", who, drift)
}
