package routing

import (
	"fmt"
	"net/netip"
)

// Network is one that only this machine and its sites decide about: one of its own, or one behind a site.
type Network struct {
	Prefix netip.Prefix
	Name   string // for people, like "voice0" or "site munich"
}

// OverlapError says that a WAN's network names addresses that are not its own.
type OverlapError struct {
	What    string // a lease's network, gateway, ...; empty: the prefix says it
	Foreign netip.Prefix
	Network Network
}

func (e *OverlapError) Error() string {
	foreign := e.Foreign.String()
	if e.Foreign.IsSingleIP() {
		foreign = e.Foreign.Addr().String()
	}
	text := fmt.Sprintf("%s overlaps %s of %s", foreign, e.Network.Prefix, e.Network.Name)
	if e.What != "" {
		text = "its " + e.What + " " + text
	}
	return text
}

// Overlap returns an *OverlapError for the first of the networks that p overlaps.
func Overlap(networks []Network, what string, p netip.Prefix) error {
	for _, n := range networks {
		if n.Prefix.Overlaps(p) {
			return &OverlapError{What: what, Foreign: p, Network: n}
		}
	}
	return nil
}

// CheckLease says why a lease must not be applied. With an address inside an own network the kernel would send that
// network's packets to the WAN, and whoever grants leases there could choose which. Routes that come with a lease are
// never set, except a default route. One that leads to an own network shows what the server is up to, or that
// addresses are used twice.
func CheckLease(networks []Network, l Lease, routes []netip.Prefix) error {
	if err := Overlap(networks, "network", l.Address.Masked()); err != nil {
		return err
	}
	for _, g := range l.Gateways {
		if err := Overlap(networks, "gateway", netip.PrefixFrom(g, g.BitLen())); err != nil {
			return err
		}
	}
	for _, r := range routes {
		if r.Bits() == 0 {
			continue
		}
		if err := Overlap(networks, "route", r); err != nil {
			return err
		}
	}
	return nil
}
