// Package routing is the pure plan of a branch's interfaces, addresses, routes, policy rules and sysctls: the
// wanted state, its text as ip(8) and sysctl(8) commands, and its difference from the observed state. Package
// rtnl observes and applies it. Marks are numbers here: what they mean is package qos's.
package routing

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Upstream is one uplink as the config describes it.
type Upstream struct {
	Interface string // device that packets leave by: a network card, a VLAN of ours on it, or a PPP device
	DHCP      bool
	DHCP6     bool           // addresses come from DHCPv6 and router advertisements as well
	Addresses []netip.Prefix // of this machine, with prefix length; empty where the WAN's network gives them
	Gateways  []netip.Addr   // at most one per family

	Card     string // network card below the VLAN or the PPP session; "": Interface is none of both
	VLAN     uint16 // 802.1Q tag of what leaves; 0: untagged
	PPPoE    bool   // Interface is there while a PPP session is
	FrameMTU int    // bytes that Card and its VLAN have to take; 0: what they do
	// EgressMap is the priority in the tag (802.1p) by skb->priority, as Link.EgressMap.
	EgressMap string
}

// Leased reports whether the WAN's addresses come from its network: by DHCP or PPP, and by router advertisements.
func (u Upstream) Leased() bool { return u.DHCP || u.PPPoE }

// Under is the device that carries the WAN's frames: the network card or the VLAN on it. That of a PPP session is
// another one than Interface.
func (u Upstream) Under() string {
	if u.Card == "" {
		return u.Interface
	}
	return LAN{Interface: u.Card, VLAN: u.VLAN}.Device()
}

// LAN is one local network as the config describes it.
type LAN struct {
	Interface string
	VLAN      uint16         // 0: untagged
	Addresses []netip.Prefix // of this machine, with prefix length

	// Subnet is the part of a prefix delegated to a WAN that the LAN has, and Delegated this machine's addresses in
	// such parts, as far as there are any. They are for the internet: no site knows of them.
	Subnet    Subnet
	Delegated []netip.Prefix
}

// Subnet is a /64 out of each prefix that is delegated to a WAN.
type Subnet struct {
	WAN    string     // its interface; empty: none
	Number int        // of the /64 in the prefix
	Suffix netip.Addr // of this machine, the last 64 bits
}

// In is this machine's address with the subnet in a prefix; false if the prefix has not that many.
func (n Subnet) In(p netip.Prefix) (netip.Prefix, bool) {
	if bits := 64 - p.Bits(); !p.Addr().Is6() || bits < 0 || bits < 32 && n.Number >= 1<<bits {
		return netip.Prefix{}, false
	}
	a, suffix := p.Masked().Addr().As16(), n.Suffix.As16()
	high := binary.BigEndian.Uint64(a[:8]) | uint64(n.Number)
	binary.BigEndian.PutUint64(a[:8], high)
	copy(a[8:], suffix[8:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64), true
}

// Delegation is a prefix that was delegated to a WAN.
type Delegation struct {
	Prefix     netip.Prefix
	Deprecated bool // nothing new begins with it
}

// Autoconf reports whether router advertisements of the WAN's network are heard.
func (u Upstream) Autoconf() bool { return u.Leased() || u.DHCP6 }

// Device is the name of the network device that carries the LAN: lan0, or lan0.20 with a VLAN.
func (l LAN) Device() string {
	if l.VLAN == 0 {
		return l.Interface
	}
	return fmt.Sprintf("%s.%d", l.Interface, l.VLAN)
}

// Networks is every prefix that is directly on the LAN.
func (l LAN) Networks() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(l.Addresses)+len(l.Delegated))
	for _, a := range l.Addresses {
		out = append(out, a.Masked())
	}
	return append(out, l.DelegatedNetworks()...)
}

// DelegatedNetworks are those of Networks that come from a delegated prefix.
func (l LAN) DelegatedNetworks() (out []netip.Prefix) {
	for _, a := range l.Delegated {
		out = append(out, a.Masked())
	}
	return out
}
