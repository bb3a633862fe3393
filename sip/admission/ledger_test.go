package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/tunnel"
)

func rates(name string, rate qos.BitRate) string { return fmt.Sprint(name, " ", uint64(rate)) }

func TestACallAndItsEnd(t *testing.T) {
	s := play(t, testWorld(4)).says("A>P INVITE a c=10.1.10.10:5004").admitted().
		takes(rates("branch-2", g711)).reserved().
		says("P>A 180 INVITE a b").takes(rates("branch-2", g711)).
		says("P>A 200 INVITE a b c=10.2.10.31:7000").takes(rates("branch-2", g711)).
		reserved("10.1.10.10:5004>10.2.10.31:7000 branch-2 112800")
	assert.Equal(t, []Action{{Do: Reserve, Reservation: Reservation{
		Flow: tunnel.Flow{Source: netip.MustParseAddrPort("10.1.10.10:5004"),
			Destination: netip.MustParseAddrPort("10.2.10.31:7000")},
		Site: "branch-2", Key: tunnel.PublicKey{2}, Line: "wan0", Rate: g711,
	}}}, s.d.Actions)
	r, ok := s.d.Actions[0].Tunnel()
	assert.True(t, ok)
	assert.NoError(t, r.Check())
	assert.Equal(t, tunnel.PublicKey{2}, r.Site)

	s.says("A>P ACK a b")
	assert.Empty(t, s.d.Actions)
	s.says("A>P BYE a b cseq=2").takes(rates("branch-2", g711)).says("P>A 200 BYE a b cseq=2").empty()

	for _, end := range []string{"P>A 486 INVITE a b", "P>A 302 INVITE a b", "P>A 407 INVITE a b"} {
		play(t, testWorld(4)).says("A>P INVITE a c=10.1.10.10:5004").says(end).empty()
	}
	play(t, testWorld(4)).says("A>P INVITE a c=10.1.10.10:5004").after(32 * time.Second).empty()
	play(t, testWorld(4)).up(1).after(10 * time.Minute).empty()
}

// The ledger admits as many calls as `ringway plan --only calls` promises, of every codec.
func TestAsManyCallsAsThePlanSays(t *testing.T) {
	for format, codec := range map[string]qos.Codec{"0": qos.G711, "9": qos.G722, "18": qos.G729} {
		w := testWorld(0)
		w.Sites[0].Out.Rate = 4 * qos.Mbit * 30 / 100 * 97 / 100
		promised := w.Sites[0].Out.Calls(codec)
		require.Positive(t, promised)
		s := play(t, w)
		for n := range promised {
			s.says(fmt.Sprintf("A>P INVITE a id=%d c=10.1.10.10:%d m=%s", n, 5000+2*n, format)).admitted()
		}
		s.says("A>P INVITE a id=x c=10.1.10.10:4000 m=" + format).refused(SiteBudget)
		assert.Equal(t, Where{Site: "branch-2", Line: "wan0"}, s.d.Where)
		assert.Equal(t, promised, s.ledger.Len())
	}
}

// The dearest codec and the shortest packets that were offered count, until another one is chosen.
func TestTheWorstOfferedCodecCountsUntilOneIsChosen(t *testing.T) {
	s := play(t, testWorld(2)).says("A>P INVITE a id=1 c=10.1.10.10:5002 m=18,9,8").takes(rates("branch-2", g711)).
		says("A>P INVITE a id=2 c=10.1.10.10:5004 m=18").takes(rates("branch-2", g711+g729)).
		says("A>P INVITE a id=3 c=10.1.10.10:5006 m=0").refused(SiteBudget).takes(rates("branch-2", g711+g729)).
		says("P>A 183 INVITE a b id=1 c=10.2.10.31:7002 m=18").takes(rates("branch-2", 2*g729)).
		reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 55200").
		says("A>P INVITE a id=3 c=10.1.10.10:5006 m=0").admitted()
	// The 200 has another codec than the 183, which does not fit: it goes on with the place that it has.
	s.says("P>A 200 INVITE a b id=1 c=10.2.10.31:7002 m=8")
	assert.Equal(t, Admitted, s.d.Verdict)
	assert.Equal(t, SiteBudget, s.d.Reason)
	s.reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 55200").takes(rates("branch-2", g711+2*g729))
	assert.Equal(t, IsShort, s.ledger.Calls()[0].State)
	s.says("P>A 486 INVITE a b id=2").takes(rates("branch-2", 2*g711)).
		reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800")
	assert.Equal(t, HasPlace, s.ledger.Calls()[0].State)

	// G.711 in packets of 10 ms takes more than in those of 20.
	ten := qos.Budget{Envelope: envelope}.Call(qos.Codec{Payload: 80, Interval: 10 * time.Millisecond})
	assert.Greater(t, ten, g711)
	play(t, testWorld(2)).says("A>P INVITE a c=10.1.10.10:5002 a=ptime:10").takes(rates("branch-2", ten)).
		says("P>A 200 INVITE a b c=10.2.10.31:7002").takes(rates("branch-2", g711)) // what X wants is sent
	// SRTP's tag counts where it is agreed on, and IPv6's header.
	srtp := qos.Budget{Envelope: envelope, SRTP: qos.SRTPTag}.Call(qos.G711)
	play(t, testWorld(2)).says("A>P INVITE a c=10.1.10.10:5002 a=crypto:1_AES_CM_128_HMAC_SHA1_80_inline:x").
		takes(rates("branch-2", srtp)).says("P>A 200 INVITE a b c=10.2.10.31:7002").takes(rates("branch-2", g711))
	six := qos.Budget{Envelope: envelope, CallIPv6: true}.Call(qos.G711)
	play(t, testWorld(2)).says("A>P INVITE a c=[2001:db8:1::10]:5002").takes(rates("branch-2", six)).
		says("P>A 200 INVITE a b c=[2001:db8:2::31]:7002").
		reserved(rates("[2001:db8:1::10]:5002>[2001:db8:2::31]:7002 branch-2", six))
}

// A PBX at another site that does not relay media: once it is answered, a call within this LAN is free.
func TestTwoPhonesOfOneLANOverAFarPBXCostNothing(t *testing.T) {
	s := play(t, testWorld(1)).says("A>P INVITE a c=10.1.10.10:5004").takes(rates("branch-2", g711)).
		says("P>B INVITE a cseq=1 c=10.1.10.10:5004").admitted().takes(rates("branch-2", g711)).
		says("B>P 200 INVITE a b c=10.1.10.11:6000").says("P>A 200 INVITE a b c=10.1.10.11:6000").takes().reserved()
	s.says("A>P BYE a b cseq=2").says("P>B BYE a b cseq=2").says("B>P 200 BYE a b cseq=2").
		says("P>A 200 BYE a b cseq=2").empty()

	// With the budget full, it needs to be known that the called phone is registered here.
	s = play(t, testWorld(1)).up(1).says("A>P INVITE a id=2 c=10.1.10.10:5008").refused(SiteBudget)
	s.callee = hosts["B"]
	s.says("A>P INVITE a id=2 c=10.1.10.10:5008").admitted().
		says("P>B INVITE a id=2 c=10.1.10.10:5008").admitted().
		says("B>P 200 INVITE a b id=2 c=10.1.10.11:6000").says("P>A 200 INVITE a b id=2 c=10.1.10.11:6000").admitted().
		takes(rates("branch-2", g711))
	// Where the PBX's site does not guard itself, that holds in both directions.
	s = play(t, testWorld(1))
	s.callee = hosts["B"]
	s.says("A>V INVITE a c=10.1.10.10:5008").takes()
	// Two phones of one site over a PBX here: once it is answered, their media do not pass here.
	play(t, testWorld(1)).says("X>L INVITE x c=10.2.10.31:7000").says("L>Y INVITE x c=10.2.10.31:7000").admitted().
		takes(rates("branch-2", g711)).says("Y>L 200 INVITE x y c=10.2.10.44:8000").
		says("L>X 200 INVITE x y c=10.2.10.44:8000").takes()
	// It answers somewhere else: there is no room, and it goes on without a place until there is.
	s = play(t, testWorld(1)).up(1)
	s.callee = hosts["B"]
	s.says("A>P INVITE a id=2 c=10.1.10.10:5008").says("P>A 200 INVITE a b id=2 c=10.2.10.44:8000")
	assert.Equal(t, Admitted, s.d.Verdict)
	assert.Equal(t, SiteBudget, s.d.Reason)
	s.takes(rates("branch-2", g711)).down(1).reserved("10.1.10.10:5008>10.2.10.44:8000 branch-2 112800")
}

// A PBX that relays media: its two legs are two streams.
func TestAnAnchoringPBXCostsEachLeg(t *testing.T) {
	s := play(t, testWorld(3)).says("A>P INVITE a id=1 c=10.1.10.10:5004").
		says("P>B INVITE p id=2 c=10.2.10.5:20000").takes(rates("branch-2", 2*g711)).
		says("B>P 200 INVITE p b id=2 c=10.1.10.11:6000").says("P>A 200 INVITE a q id=1 c=10.2.10.5:20002").
		takes(rates("branch-2", 2*g711)).
		reserved("10.1.10.10:5004>10.2.10.5:20002 branch-2 112800", "10.1.10.11:6000>10.2.10.5:20000 branch-2 112800")
	// A third leg fits, the one that it would lead to does not: it is refused, and the phone's call ends.
	s.says("A>P INVITE a id=3 c=10.1.10.10:5010").admitted().says("P>B INVITE p id=4 c=10.2.10.5:20010").
		refused(SiteBudget).says("P>A 503 INVITE a r id=3").takes(rates("branch-2", 2*g711))
}

// The same packets, described in two dialogs, are counted once.
func TestTheSameMediaInTwoDialogsCountOnce(t *testing.T) {
	media := []string{"10.1.10.10:5004>10.2.10.31:7000 branch-2 112800"}
	// Two Call-IDs: a PBX here that takes itself out of the media by re-INVITE.
	s := play(t, testWorld(1)).says("A>L INVITE a id=1 c=10.1.10.10:5004").takes().
		says("L>X INVITE l id=2 c=10.1.20.5:9000").takes(rates("branch-2", g711)).
		says("X>L 200 INVITE l x id=2 c=10.2.10.31:7000").says("L>A 200 INVITE a k id=1 c=10.1.20.5:9002").
		says("L>X ACK l x id=2").says("A>L ACK a k id=1").reserved("10.1.20.5:9000>10.2.10.31:7000 branch-2 112800").
		says("L>X INVITE l x id=2 cseq=2 c=10.1.10.10:5004").admitted().
		says("X>L 200 INVITE l x id=2 cseq=2 c=10.2.10.31:7000").reserved(media...).
		says("L>A INVITE k a id=1 c=10.2.10.31:7000").admitted().says("A>L 200 INVITE k a id=1 c=10.1.10.10:5004").
		reserved(media...).takes(rates("branch-2", g711))
	assert.True(t, s.ledger.Calls()[0].Places[0].Shared)
	s.says("A>L BYE a k id=1 cseq=3").says("L>A 200 BYE a k id=1 cseq=3").reserved(media...).
		takes(rates("branch-2", g711)).
		says("L>X BYE l x id=2 cseq=3").says("X>L 200 BYE l x id=2 cseq=3").empty()

	// One Call-ID: a proxy here. The first leg costs nothing until the answer is through.
	play(t, testWorld(1)).says("A>L INVITE a c=10.1.10.10:5004").says("L>X INVITE a c=10.1.10.10:5004").admitted().
		says("X>L 200 INVITE a x c=10.2.10.31:7000").says("L>A 200 INVITE a x c=10.2.10.31:7000").
		takes(rates("branch-2", g711)).reserved(media...)

	// And at a hub, where the answer has passed on one leg and not yet on the other.
	hub := testWorld(1)
	hub.Sites[1].Ringway = true
	hub.Sites[1].Out = budget(1)
	s = play(t, hub).says("V>L INVITE a c=10.3.10.31:5004").takes(rates("branch-3", g711)).
		says("L>X INVITE a c=10.3.10.31:5004").admitted().takes(rates("branch-2", g711), rates("branch-3", g711)).
		says("X>L 183 INVITE a x c=10.2.10.31:7000").admitted().takes(rates("branch-2", g711), rates("branch-3", g711)).
		says("L>V 200 INVITE a x c=10.2.10.31:7000").takes(rates("branch-2", g711), rates("branch-3", g711)).
		reserved("10.2.10.31:7000>10.3.10.31:5004 branch-3 112800", "10.3.10.31:5004>10.2.10.31:7000 branch-2 112800")
	assert.Len(t, s.ledger.Calls(), 1)
}

// A proxy here asks two phones of a site at once: only one of them will answer.
func TestAForkIsOneCall(t *testing.T) {
	play(t, testWorld(1)).says("A>L INVITE a c=10.1.10.10:5004").
		says("L>X INVITE a c=10.1.10.10:5004").admitted().says("L>Y INVITE a c=10.1.10.10:5004").admitted().
		takes(rates("branch-2", g711)).
		says("Y>L 200 INVITE a y c=10.2.10.44:8000").says("X>L 487 INVITE a x").
		says("L>A 200 INVITE a y c=10.2.10.44:8000").reserved("10.1.10.10:5004>10.2.10.44:8000 branch-2 112800")
	// A proxy there forks out of sight. The place follows the branch that answered last, then the one that was
	// accepted (case 11).
	play(t, testWorld(1)).says("A>P INVITE a c=10.1.10.10:5004").
		says("P>A 183 INVITE a b c=10.2.10.31:7000").reserved("10.1.10.10:5004>10.2.10.31:7000 branch-2 112800").
		says("P>A 183 INVITE a y c=10.2.10.44:8000").reserved("10.1.10.10:5004>10.2.10.44:8000 branch-2 112800").
		says("P>A 200 INVITE a b c=10.2.10.31:7000").reserved("10.1.10.10:5004>10.2.10.31:7000 branch-2 112800").
		after(3 * time.Second).takes(rates("branch-2", g711))
}

// A far end that does not guard what it sends is reckoned for in both directions.
func TestASiteWithoutRingway(t *testing.T) {
	s := play(t, testWorld(1)).says("A>V INVITE a id=1 c=10.1.10.10:5004").
		takes(rates("branch-3", g711), rates("branch-3<", g711)).
		says("V>A 200 INVITE a v id=1 c=10.3.10.31:7000").says("A>V ACK a v id=1").
		takes(rates("branch-3", g711), rates("branch-3<", g711)).
		reserved("10.1.10.10:5004>10.3.10.31:7000 branch-3 112800")
	// What one end sends in the other direction alone counts there alone.
	s.says("V>A INVITE v a id=2 c=10.3.10.31:7002 a=sendonly").admitted().
		takes(rates("branch-3", g711), rates("branch-3<", 2*g711)).
		says("V>A INVITE v a id=3 c=10.3.10.31:7004 a=sendonly").refused(InboundBudget)
	assert.Equal(t, Where{Site: "branch-3", Line: "wan0", Inbound: true}, s.d.Where)
	s.says("A>V INVITE a id=4 c=10.1.10.10:5010 a=sendonly").admitted().
		takes(rates("branch-3", 2*g711), rates("branch-3<", 2*g711))
	// A direction that comes to flow later is asked for then.
	s.says("V>A 200 INVITE a v id=4 c=10.3.10.31:7006 a=recvonly").says("A>V ACK a v id=4").
		says("A>V INVITE a v id=4 cseq=2 c=10.1.10.10:5010").refused(InboundBudget).
		takes(rates("branch-3", 2*g711), rates("branch-3<", 2*g711))
}

// Calls to the internet take the WAN's own budget, without a tunnel around their packets.
func TestCallsToTheInternet(t *testing.T) {
	s := play(t, testWorld(1)).says("A>T INVITE a id=1 c=10.1.10.10:5004").takes("wan0 85600", "wan0< 85600").
		says("T>A 200 INVITE a t id=1 c=203.0.113.9:30000").takes("wan0 85600", "wan0< 85600").
		reserved("10.1.10.10:5004>203.0.113.9:30000 wan0 85600")
	_, ok := s.d.Actions[0].Tunnel()
	assert.False(t, ok, "no engine sees it")
	s.says("T>A INVITE t id=2 c=203.0.113.9:30002").admitted().
		says("T>A INVITE t id=3 c=203.0.113.9:30004").refused(InternetBudget)
	assert.Equal(t, Where{Line: "wan0", Internet: true, Inbound: true}, s.d.Where, "its own offer: what it sends is first")
	// The sites' budgets are others.
	s.up(4).admitted()
	// From a site to the internet through here: both.
	both := []string{"wan0 85600", "wan0< 85600", rates("branch-2", g711)}
	play(t, testWorld(1)).says("X>T INVITE x c=10.2.10.31:7000").takes(both...).
		says("T>X 200 INVITE x t c=203.0.113.9:30000").takes(both...)
	// Media between two that are neither here nor pass here.
	play(t, testWorld(1)).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b c=198.51.100.1:7000").takes().
		says("A>P BYE a b cseq=2").says("P>A 200 BYE a b cseq=2").says("L>T INVITE l c=203.0.113.77:1000").takes()
}

// All sites together share what the line leaves for calls.
func TestTheLinesPool(t *testing.T) {
	w := testWorld(3)
	w.Lines[0].Pool = budget(3).Rate
	s := play(t, w).up(1).up(2).takes(rates("wan0*", 2*g711), rates("branch-2", 2*g711)).
		says("A>V INVITE a id=3 c=10.1.10.10:5010").admitted().
		takes(rates("wan0*", 3*g711), rates("branch-2", 2*g711), rates("branch-3", g711), rates("branch-3<", g711)).
		says("A>V INVITE a id=4 c=10.1.10.10:5012").refused(LineBudget)
	assert.Equal(t, Where{Line: "wan0"}, s.d.Where)
	s.says("A>T INVITE a id=5 c=10.1.10.10:5014").admitted() // not in the pool
	s.down(1).says("A>V INVITE a id=4 c=10.1.10.10:5012").admitted()
}

// Flows that no signalling explains leave less.
func TestOtherFlowsTakeRoom(t *testing.T) {
	w := testWorld(2)
	w.Lines[0].Pool, w.Sites[0].Other = budget(4).Rate, g711
	s := play(t, w).up(1).admitted().says("A>P INVITE a id=2 c=10.1.10.10:5010").refused(SiteBudget)
	assert.Equal(t, g711, s.ledger.Budgets()[0].Other)
}

// A re-INVITE or UPDATE that does not fit is refused, and the call stays as it was.
func TestAReInviteThatDoesNotFit(t *testing.T) {
	for _, method := range []string{"INVITE", "UPDATE"} {
		s := play(t, testWorld(2)).says("A>P INVITE a id=1 c=10.1.10.10:5002 m=18").
			says("P>A 200 INVITE a b id=1 c=10.2.10.31:7002 m=18").says("A>P ACK a b id=1").up(2)
		before := []string{rates("branch-2", g711+g729)}
		places := s.ledger.Calls()
		s.says("A>P " + method + " a b id=1 cseq=2 c=10.1.10.10:5002 v=10.1.10.10:5050").refused(SiteBudget).
			takes(before...).
			says("P>A " + method + " b a id=1 cseq=9 c=10.2.10.31:7002 m=0 v=10.2.10.31:7050").refused(SiteBudget).
			takes(before...)
		assert.Equal(t, places, s.ledger.Calls())
		// The dearer codec alone fits once the other call is gone.
		s.down(2).says("A>P " + method + " a b id=1 cseq=3 c=10.1.10.10:5002").admitted().takes(rates("branch-2", g711)).
			reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800").
			says("P>A 200 " + method + " a b id=1 cseq=3 c=10.2.10.31:7002").takes(rates("branch-2", g711))
	}
}

// An INVITE that comes again with credentials, and with more than before, is refused: the call is over, and what
// it had is free.
func TestAnInviteThatComesAgainAndDoesNotFit(t *testing.T) {
	play(t, testWorld(1)).says("A>P INVITE a c=10.1.10.10:5002 m=18").
		says("P>A 183 INVITE a b c=10.2.10.31:7000 m=18").reserved("10.1.10.10:5002>10.2.10.31:7000 branch-2 55200").
		says("A>P INVITE a cseq=2 c=10.1.10.10:5002 v=10.1.10.10:5004").refused(SiteBudget).empty()
	play(t, testWorld(1)).says("A>P INVITE a").
		says("A>P INVITE a c=10.1.10.10:5002 v=10.1.10.10:5004").refused(SiteBudget).empty()
}

// A message that belongs to two legs, since what follows the INVITE goes another way, is refused for both.
func TestAReInviteOfTwoLegs(t *testing.T) {
	s := play(t, testWorld(1)).says("A>L INVITE a c=10.1.10.10:5004").says("L>X INVITE a c=10.1.10.10:5004").
		says("X>L 200 INVITE a x c=10.2.10.31:7000").says("L>A 200 INVITE a x c=10.2.10.31:7000").
		says("A>X ACK a x").takes(rates("branch-2", g711))
	calls := s.ledger.Calls()
	for range 2 {
		s.says("A>X INVITE a x cseq=2 c=10.1.10.10:5004 v=10.1.10.10:5006").refused(SiteBudget)
		assert.Equal(t, calls, s.ledger.Calls())
	}
	s.says("A>X ACK a x cseq=2").takes(rates("branch-2", g711)).
		says("A>X INVITE a x cseq=3 c=10.1.10.10:5008").admitted().says("X>A 200 INVITE a x cseq=3 c=10.2.10.31:7000").
		reserved("10.1.10.10:5008>10.2.10.31:7000 branch-2 112800").
		says("X>A BYE x a").says("A>X 200 BYE x a").empty()
}

// Case 15: hold with 0.0.0.0 keeps the place, while others are refused; resume is not refused.
func TestHoldKeepsThePlace(t *testing.T) {
	place := "10.1.10.10:5002>10.2.10.31:7002 branch-2 112800"
	s := play(t, testWorld(1)).up(1)
	s.says("A>P INVITE a b id=1 cseq=2 c=0.0.0.0:5002 a=inactive").admitted().
		says("P>A 200 INVITE a b id=1 cseq=2 c=10.2.10.31:7002 a=inactive").says("A>P ACK a b id=1 cseq=2").
		reserved(place).after(30 * time.Second).
		says("A>P INVITE a id=2 c=10.1.10.10:5010").refused(SiteBudget).reserved(place).
		says("A>P INVITE a b id=1 cseq=3 c=10.1.10.10:5002").admitted().reserved(place).
		says("P>A 200 INVITE a b id=1 cseq=3 c=10.2.10.31:7002").says("A>P ACK a b id=1 cseq=3").reserved(place)
	assert.Empty(t, s.d.Actions)
	s.down(1).empty()

	// With music from a server at another site: the place is kept where it will be needed again.
	s = play(t, testWorld(1)).up(1).says("P>A INVITE b a id=1 c=10.3.10.99:9000 a=sendonly").admitted().
		says("A>P 200 INVITE b a id=1 c=10.1.10.10:5002 a=recvonly").says("P>A ACK b a id=1").
		takes(rates("branch-2", g711), rates("branch-3<", g711)).reserved(place).
		says("A>P INVITE a id=2 c=10.1.10.10:5010").refused(SiteBudget).
		says("P>A INVITE b a id=1 cseq=2 c=10.2.10.31:7002").admitted().
		says("A>P 200 INVITE b a id=1 cseq=2 c=10.1.10.10:5002").says("P>A ACK b a id=1 cseq=2").
		takes(rates("branch-2", g711)).reserved(place)
	s.down(1).empty()

	// A medium that ends, with port 0, gives its place back, held or not (cases 20 and 21).
	s = play(t, testWorld(1)).up(1).says("P>A INVITE b a id=1 c=10.2.10.31:0").
		says("A>P 200 INVITE b a id=1 c=10.1.10.10:0").says("P>A ACK b a id=1").takes().reserved()
	assert.Equal(t, 1, s.ledger.Len())
}

// Case 16: crossing re-INVITEs count nothing twice.
func TestCrossingReInvites(t *testing.T) {
	one := rates("branch-2", g711)
	play(t, testWorld(1)).up(1).says("A>P INVITE a b id=1 cseq=2 c=10.1.10.10:5008").admitted().takes(one).
		says("P>A INVITE b a id=1 cseq=7 c=10.2.10.31:7008").admitted().takes(one).
		says("P>A 491 INVITE a b id=1 cseq=2").says("A>P 491 INVITE b a id=1 cseq=7").takes(one).
		reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800").
		says("A>P INVITE a b id=1 cseq=3 c=10.1.10.10:5008").admitted().
		says("P>A 200 INVITE a b id=1 cseq=3 c=10.2.10.31:7002").says("A>P ACK a b id=1 cseq=3").takes(one).
		reserved("10.1.10.10:5008>10.2.10.31:7002 branch-2 112800").down(1).empty()
}

// Case 17: a flow that moves has its place moved; it never has two.
func TestAFlowThatMoves(t *testing.T) {
	s := play(t, testWorld(1)).up(1).says("P>A INVITE b a id=1 c=10.2.10.31:5446").admitted().
		takes(rates("branch-2", g711)).reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800").
		says("A>P 200 INVITE b a id=1 c=10.1.10.10:5002").takes(rates("branch-2", g711)).
		reserved("10.1.10.10:5002>10.2.10.31:5446 branch-2 112800")
	require.Len(t, s.d.Actions, 2)
	assert.Equal(t, []Do{Release, Reserve}, []Do{s.d.Actions[0].Do, s.d.Actions[1].Do}, "first what is freed")
}

// Case 18: a re-INVITE that changes the codec is answered 488. The cost goes back.
func TestAReInviteThatTheFarEndRefuses(t *testing.T) {
	s := play(t, testWorld(2)).says("A>P INVITE a id=1 c=10.1.10.10:5002 m=18").
		says("P>A 200 INVITE a b id=1 c=10.2.10.31:7002 m=18").says("A>P ACK a b id=1").
		says("A>P INVITE a b id=1 cseq=2 c=10.1.10.10:5002 m=8").admitted().takes(rates("branch-2", g711)).
		reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800")
	assert.Equal(t, Settle, s.d.Actions[0].Do)
	s.says("P>A 488 INVITE a b id=1 cseq=2").takes(rates("branch-2", g729)).
		reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 55200")
}

// Case 10: a late offer is reckoned with before it is known, so that it can still be refused.
func TestLateOffers(t *testing.T) {
	s := play(t, testWorld(1)).says("A>P INVITE a id=1").admitted().takes(rates("branch-2", g711)).
		says("A>P INVITE a id=2")
	assert.Equal(t, Admitted, s.d.Verdict, "without an offer there is nothing to refuse")
	assert.Equal(t, SiteBudget, s.d.Reason)
	s.says("P>A 200 INVITE a b id=1 c=10.2.10.31:7000 m=18").takes(rates("branch-2", g729)).
		says("A>P ACK a b id=1 c=10.1.10.10:5004 m=18").reserved("10.1.10.10:5004>10.2.10.31:7000 branch-2 55200")
}

// Video and T.38 are counted as well.
func TestVideoAndFax(t *testing.T) {
	w := testWorld(0)
	w.Sites[0].Out.Rate = 2 * qos.Mbit
	b := w.Sites[0].Out
	video := func(rate qos.BitRate) qos.BitRate {
		return b.Call(qos.Codec{Payload: 1200, Interval: time.Duration(1200*8*1e9/uint64(rate)) * time.Nanosecond})
	}
	s := play(t, w).says("A>P INVITE a id=1 c=10.1.10.10:5004 v=10.1.10.10:5006 b=AS:960").
		takes(rates("branch-2", g711+video(960*qos.Kbit))).
		says("A>P INVITE a id=2 c=10.1.10.10:5014 v=10.1.10.10:5016").refused(SiteBudget) // 1.5 Mbit/s
	s.says("P>A 200 INVITE a b id=1 c=10.2.10.31:7000 v=10.2.10.31:7002 b=TIAS:480000").
		takes(rates("branch-2", g711+video(480*qos.Kbit)))
	assert.Len(t, s.engine.held, 2)
	// Without video after all.
	s = play(t, w).says("A>P INVITE a c=10.1.10.10:5004 v=10.1.10.10:5006").
		says("P>A 200 INVITE a b c=10.2.10.31:7000 v=10.2.10.31:0").says("A>P ACK a b").takes(rates("branch-2", g711))
	// A fax changes to T.38: 160 bytes in 20 ms, as G.711.
	s.says("P>A INVITE b a c=10.2.10.31:0 v=10.2.10.31:0 i=10.2.10.31:7010").admitted().
		takes(rates("branch-2", 2*g711)). // both, until it is accepted
		says("A>P 200 INVITE b a c=10.1.10.10:0 v=10.1.10.10:0 i=10.1.10.10:5010").says("P>A ACK b a").
		takes(rates("branch-2", g711)).reserved("10.1.10.10:5010>10.2.10.31:7010 branch-2 112800")
}

func TestWhereAddressesAre(t *testing.T) {
	w := compile(testWorld(1))
	hop := netip.MustParseAddr("10.2.10.5")
	for text, want := range map[string]location{
		"10.1.10.10": {own, 0}, "198.51.100.1": {own, 0}, "2001:db8:1::7": {own, 0}, "::ffff:10.1.10.10": {own, 0},
		"10.2.255.1": {site, 0}, "10.3.0.1": {site, 1}, "10.99.0.1": {internet, 0}, "8.8.8.8": {internet, 0},
		"2a00::1": {internet, 0}, "192.168.178.20": {site, 0}, "fd00::1": {site, 0}, "169.254.1.1": {site, 0},
		"127.0.0.1": {site, 0}, "fe80::1": {site, 0},
	} {
		assert.Equal(t, want, w.locate(netip.MustParseAddr(text), hop), text)
	}
	assert.Equal(t, location{site, 0}, w.locate(netip.Addr{}, hop))
	assert.Equal(t, location{}, w.locate(netip.Addr{}, netip.Addr{}))
	// Private addresses in no network at all: a carrier that numbers its network so.
	unknown := netip.MustParseAddr("172.20.0.1")
	assert.Equal(t, location{internet, 0}, w.locate(unknown, unknown))
	assert.Equal(t, location{}, compile(World{}).locate(unknown, unknown))

	// The longest prefix counts.
	w = compile(World{Own: prefixes("10.0.0.0/8"), Sites: []Site{{Networks: prefixes("10.2.0.0/16", "10.0.0.0/8")},
		{Networks: prefixes("10.2.3.4/24")}}})
	for text, want := range map[string]location{"10.2.0.1": {site, 0}, "10.2.3.9": {site, 1}, "10.7.0.1": {own, 0}} {
		assert.Equal(t, want, w.locate(netip.MustParseAddr(text), netip.Addr{}), text)
	}
}

// A phone behind somebody's NAT, one with a name, and ICE.
func TestAddressesThatAreNotExact(t *testing.T) {
	play(t, testWorld(1)).says("A>T INVITE a c=10.1.10.10:5004").says("T>A 200 INVITE a t c=192.168.178.20:7078").
		takes("wan0 85600", "wan0< 85600").reserved("10.1.10.10:5004>192.168.178.20:7078 wan0 85600")
	s := play(t, testWorld(1)).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b n=media.example.com").
		takes(rates("branch-2", g711)).reserved() // by the hop, and no engine can be told a flow
	s.says("A>P BYE a b cseq=2").says("P>A 200 BYE a b cseq=2").empty()
	// Of candidates at two sites, both may be chosen.
	candidates := " a=candidate:1_1_UDP_1_10.2.10.31_5000_typ_host a=candidate:2_1_UDP_1_10.3.10.31_5000_typ_host"
	play(t, testWorld(1)).says("P>A INVITE p c=0.0.0.0:9"+candidates).says("A>P 200 INVITE p a c=10.1.10.10:5004").
		takes(rates("branch-2", g711), rates("branch-3", g711), rates("branch-3<", g711)).reserved()
}

func TestEmergencyCalls(t *testing.T) {
	s := play(t, testWorld(2)).up(1).up(2).says("A>P INVITE a id=3 to=112 c=10.1.10.10:5030").admitted().
		takes(rates("branch-2", 2*g711))
	require.Len(t, s.d.Mute, 1)
	assert.Equal(t, "2", s.d.Mute[0].CallID, "the newest one")
	require.Len(t, s.d.Mute[0].Legs, 1)
	assert.NotEmpty(t, s.d.Mute[0].Legs[0].Streams())
	assert.Equal(t, []Do{Release}, []Do{s.d.Actions[0].Do})
	s.reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800")
	assert.Equal(t, []State{HasPlace, IsMuted, HasPlace}, states(s.ledger))
	assert.True(t, s.ledger.Calls()[2].Emergency)

	// Its signalling goes on: hold, resume, what it wants more.
	s.says("A>P INVITE a b id=2 cseq=2 c=10.1.10.10:5004 v=10.1.10.10:5060")
	assert.Equal(t, Admitted, s.d.Verdict)
	s.says("P>A 488 INVITE a b id=2 cseq=2").takes(rates("branch-2", 2*g711))
	// The answer may cost more.
	s.says("P>A 200 INVITE a e id=3 c=10.2.10.44:8000 v=10.2.10.44:8002").says("A>P ACK a e id=3")
	// Another emergency: the other call goes, too, and the third one passes over the budget.
	s.says("A>P INVITE a id=4 to=0112 c=10.1.10.10:5040").admitted()
	assert.Equal(t, "1", s.d.Mute[0].CallID)
	s.says("A>P INVITE a id=5 to=911 c=10.1.10.10:5050").admitted().takes(rates("branch-2", 3*g711))
	assert.Empty(t, s.d.Mute, "no emergency call is muted for another one")
	s.says("A>P INVITE a id=6 c=10.1.10.10:5052").refused(SiteBudget)
	assert.Equal(t, []State{IsMuted, IsMuted, HasPlace, HasPlace, HasPlace}, states(s.ledger))

	// They end. What was muted gets its media again, the oldest first.
	s.says("P>A 486 INVITE a x id=5")
	assert.Empty(t, s.d.Unmute)
	s.says("P>A 486 INVITE a x id=4")
	require.Len(t, s.d.Unmute, 1)
	assert.Equal(t, "1", s.d.Unmute[0].CallID)
	s.reserved("10.1.10.10:5002>10.2.10.31:7002 branch-2 112800", "10.1.10.10:5030>10.2.10.44:8000 branch-2 112800").
		down(1)
	assert.Equal(t, "2", s.d.Unmute[0].CallID)
	s.says("A>P BYE a e id=3 cseq=2").says("P>A 200 BYE a e id=3 cseq=2").down(2).empty()
}

func states(l *Ledger) (all []State) {
	for _, c := range l.Calls() {
		all = append(all, c.State)
	}
	return all
}

// Only calls that have something of the full budget make way.
func TestAnEmergencyMutesWhatIsInItsWay(t *testing.T) {
	s := play(t, testWorld(1)).up(1).says("A>V INVITE a id=2 c=10.1.10.10:5010").
		says("A>L INVITE a id=3 c=10.1.10.10:5012").says("A>P INVITE a id=4 to=110 c=10.1.10.10:5014").admitted()
	require.Len(t, s.d.Mute, 1)
	assert.Equal(t, "1", s.d.Mute[0].CallID)
	// A call that was muted ends.
	s.down(1)
	assert.Zero(t, s.ledger.waiting)
	// In the pool of a line, the call may be one with another site.
	w := testWorld(3)
	w.Lines[0].Pool = budget(2).Rate
	s = play(t, w).says("A>V INVITE a id=1 c=10.1.10.10:5010").up(2).says("A>P INVITE a id=3 to=112 c=10.1.10.10:5014")
	require.Len(t, s.d.Mute, 1)
	assert.Equal(t, "2", s.d.Mute[0].CallID)
	s.says("A>P INVITE a id=4 to=112 c=10.1.10.10:5016")
	assert.Equal(t, "1", s.d.Mute[0].CallID)
	// Call-backs (RFC 7090), and a service that is asked for in the Request-URI alone, are package emergency's;
	// here, a call that was one once remains one.
	play(t, testWorld(1)).says("A>P INVITE a id=1 to=112 c=10.1.10.10:5002").
		says("P>A 200 INVITE a b id=1 c=10.2.10.31:7002").says("A>P ACK a b id=1").
		says("P>A INVITE b a id=1 c=10.2.10.31:7002 v=10.2.10.31:7004").admitted()
}

// Muting the newest calls frees too little as long as an older one has the same packets. When that is muted, too,
// there may be more room than is needed: a call that was muted on the way gets its place back at once.
func TestCallsThatAreMutedForNothing(t *testing.T) {
	s := play(t, testWorld(2))
	for _, id := range []string{"1", "2"} { // a PBX elsewhere, out of the media
		s.says("A>P INVITE a id=" + id + " c=10.1.10.10:5002").says("P>A 200 INVITE a b id=" + id + " c=10.2.10.31:7002").
			says("A>P ACK a b id=" + id).admitted()
	}
	s.takes(rates("branch-2", g711)).says("A>P INVITE a id=3 to=112 c=10.1.10.10:5010 c=10.1.10.10:5012").admitted()
	require.Len(t, s.d.Mute, 2)
	assert.Equal(t, []string{"2", "1"}, []string{s.d.Mute[0].CallID, s.d.Mute[1].CallID})
	s.says("P>A 486 INVITE a x id=3")
	require.Len(t, s.d.Unmute, 2)
	s.takes(rates("branch-2", g711))
	assert.Nil(t, except(s.d.Unmute, s.d.Unmute))
	assert.Len(t, except(s.d.Unmute, s.d.Unmute[:1]), 1)
}

// What cannot be refused any more and has no room is placed as soon as there is some, the oldest first.
func TestWaitingForRoom(t *testing.T) {
	s := play(t, testWorld(2)).up(1).up(2)
	for n := 3; n <= 4; n++ {
		s.callee = hosts["B"]
		s.says(fmt.Sprintf("A>P INVITE a id=%d c=10.1.10.10:%d", n, 5000+2*n)).admitted().
			says(fmt.Sprintf("P>A 200 INVITE a b id=%d c=10.2.10.31:%d", n, 7000+2*n))
		assert.Equal(t, SiteBudget, s.d.Reason)
	}
	assert.Equal(t, []State{HasPlace, HasPlace, IsShort, IsShort}, states(s.ledger))
	s.says("A>P INVITE a id=5 c=10.1.10.10:5090").refused(SiteBudget)
	s.down(1)
	assert.Equal(t, []State{HasPlace, HasPlace, IsShort}, states(s.ledger))
	s.reserved("10.1.10.10:5004>10.2.10.31:7004 branch-2 112800", "10.1.10.10:5006>10.2.10.31:7006 branch-2 112800")
	s.down(4).down(3).down(2).empty()
}

func TestBounds(t *testing.T) {
	s := play(t, testWorld(10))
	s.ledger.MaxCalls = 2
	s.up(1).up(2).says("A>P INVITE a id=3 c=10.1.10.10:5010")
	assert.Equal(t, Admitted, s.d.Verdict)
	assert.Equal(t, TableFull, s.d.Reason)
	s.says("A>P INVITE a id=4 to=112 c=10.1.10.10:5012")
	assert.Equal(t, Admitted, s.d.Verdict)
	assert.EqualValues(t, 2, s.ledger.Beyond())
	s.says("P>A 486 INVITE a x id=3").says("P>A 486 INVITE a x id=4").down(1).down(2).empty()

	s = play(t, testWorld(10))
	for n := range 2 * maxLegs {
		s.says(fmt.Sprintf("A>P INVITE t%d c=10.1.10.10:5004", n))
	}
	assert.Len(t, s.ledger.calls["1"].legs, maxLegs)
	s.takes(rates("branch-2", g711)).after(time.Minute).empty()
}

func TestUseOfAnotherWorld(t *testing.T) {
	s := play(t, testWorld(4)).up(1).up(2).up(3).says("A>P INVITE a id=4 to=112 c=10.1.10.10:5090").
		says("P>A INVITE p id=5 c=10.2.10.5:9000")
	s.refused(SiteBudget)
	use := func(w World) {
		s.d = s.ledger.Use(w)
		s.engine.take(t, s.d.Actions, func(string) qos.BitRate { return 0 })
	}
	use(testWorld(4))
	assert.Empty(t, s.d.Actions, "nothing changed")

	// The budget shrinks. Whoever is in stays, new calls are refused.
	use(testWorld(2))
	assert.Empty(t, s.d.Actions)
	s.takes(rates("branch-2", 4*g711)).says("A>P INVITE a id=6 c=10.1.10.10:5010").refused(SiteBudget).
		says("A>P INVITE a b id=1 cseq=2 c=10.1.10.10:5002").admitted().says("P>A 488 INVITE a b id=1 cseq=2")

	// Another envelope, and a site with another key.
	w := testWorld(10)
	w.Sites[0].Out.PadTo = 512
	use(w)
	require.Len(t, s.d.Actions, 3)
	assert.Equal(t, Settle, s.d.Actions[0].Do)
	assert.Equal(t, qos.BitRate(234400), s.d.Actions[0].Rate)
	w.Sites[0].Key = tunnel.PublicKey{7}
	use(w)
	assert.Len(t, s.d.Actions, 6)
	assert.Equal(t, Release, s.d.Actions[2].Do)
	assert.Equal(t, tunnel.PublicKey{7}, s.d.Actions[3].Key)

	// The site is gone: its addresses are reached over the line.
	w.Sites = w.Sites[1:]
	use(w)
	s.takes("wan0 342400", "wan0< 342400") // with the fourth call's place, whose answer is not known
	assert.Equal(t, "wan0", s.ledger.Reservations()[0].Line)
	assert.Empty(t, s.ledger.Reservations()[0].Site)
	use(testWorld(4))
	s.takes(rates("branch-2", 4*g711))
	s.says("P>A 486 INVITE a x id=4").down(1).down(2).down(3).empty()
}

// A call on hold keeps its place through a change of the configuration, and so does a muted one its turn.
func TestHeldAndMutedCallsInAnotherWorld(t *testing.T) {
	s := play(t, testWorld(1)).up(1).says("P>A INVITE b a id=1 c=10.3.10.99:9000 a=sendonly").
		says("A>P 200 INVITE b a id=1 c=10.1.10.10:5002 a=recvonly").says("P>A ACK b a id=1")
	d := s.ledger.Use(testWorld(1))
	assert.Empty(t, d.Actions)
	s.takes(rates("branch-2", g711), rates("branch-3<", g711))

	s = play(t, testWorld(1)).up(1).says("A>P INVITE a id=2 to=112 c=10.1.10.10:5010")
	require.Len(t, s.d.Mute, 1)
	d = s.ledger.Use(testWorld(2))
	require.Len(t, d.Unmute, 1)
	assert.Len(t, d.Actions, 1)
}

// A call that waits for room gets it from a larger budget, and no more than there is from a smaller one.
func TestAWaitingCallInAnotherWorld(t *testing.T) {
	s := play(t, testWorld(1)).up(1)
	s.callee = hosts["B"]
	s.says("A>P INVITE a id=2 c=10.1.10.10:5008").says("P>A 200 INVITE a b id=2 c=10.2.10.44:8000")
	assert.Equal(t, []State{HasPlace, IsShort}, states(s.ledger))
	assert.Empty(t, s.ledger.Use(testWorld(1)).Actions)
	s.takes(rates("branch-2", g711))
	assert.Len(t, s.ledger.Use(testWorld(2)).Actions, 1)
	assert.Equal(t, []State{HasPlace, HasPlace}, states(s.ledger))
}

// Media from the internet to the internet do not pass here, also where two lines lead there.
func TestWhatIsCharged(t *testing.T) {
	w := testWorld(1)
	w.Lines = append(w.Lines, Line{Name: "wan1", Networks: prefixes("192.0.2.0/24")})
	c := compile(w)
	none := [2]*account{}
	for _, one := range []location{{}, {own, 0}, {site, 0}, {internet, 0}} {
		assert.Equal(t, none, c.charged(one, one))
		assert.Equal(t, none, c.charged(one, location{}))
		assert.Equal(t, none, c.charged(location{}, one))
	}
	assert.Equal(t, none, c.charged(location{internet, 0}, location{internet, 1}))
	assert.Equal(t, [2]*account{c.lines[1].out, c.sites[1].in}, c.charged(location{site, 1}, location{internet, 1}))
	assert.Equal(t, [2]*account{c.sites[0].out, c.lines[0].in}, c.charged(location{internet, 0}, location{site, 0}))
	assert.Equal(t, [2]*account{c.sites[1].out, nil}, c.charged(location{site, 0}, location{site, 1}))
}

func TestNoBudgetIsNoBound(t *testing.T) {
	w := testWorld(1)
	w.Sites[0].Out.Rate, w.Lines[0].Out.Rate, w.Lines[0].In.Rate = 0, 0, 0
	s := play(t, w)
	for n := range 20 {
		s.up(n).admitted()
	}
	s.takes(rates("branch-2", 20*g711))
	s.says("A>T INVITE a id=90 c=10.1.10.10:5004").admitted()
}

func TestSnapshots(t *testing.T) {
	s := play(t, testWorld(4)).up(1).says("A>P INVITE a id=2 c=10.1.10.10:5010")
	flow := &tunnel.Flow{
		Source: netip.MustParseAddrPort("10.1.10.10:5002"), Destination: netip.MustParseAddrPort("10.2.10.31:7002"),
	}
	at := Where{Site: "branch-2", Line: "wan0"}
	calls := s.ledger.Calls()
	assert.Equal(t, []Place{{Where: at, Rate: g711, Flow: flow}}, calls[0].Places)
	assert.Equal(t, []Place{{Where: at, Rate: g711}}, calls[1].Places)
	assert.True(t, calls[0].Since.Before(calls[1].Since))
	i := 2 // behind the line's own
	assert.Equal(t, Budget{Where: at, Limit: 4 * g711, Taken: 2 * g711, Places: 2}, s.ledger.Budgets()[i])
}

func TestWhatCanBeRefused(t *testing.T) {
	for start, want := range map[string]bool{
		"INVITE sip:b@x SIP/2.0": true, "UPDATE sip:b@x SIP/2.0": true, "PRACK sip:b@x SIP/2.0": false,
		"ACK sip:b@x SIP/2.0": false, "SIP/2.0 200 OK": false,
	} {
		method := "INVITE"
		if start[0] != 'S' {
			method = start[:len(start)-len(" sip:b@x SIP/2.0")]
		}
		var m message.Message
		require.Equal(t, message.None, m.Scan([]byte(start+"\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n"+
			"From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 "+method+"\r\n\r\n")))
		assert.Equal(t, want, Refusable(&m), start)
	}
	assert.Equal(t, "refused", Refused.String())
	assert.Equal(t, "settle", Settle.String())
}

// A process that takes over from another one has the calls in their order.
func TestCallsThatAreTakenOver(t *testing.T) {
	s := play(t, testWorld(2)).up(1).up(2)
	var legs []*dialog.Leg
	s.tr.Legs(func(l *dialog.Leg) { legs = append(legs, l) })
	l := New(100, testWorld(2))
	slices.SortFunc(legs, func(a, b *dialog.Leg) int { return b.Began().Compare(a.Began()) })
	for _, g := range legs { // the newest one first
		l.Settle(g.Began(), Update{Leg: g, Streams: g.Streams()})
	}
	assert.Equal(t, s.ledger.Reservations(), l.Reservations())
	next := &dialog.Leg{CallID: "3"}
	d := l.Admit(s.now, Update{Leg: next, Emergency: true, Streams: []dialog.Stream{{Sends: true, FromCaller: true,
		FromHop: hosts["A"], ToHop: hosts["P"], Codecs: []qos.Codec{qos.G711}}}})
	require.Len(t, d.Mute, 1)
	assert.Equal(t, "2", d.Mute[0].CallID)
}
