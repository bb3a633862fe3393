package wanted

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// With several WANs, the firewall's mark of a line and the rule that reads it are the same, whatever else is there. The
// rule comes behind the guard, and its table has no end. With one WAN there is none of it.
func TestLinesOfConnections(t *testing.T) {
	const second = "{interface: lte0, address: 192.0.2.2/24, gateway: 192.0.2.1, uplink: 5mbit, metered: {}}"
	facts := Facts{Queues: qos.AssumedFeatures()}
	one := From(shipped(t, "minimal.yaml", nil), facts)
	assert.False(t, slices.ContainsFunc(one.Routing.Rules, func(r routing.Rule) bool {
		return r.Priority == routing.PriorityLine
	}))
	assert.False(t, slices.ContainsFunc(one.Routing.Routes, func(r routing.Route) bool {
		return r.Table >= routing.TableLine
	}))

	two := shipped(t, "minimal.yaml", map[string]string{"wan[+]": second})
	lines := lineMarks(two)
	require.Len(t, lines, 2)
	assert.NotEqual(t, lines[0].Mark, lines[1].Mark)
	assert.Equal(t, []string{"lte0"}, MeteredWANs(two))
	rules := func(f Facts) (marks []uint32) {
		w := From(two, f).Routing
		for _, r := range w.Rules {
			if r.Priority != routing.PriorityLine {
				continue
			}
			assert.Greater(t, r.Priority, routing.PriorityGuard)
			assert.Equal(t, uint32(qos.MarkLineMask), r.Mask)
			marks = append(marks, r.Mark)
			var throws, gateways int
			for _, h := range w.Routes {
				if h.Table != r.Table {
					continue
				}
				assert.NotEqual(t, routing.Blackhole, h.Type)
				switch h.Type {
				case routing.Throw:
					throws++
				case routing.Unicast:
					if h.Prefix.Bits() == 0 {
						gateways++
					}
				}
			}
			assert.Positive(t, throws, "what is for our own LANs stays here")
			assert.Equal(t, 1, gateways)
		}
		return marks
	}
	assert.ElementsMatch(t, []uint32{uint32(lines[0].Mark), uint32(lines[1].Mark)}, rules(facts))
	metric := func(f Facts, device string) uint32 {
		routes := From(two, f).Routing.Routes
		i := slices.IndexFunc(routes, func(r routing.Route) bool {
			return r.Table == routing.TableMain && r.Device == device && r.Prefix.Bits() == 0
		})
		return routes[i].Metric
	}
	assert.Less(t, metric(facts, "wan0"), metric(facts, "lte0"))
	facts.Silent = []string{"wan0"}
	assert.Equal(t, []uint32{uint32(lines[1].Mark)}, rules(facts), "what is on a silent line goes on by another one")
	assert.Greater(t, metric(facts, "wan0"), metric(facts, "lte0"), "a metered line that delivers is better than none")
	facts.Silent = []string{"wan0", "lte0"}
	assert.Empty(t, rules(facts))
}

// A WAN that is added, or another order, changes no other WAN's line, but for those few that have the same hash.
func TestLinesKeepTheirNumbers(t *testing.T) {
	two := routing.LineNumbers([]string{"wan0", "lte0"}, qos.MaxLine)
	assert.Equal(t, two, routing.LineNumbers([]string{"lte0", "wan0"}, qos.MaxLine))
	all := routing.LineNumbers([]string{"a", "b", "c", "d", "e", "f", "g", "h"}, qos.MaxLine)
	seen := map[int]bool{}
	for name, n := range all {
		assert.False(t, seen[n], name)
		seen[n] = true
		assert.True(t, n >= 1 && n <= qos.MaxLine)
		assert.Equal(t, n, int(qos.LineMark(n)>>5))
	}
}

// A metered line carries calls: the voice tunnel knows it, and the data tunnel has no address there to send from.
func TestTheDataTunnelHasNoMeteredLine(t *testing.T) {
	const second = "{interface: lte0, address: 192.0.2.2/24, gateway: 192.0.2.1, uplink: 5mbit, metered: {}}"
	w := From(shipped(t, "branch-berlin.yaml", map[string]string{
		"wan[+]": second, "tunnels[data].engine": "realtime",
	}), Facts{Queues: qos.AssumedFeatures()})
	of := map[tunnel.Class][]netip.Addr{}
	for _, d := range w.Devices {
		of[d.Class] = d.Sources
		require.Len(t, d.Paths.Lines, len(d.Sources), "%s", d.Class)
	}
	lte := netip.MustParseAddr("192.0.2.2")
	assert.Contains(t, of[tunnel.Voice], lte)
	assert.NotContains(t, of[tunnel.Data], lte)
	assert.Len(t, of[tunnel.Data], 1)
}
