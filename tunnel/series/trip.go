package series

import (
	"encoding/binary"
	"slices"
	"time"
)

// How long a message takes to the far end, as RTCP's LSR and DLSR tell it (RFC 3550, section 6.4.1): a report has the
// time at which it was sent, by its sender's clock, and the latest such time that the sender got, with how long ago
// that was. What the echo leaves of the time since is the round trip; no two clocks are compared. The times follow the
// end of the entries, where an end that does not know them does not look:
//
//	0 (1), what follows (1): 1, or 3 with an echo
//	sent (4)  microseconds of the sender's clock
//	echo (4)  the other end's time that is echoed
//	held (4)  microseconds since it came
const (
	// TimesSize is the space in a report that AppendTimes takes at most.
	TimesSize = 14

	hasSent = 1
	hasEcho = 2

	// tripsKept is how many of the times that were sent may still be echoed: others are of an engine before, or made up.
	tripsKept = 8
	// echoFor is for how long a time is echoed: a longer one says how far apart the clocks run.
	echoFor = int64(10 * time.Second)
	// clocksApart is what clocks make of echoFor that run 100 ppm apart, as cheap ones do: so much less than nothing a
	// round trip may seem to take.
	clocksApart = -time.Millisecond
	maxTrip     = 8 * time.Second
	// minTrip distinguishes a very short one from none.
	minTrip = 2 * time.Microsecond
	// tripFor is for how many looks a round trip is that of the line.
	tripFor = 10
)

// trip is the round trip to a peer.
type trip struct {
	seen    uint32            // the last look with anything
	sent    [tripsKept]uint32 // times
	sents   int               // in all
	heard   uint32            // time of the peer
	heardAt int64
	took    time.Duration // 0: not known
	tookAt  uint32        // look
}

// delays are the round trips of a series' life.
type delays struct {
	sum time.Duration
	n   int64
}

// oneWay is half of the mean round trip; 0: not known.
func (d delays) oneWay() time.Duration {
	if d.n == 0 {
		return 0
	}
	return d.sum / time.Duration(2*d.n)
}

func microseconds(ns int64) uint32 { return uint32(ns / int64(time.Microsecond)) }

func (c *Comparer) trip(peer uint32) *trip {
	t := c.trips[peer]
	if t == nil {
		t = &trip{}
		c.trips[peer] = t
	}
	t.seen = c.look
	return t
}

// AppendTimes ends a report to a peer that is sent now.
func (c *Comparer) AppendTimes(report []byte, peer uint32, now int64) []byte {
	t := c.trip(peer)
	sent := microseconds(now)
	t.sent[t.sents%tripsKept] = sent
	t.sents++
	echoes := t.heardAt != 0 && now-t.heardAt < echoFor
	what := byte(hasSent)
	if echoes {
		what |= hasEcho
	}
	report = binary.BigEndian.AppendUint32(append(report, 0, what), sent)
	if echoes {
		report = binary.BigEndian.AppendUint32(report, t.heard)
		report = binary.BigEndian.AppendUint32(report, microseconds(now-t.heardAt))
	}
	return report
}

// hearTimes takes what follows the entries of a report that came at a time. It returns false for what cannot be read.
func (c *Comparer) hearTimes(peer uint32, p []byte, at int64) bool {
	if len(p) < 2 || p[1]&hasSent == 0 {
		return true // none; what is of another kind is not for this release
	}
	what, p := p[1], p[2:]
	if len(p) < 4 || what&hasEcho != 0 && len(p) < 12 {
		return false
	}
	t := c.trip(peer)
	t.heard, t.heardAt = binary.BigEndian.Uint32(p), at
	if what&hasEcho == 0 {
		return true
	}
	echo, held := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:])
	took := time.Duration(int32(microseconds(at)-echo-held)) * time.Microsecond
	if slices.Contains(t.sent[:min(t.sents, tripsKept)], echo) && took > clocksApart && took < maxTrip {
		t.took, t.tookAt = max(took, minTrip), c.look
	}
	return true
}

// RoundTrip is how long messages took lately to a peer and back; 0: not known.
func (c *Comparer) RoundTrip(peer uint32) time.Duration {
	if t := c.trips[peer]; t != nil && t.took != 0 && c.look-t.tookAt <= tripFor {
		return t.took
	}
	return 0
}

// forgetTrips forgets peers that neither were told anything lately nor told.
func (c *Comparer) forgetTrips() {
	for peer, t := range c.trips {
		if c.look-t.seen > forgetLooks {
			delete(c.trips, peer)
		}
	}
}
