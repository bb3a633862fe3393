package conntrack

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DeleteTranslated removes the connections whose source was translated to an address of this machine, and returns how
// many there were.
func DeleteTranslated(to netip.Addr) (n int, err error) {
	family := netlink.InetFamily(unix.AF_INET)
	if to.Is6() {
		family = unix.AF_INET6
	}
	deleted, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, translated{to})
	if err != nil {
		return int(deleted), fmt.Errorf("delete the connections translated to %s: %w", to, err)
	}
	return int(deleted), nil
}

// translated matches connections that come from another address than their answers go to.
type translated struct{ to netip.Addr }

// MatchConntrackFlow reports whether a connection is one.
func (t translated) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	answers, ok := netip.AddrFromSlice(f.Reverse.DstIP)
	from, known := netip.AddrFromSlice(f.Forward.SrcIP)
	return ok && known && answers.Unmap() == t.to && from.Unmap() != t.to
}
