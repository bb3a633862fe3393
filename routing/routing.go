// Package routing is the pure plan of a branch's interfaces, addresses, routes, policy rules and sysctls: the
// wanted state, its text as ip(8) and sysctl(8) commands, and its difference from the observed state. Package
// rtnl observes and applies it. Marks are numbers here: what they mean is package qos's.
package routing

import (
	"fmt"
	"net/netip"
)

// Upstream is one uplink as the config describes it.
type Upstream struct {
	Interface string
	DHCP      bool
	Addresses []netip.Prefix // of this machine, with prefix length; empty with DHCP
	Gateways  []netip.Addr   // at most one per family
}

// LAN is one local network as the config describes it.
type LAN struct {
	Interface string
	VLAN      uint16         // 0: untagged
	Addresses []netip.Prefix // of this machine, with prefix length
}

// Device is the name of the network device that carries the LAN: lan0, or lan0.20 with a VLAN.
func (l LAN) Device() string {
	if l.VLAN == 0 {
		return l.Interface
	}
	return fmt.Sprintf("%s.%d", l.Interface, l.VLAN)
}

// Networks is every prefix that is directly on the LAN.
func (l LAN) Networks() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(l.Addresses))
	for _, a := range l.Addresses {
		out = append(out, a.Masked())
	}
	return out
}
