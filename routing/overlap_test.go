package routing

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLeasesThatOverlapAreRefused(t *testing.T) {
	own := []Network{
		{netip.MustParsePrefix("10.1.10.0/24"), "voice0"},
		{netip.MustParsePrefix("10.2.0.0/16"), "site munich"},
		{netip.MustParsePrefix("2001:db8:1::/64"), "voice0"},
	}
	for _, c := range []struct{ address, gateway, route, refused string }{
		{"198.51.100.7/24", "198.51.100.1", "", ""},
		{"10.1.11.7/24", "10.1.11.1", "10.3.0.0/16", ""},
		{"100.64.0.7/10", "100.64.0.1", "", ""},
		{"198.51.100.7/32", "203.0.113.1", "0.0.0.0/0", ""},
		{"10.1.10.5/25", "10.1.10.126", "", "its network 10.1.10.0/25 overlaps 10.1.10.0/24 of voice0"},
		{"10.1.10.5/24", "", "", "its network 10.1.10.0/24 overlaps 10.1.10.0/24 of voice0"},
		{"10.1.10.5/32", "", "", "its network 10.1.10.5 overlaps 10.1.10.0/24 of voice0"},
		{"10.200.0.5/8", "", "", "its network 10.0.0.0/8 overlaps 10.1.10.0/24 of voice0"},
		{"10.2.7.5/30", "", "", "its network 10.2.7.4/30 overlaps 10.2.0.0/16 of site munich"},
		{"198.51.100.7/32", "10.1.10.1", "", "its gateway 10.1.10.1 overlaps 10.1.10.0/24 of voice0"},
		{"198.51.100.7/24", "198.51.100.1", "10.2.10.0/25", "its route 10.2.10.0/25 overlaps 10.2.0.0/16 of site munich"},
	} {
		l := Lease{Address: netip.MustParsePrefix(c.address)}
		if c.gateway != "" {
			l.Gateways = []netip.Addr{netip.MustParseAddr(c.gateway)}
		}
		var routes []netip.Prefix
		if c.route != "" {
			routes = append(routes, netip.MustParsePrefix(c.route))
		}
		if err := CheckLease(own, l, routes); c.refused == "" {
			assert.NoError(t, err, c.address)
		} else {
			assert.EqualError(t, err, c.refused)
		}
	}
}
