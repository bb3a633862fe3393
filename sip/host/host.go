// Package host reads the addresses in SIP and SDP.
package host

import (
	"net/netip"
	"unsafe"
)

// maxText is the longest form of an address: IPv6 with an IPv4 address at its end.
const maxText = 45

// Parse reads an address of either family, IPv6 with or without brackets. It fails on a name, and on an
// address with a zone, which means nothing to another host. It allocates nothing.
func Parse(b []byte) (a netip.Addr, ok bool) {
	if len(b) >= 2 && b[0] == '[' && b[len(b)-1] == ']' {
		b = b[1 : len(b)-1]
	}
	if len(b) == 0 || len(b) > maxText {
		return netip.Addr{}, false
	}
	// A copy would be on the heap, since ParseAddr's error keeps its text. That error ends here.
	a, err := netip.ParseAddr(unsafe.String(&b[0], len(b)))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}
