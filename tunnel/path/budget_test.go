package path

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/units"
)

// crowd is a hub with two lines and many far ends, to each of which there are two paths.
type crowd struct {
	watches []*Watch
	seen    []Seen
	now     int64
	rate    units.BitRate
	sent    map[netip.Addr]int // messages of ours and answers, by line
}

func newCrowd(n int, rate units.BitRate) *crowd {
	c := &crowd{now: int64(time.Hour), rate: rate, sent: map[netip.Addr]int{}}
	for i := range n {
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 51820)
		s := Seen{Session: true}
		for _, a := range addresses(first, second) {
			s.Paths = append(s.Paths, Path{a, remote})
		}
		s.Used = s.Paths[0]
		c.seen = append(c.seen, s)
		w := &Watch{}
		w.Hear(c.now, Message{Every: SendEvery}, Counts{}, s.Used, s)
		c.watches = append(c.watches, w)
	}
	return c
}

// run lets time go by. calls: there is a call with everybody; media: it sends something.
func (c *crowd) run(d time.Duration, calls, media bool) {
	for until := c.now + int64(d); c.now < until; c.now += int64(2 * LookEvery) {
		loads := map[netip.Addr]Load{}
		for i, w := range c.watches {
			w.Load(c.now, c.seen[i], func(a netip.Addr, l Load) {
				loads[a] = loads[a].Plus(l)
			})
		}
		pace := PaceOf(c.rate, false, loads[c.seen[0].Used.Source])
		other := PaceOf(c.rate, false, loads[c.seen[0].Paths[1].Source])
		pace.Slow = max(pace.Slow, other.Slow)
		for i, w := range c.watches {
			s := &c.seen[i]
			s.Pace, s.Heard = pace, c.now
			if calls {
				w.active = c.now + int64(time.Second)
			}
			if media {
				s.Sent = c.now
			}
			a := w.Look(c.now, *s)
			if a.Send {
				c.sent[s.Used.Source]++
				s.Sent = c.now
			}
			for _, p := range a.Probe {
				c.sent[p.Source] += 2 // the far end probes as often, and is answered
				w.Hear(c.now, Message{Answer: true, Echo: uint64(c.now), Every: SendEvery}, Counts{}, p, *s)
			}
		}
	}
}

// What is sent about the paths to 500 sites stays under a hundredth of each line, at rest, in calls, and in calls that
// are on hold.
func TestManySitesStayUnderTheirShare(t *testing.T) {
	const seconds = 10
	for name, do := range map[string]struct {
		rate         units.BitRate
		calls, media bool
	}{
		"rest": {2_000_000, false, false}, "calls": {100_000_000, true, true},
		"hold": {100_000_000, true, false}, "hold on a slow line": {2_000_000, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(500, do.rate)
			c.run(10*time.Second, do.calls, do.media) // until everybody is slow enough
			clear(c.sent)
			c.run(seconds*time.Second, do.calls, do.media)
			for line, n := range c.sent {
				bits := float64(n*wireIPv4*8) / seconds
				assert.LessOrEqual(t, bits, 1.1*share*float64(do.rate), "%s", line)
			}
		})
	}
	// Without the pace it would be more.
	c := newCrowd(500, 0)
	c.run(seconds*time.Second, true, false)
	assert.Greater(t, float64(c.sent[c.seen[0].Used.Source]*wireIPv4*8)/seconds, share*100_000_000)
}

func TestPace(t *testing.T) {
	for _, c := range []struct {
		rate units.BitRate
		l    Load
		want Pace
	}{
		{0, Load{Fill: 1000, Often: 1000}, Pace{}},
		{20_000_000, Load{}, Pace{}},
		{20_000_000, Load{Fill: 4, Often: 20}, Pace{}},
		{2_000_000, Load{Fill: 1, Often: 4}, Pace{Send: 60 * time.Millisecond, Slow: 1}},
		{20_000_000, Load{Often: 400}, Pace{Slow: 2}},
		{20_000_000, Load{Hello: 400}, Pace{Slow: 2}},
		{20_000_000, Load{Often: 400, Hello: 300}, Pace{Slow: 4}},
		{20_000_000, Load{Often: 400, Hello: 3000}, Pace{Slow: 4}},
		{20_000_000, Load{Fill: 20, Often: 100}, Pace{Send: 120 * time.Millisecond, Slow: 1}},
		{2_000_000, Load{Fill: 500, Often: 1000}, Pace{Slow: 128, Mute: true}},
	} {
		assert.Equal(t, c.want, PaceOf(c.rate, false, c.l), "%d, %v", c.rate, c.l)
	}
}

// A line has no space for 50 messages a second, and a call is on hold: less is sent, no line is called dead for that,
// and a dead one is found later accordingly.
func TestSilenceIsWaitedForAsLongAsThePaceIs(t *testing.T) {
	n := newNet(t, first, second)
	pace := Pace{Send: 100 * time.Millisecond, Slow: 2}
	n.a.pace, n.b.pace = pace, pace
	calling := true
	n.calling = func() bool { return calling }
	n.run(10 * time.Second)
	calling = false
	from := n.a.counter + n.b.counter
	hold := func(d time.Duration) { // calls are up, and nothing is said
		for range d / (500 * time.Millisecond) {
			n.a.active, n.b.active = n.now+int64(time.Second), n.now+int64(time.Second)
			n.run(500 * time.Millisecond)
		}
	}
	hold(10 * time.Second)
	require.Empty(t, n.moves)
	assert.Less(t, int(n.a.counter+n.b.counter-from), 2*10*20, "ten a second and probes, from each")
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() == first }
	hold(time.Second)
	require.Len(t, n.moves, 1)
	assert.Equal(t, second, n.a.source.String())

	n = newNet(t, first, second) // a far end of the release before does not know any pace
	n.a.pace = pace
	n.b.old = true
	n.calling = func() bool { return calling }
	calling = true
	n.run(10 * time.Second)
	calling = false
	from = n.a.counter
	hold(5 * time.Second)
	assert.Greater(t, int(n.a.counter-from), 5*40)
	assert.Empty(t, n.moves)
}

func TestAMeteredLineIsNotProbed(t *testing.T) {
	n := newNet(t, first, second)
	n.a.metered = addresses(second)
	calling := true
	n.calling = func() bool { return calling }
	probed := 0
	n.dead = func(a, _ netip.Addr, toB bool) bool {
		if toB && a.String() == second && len(n.moves) == 0 {
			probed++
		}
		return false
	}
	n.run(10 * time.Second)
	calling = false
	n.run(time.Minute)
	assert.Zero(t, probed, "neither in calls nor at rest")
	calling = true
	n.run(10 * time.Second)
	n.dead = func(a, _ netip.Addr, _ bool) bool { return a.String() == first }
	n.run(300 * time.Millisecond)
	assert.Equal(t, second, n.a.source.String(), "it carries calls all the same")
	assert.Less(t, time.Duration(n.now-n.b.heard), Silence)
}
