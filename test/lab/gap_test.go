package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/quality"
	"ringway/test/lab/capture"
	"ringway/test/lab/report"
)

// stream has a packet every 20 ms for 10 s, each on its way for 25 ms, of which those sent in the given times are lost.
func stream(begin time.Time, from, to string, lost ...[2]time.Duration) capture.Stream {
	s := capture.Stream{Key: capture.Key{Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to)}}
	for at := time.Duration(0); at < 10*time.Second; at += 20 * time.Millisecond {
		sent := quality.Timestamp(begin.Add(at).UnixNano())
		p := quality.Packet{Sent: sent, Received: sent.Add(25 * time.Millisecond)}
		for _, l := range lost {
			p.Lost = p.Lost || at >= l[0] && at < l[1]
		}
		s.Packets = append(s.Packets, p)
	}
	return s
}

func TestGapsAreThoseOfTheWorstCall(t *testing.T) {
	begin := time.Unix(1e9, 0)
	const ms = time.Millisecond
	a, b, a2, b2 := "10.1.10.10:20000", "10.2.10.10:20000", "10.1.10.10:20004", "10.2.10.10:20004"
	h := Heard{
		AToB: capture.Direction{Streams: []capture.Stream{
			stream(begin, a, b, [2]time.Duration{1980 * ms, 2100 * ms}), // one was on its way when it happened
			stream(begin, a2, b2, [2]time.Duration{2000 * ms, 2080 * ms}, [2]time.Duration{2500 * ms, 2520 * ms}),
		}},
		BToA: capture.Direction{Streams: []capture.Stream{
			stream(begin, b, a),
			stream(begin, b2, a2, [2]time.Duration{2000 * ms, 2060 * ms}, [2]time.Duration{9000 * ms, 11 * time.Second}),
		}},
	}
	assert.Equal(t, []report.Gap{
		{At: 2, Longest: 140, Lost: 8, LostUntil: 500}, // four, one and three of the second call; six of the first
		{At: 5, Longest: 20},
		{At: 8, Longest: 975, Lost: 50, LostUntil: 1980}, // until the last that was sent
	}, gaps(h, begin, []time.Duration{2 * time.Second, 5 * time.Second, 8 * time.Second}, 25*ms))
	assert.Empty(t, gaps(h, begin, nil, 0))
}

// A silence that outlasts the next event is that of the event that began it.
func TestAGapBelongsToTheEventThatBeganIt(t *testing.T) {
	begin := time.Unix(1e9, 0)
	h := Heard{AToB: capture.Direction{Streams: []capture.Stream{
		stream(begin, "10.1.10.10:1", "10.2.10.10:1", [2]time.Duration{2 * time.Second, 4020 * time.Millisecond}),
	}}}
	got := gaps(h, begin, []time.Duration{2 * time.Second, 4 * time.Second}, 0)
	assert.Equal(t, []report.Gap{
		{At: 2, Longest: 2040, Lost: 100, LostUntil: 1980}, {At: 4, Longest: 20, Lost: 1},
	}, got)
}
