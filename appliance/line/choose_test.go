package line

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/appliance/config"
	"ringway/routing/rtnl"
	"ringway/test/polltest"
	"ringway/tunnel"
)

func addresses(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func up(name string, list ...string) rtnl.Line {
	return rtnl.Line{Name: name, Exists: true, Carrier: true, Addresses: addresses(list...)}
}

func down(name string, list ...string) rtnl.Line {
	l := up(name, list...)
	l.Carrier = false
	return l
}

func TestLinesThatComeAndGo(t *testing.T) {
	const first, second, first6, new = "198.51.100.2", "192.0.2.2", "2001:db8::2", "198.51.100.7"
	leave := func(list ...string) []move {
		return []move{{Reroute: tunnel.Reroute{From: addresses(list...)}}}
	}
	goBack := func(list ...string) []move {
		return []move{{Reroute: tunnel.Reroute{From: addresses(list...)}, Dialled: true}}
	}
	type step struct {
		at    time.Duration
		lines []rtnl.Line
		moves []move
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"nothing changes", []step{
			{0, []rtnl.Line{up("wan0", first), up("lte0", second)}, nil},
			{time.Hour, []rtnl.Line{up("wan0", first), up("lte0", second)}, nil},
		}},
		{"the cable of the first line", []step{
			{0, []rtnl.Line{up("wan0", first, first6), up("lte0", second)}, nil},
			{1, []rtnl.Line{down("wan0", first, first6), up("lte0", second)}, leave(first, first6)},
			{2, []rtnl.Line{up("wan0", first, first6), up("lte0", second)}, leave()},
			{2 + healthTime - 1, []rtnl.Line{up("wan0", first, first6), up("lte0", second)}, nil},
			{2 + healthTime, []rtnl.Line{up("wan0", first, first6), up("lte0", second)}, goBack(second)},
			{2 + 2*healthTime, []rtnl.Line{up("wan0", first, first6), up("lte0", second)}, nil},
		}},
		{"a cable that is loose", []step{
			{0, []rtnl.Line{up("wan0", first), up("lte0", second)}, nil},
			{1, []rtnl.Line{down("wan0", first), up("lte0", second)}, leave(first)},
			{2, []rtnl.Line{up("wan0", first), up("lte0", second)}, leave()},
			{3, []rtnl.Line{down("wan0", first), up("lte0", second)}, leave(first)},
			{3 + healthTime, []rtnl.Line{down("wan0", first), up("lte0", second)}, nil},
		}},
		{"the cable of the second line", []step{
			{0, []rtnl.Line{up("wan0", first), up("lte0", second)}, nil},
			{1, []rtnl.Line{up("wan0", first), down("lte0", second)}, leave(second)},
			{healthTime + 1, []rtnl.Line{up("wan0", first), down("lte0", second)}, nil},
		}},
		{"another address", []step{
			{0, []rtnl.Line{up("wan0", first)}, nil},
			{1, []rtnl.Line{up("wan0", new)}, leave(first)},
		}},
		{"another address after a while without", []step{
			{0, []rtnl.Line{up("wan0", first)}, nil},
			{1, []rtnl.Line{up("wan0")}, nil}, // there is no other yet
			{2, []rtnl.Line{up("wan0", new)}, leave(first)},
		}},
		{"the only line", []step{
			{0, []rtnl.Line{up("wan0", first)}, nil},
			{1, []rtnl.Line{down("wan0", first)}, nil},
			{2, []rtnl.Line{up("wan0", first)}, leave()}, // what is sent now says that we are back
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var choose chooser
			began := time.Now()
			for i, s := range c.steps {
				got := choose.look(began.Add(s.at), s.lines)
				if i == 0 { // whatever happened while no daemon ran
					assert.Equal(t, []move{{}}, got)
					choose.healthy = time.Time{}
					continue
				}
				for i := range got {
					got[i].From = append([]netip.Addr(nil), got[i].From...)
				}
				assert.Equal(t, s.moves, got, "at %s", s.at)
			}
		})
	}
}

// A daemon that starts while a better line is back has sites return to it, as the one before would have.
func TestSitesReturnAfterARestart(t *testing.T) {
	var c chooser
	now := time.Now()
	lines := []rtnl.Line{up("wan0", "198.51.100.2"), up("lte0", "192.0.2.2")}
	c.look(now, lines)
	assert.Equal(t, now.Add(healthTime), c.next())
	assert.Equal(t, []move{{Reroute: tunnel.Reroute{From: addresses("192.0.2.2")}, Dialled: true}},
		c.look(now.Add(healthTime), lines))
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	var c chooser
	a := netip.MustParseAddr("198.51.100.1")
	for range 3 * maxGone {
		c.look(time.Now(), []rtnl.Line{up("wan0", a.String())})
		a = a.Next()
	}
	assert.Len(t, c.gone, maxGone)
}

// Connections are forgotten beside what moves calls: a table of many takes seconds to read.
func TestForgettingHoldsUpNothing(t *testing.T) {
	t.Parallel()
	flushing, release := make(chan struct{}, 2), make(chan struct{})
	l := New(Options{
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Reroute: func(context.Context, tunnel.Class, tunnel.Reroute) error { return nil },
		Flush: func([]netip.Prefix) (int, error) {
			flushing <- struct{}{}
			<-release
			return 0, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- l.Run(ctx, func() { close(ready) }) }()
	var once sync.Once
	end := func() { once.Do(func() { cancel(); close(release); assert.NoError(t, <-done) }) }
	t.Cleanup(end)
	<-ready
	useless := func() {
		l.mu.Lock()
		l.flush = append(l.flush, netip.MustParsePrefix("198.51.100.2/32"))
		l.mu.Unlock()
		l.Silent()
		l.Follow(&config.Config{})
	}
	useless()
	<-flushing
	useless()
	l.again.Raise()
	polltest.Assert(t, func() bool { return len(l.again) == 0 }, 5*time.Second, time.Millisecond, "nobody looks")
	assert.Empty(t, flushing, "one at a time")
	end()
}
