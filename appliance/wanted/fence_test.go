package wanted

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
)

// set gives the elements of a set of the firewall, each with a blank behind it.
func set(t *testing.T, s firewall.State, name string) string {
	t.Helper()
	i := slices.IndexFunc(s.Sets, func(s firewall.Set) bool { return s.Name == name })
	require.GreaterOrEqual(t, i, 0, "no set %s", name)
	var keys []string
	for _, e := range s.Sets[i].Elements {
		keys = append(keys, e.Key)
	}
	return strings.Join(keys, " ")
}

// Which private addresses the box reaches over a WAN follows from the config and from the lease, and from the lease of
// that WAN alone.
func TestWhatAWANReaches(t *testing.T) {
	cfg := shipped(t, "minimal.yaml", map[string]string{
		"wan[wan0].address": "dhcp", "wan[wan0].gateway": "", "sites[munich].endpoint": "10.66.1.1",
		"wan[wan0].reach": "[192.168.100.1, 10.8.0.0/16]",
	})
	lease := routing.Lease{
		Address: netip.MustParsePrefix("192.168.178.20/24"), Gateways: []netip.Addr{netip.MustParseAddr("192.168.178.1")},
		Server: netip.MustParseAddr("10.250.0.3"),
		DNS:    []netip.Addr{netip.MustParseAddr("192.168.178.2"), netip.MustParseAddr("9.9.9.9")},
	}
	w := From(cfg, Facts{Queues: qos.AssumedFeatures(), Leases: map[string]routing.Lease{"wan0": lease}}).Firewall
	assert.Equal(t, "10.8.0.0/16 192.168.100.1", set(t, w, "reach_wan0_4"))
	assert.Equal(t, "10.66.1.1 192.168.178.1", set(t, w, "gateway_wan0_4"))
	assert.Equal(t, "192.168.178.2", set(t, w, "dns_wan0_4"), "public addresses are never looked up")
	assert.Equal(t, "10.250.0.3", set(t, w, "dhcp_wan0_4"))

	// A lease of another WAN, or of one that has an address of its own, opens nothing.
	w = From(cfg, Facts{Queues: qos.AssumedFeatures(), Leases: map[string]routing.Lease{"wan1": lease}}).Firewall
	assert.Equal(t, "10.66.1.1", set(t, w, "gateway_wan0_4"))
	assert.Empty(t, set(t, w, "dhcp_wan0_4"))
	w = From(shipped(t, "minimal.yaml", nil),
		Facts{Queues: qos.AssumedFeatures(), Leases: map[string]routing.Lease{"wan0": lease}}).Firewall
	assert.Empty(t, set(t, w, "gateway_wan0_4"))
	assert.Empty(t, set(t, w, "dns_wan0_4"))
}

// A network card is closed when it carries VLANs of ours and nothing else of ours.
func TestParentsOfVLANsAreClosed(t *testing.T) {
	// The reference has a WAN with PPPoE in VLAN 7 of wan1.
	const line = "wan1 wan1.7"
	closed := func(change map[string]string) (parents string, sysctl bool) {
		w := From(shipped(t, "reference.yaml", change), Facts{Queues: qos.AssumedFeatures()})
		sysctl = slices.Contains(w.Routing.Sysctls, routing.Sysctl{Key: "net/ipv4/conf/lan0/arp_ignore", Value: 8})
		if !slices.ContainsFunc(w.Firewall.Sets, func(s firewall.Set) bool { return s.Name == "parent_lan" }) {
			return "", sysctl
		}
		return set(t, w.Firewall, "parent_lan"), sysctl
	}
	parents, arp := closed(nil) // lan0.20 and lan0.30
	assert.Equal(t, "lan0 "+line, parents)
	assert.True(t, arp)
	parents, arp = closed(map[string]string{"data[lan0.30].vlan": ""})
	assert.Equal(t, line, parents, "lan0 is a LAN as well")
	assert.False(t, arp)
	parents, _ = closed(map[string]string{
		"wan[wan0].interface": "lan0", "voice[lan0.20].prefix_from": "lan0", "data[lan0.30].prefix_from": "lan0",
	})
	assert.Equal(t, line, parents, "lan0 is a WAN as well")
}
