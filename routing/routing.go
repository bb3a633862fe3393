// Package routing is the pure plan of a branch's interfaces, addresses, routes, policy
// rules and sysctls: wanted state, its text in ip(8) and sysctl(8) words, its difference
// from the observed state. The adapter that speaks netlink is routing/rtnl. Nothing here
// imports netlink, os or a clock, nor any other domain: marks come in as numbers.
package routing

import "net/netip"

// WAN is one uplink as the config describes it.
type WAN struct {
	Interface string
	DHCP      bool
	Addresses []netip.Prefix // the box's own, with prefix length; empty with DHCP
	Gateways  []netip.Addr   // at most one per family
}

// LAN is one local network as the config describes it.
type LAN struct {
	Interface string
	VLAN      uint16         // 0: untagged
	Addresses []netip.Prefix // the box's own, with prefix length
}

// Device is the name of the network device that carries the LAN: lan0, or lan0.20 with a VLAN.
func (l LAN) Device() string {
	if l.VLAN == 0 {
		return l.Interface
	}
	return l.Interface + "." + itoa(l.VLAN)
}

// Networks is every prefix that is directly on the LAN.
func (l LAN) Networks() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(l.Addresses))
	for _, a := range l.Addresses {
		out = append(out, a.Masked())
	}
	return out
}

func itoa(v uint16) string {
	var b [5]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}
