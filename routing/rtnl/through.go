package rtnl

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Through says by which interface a packet with mark leaves for to, as the kernel routes it now.
func Through(to netip.Addr, mark uint32) (string, error) {
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return "", fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	if len(routes) == 0 {
		return "", fmt.Errorf("ask for the route to %s: the kernel names none", to)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("ask for the interface of the route to %s: %w", to, err)
	}
	return link.Attrs().Name, nil
}
