package path

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// caller is a box that sends a packet of media every 20 ms, and copies, as an engine does.
type caller struct {
	*end
	mode CopyMode
	fits bool

	route   Path
	copying bool
	byPath  bool // by the path that is used, later
	later   []letter
	copies  uint16

	seen     map[uint64]bool
	again    map[uint64]bool
	arrived  int // packets of media
	last     int64
	gap      time.Duration
	moved    int // how often it sends elsewhere because something was heard there
	removed  int
	mediaOut int
}

// letter is a message on its way. It is media unless it has a message.
type letter struct {
	at       int64
	from, to netip.Addr
	counter  uint64
	m        *Message
}

// calls is a call between two boxes, over paths with loss, in steps of a millisecond.
type calls struct {
	now     int64
	a, b    *caller
	lost    func(line netip.Addr) bool // of a's, which both directions take
	flights []letter
	talking bool
}

func newCalls(mode CopyMode, sources ...string) *calls {
	call := func(e *end) *caller {
		return &caller{end: e, mode: mode, fits: true, seen: map[uint64]bool{}, again: map[uint64]bool{}}
	}
	c := &calls{now: int64(time.Hour), a: call(newEnd(sources...)), b: call(newEnd(far)), talking: true}
	c.a.remote, c.b.remote = c.b.source, c.a.source
	c.a.heard, c.b.heard = c.now, c.now
	c.lost = func(netip.Addr) bool { return false }
	return c
}

func port(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 51820) }

func (c *calls) put(from, to netip.Addr, l letter) {
	line := from
	if line.String() == far {
		line = to
	}
	if !c.lost(line) {
		l.at, l.from, l.to = c.now+int64(25*time.Millisecond), from, to
		c.flights = append(c.flights, l)
	}
}

func (c *calls) message(e *caller, from, to netip.Addr, m Message) {
	e.counter++
	m.Elsewhere, m.Copies = e.elsewhere, e.copies
	if m.Probe || m.Answer {
		e.elsewhere++
	}
	c.put(from, to, letter{counter: e.counter, m: &m})
}

func (c *calls) run(d time.Duration) {
	for until := c.now + int64(d); c.now < until; c.now += int64(time.Millisecond) {
		ms := c.now / int64(time.Millisecond)
		c.arrive()
		for _, e := range []*caller{c.a, c.b} {
			if c.talking && ms%20 == 0 {
				c.speak(e)
			}
			c.sendLater(e)
			if ms%10 == 0 && e.Active(c.now) || ms%100 == 0 {
				c.act(e, e.Look(c.now, e.seen0()))
				c.decide(e)
			}
		}
	}
}

func (e *caller) seen0() Seen { return e.end.seen() }

func (c *calls) speak(e *caller) {
	e.counter++
	e.packets++
	e.mediaOut++
	e.sent = c.now
	l := letter{counter: e.counter}
	c.put(e.source, e.remote, l)
	switch {
	case !e.copying:
	case e.byPath:
		l.at = c.now + int64(CopyDelay)
		e.later = append(e.later, l)
	default:
		c.put(e.route.Source, e.route.Remote.Addr(), l)
	}
}

func (c *calls) sendLater(e *caller) {
	for len(e.later) > 0 && e.later[0].at <= c.now {
		e.copies++
		c.put(e.source, e.remote, e.later[0])
		e.later = e.later[1:]
	}
}

func (c *calls) decide(e *caller) {
	s := e.seen0()
	e.route, e.byPath = e.CopyRoute(c.now, s)
	e.copying = e.Copies(c.now, s, e.mode, e.route, e.byPath, func() bool { return e.fits })
}

func (c *calls) arrive() {
	due := slices.Clone(c.flights)
	c.flights = slices.DeleteFunc(c.flights, func(l letter) bool { return l.at <= c.now })
	for _, l := range due {
		if l.at > c.now {
			continue
		}
		e := c.a
		if l.to.String() == far {
			e = c.b
		}
		c.take(e, l)
	}
}

func (c *calls) take(e *caller, l letter) {
	used := l.to == e.source && l.from == e.remote
	if e.seen[l.counter] {
		e.removed++
		if used && !e.again[l.counter] {
			e.again[l.counter] = true
			e.got++
			e.heard = c.now
		}
		return
	}
	e.seen[l.counter] = true
	if l.m == nil {
		e.packets++
		e.arrived++
		if e.last != 0 {
			e.gap = max(e.gap, time.Duration(c.now-e.last))
		}
		e.last = c.now
	}
	if l.m == nil || !Stays(l.m.Append(nil)) {
		stays := l.m == nil && c.now < e.Coming() && c.now-e.heard < int64(e.Silence())
		if used || !stays {
			e.got++
			was := e.remote
			e.follow(flight{from: l.from, to: l.to}, c.now)
			if e.remote != was {
				e.moved++
			}
		}
	} else if !used {
		e.HearBy(c.now, Path{l.to, port(l.from)})
	}
	if l.m == nil {
		return
	}
	act, answer, answered := e.Hear(c.now, *l.m, Counts{1, l.counter, e.got}, Path{l.to, port(l.from)}, e.seen0())
	if answered {
		c.message(e, l.to, l.from, answer)
	}
	c.act(e, act)
}

func (c *calls) act(e *caller, a Act) {
	if a.Move != (Path{}) {
		e.left, e.until = e.source, c.now+int64(500*time.Millisecond)
		e.source = a.Move.Source
	}
	if a.Send {
		c.message(e, e.source, e.remote, e.Message(c.now, e.seen0()))
		e.sent = c.now
	}
	for _, by := range a.Probe {
		c.message(e, by.Source, e.remote, e.Probe(c.now, e.seen0()))
	}
}

// count runs the call and returns what was sent and lost in both directions. What is on its way at the end is not lost.
func (c *calls) count(d time.Duration) (sent, lost int) {
	began := c.a.mediaOut + c.b.mediaOut
	got := c.a.arrived + c.b.arrived
	c.a.gap, c.b.gap = 0, 0
	c.run(d)
	sent = c.a.mediaOut + c.b.mediaOut - began
	lost = sent - (c.a.arrived + c.b.arrived - got)
	return sent, max(0, lost)
}

func randomly(r *rand.Rand, percent int) func(netip.Addr) bool {
	return func(netip.Addr) bool { return r.IntN(100) < percent }
}

// Two lines that lose nothing, one is cut: nothing is lost in either direction, while the call is moved and after.
func TestACutCostsNothingWithCopies(t *testing.T) {
	c := newCalls(CopyAlways, first, second)
	c.run(5 * time.Second)
	require.True(t, c.a.copying && c.b.copying)
	require.Zero(t, c.b.moved, "the far end stays where it is though it hears both paths")
	c.lost = func(line netip.Addr) bool { return line.String() == first }
	sent, lost := c.count(5 * time.Second)
	assert.Equal(t, 500, sent)
	assert.Zero(t, lost)
	assert.LessOrEqual(t, max(c.a.gap, c.b.gap), 21*time.Millisecond)
	assert.Equal(t, second, c.a.source.String())
	assert.Equal(t, second, c.b.remote.String(), "the far end has followed")

	c = newCalls(CopyOff, first, second) // the same without copies: the test can fail
	c.run(5 * time.Second)
	c.lost = func(line netip.Addr) bool { return line.String() == first }
	_, lost = c.count(5 * time.Second)
	assert.Greater(t, lost, 10)
}

// Two lines that lose 5 %: at most 0.4 % of 36,000 packets remain, and nobody is moved by that. One is cut: back to
// 5 % within 300 ms, without a gap above 60 ms; the other line carries the copies, too, then.
func TestTwoLinesThatLose(t *testing.T) {
	c := newCalls(CopyAlways, first, second)
	c.lost = randomly(rand.New(rand.NewPCG(1, 2)), 5)
	c.run(5 * time.Second)
	sent, lost := c.count(6 * time.Minute)
	t.Logf("%d of %d packets lost, %.2f %%", lost, sent, 100*float64(lost)/float64(sent))
	assert.GreaterOrEqual(t, sent, 30_000)
	assert.LessOrEqual(t, float64(lost), 0.004*float64(sent))
	assert.Zero(t, c.b.moved)

	random := c.lost
	c.lost = func(line netip.Addr) bool { return line.String() == first || random(line) }
	_, lost = c.count(300 * time.Millisecond)
	assert.LessOrEqual(t, lost, 4, "of 30, with a line of 5 %% left")
	assert.LessOrEqual(t, max(c.a.gap, c.b.gap), 60*time.Millisecond)
	sent, lost = c.count(time.Minute)
	t.Logf("one is cut: %d of %d packets lost, %.2f %%", lost, sent, 100*float64(lost)/float64(sent))
	assert.LessOrEqual(t, float64(lost), 0.05*float64(sent))
}

// One line that loses 5 %: about 0.25 % remain with copies 20 ms later.
func TestOneLineThatLoses(t *testing.T) {
	c := newCalls(CopyAlways, first)
	c.lost = randomly(rand.New(rand.NewPCG(3, 4)), 5)
	c.run(5 * time.Second)
	require.True(t, c.a.copying && c.a.byPath)
	sent, lost := c.count(5 * time.Minute)
	t.Logf("%d of %d packets lost, %.2f %%", lost, sent, 100*float64(lost)/float64(sent))
	assert.GreaterOrEqual(t, sent, 30_000)
	assert.LessOrEqual(t, float64(lost), 0.004*float64(sent))
	// What the line loses is known all the same, from originals and copies together.
	assert.InDelta(t, 50, c.a.farLoss, 45)
}

// on_loss: on within three seconds of loss, with two lines and with one, where nothing else would be sent; off after a
// minute without.
func TestCopiesWhileSomethingIsLost(t *testing.T) {
	for _, lines := range [][]string{{first}, {first, second}} {
		c := newCalls(CopyOnLoss, lines...)
		c.run(20 * time.Second)
		state, _, _, _ := c.a.CopiesTo()
		require.Equal(t, CopiesClean, state)
		c.lost = randomly(rand.New(rand.NewPCG(5, 6)), 5)
		c.run(4500 * time.Millisecond)
		assert.True(t, c.a.copying && c.b.copying, "%v", lines)
		c.run(2 * time.Minute)
		require.True(t, c.a.copying && c.b.copying, "%v", lines)
		c.lost = func(netip.Addr) bool { return false }
		c.run(50 * time.Second)
		assert.True(t, c.a.copying && c.b.copying, "%v", lines)
		c.run(15 * time.Second)
		assert.False(t, c.a.copying || c.b.copying, "%v", lines)
		state, _, _, _ = c.a.CopiesTo()
		assert.Equal(t, CopiesClean, state)
	}
}

// Copies have what calls leave of the voice budget; when that is not enough there are none, for five seconds at least.
func TestCopiesYieldToCalls(t *testing.T) {
	c := newCalls(CopyAlways, first)
	c.run(5 * time.Second)
	require.True(t, c.a.copying)
	c.a.fits = false
	c.run(20 * time.Millisecond)
	require.False(t, c.a.copying)
	state, _, _, _ := c.a.CopiesTo()
	assert.Equal(t, CopiesNoRoom, state)
	c.a.fits = true
	c.run(copyShort - 100*time.Millisecond)
	require.False(t, c.a.copying)
	c.run(time.Second)
	require.True(t, c.a.copying)
	c.talking = false
	c.run(activeFor + time.Second)
	assert.False(t, c.a.copying, "there is no call")
}

// Without copies at either end a line of its own is not told of: nothing is sent as before.
func TestNothingIsSaidWithoutCopies(t *testing.T) {
	c := newCalls(CopyOff, first)
	c.run(time.Minute)
	assert.Equal(t, c.a.mediaOut, int(c.a.counter))
	assert.Equal(t, c.b.mediaOut, int(c.b.counter))
	assert.Zero(t, c.a.Coming())
}

// A far end that does not answer may be any WireGuard: always is, and on_loss says that it cannot know.
func TestCopiesToAnyWireGuard(t *testing.T) {
	for mode, want := range map[CopyMode]CopyState{CopyAlways: CopiesSent, CopyOnLoss: CopiesUnknown} {
		c := newCalls(mode, first, second)
		c.b.mode = CopyOff
		deaf := func(l letter) bool { return l.m != nil && l.to.String() == far }
		for range 3000 {
			c.flights = slices.DeleteFunc(c.flights, deaf)
			c.run(time.Millisecond)
		}
		state, _, _, later := c.a.CopiesTo()
		assert.Equal(t, want, state)
		assert.False(t, later)
	}
}

// Copies do not go where the far end has probed us if that is known to be silent, or paid by volume.
func TestCopiesAvoidWhatIsSilentOrPaidFor(t *testing.T) {
	now, used := int64(time.Hour), pathOf(netip.MustParseAddr(first), netip.MustParseAddr(far))
	s := Seen{Paths: []Path{used}, Used: used}
	other := Path{netip.MustParseAddr(second), netip.MustParseAddrPort("198.51.100.9:51820")}
	w := &Watch{}
	w.HearBy(now, other)
	r, later := w.CopyRoute(now, s)
	require.Equal(t, other, r)
	require.False(t, later)
	s.Metered = addresses(second)
	_, later = w.CopyRoute(now, s)
	assert.True(t, later, "it is paid by volume")
	s.Metered = nil
	w.probed = []probed{{path: other, missed: lostProbes, ever: true}}
	_, later = w.CopyRoute(now, s)
	assert.True(t, later, "it is silent")
	w.HearBy(now, Path{used.Source, other.Remote})
	s.Metered = addresses(first)
	_, later = w.CopyRoute(now, s)
	assert.False(t, later, "media takes that line, too")
}

// The lines have no space for messages about paths: what is lost is known all the same, copies begin by it, and the
// far end knows that they come without a break.
func TestLossIsKnownAtASlowPace(t *testing.T) {
	for _, slow := range []int{2, 8, 128} {
		c := newCalls(CopyOnLoss, first, second)
		c.a.pace, c.b.pace = Pace{Slow: slow}, Pace{Slow: slow}
		c.run(20 * time.Second)
		state, _, _, _ := c.a.CopiesTo()
		require.Equal(t, CopiesClean, state)
		random := rand.New(rand.NewPCG(5, 6))
		c.lost = func(a netip.Addr) bool { return a.String() == first && random.IntN(100) < 5 }
		c.run(8 * time.Second)
		require.True(t, c.a.copying && c.b.copying, "slow %d", slow)
		for range 2000 {
			c.run(10 * time.Millisecond)
			require.True(t, c.now < c.a.Coming() && c.now < c.b.Coming(), "slow %d", slow)
		}
	}
}
