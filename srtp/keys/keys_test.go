package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/suite"
)

// running is a network in which a leg is set up.
func running(t *testing.T, c Config) (n *network, l Leg) {
	n = newNetwork(t, c, 1)
	n.connect()
	n.settle()
	l = legOf(0)
	n.both(t, l)
	for _, e := range n.ends {
		require.Contains(t, e.sending, l)
		require.Len(t, e.holding[l], 1)
	}
	return n, l
}

// TestTheFirstKeyIsUsedAtOnce when it is offered: nothing else can be, and the first words of a call would be lost.
func TestTheFirstKeyIsUsedAtOnce(t *testing.T) {
	n := newNetwork(t, Config{}, 1)
	a, b, l := n.ends[0], n.ends[1], legOf(0)
	require.NoError(t, a.begin(l))
	assert.Empty(t, a.actions, "the channel is down")
	n.connect()
	require.Len(t, a.actions, 1)
	assert.Equal(t, Use, a.actions[0].Kind)
	assert.True(t, a.actions[0].Fresh)
	a.act()
	first := a.sending[l]

	for a.deliver() || b.deliver() {
	}
	assert.Empty(t, b.actions, "nobody has begun the leg there")
	s, ok := a.x.Status(l)
	require.True(t, ok)
	assert.False(t, s.Sending, "the far end does not open it yet")
	a.send(l, 50)

	require.NoError(t, b.begin(l))
	require.Len(t, b.actions, 2, "it has the offer, and has made its own")
	assert.Equal(t, Hold, b.actions[0].Kind)
	assert.True(t, b.actions[0].Fresh)
	assert.Equal(t, Use, b.actions[1].Kind)
	n.settle()
	assert.Equal(t, first, a.sending[l], "as it was acknowledged")
	assert.Equal(t, first, b.holding[l][first.MKI])
	s, _ = a.x.Status(l)
	assert.True(t, s.Sending && s.Receiving)
	assert.Zero(t, s.Rotations)
}

// TestTheFirstKeyIsNotAcknowledged: there is a problem, and no successor that the far end would have to keep.
func TestTheFirstKeyIsNotAcknowledged(t *testing.T) {
	n := newNetwork(t, Config{Every: MinEvery, Packets: MinPackets}, 1)
	n.connect()
	a, b, l := n.ends[0], n.ends[1], legOf(0)
	require.NoError(t, a.begin(l))
	a.act()
	first := a.sending[l]
	a.send(l, 2*MinPackets)
	n.pass(MinEvery+AckTimeout, time.Second) // nothing is delivered
	assert.Empty(t, a.actions)
	assert.EqualValues(t, 1, a.x.Counters().OffersSent)
	problems := a.x.Problems(n.now)
	require.Len(t, problems, 1)
	assert.Equal(t, "leg "+l.String()+": the far end did not acknowledge a key; the far end hears nothing",
		problems[0].String())

	a.warm() // it is known to the next process that nobody has acknowledged it
	assert.Equal(t, first, a.sending[l])
	assert.Len(t, a.x.Problems(n.now), 1)

	n.cut()
	n.connect()
	require.NoError(t, b.begin(l))
	n.settle()
	assert.Empty(t, a.x.Problems(n.now))
	n.pass(time.Second, time.Second)
	n.settle()
	assert.NotEqual(t, first, a.sending[l], "it was in use for long, and its successor is there")
	assert.Len(t, b.holding[l], 2)
}

// TestALaterKeyIsNotUsedBeforeItIsAcknowledged: neither before the far end has the offer, nor before its media plane
// has the key.
func TestALaterKeyIsNotUsedBeforeItIsAcknowledged(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	before := a.sending[l]
	a.send(l, 500)
	n.pass(MinEvery, time.Second)
	assert.Empty(t, a.actions)
	a.deliver()
	require.Len(t, b.actions, 1)
	assert.Equal(t, Hold, b.actions[0].Kind)
	assert.False(t, b.actions[0].Fresh)
	for b.deliver() {
	}
	assert.Empty(t, a.actions)

	b.act()
	b.deliver()
	require.Len(t, a.actions, 1)
	assert.Equal(t, Use, a.actions[0].Kind)
	assert.False(t, a.actions[0].Fresh)
	assert.Equal(t, b.holding[l][a.actions[0].Key.MKI], *a.actions[0].Key)
	assert.NotEqual(t, before, *a.actions[0].Key)
	n.settle()
}

// TestWhereTheMediaPlaneDoesNotTakeAKey: it is refused, and the one before stays in use.
func TestWhereTheMediaPlaneDoesNotTakeAKey(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	before := a.sending[l]
	a.send(l, 500)
	n.pass(MinEvery, time.Second)
	a.deliver()
	require.NotEmpty(t, b.actions)
	refused := b.actions[0].Key.MKI
	b.actions = nil
	b.do(func(x *Exchange) { x.NotHeld(l, refused, n.now) })
	n.settle()
	assert.Equal(t, before, a.sending[l])
	problems := a.x.Problems(n.now)
	require.Len(t, problems, 1)
	assert.Equal(t, "leg "+l.String()+": the far end refused a key: media plane did not take it; "+
		"the key before stays in use", problems[0].String())

	for range 5 { // another key is offered
		n.pass(time.Second, time.Second)
		n.settle()
	}
	assert.NotEqual(t, before, a.sending[l])
	assert.NotEqual(t, refused, a.sending[l].MKI)
	assert.Empty(t, a.x.Problems(n.now))
}

// TestTheOldKeyIsKept for 60 s and 128 packets after the first one under the next key, whichever is later.
func TestTheOldKeyIsKept(t *testing.T) {
	for _, c := range []struct {
		name         string
		packets      uint64
		wait         time.Duration
		late         bool
		held         int
		secondsAfter time.Duration
	}{
		{name: "no packet under the next key, for an hour", wait: time.Hour, held: 2},
		{name: "127 packets, for an hour", packets: 127, wait: time.Hour, held: 2},
		{name: "128 packets, 59 s", packets: 128, wait: 59 * time.Second, held: 2},
		{name: "many packets, 59 s", packets: 10000, wait: 59 * time.Second, held: 2},
		{name: "128 packets, 61 s", packets: 128, wait: 61 * time.Second, held: 1},
		{name: "a packet came late", packets: 128, wait: 61 * time.Second, late: true, held: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, l := running(t, Config{Every: 2 * time.Hour})
			a, b := n.ends[0], n.ends[1]
			old := a.sending[l].MKI
			a.send(l, 500)
			n.land(0)
			for a.sending[l].MKI == old {
				n.pass(time.Minute, time.Minute)
				n.settle()
			}
			require.Len(t, b.holding[l], 2)
			b.do(func(x *Exchange) { x.Opened(l, a.sending[l].MKI, c.packets, n.now) })
			if c.late {
				n.pass(30*time.Second, time.Second)
				b.do(func(x *Exchange) { x.Opened(l, old, 1, n.now) })
				c.wait -= 30 * time.Second
			}
			n.pass(c.wait, time.Second)
			n.settle()
			assert.Len(t, b.holding[l], c.held)
			assert.Contains(t, b.holding[l], a.sending[l].MKI)
		})
	}
}

// TestWithoutAnAcknowledgement: the key in use stays, an alarm says so, and at the end of its lifetime the media plane
// stops.
func TestWithoutAnAcknowledgement(t *testing.T) {
	for name, lose := range map[string]func(n *network){
		"the channel is down":          func(n *network) { n.cut() },
		"the far end does not answer":  func(*network) {},
		"the far end's plane does not": func(n *network) { n.ends[0].deliver(); n.ends[0].deliver() },
	} {
		t.Run(name, func(t *testing.T) {
			n, l := running(t, Config{Every: MinEvery, Lifetime: 1 << 20})
			a := n.ends[0]
			before := a.sending[l]
			a.send(l, 1000)
			if name == "the channel is down" {
				lose(n)
			}
			n.pass(MinEvery+AckTimeout+time.Second, time.Second)
			lose(n)

			var said []string
			for _, p := range a.x.Problems(n.now) {
				said = append(said, p.String())
			}
			assert.Contains(t, said,
				"leg "+l.String()+": the far end did not acknowledge a key; the key before stays in use")
			if !n.up {
				assert.Contains(t, said, "key channel is down; keys of media are not changed")
			}
			for range 100 {
				n.pass(time.Minute, time.Minute)
				a.send(l, 5000)
			}
			assert.Equal(t, before, a.sending[l])
			assert.Empty(t, a.actions)

			a.send(l, 1<<20-1000-500_000-1)
			assert.Empty(t, a.actions, "one packet is left")
			a.send(l, 1)
			require.Len(t, a.actions, 1)
			assert.Equal(t, Stop, a.actions[0].Kind)
			assert.Equal(t, before.MKI, a.actions[0].Key.MKI)
			a.act()
			assert.NotContains(t, a.sending, l)
			s, _ := a.x.Status(l)
			assert.False(t, s.Sending)
			exhausted := slices.ContainsFunc(a.x.Problems(n.now), func(p Problem) bool { return p.Kind == Exhausted })
			assert.True(t, exhausted)

			n.cut()
			n.connect() // and when the far end is there again, it goes on
			n.settle()
			assert.Contains(t, a.sending, l)
			assert.NotEqual(t, before, a.sending[l])
			assert.Empty(t, a.x.Problems(n.now))
		})
	}
}

// TestTheLifetimeIsWhatIsLeft: a new media plane gets no more than the one before had left.
func TestTheLifetimeIsWhatIsLeft(t *testing.T) {
	n, l := running(t, Config{Lifetime: 1 << 20})
	a := n.ends[0]
	a.send(l, 1000)
	find := func(all []Action) Action {
		i := slices.IndexFunc(all, func(x Action) bool { return x.Kind == Use })
		require.GreaterOrEqual(t, i, 0)
		return all[i]
	}
	assert.Equal(t, uint64(1<<20-1000), find(a.x.Wanted()).Lifetime)
	a.warm()
	assert.Equal(t, uint64(1<<20-1000), find(a.x.Wanted()).Lifetime)
}

func TestSettings(t *testing.T) {
	for _, c := range []Config{
		{Every: time.Second}, {Every: -MinEvery}, {Packets: 1}, {MaxLegs: -1},
	} {
		_, err := New(c, 0)
		assert.ErrorIs(t, err, ErrSettings)
		_, err = Restore(c, nil, 0)
		assert.ErrorIs(t, err, ErrSettings)
	}
	n := newNetwork(t, Config{MaxLegs: 2}, 1)
	a := n.ends[0]
	assert.ErrorIs(t, a.x.Begin(legOf(0), 77, n.now), ErrNoSuite)
	require.NoError(t, a.begin(legOf(0)))
	assert.ErrorIs(t, a.begin(legOf(0)), ErrBegun)
	require.NoError(t, a.begin(legOf(1)))
	assert.ErrorIs(t, a.begin(legOf(2)), ErrTooMany)
}

// TestRotationAfterPackets: with the least number that is allowed, and no time.
func TestRotationAfterPackets(t *testing.T) {
	n, l := running(t, Config{Packets: MinPackets})
	a := n.ends[0]
	first := a.sending[l]
	n.pass(10*MinEvery, time.Second)
	n.settle()
	assert.Equal(t, first, a.sending[l], "it has protected nothing")
	a.send(l, MinPackets*3/4)
	n.settle()
	assert.Equal(t, first, a.sending[l])
	a.send(l, MinPackets/4)
	n.settle()
	assert.NotEqual(t, first, a.sending[l])
	second := a.sending[l]
	a.send(l, 2*MinPackets)
	n.settle()
	assert.Equal(t, second, a.sending[l], "too soon: the receiver has the first one still")
	n.pass(MinEvery, time.Second)
	n.settle()
	assert.NotEqual(t, second, a.sending[l])
	s, _ := a.x.Status(l)
	assert.Equal(t, uint64(2), s.Rotations)
}

// TestALegOnHoldKeepsItsKey: what has protected nothing needs no successor, and the receiver does not collect keys.
func TestALegOnHoldKeepsItsKey(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	before := a.sending[l]
	n.pass(time.Hour, time.Second)
	n.settle()
	assert.Equal(t, before, a.sending[l])
	a.send(l, 500)
	n.pass(time.Second, time.Second)
	n.settle()
	assert.NotEqual(t, before, a.sending[l])
	n.pass(time.Hour, time.Second)
	n.settle()
	assert.Len(t, b.holding[l], 2)
}

// TestAMediaPlaneThatIsLate: the next key is not offered while the one before is not in use. The receiver would take it
// for used, and drop the one that is.
func TestAMediaPlaneThatIsLate(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	old := a.sending[l]
	a.send(l, 1000)
	n.pass(MinEvery, time.Second)
	for a.deliver() || b.act() || b.deliver() {
	}
	require.Len(t, a.actions, 1) // to use the next one
	for range 100 {
		a.send(l, 1000) // still under the old one
		n.pass(time.Minute, time.Second)
		for a.deliver() || b.act() || b.deliver() {
		}
	}
	assert.Len(t, b.holding[l], 2)
	assert.Contains(t, b.holding[l], old.MKI)
	n.settle()
	assert.NotEqual(t, old, a.sending[l])
}

// TestFiveHundredCallsDoNotRotateAtOnce: they begin in one moment, and their keys change over a fifth of the time.
func TestFiveHundredCallsDoNotRotateAtOnce(t *testing.T) {
	const calls, every = 500, 30 * time.Minute
	n := newNetwork(t, Config{Every: every}, 3)
	n.large = true
	n.connect()
	n.settle()
	a := n.ends[0]
	leg := func(i int) Leg { return Leg{0: byte(i), 1: byte(i >> 8)} }
	for i := range calls {
		for _, e := range n.ends {
			require.NoError(t, e.begin(leg(i)))
		}
		n.settle()
	}
	for range 10 { // not more than 200 offers a second
		n.pass(time.Second, time.Second)
		n.settle()
	}
	require.Len(t, a.sending, calls)
	for i := range calls {
		a.send(leg(i), 1000)
	}
	most, rotated := uint64(0), uint64(0)
	for minute := range 40 {
		n.pass(time.Minute, time.Second)
		n.settle()
		now := a.x.Counters().Rotations - rotated
		rotated += now
		most = max(most, now)
		if minute < 20 {
			assert.Zero(t, now)
		}
	}
	assert.Equal(t, uint64(calls), rotated)
	assert.Less(t, most, uint64(calls/4), "of 6 minutes")
}

// TestOffersAreBounded: those not acknowledged, and those in a second. What a call waits for goes first.
func TestOffersAreBounded(t *testing.T) {
	n := newNetwork(t, Config{}, 1)
	n.large = true
	a := n.ends[0]
	for i := range 600 {
		require.NoError(t, a.begin(Leg{0: byte(i), 1: byte(i >> 8)}))
	}
	n.connect()
	offers := func() (count int) {
		for _, m := range a.wire {
			if Kind(m[0]) == KindOffer {
				count++
			}
		}
		return count
	}
	assert.Equal(t, maxInFlight, offers(), "none is acknowledged")
	assert.NotContains(t, a.wire, []byte{byte(KindSynced)}, "that was not all")
	n.pass(AckTimeout-time.Second, time.Second)
	assert.Equal(t, maxInFlight, offers())
	n.pass(time.Second, time.Second)
	assert.Equal(t, 2*maxInFlight, offers(), "those that are late hold up nobody")

	b := n.ends[1]
	for i := range 600 {
		require.NoError(t, b.begin(Leg{0: byte(i), 1: byte(i >> 8)}))
	}
	before := a.x.Counters().OffersSent
	n.settle()
	assert.LessOrEqual(t, a.x.Counters().OffersSent-before, uint64(maxOffers))
	for range 10 {
		before = a.x.Counters().OffersSent
		n.pass(time.Second, time.Second)
		n.settle()
		assert.LessOrEqual(t, a.x.Counters().OffersSent-before, uint64(maxOffers))
	}
	assert.Len(t, a.sending, 600)
	assert.Len(t, b.sending, 600)
}

// far says messages as a far end that does what it likes.
func far(t *testing.T, n *network, m message) []message {
	e := n.ends[0]
	e.wire = nil
	e.do(func(x *Exchange) { require.NoError(t, x.Receive(m.append(nil), n.now)) })
	var all []message
	for _, b := range e.wire {
		said, known, err := parse(b)
		require.True(t, known && err == nil)
		all = append(all, said)
	}
	return all
}

func keyOf(i uint32, s suite.Suite) Key {
	k := Key{MKI: MKI{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, Suite: s}
	r := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16), byte(s)})
	_, _ = r.Read(k.secret[:k.length()])
	return k
}

// TestAFarEndThatDoesWhatItLikes is refused, each time with the reason, and makes no more state than it may.
func TestAFarEndThatDoesWhatItLikes(t *testing.T) {
	const gcm = suite.AEADAES128GCM
	n := newNetwork(t, Config{Suites: []suite.Suite{gcm, suite.AES128CMHMACSHA180}}, 1)
	n.connect()
	e, l := n.ends[0], legOf(0)
	require.NoError(t, e.begin(l))
	e.act()
	offer := func(l Leg, life uint32, k Key) []message {
		return far(t, n, message{kind: KindOffer, leg: l, life: life, key: k})
	}
	refused := func(why Refusal, said []message) {
		t.Helper()
		require.Len(t, said, 1)
		assert.Equal(t, KindRefuse, said[0].kind)
		assert.Equal(t, why, said[0].reason)
	}
	assert.Empty(t, offer(l, 1, keyOf(1, gcm)))
	require.Len(t, e.actions, 1)
	e.act()
	said := far(t, n, message{kind: KindOffer, leg: l, life: 1, key: keyOf(1, gcm)})
	require.Len(t, said, 1, "offered again")
	assert.Equal(t, KindAck, said[0].kind)
	assert.Empty(t, e.actions)

	other := keyOf(2, gcm)
	other.MKI = keyOf(1, gcm).MKI
	refused(RefusedMKI, offer(l, 1, other))
	refused(RefusedSuite, offer(l, 1, keyOf(3, suite.AES128CMHMACSHA180)))
	refused(RefusedSuite, offer(legOf(1), 1, keyOf(4, suite.AEADAES256GCM)))
	refused(RefusedSuite, offer(legOf(1), 1, Key{Suite: 999}))
	again := keyOf(1, gcm)
	again.MKI[0]++
	refused(RefusedReused, offer(l, 1, again))
	refused(RefusedReused, offer(legOf(1), 1, again))
	ours := e.x.legs[l].out.current.key
	ours.MKI[0]++
	refused(RefusedReused, offer(l, 1, ours)) // reflected

	for i := range uint32(3) {
		assert.Empty(t, offer(l, 1, keyOf(10+i, gcm)))
	}
	refused(RefusedBound, offer(l, 1, keyOf(20, gcm)))
	assert.Len(t, e.x.legs[l].in.keys, maxHeld)
	n.pass(Overlap+time.Second, time.Second)
	e.wire = nil
	assert.Empty(t, offer(l, 1, keyOf(20, gcm)), "the oldest has been superseded for 60 s")
	assert.Len(t, e.x.legs[l].in.keys, maxHeld)
	assert.Equal(t, uint64(1), e.x.Counters().DroppedForRoom)

	for i := range uint32(2 * maxUnbegun) {
		offer(Leg{0: byte(i), 1: byte(i >> 8), 2: 1}, 1, keyOf(100+i, gcm))
	}
	assert.LessOrEqual(t, len(e.x.legs), 2+maxUnbegun)
	n.pass(unbegunFor+time.Second, time.Second)
	assert.Len(t, e.x.legs, 1, "nobody has begun them")
	refusals := 0
	for _, b := range e.wire {
		if m, _, _ := parse(b); m.kind == KindRefuse && m.reason == RefusedLeg {
			refusals++
		}
	}
	assert.GreaterOrEqual(t, refusals, maxUnbegun-2)

	for _, m := range []message{
		{kind: KindAck, leg: legOf(9)}, {kind: KindRefuse, leg: legOf(9)}, {kind: KindEnded, leg: legOf(9), life: 3},
		{kind: KindAck, leg: l, key: Key{MKI: MKI{9}}}, {kind: KindRefuse, leg: l}, {kind: KindEnded, leg: l, life: 9},
	} {
		before := e.x.Counters().Ignored
		assert.Empty(t, far(t, n, m))
		assert.Equal(t, before+1, e.x.Counters().Ignored)
	}
	assert.Empty(t, far(t, n, message{kind: KindIdle, leg: legOf(9), life: 3}))
}

// TestAFarEndThatHasLostAKey: what is sent under it is lost, so sending stops, and another is offered.
func TestAFarEndThatHasLostAKey(t *testing.T) {
	n, l := running(t, Config{})
	a := n.ends[0]
	before := a.sending[l]
	far(t, n, message{kind: KindRefuse, leg: l, key: Key{MKI: before.MKI}, reason: RefusedLeg})
	require.True(t, a.act())
	assert.NotContains(t, a.sending, l)
	require.NotEmpty(t, a.x.Problems(n.now))
	assert.Contains(t, a.x.Problems(n.now)[0].String(), "unknown leg; the far end hears nothing")
	n.pass(2*time.Second, time.Second)
	n.settle()
	assert.Contains(t, a.sending, l)
	assert.NotEqual(t, before, a.sending[l])
	assert.True(t, a.x.legs[l].out.current.fresh, "the far end knows nothing of the stream, so a new one begins")
}

// TestAStreamBeginsAgainAtBothEnds: a far end that has lost the key in use, and not the one before, begins a new stream
// as the sender does. Else it would look for an index far beyond the one that comes.
func TestAStreamBeginsAgainAtBothEnds(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	first := a.sending[l]
	a.send(l, 500)
	n.pass(MinEvery, time.Second)
	n.settle()
	lost := a.sending[l]
	require.NotEqual(t, first, lost)
	require.Len(t, b.holding[l], 2)
	far(t, n, message{kind: KindRefuse, leg: l, key: Key{MKI: lost.MKI}, reason: RefusedMedia})
	require.True(t, a.act())
	n.pass(minBackoff, minBackoff)
	var held, used []bool
	for busy := true; busy; {
		busy = a.deliver() || b.deliver()
		for _, e := range n.ends {
			for _, c := range e.actions {
				switch c.Kind {
				case Hold:
					held = append(held, c.Fresh)
				case Use:
					used = append(used, c.Fresh)
				}
			}
			busy = e.act() || busy
		}
	}
	assert.Contains(t, used, true)
	assert.NotContains(t, used, false)
	assert.NotContains(t, held, false)
	assert.Contains(t, held, true)
	assert.Len(t, b.holding[l], 1)
}

// TestARefusedKeyHasItsSuccessorLater: each time after twice as long, up to half a minute.
func TestARefusedKeyHasItsSuccessorLater(t *testing.T) {
	n := newNetwork(t, Config{}, 1)
	a, l := n.ends[0], legOf(0)
	n.connect()
	require.NoError(t, a.begin(l))
	wait := minBackoff
	for range 8 {
		refused := a.x.legs[l].out.current
		require.NotNil(t, refused)
		far(t, n, message{kind: KindRefuse, leg: l, key: Key{MKI: refused.key.MKI}, reason: RefusedBound})
		began := n.now
		for a.x.legs[l].out.current == nil && n.now-began < int64(time.Minute) {
			n.pass(time.Second, time.Second)
		}
		assert.Equal(t, wait, time.Duration(n.now-began))
		wait = min(2*wait, maxBackoff)
	}
}

// TestNamesOfLegsAreUsedAgain once both ends have ended; before, Begin says so.
func TestNamesOfLegsAreUsedAgain(t *testing.T) {
	n, l := running(t, Config{})
	a, b := n.ends[0], n.ends[1]
	first := a.sending[l]
	a.end(l)
	assert.ErrorIs(t, a.begin(l), ErrEnding)
	assert.Len(t, a.holding[l], 1, "the far end may be sending")
	n.settle()
	assert.NotContains(t, b.sending, l, "nobody listens")
	require.NoError(t, a.begin(l))
	n.settle()
	assert.Contains(t, b.sending, l, "it was not ended here, and there is somebody again")
	assert.Contains(t, a.sending, l)
	assert.NotEqual(t, first, a.sending[l])

	// Both end while the channel is down, and one begins again at once.
	n.cut()
	a.end(l)
	b.end(l)
	assert.ErrorIs(t, b.begin(l), ErrEnding)
	n.connect()
	n.settle()
	assert.Empty(t, a.x.legs)
	assert.Empty(t, b.x.legs)
	n.both(t, l)
	assert.Contains(t, a.sending, l)
	assert.Contains(t, b.sending, l)
}

// TestAFarEndThatKnowsNothingMore takes nothing, so nothing is sent to it; when it begins the leg again, both go on.
func TestAFarEndThatKnowsNothingMore(t *testing.T) {
	n, l := running(t, Config{})
	a, b := n.ends[0], n.ends[1]
	n.cut()
	b.cold()
	n.connect()
	n.settle()
	assert.NotContains(t, a.sending, l)
	s, _ := a.x.Status(l)
	assert.True(t, s.FarEndEnded && s.FarEndStopped)
	n.pass(Overlap+time.Second, time.Second)
	n.settle()
	assert.Empty(t, a.holding[l])
	require.NoError(t, b.begin(l))
	n.settle()
	assert.Contains(t, a.sending, l)
	assert.Contains(t, b.sending, l)
}

// TestALegThatWaitsIsNotTakenForEnded: one end has seen the other without the leg, then the other begins it, and each
// connection is lost after the round of one end only.
func TestALegThatWaitsIsNotTakenForEnded(t *testing.T) {
	n, l := running(t, Config{})
	a, b := n.ends[0], n.ends[1]
	n.cut()
	b.cold()
	n.connect()
	for a.deliver() {
	}
	for b.deliver() {
	}
	n.cut()
	require.NoError(t, b.begin(l))
	n.connect()
	for a.deliver() { // a offers nothing, since it has seen b without the leg
	}
	n.cut()
	n.connect()
	n.settle()
	assert.Contains(t, a.sending, l)
	assert.Contains(t, b.sending, l)
}

// TestALegThatEndedUnheard: the far end has never heard of the leg's life that has ended. It is told when it offers.
func TestALegThatEndedUnheard(t *testing.T) {
	n := newNetwork(t, Config{}, 1)
	a, b, l := n.ends[0], n.ends[1], legOf(0)
	n.connect()
	n.settle()
	require.NoError(t, b.begin(l))
	n.cut() // before its offer arrives
	b.end(l)
	require.NoError(t, a.begin(l))
	n.connect()
	n.settle()
	assert.Empty(t, b.x.legs)
	s, _ := a.x.Status(l)
	assert.True(t, s.FarEndEnded)
	require.NoError(t, b.begin(l))
	n.settle()
	assert.Contains(t, a.sending, l)
	assert.Contains(t, b.sending, l)
}

// TestARefusedLegIsListed: a new connection offers it at once, or the far end would take it for ended.
func TestARefusedLegIsListed(t *testing.T) {
	n := newNetwork(t, Config{}, 1)
	a, l := n.ends[0], legOf(0)
	n.connect()
	n.settle()
	require.NoError(t, a.begin(l))
	n.settle()
	n.pass(unbegunFor+time.Second, unbegunFor+time.Second)
	n.settle()
	require.Nil(t, a.x.legs[l].out.current)
	n.cut()
	n.connect()
	assert.NotNil(t, a.x.legs[l].out.current)
	assert.Equal(t, byte(KindOffer), a.wire[0][0])
}

// TestBothDirectionsRotateAtOnce: neither waits for the other, and each has its own key.
func TestBothDirectionsRotateAtOnce(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	for range 20 {
		var before [2]Key
		for i, e := range n.ends {
			before[i] = e.sending[l]
			e.send(l, 1000)
		}
		n.pass(MinEvery, MinEvery)
		n.settle()
		for i, e := range n.ends {
			assert.NotEqual(t, before[i], e.sending[l])
		}
		assert.NotEqual(t, n.ends[0].sending[l].secret, n.ends[1].sending[l].secret)
	}
	assert.Zero(t, n.refused)
}

// TestKeysAreWiped when they are given up, and nowhere printed.
func TestKeysAreWiped(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	ours, theirs := a.x.legs[l].out.current, b.x.legs[l].in.keys[0]
	require.NotZero(t, ours.key.secret)
	require.NotZero(t, theirs.key.secret)
	a.send(l, 1000)
	n.pass(MinEvery, MinEvery)
	n.settle()
	assert.Zero(t, ours.key.secret)
	require.NotZero(t, theirs.key.secret)
	a.send(l, 1000)
	n.pass(2*Overlap, time.Second)
	n.settle()
	assert.Zero(t, theirs.key.secret)

	ours, theirs = a.x.legs[l].out.current, a.x.legs[l].in.keys[0]
	for _, w := range a.x.Wanted() {
		w.Key.Wipe() // as whoever carries it out does: it is a copy
	}
	require.NotZero(t, ours.key.secret)
	require.NotZero(t, theirs.key.secret)
	a.end(l)
	n.settle()
	assert.Zero(t, ours.key.secret)
	assert.Zero(t, theirs.key.secret)
	b.end(l)
	n.settle()
	for _, e := range n.ends {
		assert.Empty(t, e.x.owned)
	}

	// A message that was not sent.
	n.cut()
	require.NoError(t, a.begin(l))
	a.x.Connected(n.now)
	waiting := a.x.messages
	require.NotEmpty(t, waiting)
	a.x.Disconnected(n.now)
	for _, m := range waiting {
		assert.Equal(t, make([]byte, len(m)), m)
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	n, l := running(t, Config{})
	a := n.ends[0]
	k := a.sending[l]
	action := a.x.Wanted()[1]
	status, _ := a.x.Status(l)
	var texts []string
	for _, v := range []any{k, &k, action, &action, a.x.Wanted(), a.x, *a.x.legs[l].out.current, *a.x.legs[l].in.keys[0],
		message{kind: KindOffer, key: k}, *a.x.legs[l], status, l} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
	}
	text, err := json.Marshal(action)
	require.NoError(t, err)
	texts = append(texts, string(text))
	for _, text := range texts {
		for i := 0; i+4 <= k.length(); i++ {
			part := k.secret[i : i+4]
			assert.NotContains(t, text, string(part))
			assert.NotContains(t, strings.ToLower(text), fmt.Sprintf("%x", part))
			assert.NotContains(t, text, strings.Trim(fmt.Sprint(part), "[]"))
		}
	}
}

func TestAState(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a := n.ends[0]
	a.send(l, 1000)
	n.pass(MinEvery, time.Second) // a rotation is under way
	state := a.x.Save(n.now)
	again, err := Restore(a.config(), state, n.now+int64(time.Hour)) // of another clock
	require.NoError(t, err)
	assert.Equal(t, state, again.Save(n.now+int64(time.Hour)))

	for i := range state {
		_, err := Restore(a.config(), state[:i], n.now)
		assert.ErrorIs(t, err, ErrState, "%d bytes", i)
	}
	_, err = Restore(a.config(), append(slices.Clone(state), 0), n.now)
	assert.ErrorIs(t, err, ErrState)
	state[0]++
	_, err = Restore(a.config(), state, n.now)
	assert.ErrorIs(t, err, ErrState)
}

func TestMessages(t *testing.T) {
	l := legOf(3)
	for _, m := range []message{
		{kind: KindOffer, leg: l, life: 7, key: keyOf(1, suite.AEADAES256GCM)},
		{kind: KindOffer, leg: l, life: 7, key: keyOf(1, suite.AES128CMHMACSHA132)},
		{kind: KindAck, leg: l, key: Key{MKI: MKI{1, 2, 3, 4}}},
		{kind: KindRefuse, leg: l, key: Key{MKI: MKI{1, 2, 3, 4}}, reason: RefusedMedia},
		{kind: KindEnded, leg: l, life: 1, farLife: 2},
		{kind: KindIdle, leg: l, life: 1},
		{kind: KindSynced},
	} {
		b := m.append(nil)
		got, known, err := parse(b)
		require.NoError(t, err)
		assert.True(t, known)
		assert.True(t, m == got, "kind %d", m.kind)
		_, _, err = parse(append(b, 0))
		assert.ErrorIs(t, err, ErrMalformed, "kind %d, a byte more", m.kind)
		for i := range len(b) {
			_, _, err := parse(b[:i])
			assert.ErrorIs(t, err, ErrMalformed, "kind %d, %d bytes", m.kind, i)
		}
	}
	lifeless := message{kind: KindOffer, leg: l, key: keyOf(1, suite.AEADAES128GCM)}
	_, _, err := parse(lifeless.append(nil))
	assert.ErrorIs(t, err, ErrMalformed, "no life has the number 0")
	_, known, err := parse([]byte{0x7f, 1, 2, 3})
	assert.NoError(t, err, "of a later version")
	assert.False(t, known)
	_, _, err = parse([]byte{0x80})
	assert.ErrorIs(t, err, ErrUnknownKind)
	_, _, err = parse(make([]byte, MaxMessage+1))
	assert.ErrorIs(t, err, ErrMalformed)
}

func FuzzMessage(f *testing.F) {
	for _, k := range []Kind{KindOffer, KindAck, KindRefuse, KindEnded, KindIdle, KindSynced, 0x7f, 0x80} {
		m := message{kind: k, leg: legOf(1), life: 1, key: keyOf(1, suite.AEADAES128GCM)}
		f.Add(m.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, known, err := parse(b)
		if err != nil {
			assert.True(t, errors.Is(err, ErrMalformed) || errors.Is(err, ErrUnknownKind))
			assert.False(t, known)
		}
		if known && (m.kind != KindOffer || m.key.Suite.Valid()) {
			assert.Equal(t, b, m.append(nil))
		}
		x, err := New(Config{}, 0)
		require.NoError(t, err)
		require.NoError(t, x.Begin(legOf(1), suite.AEADAES128GCM, 0))
		x.Connected(0)
		_ = x.Receive(b, 0)
		_ = x.Receive(b, 0)
		x.Tick(int64(time.Hour))
	})
}

func FuzzState(f *testing.F) {
	x, err := New(Config{}, 0)
	require.NoError(f, err)
	require.NoError(f, x.Begin(legOf(1), suite.AEADAES128GCM, 0))
	f.Add(x.Save(0))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Restore(Config{}, bytes.Clone(b), 0)
		if err != nil {
			return
		}
		x.Connected(0)
		x.Tick(int64(time.Hour))
		_, err = Restore(Config{}, x.Save(0), 0)
		assert.NoError(t, err)
	})
}

// TestNothingIsTakenWhileTheChannelIsDown: what a connection still hands over belongs to none.
func TestNothingIsTakenWhileTheChannelIsDown(t *testing.T) {
	n, l := running(t, Config{})
	a := n.ends[0]
	n.cut()
	m := message{kind: KindOffer, leg: legOf(9), life: 1, key: keyOf(1, suite.AEADAES128GCM)}
	a.do(func(x *Exchange) { require.NoError(t, x.Receive(m.append(nil), n.now)) })
	ended := message{kind: KindEnded, leg: l, life: a.x.legs[l].in.life, farLife: a.x.legs[l].out.life}
	a.do(func(x *Exchange) { require.NoError(t, x.Receive(ended.append(nil), n.now)) })
	assert.Len(t, a.x.legs, 1)
	assert.Empty(t, a.actions)
	assert.Contains(t, a.sending, l)
}

// TestRenew: a media plane that cannot use its key any more gets the next one at once, though nothing was sent.
func TestRenew(t *testing.T) {
	n, l := running(t, Config{Every: MinEvery})
	a, b := n.ends[0], n.ends[1]
	before := a.sending[l]
	a.do(func(x *Exchange) { x.Renew(l, n.now); x.Renew(l, n.now); x.Renew(legOf(7), n.now) })
	n.settle()
	assert.NotEqual(t, before, a.sending[l])
	assert.Len(t, b.holding[l], 2, "one more, however often it was asked for")
	assert.EqualValues(t, 1, a.x.Counters().Rotations)
	a.end(l)
	a.do(func(x *Exchange) { x.Renew(l, n.now) })
	n.settle()
	assert.Empty(t, a.sending)
}
