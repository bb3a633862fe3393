package capture

import "ringway/quality"

// Stream is one RTP stream from one phone's interface to the other's.
type Stream = quality.Stream[Key]

// Direction is all RTP one way.
type Direction struct {
	Streams   []Stream
	Unmatched int         // arrivals whose sending was not seen: above zero, something is wrong with the capture
	DSCP      map[int]int // packets by code point as they ARRIVED
}

// Summary is the direction in figures, every stream taken as G.711.
func (d Direction) Summary() quality.Summary { return quality.Summarize(d.Streams, quality.G711) }

// Match pairs what left at a with what came in at b, and the other way round.
func Match(a, b Packets, o quality.MatchOptions) (aToB, bToA Direction) {
	return oneWay(a, b, o), oneWay(b, a, o)
}

func oneWay(from, to Packets, o quality.MatchOptions) Direction {
	var sent, received []quality.Sighting[Key]
	d := Direction{DSCP: map[int]int{}}
	for _, p := range from.Packets {
		if p.Outgoing {
			sent = append(sent, p.Sighting)
		}
	}
	for _, p := range to.Packets {
		if !p.Outgoing {
			received = append(received, p.Sighting)
			d.DSCP[int(p.DSCP)]++
		}
	}
	d.Streams, d.Unmatched = quality.Match(sent, received, o)
	return d
}
