package dialog

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// streams checks the streams of the only leg. Each is `INDEX FROM>TO CODEC`, with a hop in parentheses for an
// end that said nothing; marks before it: ? for one that is not settled, ~ for one that is not exact, - for one
// that does not flow.
func (s *script) streams(want ...string) *script {
	s.t.Helper()
	require.Len(s.t, s.tr.timers, 1)
	assert.Equal(s.t, want, showStreams(s.tr.timers[0].Streams()))
	return s
}

func showStreams(all []Stream) (lines []string) {
	for _, x := range all {
		marks := ""
		switch {
		case !x.Settled:
			marks = "?"
		case !x.Exact:
			marks = "~"
		}
		if !x.Sends {
			marks += "-"
		}
		end := func(a netip.AddrPort, hop netip.Addr) string {
			if a.IsValid() {
				return a.String()
			}
			return "(" + hop.String() + ")"
		}
		var codecs []string
		for _, c := range x.Codecs {
			codecs = append(codecs, fmt.Sprint(c.Name, "/", int(c.Payload), "/", c.Interval))
		}
		line := fmt.Sprintf("%s%d %s>%s %s", marks, x.Index, end(x.From, x.FromHop), end(x.To, x.ToHop),
			strings.Join(codecs, ","))
		if x.SRTP {
			line += " SRTP"
		}
		lines = append(lines, line)
	}
	return lines
}

const pcmu = " G.711 µ-law/160/20ms"

func TestStreamsOfACall(t *testing.T) {
	offer := []string{"?0 10.1.10.10:5004>(10.2.10.5)" + pcmu, "?0 (10.2.10.5)>10.1.10.10:5004" + pcmu}
	agreed := []string{"0 10.1.10.10:5004>10.2.10.31:7000" + pcmu, "0 10.2.10.31:7000>10.1.10.10:5004" + pcmu}
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").streams(offer...).
		says("P>A 180 INVITE a b").streams(offer...).
		says("P>A 200 INVITE a b c=10.2.10.31:7000").streams(agreed...).
		says("A>P ACK a b").streams(agreed...)
	l := s.st.Leg
	assert.True(t, l.Streams()[0].FromCaller)
	assert.False(t, l.Streams()[1].FromCaller)
	assert.Empty(t, l.Why())
	s.says("A>P BYE a b cseq=2").streams(agreed...).says("P>A 200 BYE a b cseq=2")
	assert.Empty(t, l.Streams())
	assert.Equal(t, ByBye, l.Why())
}

// The codec of the answer counts, in each direction in the packets that the receiver wants.
func TestStreamsHaveTheChosenCodec(t *testing.T) {
	const g729 = " G.729/20/20ms"
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004 a=ptime:30").
		streams("?0 10.1.10.10:5004>(10.2.10.5) G.711 µ-law/240/30ms",
			"?0 (10.2.10.5)>10.1.10.10:5004 G.711 µ-law/240/30ms")
	s.says("P>A 200 INVITE a b c=10.2.10.31:7000").
		streams("0 10.1.10.10:5004>10.2.10.31:7000"+pcmu, "0 10.2.10.31:7000>10.1.10.10:5004 G.711 µ-law/240/30ms")

	play(t).says("A>P INVITE a c=10.1.10.10:5004 m=18,0,8").
		streams("?0 10.1.10.10:5004>(10.2.10.5)"+pcmu, "?0 (10.2.10.5)>10.1.10.10:5004"+pcmu).
		says("P>A 183 INVITE a b c=10.2.10.31:7000 m=18,0").
		streams("0 10.1.10.10:5004>10.2.10.31:7000"+g729, "0 10.2.10.31:7000>10.1.10.10:5004"+g729).
		// Case 13: the 200 has another one.
		says("P>A 200 INVITE a b c=10.2.10.31:7000").
		streams("0 10.1.10.10:5004>10.2.10.31:7000"+pcmu, "0 10.2.10.31:7000>10.1.10.10:5004"+pcmu)

	// An answer with what was not offered.
	play(t).says("A>P INVITE a c=10.1.10.10:5004 m=18").says("P>A 200 INVITE a b c=10.2.10.31:7000").
		streams("0 10.1.10.10:5004>10.2.10.31:7000"+pcmu, "0 10.2.10.31:7000>10.1.10.10:5004"+pcmu)
	// SRTP where both want it.
	play(t).says("A>P INVITE a c=10.1.10.10:5004 a=crypto:1").
		streams("?0 10.1.10.10:5004>(10.2.10.5)"+pcmu+" SRTP", "?0 (10.2.10.5)>10.1.10.10:5004"+pcmu+" SRTP").
		says("P>A 200 INVITE a b c=10.2.10.31:7000").
		streams("0 10.1.10.10:5004>10.2.10.31:7000"+pcmu, "0 10.2.10.31:7000>10.1.10.10:5004"+pcmu)
}

// Case 15: on hold, the streams are those that were agreed, and do not flow.
func TestStreamsOnHold(t *testing.T) {
	held := []string{"-0 10.1.10.10:5004>10.2.10.31:7000" + pcmu, "-0 10.2.10.31:7000>10.1.10.10:5004" + pcmu}
	agreed := []string{"0 10.1.10.10:5004>10.2.10.31:7000" + pcmu, "0 10.2.10.31:7000>10.1.10.10:5004" + pcmu}
	up(t).says("A>P INVITE a b cseq=2 c=0.0.0.0:5004 a=inactive").
		says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000 a=inactive").says("A>P ACK a b cseq=2").streams(held...).
		says("A>P INVITE a b cseq=3 c=10.1.10.10:5004").
		streams(slices.Concat(held, []string{"?0 10.1.10.10:5004>10.2.10.31:7000" + pcmu,
			"?0 10.2.10.31:7000>10.1.10.10:5004" + pcmu})...).
		says("P>A 200 INVITE a b cseq=3 c=10.2.10.31:7000").says("A>P ACK a b cseq=3").streams(agreed...)
	// With music from elsewhere: in that direction alone.
	up(t).says("P>A INVITE b a c=10.2.10.99:9000 a=sendonly").
		says("A>P 200 INVITE b a c=10.1.10.10:5004 a=recvonly").
		streams("0 10.2.10.99:9000>10.1.10.10:5004"+pcmu, "-0 10.1.10.10:5004>10.2.10.99:9000"+pcmu)
}

// Cases 16 to 18: until a new offer is answered or refused, both it and what is agreed count.
func TestStreamsOfReInvites(t *testing.T) {
	agreed := []string{"0 10.1.10.10:5004>10.2.10.31:7000" + pcmu, "0 10.2.10.31:7000>10.1.10.10:5004" + pcmu}
	fromA := []string{"?0 10.1.10.10:5008>10.2.10.31:7000" + pcmu, "?0 10.2.10.31:7000>10.1.10.10:5008" + pcmu}
	fromX := []string{"?0 10.2.10.31:7008>10.1.10.10:5004" + pcmu, "?0 10.1.10.10:5004>10.2.10.31:7008" + pcmu}
	s := up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").streams(slices.Concat(agreed, fromA)...)
	s.says("P>A INVITE b a cseq=7 c=10.2.10.31:7008").streams(slices.Concat(agreed, fromA, fromX)...).
		says("P>A 491 INVITE a b cseq=2").says("A>P 491 INVITE b a cseq=7").streams(agreed...)
	s.says("A>P UPDATE a b cseq=3 c=10.1.10.10:5008").says("P>A 200 UPDATE a b cseq=3 c=10.2.10.31:7000").
		streams("0 10.1.10.10:5008>10.2.10.31:7000"+pcmu, "0 10.2.10.31:7000>10.1.10.10:5008"+pcmu)
	s = up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5004 m=9")
	require.Len(t, s.st.Leg.Streams(), 4)
	s.says("P>A 488 INVITE a b cseq=2").streams(agreed...)
	s.says("A>P INVITE a b cseq=3 c=10.1.10.10:5008")
	s.tr.Refuse(s.now, s.st)
	s.streams(agreed...)
}

// Case 10: until the offer comes, a late one is taken for a usual call between the hops.
func TestStreamsOfALateOffer(t *testing.T) {
	play(t).says("A>P INVITE a").
		streams("?0 (10.1.10.10)>(10.2.10.5) G.711/160/20ms", "?0 (10.2.10.5)>(10.1.10.10) G.711/160/20ms").
		says("P>A 200 INVITE a b c=10.2.10.31:7000 m=18").
		streams("?0 10.2.10.31:7000>(10.1.10.10) G.729/20/20ms", "?0 (10.1.10.10)>10.2.10.31:7000 G.729/20/20ms").
		says("A>P ACK a b c=10.1.10.10:5004 m=18").
		streams("0 10.2.10.31:7000>10.1.10.10:5004 G.729/20/20ms", "0 10.1.10.10:5004>10.2.10.31:7000 G.729/20/20ms")
}

func TestStreamsOfForks(t *testing.T) {
	x := []string{"0 10.1.10.10:5004>10.2.10.31:7000" + pcmu, "0 10.2.10.31:7000>10.1.10.10:5004" + pcmu}
	y := []string{"0 10.1.10.10:5004>10.2.10.44:8000" + pcmu, "0 10.2.10.44:8000>10.1.10.10:5004" + pcmu}
	play(t).says("A>P INVITE a c=10.1.10.10:5004").
		says("P>A 183 INVITE a b c=10.2.10.31:7000").streams(x...).
		says("P>A 183 INVITE a y c=10.2.10.44:8000").streams(slices.Concat(y, x)...).
		says("P>A 200 INVITE a b c=10.2.10.31:7000").streams(slices.Concat(x, y)...).
		after(2 * time.Second).streams(x...)
}

func TestStreamsOfRefusedMediaAndNames(t *testing.T) {
	// Cases 20 and 21.
	play(t).says("A>P INVITE a c=10.1.10.10:5004 c=10.1.10.10:5006").
		says("P>A 200 INVITE a b c=10.2.10.31:0 c=10.2.10.31:7002").
		streams("1 10.1.10.10:5006>10.2.10.31:7002"+pcmu, "1 10.2.10.31:7002>10.1.10.10:5006"+pcmu)
	// A name instead of an address, as text in the c-line.
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b n=media.example.com:7000").
		streams("~0 10.1.10.10:5004>(10.2.10.5)"+pcmu, "~0 (10.2.10.5)>10.1.10.10:5004"+pcmu).
		has("")
	// An offer on hold from the start has no address to go to.
	play(t).says("A>P INVITE a c=0.0.0.0:5004").streams()
	// Case 41: ICE. The addresses may be any of the candidates.
	play(t).says("A>P INVITE a c=0.0.0.0:9 a=candidate:1_1_UDP_1_10.1.10.10_5000_typ_host "+
		"a=candidate:1_2_UDP_1_10.1.10.10_5001_typ_host a=candidate:2_1_UDP_1_198.51.100.1_40000_typ_srflx").
		streams("?0 10.1.10.10:5000>(10.2.10.5)"+pcmu, "?0 (10.2.10.5)>10.1.10.10:5000"+pcmu,
			"?0 198.51.100.1:40000>(10.2.10.5)"+pcmu, "?0 (10.2.10.5)>198.51.100.1:40000"+pcmu).
		says("P>A 200 INVITE a b c=10.2.10.31:7000").
		streams("~0 10.1.10.10:5000>10.2.10.31:7000"+pcmu, "~0 10.2.10.31:7000>10.1.10.10:5000"+pcmu,
			"~0 198.51.100.1:40000>10.2.10.31:7000"+pcmu, "~0 10.2.10.31:7000>198.51.100.1:40000"+pcmu)
}

// A crafted body makes no more streams than the bound.
func TestStreamsAreBounded(t *testing.T) {
	line := "A>P INVITE a"
	for m := range 8 {
		line += " c=0.0.0.0:9"
		for c := range 16 {
			line += fmt.Sprintf(" a=candidate:%d_1_UDP_1_10.1.%d.%d_5000_typ_host", c, m+20, c+1)
		}
	}
	s := play(t).says(line)
	assert.Len(t, s.st.Leg.Streams(), maxStreams)
	s.says("P>A 200 INVITE a b " + strings.ReplaceAll(strings.TrimPrefix(line, "A>P INVITE a "), "10.1.", "10.2."))
	assert.Len(t, s.st.Leg.Streams(), maxStreams)
}

func TestACallThatWasThereBeforeHasNoLateOffer(t *testing.T) {
	play(t).says("A>P INVITE a b cseq=7").streams()
}

// A message that belongs to two legs names both.
func TestOthers(t *testing.T) {
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>B INVITE a branch=2 c=10.1.10.10:5004").
		says("B>P 200 INVITE a b branch=2 c=10.1.10.11:6000").says("P>A 200 INVITE a b c=10.1.10.11:6000").
		says("A>B ACK a b")
	assert.NotNil(t, s.st.Leg)
	require.Len(t, s.st.Others, 1)
	assert.NotEqual(t, s.st.Leg, s.st.Others[0])
	// So does time, of those that it changed.
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 183 INVITE a b c=10.2.10.31:7000").
		says("P>A 183 INVITE a y c=10.2.10.44:8000").says("P>A 200 INVITE a b c=10.2.10.31:7000").says("A>P ACK a b").
		after(2 * time.Second)
	require.Len(t, s.st.Others, 1)
}
