package path

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMessageIsReadAsWritten(t *testing.T) {
	for _, m := range []Message{
		{},
		{Promise: true, HeardAgo: 42 * time.Millisecond, Stamp: 7, Loss: 1000},
		{Probe: true, Stamp: 1 << 60, Loss: -1, Elsewhere: 1 << 31},
		{Answer: true, Echo: 99, HeardAgo: 65534 * time.Millisecond, Loss: 17},
		{Promise: true, Every: 620 * time.Millisecond, Slow: 128},
	} {
		b := m.Append(nil)
		require.Len(t, b, Size)
		require.True(t, Is(b))
		assert.NotContains(t, []byte{4, 6}, b[0]>>4, "it is no IP packet")
		assert.Equal(t, m, Read(b))
		assert.Equal(t, m.Probe || m.Answer, Stays(b))
		assert.False(t, Is(b[:Size-1]))
	}
	far := Message{HeardAgo: time.Hour}.Append(nil)
	assert.Equal(t, never*time.Millisecond, Read(far).HeardAgo)
}

// end is a box with lines, which uses a Watch as an engine does.
type end struct {
	Watch
	sources []netip.Addr
	source  netip.Addr // it sends from
	remote  netip.Addr // it sends to
	left    netip.Addr // it has just stopped sending from
	until   int64
	remotes []netip.Addr // the other's addresses as configured
	leads   bool
	hold    *Hold
	pace    Pace
	metered []netip.Addr
	old     bool // it does not know any pace
	heard   int64
	sent    int64
	packets uint64

	counter   uint64 // of messages that were sent
	elsewhere uint32
	got       uint64
	flips     int   // how often it has followed the other to another path
	gotAt     int64 // anything but probes and answers, by any path
}

func newEnd(sources ...string) *end {
	e := &end{}
	for _, s := range sources {
		e.sources = append(e.sources, netip.MustParseAddr(s))
	}
	e.source = e.sources[0]
	return e
}

func (e *end) seen() Seen {
	var remotes []netip.AddrPort
	for _, r := range e.remotes {
		remotes = append(remotes, netip.AddrPortFrom(r, 51820))
	}
	used := pathOf(e.source, e.remote)
	return Seen{
		Paths: Pairs(e.sources, remotes, used), Used: used, Session: true, Heard: e.heard, Sent: e.sent,
		Packets: e.packets, Pace: e.pace, Metered: e.metered,
	}
}

func pathOf(source, remote netip.Addr) Path { return Path{source, netip.AddrPortFrom(remote, 51820)} }

// net is two ends and the paths between them, in steps of a millisecond.
type net struct {
	now     int64
	a, b    *end
	calling func() bool // whether media flows now
	delay   time.Duration
	dead    func(a, b netip.Addr, toB bool) bool // what is lost between two addresses
	flights []flight
	moves   []string
	began   int64
	nat     map[Path]bool // a is behind one, which lets in what a has called; nil: there is none
	lost    int           // media
}

type flight struct {
	at       int64
	toB      bool
	from, to netip.Addr
	m        *Message // nil: media
	counter  uint64
}

func newNet(t *testing.T, sources ...string) *net {
	t.Helper()
	n := &net{now: int64(time.Hour), delay: 25 * time.Millisecond, a: newEnd(sources...), b: newEnd(far)}
	n.a.remote, n.b.remote = n.b.source, n.a.source
	n.dead = func(netip.Addr, netip.Addr, bool) bool { return false }
	n.calling = func() bool { return true }
	n.began = n.now
	return n
}

func (n *net) send(e *end, from, to netip.Addr, m *Message) {
	toB, a, b := e == n.a, from, to
	if !toB {
		a, b = to, from
	}
	e.counter++
	if m != nil && e.old {
		m.Every, m.Slow = 0, 0
	}
	if m != nil {
		m.Elsewhere = e.elsewhere
		if m.Probe || m.Answer {
			e.elsewhere++
		}
	}
	if !toB && n.nat != nil && !n.nat[pathOf(a, b)] {
		return // it has not been called
	}
	if toB && n.nat != nil {
		n.nat[pathOf(a, b)] = true
	}
	switch dead := n.dead(a, b, toB); {
	case dead && m == nil:
		n.lost++
	case !dead:
		n.flights = append(n.flights, flight{n.now + int64(n.delay), toB, from, to, m, e.counter})
	}
}

func (n *net) at() time.Duration { return time.Duration(n.now - n.began) }

// run lets time go by.
func (n *net) run(d time.Duration) {
	for until := n.now + int64(d); n.now < until; n.now += int64(time.Millisecond) {
		ms := n.now / int64(time.Millisecond)
		n.arrive()
		for _, e := range []*end{n.a, n.b} {
			if ms%20 == 0 && n.calling() {
				e.packets++
				e.sent = n.now
				n.send(e, e.source, e.remote, nil)
			}
			if ms%10 == 0 && e.Active(n.now) || ms%100 == 0 {
				n.act(e, e.Look(n.now, e.seen()))
			}
		}
	}
}

func (n *net) arrive() {
	if !slices.ContainsFunc(n.flights, func(f flight) bool { return f.at <= n.now }) {
		return
	}
	due := slices.Clone(n.flights)
	n.flights = slices.DeleteFunc(n.flights, func(f flight) bool { return f.at <= n.now })
	for _, f := range due {
		if f.at > n.now {
			continue
		}
		e := n.a
		if f.toB {
			e = n.b
		}
		if f.m == nil || !f.m.Probe && !f.m.Answer {
			if f.m == nil {
				e.packets++
			}
			e.got++
			e.gotAt = n.now
			e.follow(f, n.now)
		}
		if f.m == nil {
			continue
		}
		act, answer, answered := e.Hear(n.now, *f.m, Counts{1, f.counter, e.got}, pathOf(f.to, f.from), e.seen())
		if answered {
			n.send(e, f.to, f.from, &answer)
		}
		n.act(e, act)
	}
}

// follow sends to where something came from, and from where it arrived.
func (e *end) follow(f flight, now int64) {
	used, arrived := pathOf(e.source, e.remote), pathOf(f.to, f.from)
	switch {
	case len(e.remotes) > 1:
		to, heard := e.hold.Follow(now, used, arrived)
		if used == arrived {
			to, heard = used, true
		}
		if to != used {
			e.flips++
		}
		e.source, e.remote = to.Source, to.Remote.Addr()
		if heard {
			e.heard = now
		}
	case f.to != e.left || now >= e.until:
		e.source, e.remote, e.heard = f.to, f.from, now
	case f.from != e.remote:
		e.source, e.remote = e.sources[0], f.from // the kernel chooses
	}
}

func (n *net) act(e *end, a Act) {
	if a.Move != (Path{}) {
		n.moves = append(n.moves, fmt.Sprint(n.at(), " ", a.Move.Source, " to ", a.Move.Remote.Addr()))
		e.left, e.until = e.source, n.now+int64(500*time.Millisecond)
		e.hold = NewHold(n.now, pathOf(e.source, e.remote), e.seen().Paths, e.leads)
		e.source, e.remote = a.Move.Source, a.Move.Remote.Addr()
	}
	if a.Send {
		m := e.Message(n.now, e.seen())
		n.send(e, e.source, e.remote, &m)
		e.sent = n.now
	}
	for _, p := range a.Probe {
		m := e.Probe(n.now, e.seen())
		n.send(e, p.Source, p.Remote.Addr(), &m)
	}
}

const (
	first, second, third = "198.51.100.2", "192.0.2.2", "203.0.113.77"
	far, farSecond       = "203.0.113.2", "198.18.0.2"
)

// A line dies under a call, in both directions or in one of them; the other line carries it within 300 ms. The first
// one is well again: after half a minute it is taken, and nothing was tried on the way there and back.
func TestALineThatDeliversNothingIsLeft(t *testing.T) {
	for name, dead := range map[string]func(toB bool) bool{
		"both ways":          func(bool) bool { return true },
		"what we send":       func(toB bool) bool { return toB },
		"what is sent to us": func(toB bool) bool { return !toB },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNet(t, first, second)
			n.run(2 * healthTime)
			require.Empty(t, n.moves)
			require.True(t, n.a.Knows(n.now) && n.b.Knows(n.now))

			n.dead = func(a, _ netip.Addr, toB bool) bool { return a.String() == first && dead(toB) }
			n.run(300 * time.Millisecond)
			require.Len(t, n.moves, 1, "%v", n.moves)
			assert.Equal(t, second, n.a.source.String())
			assert.Equal(t, second, n.b.remote.String(), "the far end follows")
			assert.Less(t, time.Duration(n.now-n.a.heard), 50*time.Millisecond)
			assert.Less(t, time.Duration(n.now-n.b.heard), 50*time.Millisecond)
			n.run(time.Minute)
			require.Len(t, n.moves, 1, "%v", n.moves)

			n.dead = func(netip.Addr, netip.Addr, bool) bool { return false }
			n.run(healthTime - time.Second)
			require.Len(t, n.moves, 1)
			n.run(3 * time.Second)
			require.Len(t, n.moves, 2)
			assert.Equal(t, first, n.a.source.String())
			_, moves := n.a.Status(n.now, n.a.seen())
			assert.Equal(t, WhyBack, moves[1].Why)
			_, moves = n.b.Status(n.now, n.b.seen())
			require.Len(t, moves, 2, "%v", moves)
			assert.Equal(t, WhyFollowed, moves[0].Why)
			assert.Equal(t, second, moves[0].To.Remote.Addr().String())
		})
	}
}

// Of two others only one delivers: it is known from its probes.
func TestTheLineThatAnswersIsTaken(t *testing.T) {
	n := newNet(t, first, second, third)
	n.run(5 * time.Second)
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() == second }
	n.run(5 * time.Second)
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() != third }
	n.run(300 * time.Millisecond)
	require.Len(t, n.moves, 1)
	assert.Equal(t, third, n.a.source.String())
	states := map[string]State{}
	paths, _ := n.a.Status(n.now, n.a.seen())
	for _, p := range paths {
		states[p.Source.String()] = p.State
	}
	assert.Equal(t, Silent, states[second])
	assert.Equal(t, Up, states[third])
}

// Both ends have two lines. Whichever dies, and in whichever direction, within half a second both are heard again, by a
// path that delivers.
func TestBothEndsHaveTwoLines(t *testing.T) {
	for _, line := range []string{first, far} {
		for name, dead := range map[string]func(toB bool) bool{
			"both ways": func(bool) bool { return true },
			"to b":      func(toB bool) bool { return toB },
			"to a":      func(toB bool) bool { return !toB },
		} {
			t.Run(line+" "+name, func(t *testing.T) {
				n := newNet(t, first, second)
				n.b.sources = append(n.b.sources, netip.MustParseAddr(farSecond))
				n.run(2 * healthTime)
				require.Empty(t, n.moves)
				n.dead = func(a, b netip.Addr, toB bool) bool {
					return (a.String() == line || b.String() == line) && dead(toB)
				}
				n.run(500 * time.Millisecond)
				for range 600 {
					n.run(100 * time.Millisecond)
					assert.Less(t, time.Duration(n.now-n.a.heard), Silence, "at %s", n.at())
					assert.Less(t, time.Duration(n.now-n.b.heard), Silence, "at %s", n.at())
					if t.Failed() {
						t.Log(n.moves)
						return
					}
				}
				assert.LessOrEqual(t, len(n.moves), 4, "%v", n.moves)
			})
		}
	}
}

// A call on hold sends nothing, and a call that has ended neither: no line is called dead for that.
func TestACallThatIsSilentIsNoDeadLine(t *testing.T) {
	n := newNet(t, first, second)
	calling := true
	n.calling = func() bool { return calling }
	for range 5 {
		n.run(5 * time.Second)
		calling = !calling
	}
	n.run(time.Minute)
	assert.Empty(t, n.moves)
	assert.False(t, n.a.Active(n.now) || n.b.Active(n.now))
}

// At rest a line that delivers nothing is found by its probes, so that the next call begins on one that does.
func TestADeadLineIsLeftAtRest(t *testing.T) {
	n := newNet(t, first, second)
	calling := true
	n.calling = func() bool { return calling }
	n.run(5 * time.Second)
	calling = false
	n.run(30 * time.Second)
	require.Empty(t, n.moves)
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() == first }
	n.run(25 * time.Second)
	require.Len(t, n.moves, 1)
	assert.Equal(t, second, n.a.source.String())
	n.run(time.Minute)
	assert.Len(t, n.moves, 1)
}

func TestAnswersAreBounded(t *testing.T) {
	var w Watch
	n := 0
	for range 1000 {
		if _, _, answered := w.Hear(1, Message{Probe: true}, Counts{}, Path{}, Seen{}); answered {
			n++
		}
	}
	assert.Equal(t, maxAnswers, n)
	_, _, answered := w.Hear(int64(2*time.Second), Message{Probe: true}, Counts{}, Path{}, Seen{})
	assert.True(t, answered)
}

// A far end that does not know paths answers handshakes. It is asked when it has been silent for a while, seldom, and
// left alone when it answers; another line is tried when it does not.
func TestALegacyFarEndIsAskedByHandshakes(t *testing.T) {
	n := newNet(t, first, second)
	a := n.a
	asked, answers := 0, true
	step := func(d time.Duration) {
		for until := n.now + int64(d); n.now < until; n.now += int64(LookEvery) {
			a.packets++ // we send
			s := a.seen()
			s.MayHandshake = true
			act := a.Look(n.now, s)
			if act.Handshake {
				if asked++; answers {
					a.heard = n.now + int64(50*time.Millisecond)
				}
			}
			if act.Move != (Path{}) {
				n.moves = append(n.moves, act.Move.Source.String())
				a.source = act.Move.Source
			}
		}
	}
	a.heard = n.now
	step(time.Minute) // it is on hold
	assert.Empty(t, n.moves)
	assert.Positive(t, asked)
	assert.LessOrEqual(t, asked, 6)

	a.heard = n.now
	answers = false
	step(legacyEvery + legacySilence + answerTime + time.Second)
	require.NotEmpty(t, n.moves)
	assert.Equal(t, second, n.moves[0])
	assert.LessOrEqual(t, len(n.moves), 6, "each line has its time")
	a.heard = n.now
	tried := len(n.moves)
	step(legacySilence)
	assert.Len(t, n.moves, tried, "it is heard")
}

// A far end that does not know paths is not probed, and is sent a message every ten seconds of a call, also after it.
func TestALegacyFarEndIsSentLittle(t *testing.T) {
	n := newNet(t, first, second)
	sent := 0
	for step := range 60 * 100 {
		n.now += int64(LookEvery)
		if step < 40*100 && step%2 == 0 {
			n.a.packets++
			n.a.heard = n.now
		}
		a := n.a.Look(n.now, n.a.seen())
		require.Empty(t, a.Probe)
		require.Zero(t, a.Move)
		if a.Send {
			sent++
		}
	}
	assert.LessOrEqual(t, sent, 5)
	assert.Positive(t, sent)
}

// Two ends with one line each have nothing to find out, and a phone that registers is no call.
func TestNothingIsSentForNothing(t *testing.T) {
	n := newNet(t, first)
	n.run(30 * time.Second)
	assert.EqualValues(t, 2*30*50, n.a.counter+n.b.counter, "media alone")

	n = newNet(t, first, second)
	n.calling = func() bool { return n.at() < 80*time.Millisecond } // four packets each way
	n.run(30 * time.Second)
	assert.EqualValues(t, 8, n.a.counter+n.b.counter, "signalling alone")
}

// A line fails for a moment, and the other one does not reach the far end: a NAT there lets nothing in. The call is not
// led away from the line that works.
func TestALineThatNeverReachedTheFarEndIsNoHelp(t *testing.T) {
	for name, toB := range map[string]bool{"one way": true, "both ways": false} {
		t.Run(name, func(t *testing.T) {
			n := newNet(t, first, second)
			dropout := false
			n.dead = func(a, _ netip.Addr, out bool) bool {
				return a.String() == second || dropout && (out || !toB)
			}
			n.run(20 * time.Second)
			paths, _ := n.a.Status(n.now, n.a.seen())
			assert.Equal(t, Unknown, paths[1].State, "nobody was heard by it")
			for range 10 {
				dropout = true
				n.run(150 * time.Millisecond)
				dropout = false
				n.run(time.Second)
				assert.Less(t, time.Duration(n.now-n.b.heard), 60*time.Millisecond, "%v", n.moves)
				n.run(5 * time.Second)
				assert.Less(t, time.Duration(n.now-n.b.heard), 60*time.Millisecond, "%v", n.moves)
			}
			assert.LessOrEqual(t, len(n.moves), 20, "there and back: %v", n.moves)
		})
	}
}

// The far end hiccups: neither line is found silent for that.
func TestAFarEndThatHiccupsIsNoDeadLine(t *testing.T) {
	for _, pause := range []time.Duration{150 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		n := newNet(t, first, second)
		gone := false
		n.dead = func(netip.Addr, netip.Addr, bool) bool { return gone }
		n.run(20 * time.Second)
		gone = true
		n.run(pause)
		gone = false
		both := 0
		for range 300 {
			n.run(10 * time.Millisecond)
			paths, _ := n.a.Status(n.now, n.a.seen())
			silent := slices.ContainsFunc(paths, func(s Status) bool { return s.State == Silent })
			up := slices.ContainsFunc(paths, func(s Status) bool { return s.State == Up })
			if silent && up {
				both++
			}
		}
		assert.Less(t, both, 70, "for less than two looks of the daemon, a second apart, after %s", pause)
	}
}

// A peer that calls by the second line stays there.
func TestWhoCallsTheSecondLineStaysThere(t *testing.T) {
	n := newNet(t, first, second)
	n.a.source, n.b.remote = n.a.sources[1], n.a.sources[1]
	n.run(2 * time.Minute)
	assert.Empty(t, n.moves)
}

// A line that loses 8 % in one direction, or in both, is left for one that does not, within five seconds, and not taken
// again while it does.
func TestALineThatLosesTooMuchIsLeft(t *testing.T) {
	for name, toOne := range map[string]bool{"both ways": false, "one way": true} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			n := newNet(t, first, second)
			n.run(2 * healthTime)
			n.dead = func(a, _ netip.Addr, toB bool) bool {
				return a.String() == first && (toB || !toOne) && random.Float64() < 0.08
			}
			n.run(6 * time.Second)
			require.Len(t, n.moves, 1, "%v", n.moves)
			assert.Equal(t, second, n.a.source.String())
			_, moves := n.a.Status(n.now, n.a.seen())
			assert.Equal(t, WhyBad, moves[0].Why)
			n.run(10 * time.Minute)
			assert.LessOrEqual(t, len(n.moves), 5, "%v", n.moves)
		})
	}
}

// Two lines that lose as much: there is nothing to choose.
func TestNoLineIsBetter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	n := newNet(t, first, second)
	n.dead = func(netip.Addr, netip.Addr, bool) bool { return random.Float64() < 0.08 }
	n.run(10 * time.Minute)
	assert.LessOrEqual(t, len(n.moves), 2, "%v", n.moves)
}

func TestLossIsCounted(t *testing.T) {
	var in incoming
	now := int64(time.Hour)
	at := func(counter, got uint64, elsewhere uint32) int {
		now += int64(lossWindow)
		in.hear(now, Message{Elsewhere: elsewhere}, Counts{1, counter, got})
		return in.now(now)
	}
	assert.Equal(t, -1, at(100, 90, 5))
	assert.Equal(t, 0, at(160, 140, 15), "ten of them were probes")
	assert.Equal(t, 100, at(200, 176, 15), "four of forty")
	assert.Equal(t, 100, at(210, 186, 15), "too few")
	in.hear(now+1, Message{}, Counts{2, 5, 1})
	found := now - int64(lossWindow)
	assert.Equal(t, 100, in.now(found+int64(lossKept)))
	assert.Equal(t, -1, in.now(found+int64(lossKept)+1))
	in.hear(now+2, Message{Slow: 8}, Counts{2, 6, 1}) // beside media that is every second
	assert.Equal(t, 100, in.now(found+2*int64(lossKept)))
	assert.Equal(t, -1, in.now(found+2*int64(lossKept)+1))
}

// At 5 % of random loss nothing is called dead in ten minutes, also where one end only listens.
func TestLossIsNoDeadLine(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	n := newNet(t, first, second)
	n.dead = func(netip.Addr, netip.Addr, bool) bool { return random.Float64() < 0.05 }
	n.run(10 * time.Minute)
	assert.Empty(t, n.moves)
}

// Nothing delivers any more: each line is tried in turn, a few times a second at most, and the first that comes back is
// taken.
func TestNoLineDelivers(t *testing.T) {
	n := newNet(t, first, second)
	n.run(5 * time.Second)
	n.dead = func(netip.Addr, netip.Addr, bool) bool { return true }
	n.run(time.Minute)
	assert.LessOrEqual(t, len(n.moves), 20, "%v", n.moves)
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() != second }
	n.run(2 * longestSettle)
	assert.Equal(t, second, n.a.source.String())
	assert.Less(t, time.Duration(n.now-n.b.heard), 100*time.Millisecond)
}

func FuzzHear(f *testing.F) {
	f.Add(Message{Probe: true}.Append(nil), int64(1))
	f.Add(Message{HeardAgo: time.Second, Promise: true}.Append(nil), int64(1<<40))
	f.Fuzz(func(t *testing.T, b []byte, now int64) {
		if !Is(b) {
			return
		}
		var w Watch
		remote := netip.MustParseAddr(far)
		s := Seen{Session: true, Paths: []Path{
			pathOf(netip.MustParseAddr(first), remote), pathOf(netip.MustParseAddr(second), remote),
		}}
		for range 3 {
			w.Hear(now, Read(b), Counts{Counter: uint64(now), Got: uint64(len(b))}, s.Paths[1], s)
			w.Look(now, s)
			now += int64(LookEvery)
		}
	})
}
