package lab

import (
	"fmt"
	"os"
)

// Family is a version of IP.
type Family string

// The families. With IPv4 the branches' networks have IPv6 as well; with IPv6 nothing has an IPv4 address.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// fillFamilies defaults to IPv4, and refuses what this kernel lacks.
func (o *Options) fillFamilies() error {
	for _, f := range []*Family{&o.Underlay, &o.Overlay} {
		switch *f {
		case "":
			*f = IPv4
		case IPv4:
		case IPv6:
			if !ipv6Works() {
				return fmt.Errorf("family %s: this kernel has no IPv6", *f)
			}
		default:
			return fmt.Errorf("family %q (allowed: %s, %s)", *f, IPv4, IPv6)
		}
	}
	return nil
}

func ipv6Works() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// subnet is one family of a network, with prefix lengths.
type subnet struct {
	network      string
	edge, remote string
	length       string // of the prefix: /24
	flags        string // for ip addr: no duplicate address detection, no other host could own the address
}

// of is the network in one family.
func (n lan) of(f Family) subnet {
	if f == IPv6 {
		return subnet{n.network6, n.edge6, n.remote6, "/64", " nodad"}
	}
	return subnet{n.network, n.edge, n.remote, "/24", ""}
}

// families are the families of a network whose traffic has family f.
func families(f Family) []Family {
	switch {
	case f == IPv6:
		return []Family{IPv6}
	case ipv6Works():
		return []Family{IPv4, IPv6}
	}
	return []Family{IPv4}
}

// outer is the family between the edges. Without a tunnel it is that of the branches.
func (p *Pair) outer() Family {
	if p.Name == Kernel {
		return p.inner()
	}
	return p.lab.Options.Underlay
}

// inner is the family of the traffic between phones and PCs.
func (p *Pair) inner() Family { return p.lab.Options.Overlay }

// Address is the address of a phone or a PC, of the overlay's family.
func (p *Pair) Address(host string) string { return AddressOf(host, p.inner()) }

// AddressOf is the address of a phone or a PC, of a family that the lab has.
func AddressOf(host string, f Family) string {
	for _, s := range sides {
		switch host {
		case s.phone:
			return s.voice.of(f).remote
		case s.pc:
			return s.data.of(f).remote
		}
	}
	panic("no address of " + host + " in the lab")
}

// WANAddress is the address of edge a or b on the WAN, of the underlay's family.
func (p *Pair) WANAddress(side string) string {
	for _, s := range sides {
		if s.edge == "edge-"+side {
			return s.wan.of(p.outer()).edge
		}
	}
	panic("no edge " + side + " in the lab")
}
