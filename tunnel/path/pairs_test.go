package path

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func addresses(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestPairsOfLinesAndAddresses(t *testing.T) {
	const six, farSix = "2001:db8::2", "2001:db8:1::2"
	for _, c := range []struct {
		sources, remotes []string
		used             [2]string
		want             string
	}{
		{[]string{first}, nil, [2]string{first, far}, "1>a"},
		{[]string{first, second, third}, []string{far}, [2]string{second, far}, "1>a 2>a 3>a"},
		{[]string{first}, []string{far, farSecond}, [2]string{first, far}, "1>a 1>b"},
		{[]string{first, second}, []string{far, farSecond}, [2]string{first, far}, "1>a 2>b 1>b 2>a"},
		{[]string{first, second}, []string{far, farSecond, third, "192.0.2.77"}, [2]string{first, far},
			"1>a 2>b 1>3 2>192.0.2.77"},
		{[]string{first, second, third}, []string{far, farSecond}, [2]string{first, far}, "1>a 2>b 3>a 1>b"},
		{[]string{first, six, second}, []string{farSix, far}, [2]string{first, far}, "6>f 1>a 2>a"},
		{[]string{first}, []string{farSix, far}, [2]string{first, far}, "1>a"},
		{[]string{first, second}, []string{far, farSecond}, [2]string{second, "192.0.2.99"},
			"2>192.0.2.99 1>a 2>b 1>b 2>a"},
		{nil, []string{far, farSecond}, [2]string{first, far}, ""},
	} {
		var remotes []netip.AddrPort
		for _, r := range addresses(c.remotes...) {
			remotes = append(remotes, netip.AddrPortFrom(r, 51820))
		}
		used := addresses(c.used[:]...)
		short := map[string]string{first: "1", second: "2", third: "3", six: "6", far: "a", farSecond: "b", farSix: "f"}
		text := ""
		name := func(a netip.Addr) string {
			if s := short[a.String()]; s != "" {
				return s
			}
			return a.String()
		}
		for i, p := range Pairs(addresses(c.sources...), remotes, pathOf(used[0], used[1])) {
			if i > 0 {
				text += " "
			}
			text += name(p.Source) + ">" + name(p.Remote.Addr())
		}
		assert.Equal(t, c.want, text, "%v and %v", c.sources, c.remotes)
	}
}

// newPairs is two ends with lines and addresses. Each knows those of the other that are given.
func newPairs(t *testing.T, aLines, bLines, aKnows, bKnows []string) *net {
	n := newNet(t, aLines...)
	n.b.sources = addresses(bLines...)
	n.b.source, n.a.remote, n.b.remote = n.b.sources[0], n.b.sources[0], n.a.sources[0]
	n.a.remotes, n.b.remotes = addresses(aKnows...), addresses(bKnows...)
	return n
}

// A line of either end dies, in both directions or in one of them, and both are heard again within 300 ms, by a path
// that delivers, whoever knows whose addresses, and whoever leads. The line comes back: nothing is lost when it is
// taken again.
func TestEveryPairCounts(t *testing.T) {
	one, two := []string{first}, []string{first, second}
	farTwo, farOne := []string{far, farSecond}, []string{far}
	for name, c := range map[string]struct {
		a, b, aKnows, bKnows []string
		dead                 []string
	}{
		"branch with one line, hub with two":                    {one, farTwo, farTwo, nil, farOne},
		"hub with one line that knows both lines of the branch": {two, farOne, nil, two, one},
		"both with two, branch knows both":                      {two, farTwo, farTwo, nil, []string{first, far}},
		"both with two, both know both":                         {two, farTwo, farTwo, two, []string{first, far}},
		"both with two, each knows one":                         {two, farTwo, farOne, one, []string{first, far}},
	} {
		for _, line := range c.dead {
			for direction, dead := range map[string]func(toB bool) bool{
				"both ways": func(bool) bool { return true },
				"to b":      func(toB bool) bool { return toB },
				"to a":      func(toB bool) bool { return !toB },
			} {
				for _, leads := range []bool{true, false} {
					for _, delay := range []time.Duration{0, 25 * time.Millisecond} {
						if leads && delay == 0 && direction != "both ways" {
							continue // as without a lead
						}
						t.Run(fmt.Sprintf("%s/%s %s leads %v %s", name, line, direction, leads, delay), func(t *testing.T) {
							n := newPairs(t, c.a, c.b, c.aKnows, c.bKnows)
							n.a.leads, n.b.leads, n.delay = leads, !leads, delay
							n.run(6 * time.Second)
							require.Empty(t, n.moves)
							n.dead = func(a, b netip.Addr, toB bool) bool {
								return (a.String() == line || b.String() == line) && dead(toB)
							}
							n.run(300 * time.Millisecond)
							for range 80 {
								n.run(100 * time.Millisecond)
								if len(c.aKnows) < 2 && len(c.bKnows) < 2 && n.at() < 7*time.Second {
									continue // it takes longer, as it did
								}
								assert.LessOrEqual(t, time.Duration(n.now-n.a.gotAt), Silence, "at %s", n.at())
								assert.LessOrEqual(t, time.Duration(n.now-n.b.gotAt), Silence, "at %s", n.at())
								if t.Failed() {
									t.Log(n.moves)
									return
								}
							}
							assert.LessOrEqual(t, len(n.moves), 6, "%v", n.moves)
							assert.LessOrEqual(t, n.a.flips+n.b.flips, 6, "neither follows the other forever")
							n.dead = func(netip.Addr, netip.Addr, bool) bool { return false }
							n.lost = 0
							n.run(healthTime + 10*time.Second)
							assert.Zero(t, n.lost)
							for range 50 { // both ends agree
								n.run(time.Millisecond)
								assert.LessOrEqual(t, time.Duration(n.now-n.a.gotAt), 25*time.Millisecond)
							}
						})
					}
				}
			}
		}
	}
}

// A NAT before the branch lets in what the branch has called alone: its own list is what finds the hub's second line.
func TestABehindANATFindsTheSecondLine(t *testing.T) {
	n := newPairs(t, []string{first}, []string{far, farSecond}, []string{far, farSecond}, nil)
	n.nat = map[Path]bool{}
	n.run(6 * time.Second)
	require.Empty(t, n.moves)
	n.dead = func(_, b netip.Addr, _ bool) bool { return b.String() == far }
	n.run(300 * time.Millisecond)
	for range 50 {
		n.run(100 * time.Millisecond)
		assert.Less(t, time.Duration(n.now-n.a.gotAt), Silence)
		assert.Less(t, time.Duration(n.now-n.b.gotAt), Silence)
	}
	assert.Equal(t, farSecond, n.a.remote.String())
}

// Both ends move at the same moment, to different paths that both deliver: one follows the other, and that is all.
func TestTwoThatMoveAtOnceAgree(t *testing.T) {
	for _, leads := range []bool{true, false} {
		two, farTwo := []string{first, second}, []string{far, farSecond}
		n := newPairs(t, two, farTwo, farTwo, two)
		n.a.leads, n.b.leads = leads, !leads
		n.run(6 * time.Second)
		all := addresses(first, second, far, farSecond)
		n.act(n.a, Act{Move: n.a.moveTo(n.now, n.a.seen(), pathOf(all[1], all[3]), WhySilent), Send: true})
		n.act(n.b, Act{Move: n.b.moveTo(n.now, n.b.seen(), pathOf(all[2], all[1]), WhySilent), Send: true})
		n.run(10 * time.Second)
		assert.LessOrEqual(t, n.a.flips+n.b.flips, 2)
		assert.Equal(t, n.a.source, n.b.remote)
		assert.Equal(t, n.b.source, n.a.remote)
		assert.Len(t, n.moves, 2, "%v", n.moves)
	}
}
