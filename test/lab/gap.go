package lab

import (
	"net/netip"
	"time"

	"ringway/quality"
	"ringway/test/lab/capture"
	"ringway/test/lab/report"
)

// gaps finds what each event cost the calls: the windows begin at the events' times, counted from begin, and end where
// the next one begins. What was sent up to early before an event was still on its way then, and belongs to it.
// Each figure is that of the call for which it is worst.
func gaps(h Heard, begin time.Time, at []time.Duration, early time.Duration) []report.Gap {
	type call struct{ a, b netip.AddrPort }
	lost := make([]map[call]int, len(at))
	out := make([]report.Gap, len(at))
	for i, t := range at {
		lost[i] = map[call]int{}
		out[i].At = t.Seconds()
	}
	zero := quality.Timestamp(begin.UnixNano())
	// window is the one that a packet belongs to, by when it was sent; -1: before the first event.
	window := func(sent quality.Timestamp) int {
		i := -1
		for i+1 < len(at) && sent.Sub(zero)+early >= at[i+1] {
			i++
		}
		return i
	}
	for direction, d := range []capture.Direction{h.AToB, h.BToA} {
		for _, s := range d.Streams {
			c := call{s.Key.Source, s.Key.Destination}
			if direction == 1 { // both directions of a call are between the same two ports
				c.a, c.b = c.b, c.a
			}
			// A silence begins with the last packet that was heard, and belongs to the first one that was not.
			last := s.Packets[0].Sent
			first := quality.Timestamp(0)
			silent := func(until, sent quality.Timestamp) {
				if first != 0 {
					sent, first = first, 0
				}
				if i := window(sent); i >= 0 {
					out[i].Longest = max(out[i].Longest, milliseconds(until.Sub(last)))
				}
			}
			for _, p := range s.Packets {
				if !p.Lost {
					silent(p.Received, p.Sent)
					last = max(last, p.Received)
					continue
				}
				if first == 0 {
					first = p.Sent
				}
				if i := window(p.Sent); i >= 0 {
					lost[i][c]++
					out[i].LostUntil = max(out[i].LostUntil, milliseconds(p.Sent.Sub(zero)-at[i]))
				}
			}
			if first != 0 {
				silent(s.Packets[len(s.Packets)-1].Sent, first)
			}
		}
	}
	for i := range out {
		for _, n := range lost[i] {
			out[i].Lost = max(out[i].Lost, n)
		}
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
