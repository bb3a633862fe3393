package rtnl

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Through returns the interface by which the kernel routes a packet with a mark to an address now.
func Through(to netip.Addr, mark uint32) (string, error) {
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return "", fmt.Errorf("look up the route to %s: %w", to, err)
	}
	if len(routes) == 0 {
		return "", fmt.Errorf("look up the route to %s: the kernel returned none", to)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("look up the interface of the route to %s: %w", to, err)
	}
	return link.Attrs().Name, nil
}
