package dialog

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/sdp"
)

// exchanges are what the description of a step is to each leg, in their order: whose it is, of which dialog, and what.
func exchanges(st Step) string {
	var all []string
	for i := range st.Exchanges {
		x := &st.Exchanges[i]
		who := "callee's"
		if x.FromCaller {
			who = "caller's"
		}
		words := []string{who, x.Role.String()}
		if x.Dialog != nil {
			words = append(words, x.Tag())
		}
		if x.Fresh {
			words = append(words, "fresh")
		}
		all = append(all, strings.Join(words, " "))
	}
	return strings.Join(all, ", ")
}

// endings are the offers that were withdrawn, and the dialogs that are over.
func endings(st Step) string {
	var all []string
	for _, w := range st.Withdrawn {
		who := "callee's "
		if w.FromCaller {
			who = "caller's "
		}
		all = append(all, who+w.Tag+" withdrawn")
	}
	for _, w := range st.Over {
		all = append(all, w.Tag+" over")
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (s *script) is(line, exchange, ending string) *script {
	s.t.Helper()
	s.says(line)
	assert.Equal(s.t, exchange, exchanges(s.st), line)
	assert.Equal(s.t, ending, endings(s.st), line)
	return s
}

func TestExchangesOfACall(t *testing.T) {
	play(t).
		is("A>P INVITE a c=10.1.10.10:5004", "caller's offer", "").
		is("A>P INVITE a c=10.1.10.10:5004", "caller's offer", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A 180 INVITE a d", "", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P INVITE a c=10.1.10.10:5004", "caller's repeated", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P ACK a b", "", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's repeated b", "").
		is("A>P INVITE a b cseq=2 c=10.1.10.10:5004", "caller's offer b", "").
		is("P>A 491 INVITE a b cseq=2", "", "caller's b withdrawn").
		is("P>A UPDATE b a cseq=7 c=10.2.10.5:6002", "callee's offer b", "").
		is("A>P 200 UPDATE b a cseq=7 c=10.1.10.10:5004", "caller's answer b", "").
		is("P>A UPDATE b a cseq=7 c=10.2.10.5:6002", "callee's repeated b", "").
		is("A>P BYE a b cseq=3", "", "").
		is("P>A 200 BYE a b cseq=3", "", "b over")
}

func TestExchangesWithALateOffer(t *testing.T) {
	play(t).
		is("A>P INVITE a", "", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's offer b fresh", "").
		is("A>P PRACK a b cseq=2 c=10.1.10.10:5004", "caller's answer b", "").
		is("A>P PRACK a b cseq=2 c=10.1.10.10:5004", "caller's answer b", "").
		is("P>A 200 PRACK a b cseq=2", "", "").
		is("A>P UPDATE a b cseq=3 c=10.1.10.10:5006", "caller's offer b", "").
		is("P>A 200 UPDATE a b cseq=3", "", "caller's b withdrawn").
		is("P>A 200 INVITE a b", "", "").
		is("A>P ACK a b", "", "").
		is("P>A INVITE b a cseq=9", "", "").
		is("A>P 200 INVITE b a cseq=9 c=10.1.10.10:5004", "caller's offer b fresh", "").
		is("P>A ACK b a cseq=9 c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A ACK b a cseq=8 c=10.2.10.5:6000", "callee's strange b", "")
}

// A response to the INVITE that has a description counts for nothing where a newer offer is there: an UPDATE of the
// caller that crosses the 200, as phones send it to choose one of several codecs, or one of the callee before it.
func TestDescriptionsThatAreSuperseded(t *testing.T) {
	play(t).
		is("A>P INVITE a c=10.1.10.10:5004", "caller's offer", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P UPDATE a b cseq=2 c=10.1.10.10:5004", "caller's offer b", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's superseded b", "").
		is("P>A 200 UPDATE a b cseq=2 c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P ACK a b", "", "").
		is("A>P BYE a b cseq=3", "", "").
		is("P>A 200 BYE a b cseq=3", "", "b over")
	play(t).
		is("A>P INVITE a c=10.1.10.10:5004", "caller's offer", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A UPDATE b a cseq=7 c=10.2.10.5:6002", "callee's offer b", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6002", "callee's superseded b", "").
		is("A>P 200 UPDATE b a cseq=7 c=10.1.10.10:5004", "caller's answer b", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6002", "callee's superseded b", "").
		is("A>P ACK a b", "", "")
	play(t).
		is("A>P INVITE a", "", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's offer b fresh", "").
		is("A>P PRACK a b cseq=2 c=10.1.10.10:5004", "caller's answer b", "").
		is("A>P UPDATE a b cseq=3 c=10.1.10.10:5006", "caller's offer b", "").
		is("P>A 200 UPDATE a b cseq=3 c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's superseded b", "")
}

// A PRACK that is not known there is of a response that is not: the call goes on.
func TestAPRACKThatIsNotKnown(t *testing.T) {
	play(t).
		is("A>P INVITE a c=10.1.10.10:5004", "caller's offer", "").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P PRACK a b cseq=2", "", "").
		is("P>A 481 PRACK a b cseq=2", "", "").
		is("P>A 200 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("A>P ACK a b", "", "")
}

// An offer that is never answered does not keep the other end from one of its own.
func TestAnOfferThatIsNeverAnswered(t *testing.T) {
	for line, after := range map[string]time.Duration{
		"A>P UPDATE a b cseq=2 c=10.1.10.10:5006": 32 * time.Second,
		"A>P INVITE a b cseq=2 c=10.1.10.10:5006": 180 * time.Second,
	} {
		s := play(t).
			says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b c=10.2.10.5:6000").says("A>P ACK a b").
			is(line, "caller's offer b", "")
		s.now = s.now.Add(after - time.Second)
		assert.Empty(t, endings(s.tr.Expire(s.now)), line)
		s.now = s.now.Add(time.Second)
		assert.False(t, s.tr.Next().After(s.now), line)
		assert.Equal(t, "caller's b withdrawn", endings(s.tr.Expire(s.now)), line)
		s.is("P>A INVITE b a cseq=7 c=10.2.10.5:6000", "callee's offer b", "")
	}
	// The INVITE that begins a call may ring for as long as it does.
	s := play(t).says("A>P INVITE a").is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's offer b fresh", "")
	s.now = s.now.Add(5 * time.Minute)
	assert.Empty(t, endings(s.tr.Expire(s.now)))
}

// What cannot be answered by an ACK that has none is withdrawn, and so is what this box refuses.
func TestOffersThatAreWithdrawn(t *testing.T) {
	s := play(t).
		says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b c=10.2.10.5:6000").says("A>P ACK a b").
		says("A>P INVITE a b cseq=2").says("P>A 200 INVITE a b cseq=2 c=10.2.10.5:6000").
		is("A>P ACK a b cseq=2", "", "callee's b withdrawn").
		says("A>P UPDATE a b cseq=3 c=10.1.10.10:5008")
	undone := s.tr.Refuse(s.now, s.st)
	assert.Equal(t, "caller's b withdrawn", endings(undone))
	st := s.st
	st.Add(undone)
	assert.Equal(t, undone.Closed, st.Closed)
	assert.Equal(t, "caller's b withdrawn", endings(st))
}

// The branches of a fork end one by one; after 32 s no other one can be accepted.
func TestBranchesOfAFork(t *testing.T) {
	s := play(t).
		says("A>P INVITE a c=10.1.10.10:5004").
		is("P>A 183 INVITE a b c=10.2.10.5:6000", "callee's answer b", "").
		is("P>A 183 INVITE a d c=10.2.10.5:6002", "callee's answer d", "").
		is("P>A 200 INVITE a d c=10.2.10.5:6002", "callee's answer d", "")
	leg := s.st.Leg
	_, ok := leg.Accepted()
	assert.False(t, ok, "two live")
	s.says("A>P ACK a d").after(forkGrace)
	assert.Equal(t, "b over", endings(s.st))
	assert.Empty(t, s.st.Single)
	tag, ok := leg.Accepted()
	assert.Equal(t, "d", tag)
	assert.True(t, ok)
	s.after(timerB - forkGrace)
	assert.Equal(t, []*Leg{leg}, s.st.Single)
	s.after(time.Minute)
	assert.Empty(t, s.st.Single, "it is said once")

	s = play(t).
		says("A>P INVITE a c=10.1.10.10:5004").says("P>A 183 INVITE a b c=10.2.10.5:6000").
		is("A>P INVITE a cseq=2 c=10.1.10.10:5004", "caller's offer", "b over")
	assert.Empty(t, s.st.Ended)
}

// A request that leaves a proxy out is of both legs, in the order in which its hops lie.
func TestExchangesPastAProxy(t *testing.T) {
	s := play(t).
		says("P>X INVITE a c=10.1.10.10:5004").says("X>P 200 INVITE a b c=10.2.10.31:6000").
		says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b c=10.2.10.31:6000").
		is("A>X INVITE a b cseq=2 c=10.1.10.10:5004", "caller's offer b, caller's offer b", "")
	assert.Equal(t, []netip.Addr{hosts["A"], hosts["P"], hosts["P"], hosts["X"]}, s.st.HopsOf(netip.Addr{}, netip.Addr{}))
	s.is("X>A 200 INVITE a b cseq=2 c=10.2.10.31:6000", "callee's answer b, callee's answer b", "")
	assert.Equal(t, hosts["X"], s.st.Exchanges[0].Leg.Hops[1])
	s.is("X>A UPDATE b a cseq=5 c=10.2.10.31:6002", "callee's offer b, callee's offer b", "")
	assert.Equal(t, hosts["X"], s.st.Exchanges[0].Leg.Hops[1])
	assert.Equal(t, hosts["A"], s.st.Exchanges[1].Leg.Hops[0])
}

// The box of the tests relays media of the first line: towards A at 10.1.10.1, towards P at 10.9.0.1.
var boxLine = Line{
	Box:  [2]netip.AddrPort{netip.MustParseAddrPort("10.1.10.1:20000"), netip.MustParseAddrPort("10.9.0.1:20002")},
	SRTP: [2]int{10, 20},
}

// relays says that the box relays a medium of the latest message, or refuses it.
func (s *script) relays(change func(*Line), passed string) *script {
	s.t.Helper()
	require.Len(s.t, s.st.Exchanges, 1)
	l := boxLine
	if change != nil {
		change(&l)
	}
	var d sdp.Description
	require.True(s.t, d.Read([]byte("v=0\r\n"+passed)))
	s.tr.Relay(s.now, &s.st, &s.st.Exchanges[0], &d, []Line{l})
	for _, f := range s.st.Opened {
		assert.NotNil(s.t, s.tr.flows.first[f])
		assert.NotContains(s.t, s.st.Closed, f)
	}
	for _, f := range s.st.Closed {
		assert.Nil(s.t, s.tr.flows.first[f])
	}
	return s
}

func (s *script) all(want ...string) *script {
	s.t.Helper()
	var got []string
	for _, f := range flowsOf(s.tr) {
		kind := ""
		if f.RTCP() {
			kind = " RTCP"
		}
		got = append(got, f.String()+kind)
	}
	assert.ElementsMatch(s.t, want, got)
	return s
}

const relayedLine = "m=audio 20002 RTP/AVP 0\r\n"

// Flows of relayed media are those between each end and the box, and nothing between the ends.
func TestFlowsOfRelayedMedia(t *testing.T) {
	first := func(l *Line) { l.Box[caller] = netip.AddrPort{} } // not known in the first offer
	toA := []string{"10.1.10.10>10.1.10.1:20000", "10.1.10.1>10.1.10.10:5004",
		"10.1.10.10>10.1.10.1:20001 RTCP", "10.1.10.1>10.1.10.10:5005 RTCP"}
	toP := []string{"10.2.10.5>10.9.0.1:20002", "10.9.0.1>10.2.10.5:6000"}
	asked := []string{"any(10.2.10.5)>10.9.0.1:20002", "any(10.2.10.5)>10.9.0.1:20003 RTCP"}
	muxed := func(l *Line) { l.Mux[callee] = true }

	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").relays(first, relayedLine).all(asked...)
	assert.Len(t, s.st.Opened, 2)
	assert.Empty(t, s.st.Closed, "what the description itself says was never open")
	s.streams("?0 10.1.10.10:5004>("+"invalid IP"+")"+pcmu+" SRTP", "?0 (invalid IP)>10.1.10.10:5004"+pcmu+" SRTP",
		"?0 (10.2.10.5)>10.9.0.1:20002"+pcmu+" SRTP", "?0 10.9.0.1:20002>(10.2.10.5)"+pcmu+" SRTP")
	for i, overhead := range []int{10, 10, 20, 20} {
		assert.Equal(t, overhead, s.st.Leg.Streams()[i].Overhead)
	}
	s.says("P>A 200 INVITE a b c=10.2.10.5:6000").relays(muxed, relayedLine).all(slices.Concat(toA, toP)...)
	s.streams("0 10.1.10.10:5004>10.1.10.1:20000"+pcmu+" SRTP", "0 10.1.10.1:20000>10.1.10.10:5004"+pcmu+" SRTP",
		"0 10.2.10.5:6000>10.9.0.1:20002"+pcmu+" SRTP", "0 10.9.0.1:20002>10.2.10.5:6000"+pcmu+" SRTP")
	x := s.st.Leg.Streams()
	assert.Equal(t, [4]bool{true, false, false, true},
		[4]bool{x[0].FromCaller, x[1].FromCaller, x[2].FromCaller, x[3].FromCaller})
	assert.Equal(t, [4]bool{false, true, false, true}, [4]bool{x[0].FromBox, x[1].FromBox, x[2].FromBox, x[3].FromBox})
	assert.Equal(t, [4]bool{true, false, true, false}, [4]bool{x[0].ToBox, x[1].ToBox, x[2].ToBox, x[3].ToBox})

	// On hold nothing flows but RTCP. What was agreed before stays until it is acknowledged.
	s.says("A>P ACK a b").says("A>P INVITE a b cseq=2 c=10.1.10.10:5004 a=inactive").relays(nil, relayedLine)
	s.says("P>A 200 INVITE a b cseq=2 c=10.2.10.5:6000 a=inactive").relays(muxed, relayedLine)
	s.all(slices.Concat(toA, toP)...).says("A>P ACK a b cseq=2").all(toA[2:]...)
	assert.True(t, s.st.Leg.Held())
	s.says("P>A BYE b a cseq=9").says("A>P 200 BYE b a cseq=9").all()

	// A line that the box refuses opens nothing, and an answer that was voided neither.
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004")
	s.tr.Relay(s.now, &s.st, &s.st.Exchanges[0], nil, nil)
	s.all()
	s.says("P>A 200 INVITE a b c=10.2.10.5:6000").all()

	// Branches of a fork share the offer, and have ports of their own.
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004").relays(first, relayedLine).
		says("P>A 183 INVITE a b c=10.2.10.5:6000").relays(muxed, relayedLine).
		says("P>A 183 INVITE a d c=10.2.10.6:6000").relays(func(l *Line) {
		l.Box[caller], l.Mux[caller], l.Mux[callee] = netip.MustParseAddrPort("10.1.10.1:20004"), true, true
	}, relayedLine)
	s.all(slices.Concat(toA, toP, []string{"10.1.10.10>10.1.10.1:20004", "10.2.10.6>10.9.0.1:20002",
		"10.9.0.1>10.2.10.6:6000"})...)
}
