package config

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"ringway/tunnel"
)

const (
	ethernetMTU = 1500
	// pppoeMTU is what PPPoE leaves of an Ethernet packet (RFC 2516, section 7).
	pppoeMTU = 1492
	// padUnit is what WireGuard pads to (paper, section 5.4.6), but not beyond the tunnel's own MTU.
	padUnit = 16
)

// linkMTU is the longest packet that a link layer of that name carries; 0: what the interface takes.
func linkMTU(link string) int {
	if strings.HasPrefix(link, "pppoe-") {
		return pppoeMTU
	}
	return 0
}

// WireMTU is the longest packet that may leave by w, outer headers included, where its interface takes so many bytes
// (0: not known, Ethernet's 1500); byLink says that the kind of link decides it.
func (w WAN) WireMTU(iface int) (mtu int, byLink bool) {
	iface = cmp.Or(iface, ethernetMTU)
	if w.LinkMTU > 0 && w.LinkMTU < iface {
		return w.LinkMTU, true
	}
	return iface, false
}

// OnWANs is cfg with what `mtu: auto` means for the tunnels' devices where the WANs' interfaces take so many bytes, by
// name; one that is not listed takes 1500. A device takes what fits the WAN with the longest packets: routes hold what
// goes to a site to less (package wanted).
func (cfg *Config) OnWANs(mtu map[string]int) *Config {
	out := *cfg
	out.Tunnels = maps.Clone(cfg.Tunnels)
	for c, s := range out.Tunnels {
		if !cfg.AutoMTU[c] {
			continue
		}
		s.MTU = tunnel.InnerMTU(out.autoMTU(c, mtu))
		s.PadTo = min(s.PadTo, int(s.MTU))
		out.Tunnels[c] = s
	}
	return &out
}

// autoMTU is what auto means for the tunnel of a class. Data is also kept short where a line is slow; voice is not: a
// phone's large INVITE would come in fragments, and calls' packets are short.
func (cfg *Config) autoMTU(c tunnel.Class, mtu map[string]int) int {
	most := cfg.WidestMTU(mtu)
	if c == tunnel.Data {
		return cfg.dataMTU(most)
	}
	return most
}

// WidestMTU is the longest packet inside that fits the WAN that takes the longest packets: what auto means where no
// line is slow.
func (cfg *Config) WidestMTU(mtu map[string]int) int {
	widest := 0
	for _, w := range cfg.WANs {
		wire, _ := w.WireMTU(mtu[w.Interface])
		widest = max(widest, wire)
	}
	if widest == 0 || widest >= ethernetMTU {
		return DefaultMTU
	}
	return cfg.InnerMTU(widest)
}

// InnerMTU is the longest packet inside that leaves in one piece on a path that takes wire bytes. It is a multiple of
// 16, because WireGuard's padding goes as far where the device takes more: this box's, or the far end's, whose packets
// are as long as TCP was told here. It is never below what the networks inside need of a link.
//
// IPv6's longer header counts even where a site is now at an IPv4 address: sites roam, and names have both.
func (cfg *Config) InnerMTU(wire int) int {
	return max((wire-tunnel.OverheadIPv6)/padUnit*padUnit, cfg.leastMTU())
}

// PathMTU is the longest packet inside the tunnel of a class on a path that takes wire bytes; short says that this is
// less than what the device takes.
func (cfg *Config) PathMTU(c tunnel.Class, wire int) (mtu tunnel.InnerMTU, short bool) {
	device := cfg.Tunnels[c].MTU
	if !cfg.AutoMTU[c] || int(device)+tunnel.OverheadIPv6 <= wire {
		return device, false
	}
	mtu = tunnel.InnerMTU(cfg.InnerMTU(wire))
	return min(mtu, device), mtu < device
}

// Overhead is what WireGuard adds to a packet to a site over w, outer headers included.
func (w WAN) Overhead(s Site) int {
	if w.OuterIPv6(s) {
		return tunnel.OverheadIPv6
	}
	return tunnel.OverheadIPv4
}

// Reaches says whether a site's packets can leave by w, as far as the families of its addresses tell: to one of them.
func (w WAN) Reaches(s Site) bool {
	v4 := w.Leased() || slices.ContainsFunc(w.Addresses, is4) // a lease of DHCP is IPv4's, a session has both
	v6 := w.Autoconf() || slices.ContainsFunc(w.Addresses, is6)
	for _, host := range s.Endpoints() {
		if a, err := netip.ParseAddr(host); err != nil || a.Is4() && v4 || a.Is6() && v6 {
			return true
		}
	}
	return s.Endpoint == "" // it comes by itself
}
