package config

import (
	"net/netip"
	"slices"
	"time"

	"ringway/qos"
	"ringway/routing"
)

const (
	maxWANs     = routing.MaxWANs
	defaultLink = "kernel"
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
		c.access(r, &w, devices)
		c.wanAddress(r, &w)
		nets.addOwn(w.Interface, true, r.Address, w.Addresses)
		w.Uplink, w.Downlink = c.rate(r.Uplink), c.rate(r.Downlink)
		w.ShapeDownlink = c.yesNo(r.ShapeDownlink, true)
		w.Margin = c.integer(r.Margin, DefaultMargin, 0, 30)
		w.LinkLayer = c.linkLayer(r)
		w.LinkMTU = linkMTU(r.Link.text)
		accessOverhead(r, &w)
		w.Serialization = c.duration(r.Serialization, DefaultSerialization, 0, 200*time.Millisecond, time.Millisecond,
			"0s for no bound, or 1ms to 200ms in whole milliseconds, like 10ms")
		w.TakeOver = c.yesNo(r.TakeOver, false)
		c.dhcpOptions(r, &w)
		w.Reach = c.reach(r.Reach)
		w.Targets, w.Volume = c.targets(r.Targets), c.metered(r.Metered)
		c.dhcp6(r.DHCP6, &w)
		cfg.WANs = append(cfg.WANs, w)
	}
}

func (c *checker) wanAddress(r rawWAN, w *WAN) {
	dhcp := func(s scalar) bool { return s.ok() && s.text == "dhcp" }
	switch {
	case w.PPPoE != nil:
		const allowed = "is set although PPPoE brings it (allowed: no address and no gateway with pppoe)"
		if r.Address.set {
			c.wrong(r.Address.at, allowed)
		}
		if r.Gateway.set {
			c.wrong(r.Gateway.at, allowed)
		}
		return
	case !r.Address.set || !r.Address.bad && len(r.Address.items) == 0:
		c.missing(r.at, "address", "dhcp, or this box's address with prefix length, or a list of them")
	case slices.ContainsFunc(r.Address.items, dhcp):
		w.DHCP = true
		if len(r.Address.items) > 1 {
			c.wrong(r.Address.at, "mixes dhcp with addresses (allowed: dhcp alone, or addresses)")
		}
		if r.Gateway.set && len(r.Gateway.items) > 0 {
			c.wrong(r.Gateway.at, "is set although the DHCP lease provides it (allowed: no gateway with dhcp)")
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
		c.wrong(
			s.at,
			"%s is not a gateway address (allowed: like 198.51.100.1 or fe80::1, without prefix length)",
			show(s.text),
		)
		return g, false
	}
	family := func(p netip.Prefix) bool { return p.Addr().Is4() == g.Is4() }
	switch {
	case slices.ContainsFunc(w.Gateways, func(o netip.Addr) bool { return o.Is4() == g.Is4() }):
		c.wrong(s.at, "%s is a second gateway for its address family (allowed: one for IPv4, one for IPv6)", g)
	case slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return p.Addr() == g }):
		c.wrong(s.at, "%s is this box's own address (allowed: the provider's router)", g)
	case !complete:
		return g, true // what is wrong with the addresses is said already
	case !slices.ContainsFunc(w.Addresses, family):
		c.wrong(
			s.at,
			"%s is %s, but the WAN has no address of that family (allowed: a gateway of the same family)",
			g,
			familyName(g),
		)
	case g.Is6() && g.IsLinkLocalUnicast():
		return g, true
	case slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return family(p) && p.IsSingleIP() }):
		return g, true // the provider has routed one address, and its router is on the link all the same
	case !slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return p.Contains(g) }):
		c.wrong(s.at, "%s is not in the WAN's network (allowed: an address in %s)", g, sameFamily(w.Addresses, g))
	default:
		return g, true
	}
	return g, false
}

// gateways refuses those of single addresses, which may be anywhere, in networks that are not the WAN's.
func (c *checker) gateways(raw *rawFile, cfg *Config, nets *networkSet) {
	for i, w := range cfg.WANs {
		for _, g := range w.Gateways {
			n, ok := nets.holding(g)
			if ok && !n.wan {
				c.wrong(raw.WAN.items[i].Gateway.at, "%s is inside %s of %s, which is reached through tunnels or is local "+
					"(allowed: the provider's router)", g, n.prefix, n.key)
			}
		}
	}
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

// linkLayer reads how the provider's meter counts: a name, and numbers that override what the name means.
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

// kbit rounds r down for a message.
func kbit(r qos.BitRate) qos.BitRate { return r / qos.Kbit * qos.Kbit }

// rates holds the voice budget to what the links can do: a call at least, there and back.
func (c *checker) rates(raw *rawFile, cfg *Config) {
	for i, w := range cfg.WANs {
		r, b := raw.WAN.items[i], cfg.Budget(w)
		media := b.Rate
		if media == 0 {
			continue
		}
		if call := b.MinRate(qos.G711, 1); media < call {
			line := w
			least := leastRate(
				w.Uplink,
				func(r qos.BitRate) bool { line.Uplink = r; return line.Media(cfg.Classes) >= call },
			)
			c.wrong(
				r.Uplink.at,
				"%s leaves media %s, and one G.711 call takes %s (allowed: at least %s, or a larger share of media)",
				w.Uplink,
				kbit(media),
				upKbit(call),
				least,
			)
		}
		// A call takes as much inwards. What is admitted by the uplink must find its way back.
		if down := w.ShapedDownlink(); w.Downlink > 0 && down < media {
			least := upKbit(media * 100 / qos.BitRate(100-w.Margin))
			for w.Shape(least, w.Margin) < media { // a line of cells carries less
				least += qos.Kbit
			}
			c.wrong(
				r.Downlink.at,
				"%s carries less inbound than the %s that media may send (allowed: at least %s, or a smaller share of media)",
				w.Downlink,
				kbit(media),
				least,
			)
		}
	}
}

// siteRates holds the voice budget of each site with a downlink to at least one call, where the uplink
// carries that.
func (c *checker) siteRates(raw *rawFile, cfg *Config) {
	for i, s := range cfg.Sites {
		for _, w := range cfg.WANs {
			b, ok := cfg.SiteBudget(w, s, !lanHas(cfg.Voice, is4))
			call := b.MinRate(qos.G711, 1)
			if !ok || s.Downlink == 0 || b.Rate >= call || w.Media(cfg.Classes) < call {
				continue
			}
			wider := s
			least := leastRate(s.Downlink, func(r qos.BitRate) bool {
				wider.Downlink = r
				return w.VoiceBudget(wider.Queue(), cfg.Classes) >= call
			})
			c.wrong(
				raw.Sites.items[i].Downlink.at,
				"%s leaves media %s, and one G.711 call on %s takes %s (allowed: at least %s, or a larger share of media)",
				s.Downlink,
				kbit(b.Rate),
				w.Interface,
				upKbit(call),
				least,
			)
			break
		}
	}
}

// leastRate is the smallest rate, in whole 10 kbit from r upwards, that is enough.
func leastRate(r qos.BitRate, enough func(qos.BitRate) bool) qos.BitRate {
	const step = 10 * qos.Kbit
	for r = r / step * step; !enough(r); r += step {
	}
	return r
}

// upKbit rounds r up for a message.
func upKbit(r qos.BitRate) qos.BitRate { return (r + qos.Kbit - 1) / qos.Kbit * qos.Kbit }
