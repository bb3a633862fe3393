package config

import (
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/routing"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
	"ringway/tunnel"
)

const minIPv4MTU = 576 // what every IPv4 host takes (RFC 791, section 3.1); below it no size helps

// Egress is w as its queues see it, mtu being its interface's (bytes; 0 = 1500).
func (w WAN) Egress(mtu int) qos.Egress {
	e := qos.Egress{Interface: w.Interface, Line: w.Line, MTU: mtu, Headerless: w.PPPoE != nil, Tagged: w.Tags != nil}
	if !w.ShapeDownlink {
		e.Downlink = 0
	}
	return e
}

// Queue is s as the queues see it.
func (s Site) Queue() qos.Site { return qos.Site{Name: s.Name, Downlink: s.Downlink} }

// Cards are the interfaces that LANs are on, without those that are a WAN's as well. VLANs share theirs.
func (cfg *Config) Cards() (out []string) {
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		wan := slices.ContainsFunc(cfg.WANs, func(w WAN) bool { return w.Interface == l.Interface || w.Card == l.Interface })
		if !wan && !slices.Contains(out, l.Interface) {
			out = append(out, l.Interface)
		}
	}
	return out
}

// QueueSites are all of them.
func (cfg *Config) QueueSites() []qos.Site {
	var out []qos.Site
	for _, s := range cfg.Sites {
		out = append(out, s.Queue())
	}
	return out
}

// Tunnel is the tunnel of a class as far as the size of its packets goes.
func (cfg *Config) Tunnel(c tunnel.Class) qos.Tunnel {
	t := cfg.Tunnels[c]
	return qos.Tunnel{PadTo: qos.ByteCount(t.PadTo), MTU: qos.ByteCount(t.MTU)}
}

// OuterIPv6 says whether the tunnels to s are to be reckoned with IPv6's longer header on w: where the
// endpoint is a name, which may resolve to either family, or there are addresses of both, the longer one counts. A WAN
// with a lease counts as IPv4's: the address is DHCPv4's, and names are asked for IPv4 first.
func (w WAN) OuterIPv6(s Site) bool {
	six, four, name := s.endpointFamilies()
	has4, has6 := slices.ContainsFunc(w.Addresses, is4), slices.ContainsFunc(w.Addresses, is6)
	switch {
	case six && !four && !name:
		return true
	case six && (has6 || w.Autoconf()):
		return true
	case four && !name:
		return false
	}
	return has6 || w.DHCP6 && !w.Leased() && !has4
}

// endpointFamilies says of which families addresses of the site are, and whether an endpoint is a name.
func (s Site) endpointFamilies() (six, four, name bool) {
	for _, host := range s.Endpoints() {
		a, err := netip.ParseAddr(host)
		six, four, name = six || err == nil && a.Is6(), four || err == nil && a.Is4(), name || err != nil
	}
	return six, four, name
}

// anyOuterIPv6 says the same of all sites together.
func (cfg *Config) anyOuterIPv6(w WAN) bool {
	if len(cfg.Sites) == 0 {
		return !w.Leased() && !slices.ContainsFunc(w.Addresses, is4)
	}
	return slices.ContainsFunc(cfg.Sites, w.OuterIPv6)
}

// Budget is what the calls with a site whose own line does not bound them may take over w, each counted as
// the dearest that there may be: where sites differ, as over IPv6 outside.
func (cfg *Config) Budget(w WAN) qos.Budget {
	return qos.Budget{
		Rate:     w.Media(cfg.Classes),
		Envelope: w.Envelope(cfg.Tunnel(tunnel.Voice), cfg.anyOuterIPv6(w)),
		CallIPv6: !lanHas(cfg.Voice, is4),
	}
}

// Calls is how many G.711 calls at once fit the voice budget of w; 0 where the uplink is not known.
func (cfg *Config) Calls(w WAN) int { return cfg.Budget(w).Calls(qos.G711) }

// SiteBudget is what the calls with s may take over w: ceiling of the site's class media in the queues, which
// is the share of media of the uplink, or of the site's downlink where that is less; 0 where the uplink is
// not known. Calls of a site without a tunnel for voice travel as data, and have none.
func (cfg *Config) SiteBudget(w WAN, s Site, callIPv6 bool) (b qos.Budget, ok bool) {
	if s.Via(tunnel.Voice) != tunnel.Voice {
		return qos.Budget{}, false
	}
	return qos.Budget{
		Rate:     w.VoiceBudget(s.Queue(), cfg.Classes),
		Envelope: w.Envelope(cfg.Tunnel(tunnel.Voice), w.OuterIPv6(s)),
		CallIPv6: callIPv6,
		SRTP:     s.SRTPOverhead(),
	}, true
}

// SRTPOverhead is by how many bytes this box makes media to the site longer, at most; 0: it does not encrypt it.
// Between boxes the suite is known, phones choose theirs.
func (s Site) SRTPOverhead() qos.ByteCount {
	phone, _ := offer.Overhead(suite.AEADAES256GCM, 0)
	box, _ := offer.Overhead(suite.AEADAES128GCM, offer.ChannelMKI)
	switch {
	case s.SRTP == offer.Off:
		return 0
	case s.Box.IsValid():
		return qos.ByteCount(box)
	}
	return qos.ByteCount(phone)
}

// CallFamilies says over what phones here and at s can call each other: IPv4, then IPv6.
func (cfg *Config) CallFamilies(s Site) (ipv6 []bool) {
	for _, six := range []bool{false, true} {
		is := func(p netip.Prefix) bool { return p.Addr().Is6() == six }
		if lanHas(cfg.Voice, is) && slices.ContainsFunc(slices.Concat(s.VoiceNetworks, s.FlatNetworks), is) {
			ipv6 = append(ipv6, six)
		}
	}
	return ipv6
}

// leastMTU is what a tunnel cannot go below.
func (cfg *Config) leastMTU() int {
	six := lanHas(slices.Concat(cfg.Voice, cfg.Data), is6)
	for _, s := range cfg.Sites {
		six = six || slices.ContainsFunc(s.Networks(), is6)
	}
	if six {
		return minIPv6MTU
	}
	return minIPv4MTU
}

// dataMTU is the longest packet of the data tunnel that keeps no WAN busy for longer than its bound: between
// leastMTU and most.
func (cfg *Config) dataMTU(most int) int {
	mtu, least := most, cfg.leastMTU()
	for _, w := range cfg.WANs {
		mtu = min(mtu, w.FitTunnel(cfg.Tunnel(tunnel.Data), cfg.anyOuterIPv6(w), w.Shaped(), least, most))
	}
	return mtu
}

// FullPacket is what the longest packet of a tunnel counts on w.
func (cfg *Config) FullPacket(w WAN, c tunnel.Class) qos.ByteCount {
	e := w.Envelope(cfg.Tunnel(c), cfg.anyOuterIPv6(w))
	return e.OnWire(e.MTU)
}

// SiteMTUs is the longest packet of data to each site where it has to be shorter than what carries it takes:
// since the site's line is slow inwards (a hub's other sites keep theirs), or because its one tunnel is that
// for voice, whose MTU is not for data.
func (cfg *Config) SiteMTUs() map[string]int {
	least, out := cfg.leastMTU(), map[string]int{}
	for _, s := range cfg.Sites {
		down, via := s.Downlink, s.Via(tunnel.Data)
		if down == 0 && via == tunnel.Data {
			continue
		}
		most := int(cfg.Tunnels[via].MTU)
		mtu := most
		for _, w := range cfg.WANs { // what the far line adds is not known: it is taken to be like ours
			size := w.Envelope(cfg.Tunnel(via), w.OuterIPv6(s)).OnWire // padded as far as the tunnel's mtu
			mtu = min(mtu, w.Fit(w.Shape(down, w.Margin), least, most, size))
			if via != tunnel.Data {
				mtu = min(mtu, w.Fit(w.Shaped(), least, most, size))
			}
		}
		if mtu < most {
			out[s.Name] = mtu
		}
	}
	return out
}

// InternetMTUs is how long the packets of local TCP connections over w may be, sent and received: 0 where any
// may.
func (w WAN) InternetMTUs() (sent, received int) { return w.Line.InternetMTUs(minIPv4MTU) }

func is4(p netip.Prefix) bool { return p.Addr().Is4() }

func lanHas(lans []routing.LAN, test func(netip.Prefix) bool) bool {
	return slices.ContainsFunc(lans, func(l routing.LAN) bool { return slices.ContainsFunc(l.Addresses, test) })
}
