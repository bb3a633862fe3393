package config

import (
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

const (
	maxWANs     = 8
	defaultLink = "kernel"
)

// Bytes of one G.711 packet of 20 ms inside the tunnel: 160 of sound, RTP, UDP, IP.
const (
	g711IPv4    = 160 + 12 + 8 + 20
	g711IPv6    = 160 + 12 + 8 + 40
	callPackets = 50 // a second
)

func (c *checker) wans(raw *rawFile, cfg *Config, nets *networkSet, devices *deviceSet) {
	switch l := raw.WAN; {
	case !l.set:
		c.add(0, "wan", "is missing (allowed: at least one uplink with interface and address)")
	case !l.bad && len(l.items) == 0:
		c.wrong(l.at, "is empty (allowed: at least one uplink with interface and address)")
	case len(l.items) > maxWANs:
		c.wrong(l.at, "has %d elements (allowed: up to %d)", len(l.items), maxWANs)
	}
	for _, r := range raw.WAN.items {
		w := WAN{}
		c.need(r.at, r.Interface, "interface", "the network interface, like wan0")
		w.Interface = c.netdev(r.Interface)
		devices.add(w.Interface, r.Interface.at)
		c.wanAddress(r, &w)
		nets.addOwn(w.Interface, true, r.Address, w.Addresses)
		w.Uplink, w.Downlink = c.rate(r.Uplink), c.rate(r.Downlink)
		w.Margin = c.integer(r.Margin, DefaultMargin, 0, 30)
		w.LinkLayer = c.linkLayer(r)
		w.TakeOver = c.yesNo(r.TakeOver, false)
		cfg.WANs = append(cfg.WANs, w)
	}
}

func (c *checker) wanAddress(r rawWAN, w *WAN) {
	dhcp := func(s scalar) bool { return s.ok() && s.text == "dhcp" }
	switch {
	case !r.Address.set || !r.Address.bad && len(r.Address.items) == 0:
		c.missing(r.at, "address", "dhcp, or this box's address with prefix length, or a list of them")
	case slices.ContainsFunc(r.Address.items, dhcp):
		w.DHCP = true
		if len(r.Address.items) > 1 {
			c.wrong(r.Address.at, "has dhcp beside other addresses (allowed: dhcp alone, or addresses)")
		}
		if r.Gateway.set && len(r.Gateway.items) > 0 {
			c.wrong(r.Gateway.at, "is set, but comes with the DHCP lease (allowed: no gateway beside dhcp)")
		}
		return
	}
	w.Addresses = c.addresses(r.Address, 32, 128)
	complete := !r.Address.bad && len(w.Addresses) == len(r.Address.items)
	for _, s := range r.Gateway.items {
		if g, ok := c.gateway(s, w, complete); ok {
			w.Gateways = append(w.Gateways, g)
		}
	}
}

func (c *checker) gateway(s scalar, w *WAN, complete bool) (netip.Addr, bool) {
	if !s.ok() {
		return netip.Addr{}, false
	}
	g, err := netip.ParseAddr(s.text)
	if err != nil || g.Zone() != "" || g.Is4In6() || g.IsUnspecified() || g.IsMulticast() || g.IsLoopback() {
		c.wrong(s.at, "%s is no gateway address (allowed: like 198.51.100.1 or fe80::1, without prefix length)", show(s.text))
		return g, false
	}
	family := func(p netip.Prefix) bool { return p.Addr().Is4() == g.Is4() }
	switch {
	case slices.ContainsFunc(w.Gateways, func(o netip.Addr) bool { return o.Is4() == g.Is4() }):
		c.wrong(s.at, "%s is a second gateway of its family (allowed: one for IPv4, one for IPv6)", g)
	case slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return p.Addr() == g }):
		c.wrong(s.at, "%s is this box's own address (allowed: the provider's router)", g)
	case !complete:
		return g, true // what is wrong with the addresses is said already
	case !slices.ContainsFunc(w.Addresses, family):
		c.wrong(s.at, "%s is %s, but address has none of that family (allowed: a gateway of the addresses' family)", g, familyName(g))
	case g.Is6() && g.IsLinkLocalUnicast():
		return g, true
	case !slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return p.Contains(g) }):
		c.wrong(s.at, "%s is not in the WAN's network (allowed: an address in %s)", g, sameFamily(w.Addresses, g))
	default:
		return g, true
	}
	return g, false
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func sameFamily(ps []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, p := range ps {
		if p.Addr().Is4() == a.Is4() {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}

// linkLayer reads how the provider's meter counts: a name, and numbers that go before what the name means.
func (c *checker) linkLayer(r rawWAN) qos.LinkLayer {
	l, err := qos.ParseLink(c.choice(r.Link, defaultLink, qos.LinkNames()...))
	if err != nil {
		return l // said by choice
	}
	l.Overhead = c.integer(r.Overhead, l.Overhead, -14, 64)
	l.MPU = c.integer(r.MPU, l.MPU, 0, 256)
	cells := map[qos.Cells]string{qos.NoCells: "none", qos.ATM: "atm", qos.PTM: "ptm"}
	chosen := c.choice(r.Cells, cells[l.Cells], "none", "atm", "ptm")
	for k, word := range cells {
		if word == chosen {
			l.Cells = k
		}
	}
	return l
}

// CallRate is what one direction of one G.711 call of 20 ms packets takes of w's uplink, as the provider's meter counts it.
func (cfg *Config) CallRate(w WAN) qos.BitRate {
	return RateOfCall(cfg.CallPacket(w, cfg.Tunnels[tunnel.Voice].PadTo))
}

// RateOfCall is what one direction of a call of 20 ms packets takes whose packets are that long.
func RateOfCall(packet qos.ByteCount) qos.BitRate { return qos.BitRate(packet * 8 * callPackets) }

// CallPacket is how long a G.711 packet of 20 ms is on w: it is padded to padTo, and to 16 bytes by WireGuard, then come
// WireGuard's header and tag, UDP, IP and the WAN's own framing.
func (cfg *Config) CallPacket(w WAN, padTo int) qos.ByteCount {
	inner, outer := g711IPv4, tunnel.OverheadIPv4
	if !slices.ContainsFunc(cfg.Voice, func(l routing.LAN) bool { return slices.ContainsFunc(l.Addresses, is4) }) {
		inner = g711IPv6
	}
	if !w.DHCP && !slices.ContainsFunc(w.Addresses, is4) {
		outer = tunnel.OverheadIPv6
	}
	inner = (max(inner, padTo) + 15) / 16 * 16
	if mtu := int(cfg.Tunnels[tunnel.Voice].MTU); mtu > 0 {
		inner = min(inner, mtu) // WireGuard pads no further
	}
	return w.Wire(qos.ByteCount(inner + outer + qos.EthernetHeader))
}

// Shaped is the rate that w's queues are held to: the uplink less its margin.
func (w WAN) Shaped() qos.BitRate { return w.Shape(w.Uplink, w.Margin) }

// Calls is how many G.711 calls at once fit the voice budget of w; 0 where the uplink is not known.
func (cfg *Config) Calls(w WAN) int {
	return int(cfg.mediaRate(w) / cfg.CallRate(w))
}

func (cfg *Config) mediaRate(w WAN) qos.BitRate {
	for _, cl := range cfg.Classes {
		if cl.Name == qos.Media {
			return w.Shaped().Percent(cl.Share)
		}
	}
	return 0
}

func is4(p netip.Prefix) bool { return p.Addr().Is4() }

// kbit rounds r down for a message.
func kbit(r qos.BitRate) qos.BitRate { return r / qos.Kbit * qos.Kbit }

// rates holds the voice budget to at least one call.
func (c *checker) rates(raw *rawFile, cfg *Config) {
	for i, w := range cfg.WANs {
		if w.Uplink == 0 || cfg.Calls(w) > 0 || cfg.mediaRate(w) == 0 {
			continue
		}
		c.wrong(raw.WAN.items[i].Uplink.at, "%s leaves media %s, and one G.711 call takes %s (allowed: at least %s, or a larger share of media)",
			w.Uplink, kbit(cfg.mediaRate(w)), kbit(cfg.CallRate(w)), cfg.leastUplink(w))
	}
}

// siteRates holds the voice budget of each site with a downlink to at least one call.
func (c *checker) siteRates(raw *rawFile, cfg *Config) {
	for i, s := range cfg.Sites {
		for _, w := range cfg.WANs {
			if s.Downlink == 0 || w.Uplink == 0 || cfg.Calls(w) == 0 {
				continue
			}
			line := w // as narrow as the site's
			line.Uplink = min(s.Downlink, w.Uplink)
			if cfg.Calls(line) > 0 {
				continue
			}
			c.wrong(raw.Sites.items[i].Downlink.at, "%s leaves media %s, and one G.711 call on %s takes %s (allowed: at least %s, or a larger share of media)",
				s.Downlink, kbit(cfg.mediaRate(line)), w.Interface, kbit(cfg.CallRate(w)), cfg.leastUplink(line))
			break
		}
	}
}

// leastUplink is the smallest uplink, in whole 10 kbit, whose voice budget holds a call.
func (cfg *Config) leastUplink(w WAN) qos.BitRate {
	const step = 10 * qos.Kbit
	for w.Uplink = w.Uplink / step * step; cfg.Calls(w) < 1; w.Uplink += step {
	}
	return w.Uplink
}
