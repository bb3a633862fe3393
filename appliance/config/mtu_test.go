package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing"
	"ringway/tunnel"
)

// A list may have addresses of both families: a WAN reaches the site by one of them, and the longer header counts where
// IPv6 may be taken.
func TestWhatReachesASite(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("2001:db8::2/64")
	static4, static6 := routing.Upstream{Addresses: []netip.Prefix{v4}}, routing.Upstream{Addresses: []netip.Prefix{v6}}
	dhcp6 := routing.Upstream{DHCP6: true}
	both := routing.Upstream{Addresses: []netip.Prefix{v4}, DHCP6: true}
	const four, six, name = "203.0.113.2", "2001:db8:1::1", "munich.example.net"
	for _, c := range []struct {
		w              routing.Upstream
		endpoints      string
		reaches, outer bool
	}{
		{static4, four, true, false}, {static4, six, false, true}, {static4, name, true, false}, {static4, "", true, false},
		{static4, six + " " + four, true, false}, {static4, four + " " + six, true, false},
		{static4, six + " " + name, true, false},
		{static6, six + " " + four, true, true}, {static6, four, false, false},
		{both, six, true, true}, {both, four, true, false}, {both, four + " " + six, true, true},
		{both, name, true, false}, // IPv4 is asked for first
		{dhcp6, six, true, true}, {dhcp6, four, false, false}, {dhcp6, name, true, true}, {dhcp6, "", true, true},
		{routing.Upstream{DHCP: true}, six, true, true}, {routing.Upstream{PPPoE: true}, four, true, false},
	} {
		var s Site
		if list := strings.Fields(c.endpoints); len(list) > 0 {
			s = Site{Site: tunnel.Site{Endpoint: list[0], MoreEndpoints: list[1:]}}
		}
		w := WAN{Upstream: c.w}
		assert.Equal(t, c.reaches, w.Reaches(s), "%+v to %q", c.w, c.endpoints)
		assert.Equal(t, c.outer, w.OuterIPv6(s), "%+v to %q", c.w, c.endpoints)
	}
}

// IPv6 that comes by DHCPv6 and advertisements is as good as a configured address; IPv4 does not come by them.
func TestAnEndpointOfTheFamilyOfALease(t *testing.T) {
	for _, c := range []struct{ wan, endpoint, want string }{
		{"address: 198.51.100.2/24, gateway: 198.51.100.1, dhcp6: {}", "2001:db8:9::1", ""},
		{"address: 198.51.100.2/24, gateway: 198.51.100.1, dhcp6: {}", "203.0.113.2", ""},
		{"address: '2001:db8::2/64', gateway: '2001:db8::1', dhcp6: {}", "203.0.113.2",
			"203.0.113.2 is IPv4, and no WAN has an address of that family"},
		{"address: 198.51.100.2/24, gateway: 198.51.100.1", "2001:db8:9::1",
			"2001:db8:9::1 is IPv6, and no WAN has an address of that family"},
	} {
		text := strings.NewReplacer(
			"address: 198.51.100.2/24, gateway: 198.51.100.1", c.wan, "endpoint: 203.0.113.2", "endpoint: '"+c.endpoint+"'",
		).Replace(slowBranch("20mbit", ""))
		_, err := Parse("box.yaml", []byte(text), WithoutKeyFiles())
		if c.want == "" {
			require.NoError(t, err, text)
		} else {
			require.ErrorContains(t, err, c.want, text)
		}
	}
}
