package units

import (
	"net/netip"
	"slices"
)

// Private is what no WAN delivers to anybody but a neighbour: RFC 1918, RFC 6598 (shared), RFC 3927 (link-local),
// RFC 4193 (unique local), RFC 4291 (link-local).
var Private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

// IsPrivate reports whether a is in one of the networks of Private.
func IsPrivate(a netip.Addr) bool {
	return slices.ContainsFunc(Private, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}
