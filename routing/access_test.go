package routing

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// dialedWAN is a WAN with PPPoE in VLAN 7 of wan0.
func dialedWAN() Upstream {
	return Upstream{Interface: "ppp0", Card: "wan0", VLAN: 7, PPPoE: true, EgressMap: "0:6 65552:5"}
}

func session(address string) map[string]Lease {
	return map[string]Lease{"ppp0": {
		Address: netip.MustParsePrefix(address), Gateways: []netip.Addr{netip.IPv4Unspecified()},
	}}
}

// With a session everything leaves by the PPP device, without a gateway; its address is pppd's, and the device may be
// missing.
func TestAWANWithPPPoE(t *testing.T) {
	in := Input{WANs: []Upstream{dialedWAN()}, Parents: []string{"wan0", "wan0.7"}, Leases: session("198.51.100.10/32")}
	w := Want(in)
	text := strings.Join(w.Text(), "\n")
	for _, line := range []string{
		"ip link add link wan0 name wan0.7 type vlan id 7",
		"ip link set dev wan0.7 type vlan egress-qos-map 0:6 65552:5",
		"ip -4 route add default dev ppp0 ",
	} {
		assert.Contains(t, text, line)
	}
	assert.NotContains(t, text, "address add")
	assert.NotContains(t, text, "ip link set dev ppp0", "pppd sets it up")
	for _, name := range []string{"wan0", "wan0.7"} {
		assert.Contains(t, w.Sysctls, Sysctl{Key: "net/ipv6/conf/" + name + "/accept_ra", Optional: true})
		assert.Contains(t, w.Sysctls, Sysctl{Key: "net/ipv4/conf/" + name + "/arp_ignore", Value: answerNone})
	}

	// Without the device there is neither a problem nor a change that needs it.
	have := State{Links: []Link{{Name: "wan0", Up: true}}}
	assert.Empty(t, Missing(w, have))
	for _, c := range Diff(w, have) {
		assert.NotEqual(t, "ppp0", c.Device(), "%s", c)
	}
	// pppd sets the device up once addresses are known, and down: neither is undone.
	for _, up := range []bool{true, false} {
		have := State{Links: []Link{
			{Name: "wan0", Up: true}, {Name: "ppp0", Up: up},
			{Name: "wan0.7", Parent: "wan0", VLAN: 7, Own: true, Up: true, EgressMap: "0:6 65552:5"},
		}}
		assert.False(t, slices.ContainsFunc(Diff(w, have), func(c Change) bool { return c.Link != nil }))
	}
}

// Of two WANs each has its table; that of the PPP device ends in a blackhole, too.
func TestPPPoEBesideAnotherWAN(t *testing.T) {
	in := Input{
		WANs: []Upstream{dialedWAN(), {
			Interface: "lte0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")},
			Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		}},
		Leases: session("198.51.100.10/32"), Marks: Marks{OuterValues: []uint32{0x2000}, OuterMask: 0x6000},
	}
	w, table := Want(in), wanTables(in)["ppp0"]
	var routes []string
	for _, r := range w.Routes {
		if r.Table == table {
			routes = append(routes, string(r.Type)+" "+r.Prefix.String()+" "+r.Device)
			assert.False(t, r.Gateway.IsValid())
		}
	}
	assert.ElementsMatch(t, []string{"unicast 0.0.0.0/0 ppp0", "blackhole 0.0.0.0/0 "}, routes)
	from := netip.MustParseAddr("198.51.100.10")
	assert.True(t, slices.ContainsFunc(w.Rules, func(r Rule) bool { return r.Source == from && r.Table == table }))

	// Another address after a redial: the rules follow, and those of the other WAN are not touched.
	in.Leases = session("198.51.100.20/32")
	for _, c := range Diff(Want(in), w) {
		assert.Contains(t, c.String(), "198.51.100.", "%s", c)
	}
}

func TestAVLANsPrioritiesFollowTheConfig(t *testing.T) {
	want, have := Link{Name: "wan0.7", Parent: "wan0", VLAN: 7, Own: true, Up: true}, State{}
	want.EgressMap = EgressText(map[uint32]uint32{65552: 5, 0: 6, 7: 0})
	assert.Equal(t, "0:6 65552:5", want.EgressMap)
	assert.Equal(t, map[uint32]uint32{0: 6, 65552: 5}, ParseEgress(want.EgressMap))
	assert.Empty(t, ParseEgress("0:8 x:1 -1:2 3 4294967296:1"))

	have.Links = []Link{{Name: "wan0", Up: true}, {
		Name: "wan0.7", Parent: "wan0", VLAN: 7, Own: true, Up: true, EgressMap: "0:1 9:2 65552:5",
	}}
	w := State{Links: []Link{{Name: "wan0", Up: true}, want}}
	assert.Equal(t, []string{"ip link set dev wan0.7 type vlan egress-qos-map 0:6 9:0"}, Text(Diff(w, have)))
	have.Links[1].EgressMap = want.EgressMap
	assert.Empty(t, Diff(w, have))

	// A VLAN that another program made keeps its own.
	want.Own, want.EgressMap = false, ""
	have.Links[1].Own, have.Links[1].EgressMap = false, "0:3"
	assert.Empty(t, Diff(State{Links: []Link{{Name: "wan0", Up: true}, want}}, have))
}
