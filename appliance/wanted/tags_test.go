package wanted

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
)

func inVLAN(change map[string]string) map[string]string {
	all := map[string]string{"wan[wan0].vlan": "7", "wan[wan0].priorities": "{media: 5, signalling: 3, control: 6}"}
	for k, v := range change {
		all[k] = v
	}
	return all
}

// Each class has its priority in the tag, of packets to sites and to the internet alike, shaped or not.
func TestPrioritiesInTheTag(t *testing.T) {
	for _, uplink := range []string{"4mbit", ""} {
		cfg := shipped(t, "branch-berlin.yaml", inVLAN(map[string]string{"wan[wan0].uplink": uplink}))
		w := From(cfg, Facts{Queues: qos.AssumedFeatures()})
		i := slices.IndexFunc(w.Routing.Links, func(l routing.Link) bool { return l.Name == "wan0.7" })
		require.GreaterOrEqual(t, i, 0)
		tags := routing.ParseEgress(w.Routing.Links[i].EgressMap)
		want := map[qos.ClassName]uint32{qos.Media: 5, qos.Signalling: 3}
		for p := range uint32(16) {
			assert.EqualValues(t, 6, tags[p], "skb->priority %d", p)
		}
		priorities, sites := qos.Priorities(w.QueueInput), qos.SitePriorities(w.QueueInput)
		require.Len(t, priorities, 4, "uplink %q", uplink)
		require.Len(t, sites, 4)
		for _, p := range priorities {
			assert.Equal(t, want[p.Class], tags[p.ClassID], "%s", p.Class)
		}
		for _, p := range sites {
			assert.Equal(t, want[p.Class], tags[p.ClassID], "%s to %s", p.Class, p.Site)
		}
		assert.True(t, slices.ContainsFunc(w.Firewall.Chains, func(c firewall.Chain) bool {
			return c.Name == "wan_media" && len(c.Rules) > 1
		}), "the firewall classifies")
		assert.Equal(t, "wan0", set(t, w.Firewall, "parent_lan"))
		assert.Contains(t, set(t, w.Firewall, "wan"), "wan0.7")
	}
	w := From(shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": ""}),
		Facts{Queues: qos.AssumedFeatures()})
	assert.Empty(t, qos.Priorities(w.QueueInput), "without a tag nothing changes")
}

// What this box adds below its queues is counted: the tag, PPPoE, and the header that a PPP device has not.
func TestHeadersBelowTheQueuesAreCounted(t *testing.T) {
	overhead := func(change map[string]string) (uint16, int) {
		cfg := shipped(t, "branch-berlin.yaml", change)
		w := From(cfg, Facts{Queues: qos.AssumedFeatures()})
		l, ok := w.Queues.Link(cfg.WANs[0].Interface)
		require.True(t, ok)
		return l.Classes[0].Overhead, cfg.WANs[0].LinkLayer.Overhead
	}
	dial := map[string]string{
		"wan[wan0].address": "", "wan[wan0].gateway": "", "wan[wan0].pppoe": "{user: a, password_file: b}",
	}
	with := func(more map[string]string, change map[string]string) map[string]string {
		all := map[string]string{}
		for _, m := range []map[string]string{more, change} {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	for _, c := range []struct {
		change map[string]string
		kernel uint16 // in the queue
		line   int    // beyond IP and Ethernet
	}{
		{map[string]string{"wan[wan0].vlan": "7"}, 4, 4},
		{map[string]string{"wan[wan0].vlan": "7", "wan[wan0].link": "ethernet"}, 28, 28},
		{map[string]string{"wan[wan0].vlan": "7", "wan[wan0].link": "vlan"}, 28, 28},
		{map[string]string{"wan[wan0].vlan": "7", "wan[wan0].overhead": "9"}, 9, 9},
		{dial, 22, 8},
		{with(dial, map[string]string{"wan[wan0].vlan": "7"}), 26, 12},
		{with(dial, map[string]string{"wan[wan0].link": "pppoe-ptm"}), 30, 16},
		{with(dial, map[string]string{"wan[wan0].link": "ip"}), 0, -14},
	} {
		kernel, line := overhead(c.change)
		assert.Equal(t, c.kernel, kernel, "%v", c.change)
		assert.Equal(t, c.line, line, "%v", c.change)
	}
}

// A session's address is that of its WAN, its MTU that of the tunnels.
func TestASessionLeadsOut(t *testing.T) {
	cfg := shipped(t, "pppoe-vlan.yaml", nil)
	facts := Facts{Queues: qos.AssumedFeatures(), Leases: map[string]routing.Lease{"ppp-wan0.7": {
		Address: netip.MustParsePrefix("198.51.100.10/32"), Gateways: []netip.Addr{netip.IPv4Unspecified()},
		DNS: []netip.Addr{netip.MustParseAddr("10.9.9.9")},
	}}}
	w := From(cfg, facts)
	assert.True(t, slices.ContainsFunc(w.Routing.Routes, func(r routing.Route) bool {
		return r.Table == routing.TableMain && r.Device == "ppp-wan0.7" && r.Prefix.Bits() == 0 && !r.Gateway.IsValid()
	}))
	assert.Equal(t, "wan0 wan0.7", set(t, w.Firewall, "parent_lan"))
	assert.Equal(t, "10.9.9.9", set(t, w.Firewall, "dns_ppp/2dwan0.7_4"))
	for _, d := range w.Devices {
		assert.EqualValues(t, 1408, d.Settings.MTU)
	}
}
