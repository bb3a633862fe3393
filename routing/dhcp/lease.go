// Package dhcp keeps a DHCPv4 lease for a WAN interface (RFC 2131): it asks for one, renews and rebinds it,
// starts again when it is lost, and reports what it holds. It does not touch the interface: addresses and
// routes are package routing's.
package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Lease is what a server granted, or the loss of it (Lost: only Interface is set besides).
type Lease struct {
	Interface string         `json:"interface"`
	Address   netip.Prefix   `json:"address,omitzero"` // with the prefix length of its network
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	Routes    []netip.Prefix `json:"routes,omitempty"` // of option 121, without default routes; none is ever set
	// RouterIgnored: there was a router option, but classless routes replace it, and they have no default.
	RouterIgnored bool           `json:"router_ignored,omitempty"`
	DNS           []netip.Addr   `json:"dns,omitempty"`
	Server        netip.Addr     `json:"server,omitzero"`
	Duration      time.Duration  `json:"duration_ns,omitempty"` // as granted, at most a day
	Renew         time.Duration  `json:"renew_ns,omitempty"`    // T1, counted from the request
	Rebind        time.Duration  `json:"rebind_ns,omitempty"`   // T2
	Expiry        time.Time      `json:"expiry,omitzero"`
	Lost          bool           `json:"lost,omitempty"`
	given         time.Time      // when its request was sent, from which its times count (RFC 2131, section 4.4.1)
	ack           *dhcpv4.DHCPv4 // the message that granted it, for the file
}

// same reports whether everything that the network's state depends on is the same.
func (l Lease) same(o Lease) bool {
	return l.Address == o.Address && fmt.Sprint(l.Gateways, l.DNS) == fmt.Sprint(o.Gateways, o.DNS)
}

// Warning says what a lease lacks that its WAN needs; empty: nothing.
func (l Lease) Warning() string {
	switch {
	case l.Lost || !l.Address.IsValid() || len(l.Gateways) > 0:
		return ""
	case l.RouterIgnored:
		return "the lease has no gateway: its classless routes (option 121) have no default, and replace the router " +
			"option (RFC 3442)"
	}
	return "the lease has no gateway"
}

// maxHold is the longest that a lease is held without asking again, also one that does not end (0xffffffff).
const maxHold = 24 * time.Hour

// leaseOf reads an acknowledgement, and refuses one that no usable address follows from.
func leaseOf(iface string, ack *dhcpv4.DHCPv4, given time.Time, maxHold time.Duration) (Lease, error) {
	l := Lease{Interface: iface, given: given, ack: ack, Server: addrOf(ack.ServerIdentifier())}
	a := addrOf(ack.YourIPAddr)
	if !usable(a) {
		return Lease{}, fmt.Errorf("offered address %s cannot be a host's", ack.YourIPAddr)
	}
	if !l.Server.IsValid() || l.Server.IsUnspecified() {
		return Lease{}, errors.New("no server identifier (option 54)")
	}
	bits, err := prefixLength(ack)
	if err != nil {
		return Lease{}, err
	}
	l.Address = netip.PrefixFrom(a, bits)

	if err := l.setTimes(ack, maxHold); err != nil {
		return Lease{}, err
	}

	l.setRoutes(ack)
	for _, d := range ack.DNS() {
		l.DNS = appendUsable(l.DNS, d, netip.Addr{})
	}
	return l, nil
}

func prefixLength(ack *dhcpv4.DHCPv4) (int, error) {
	mask := ack.SubnetMask()
	if mask == nil {
		bits, _ := ack.YourIPAddr.DefaultMask().Size() // RFC 950, as other clients do
		return bits, nil
	}
	ones, size := mask.Size()
	if size != 32 || ones == 0 {
		return 0, fmt.Errorf("subnet mask %s is not valid", net.IP(mask))
	}
	return ones, nil
}

// leastRenew is how soon a lease is renewed at the earliest, whatever the server says, but for leases that are shorter:
// each renewal is written to disk.
const leastRenew = 30 * time.Second

func (l *Lease) setTimes(ack *dhcpv4.DHCPv4, maxHold time.Duration) error {
	l.Duration = ack.IPAddressLeaseTime(0)
	if l.Duration <= 0 {
		return errors.New("no lease time (option 51)")
	}
	l.Duration = min(l.Duration, maxHold)

	l.Renew = ack.IPAddressRenewalTime(l.Duration / 2)
	l.Rebind = ack.IPAddressRebindingTime(l.Duration * 7 / 8)
	if l.Renew > 0 {
		l.Renew = max(l.Renew, min(leastRenew, l.Duration/2))
	}
	if l.Renew <= 0 || l.Renew >= l.Rebind || l.Rebind >= l.Duration {
		l.Renew, l.Rebind = l.Duration/2, l.Duration*7/8 // RFC 2131, section 4.4.5
	}
	l.Expiry = l.given.Add(l.Duration)
	return nil
}

// setRoutes takes gateways from the default routes of option 121, or from the router option. A client that gets
// classless routes ignores the router option (RFC 3442).
func (l *Lease) setRoutes(ack *dhcpv4.DHCPv4) {
	own := l.Address.Addr()
	routes := ack.ClasslessStaticRoute()
	if len(routes) == 0 {
		for _, r := range ack.Router() {
			l.Gateways = appendUsable(l.Gateways, r, own)
		}
		return
	}

	for _, r := range routes {
		ones, _ := r.Dest.Mask.Size()
		if ones == 0 {
			l.Gateways = appendUsable(l.Gateways, r.Router, own)
		} else if to := addrOf(r.Dest.IP); to.IsValid() {
			l.Routes = append(l.Routes, netip.PrefixFrom(to, ones).Masked())
		}
	}
	l.RouterIgnored = len(l.Gateways) == 0 && len(ack.Router()) > 0
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

// usable reports whether a host can have this address.
func usable(a netip.Addr) bool {
	if !a.IsValid() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	first := a.As4()[0]
	return 0 < first && first < 240
}

func appendUsable(list []netip.Addr, ip net.IP, not netip.Addr) []netip.Addr {
	if a := addrOf(ip); usable(a) && a != not {
		return append(list, a)
	}
	return list
}
