package config

import (
	"fmt"
	"net/netip"
	"slices"

	"ringway/units"
)

const maxReach = 64

// reach reads the private networks that a WAN leads to.
func (c *checker) reach(l scalars) []netip.Prefix {
	if len(l.items) > maxReach {
		c.wrong(l.at, "has %d elements (allowed: up to %d)", len(l.items), maxReach)
	}
	var out []netip.Prefix
	for _, s := range l.items {
		p, ok := hostPrefix(s)
		if !ok {
			p, ok = c.prefix(s)
		}
		switch {
		case !ok:
		case p != p.Masked():
			c.wrong(s.at, "%s has host bits set (allowed: the network, %s)", p, p.Masked())
		case !slices.ContainsFunc(units.Private, p.Overlaps):
			c.wrong(s.at, "%s is not private, so it is reached anyway (allowed: private networks, like 192.168.100.1)", p)
		case slices.Contains(out, p):
			c.wrong(s.at, "%s is given twice (allowed: once)", p)
		default:
			out = append(out, p)
		}
	}
	return out
}

// reachOthers refuses what lies in a network of this box's LANs or of a site: it stays closed on WANs, so that the
// entry would do nothing.
func (c *checker) reachOthers(raw *rawFile, nets *networkSet) {
	c.eachReach(raw, func(s scalar, p netip.Prefix) {
		if n, ok := nets.holding(p.Addr()); ok && !n.wan && n.prefix.Bits() <= p.Bits() {
			c.wrong(s.at, "%s is inside %s of %s, which is never reached over a WAN in clear (allowed: other networks)",
				p, n.prefix, n.key)
		}
	})
}

// reachNotes says what stays closed of a wider entry, and which servers no entry holds.
func (c *checker) reachNotes(raw *rawFile, cfg *Config) {
	type named struct {
		name string
		nets []netip.Prefix
	}
	var closed []named
	var inside []netip.Prefix
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		closed = append(closed, named{l.Device(), l.Networks()})
	}
	for _, s := range cfg.Sites {
		closed = append(closed, named{"sites[" + s.Name + "]", s.Networks()})
	}
	c.eachReach(raw, func(s scalar, p netip.Prefix) {
		var held []string
		for _, n := range closed {
			if i := slices.IndexFunc(n.nets, p.Overlaps); i >= 0 {
				held = append(held, fmt.Sprintf("%s of %s", n.nets[i], n.name))
			}
		}
		switch {
		case len(held) == 1:
			c.warn(s.at, "%s holds %s, which stays closed", p, held[0])
		case len(held) > 1:
			c.warn(s.at, "%s holds %s and %d more, which stay closed", p, held[0], len(held)-1)
		}
	})

	for _, n := range closed {
		inside = append(inside, n.nets...)
	}
	for _, w := range cfg.WANs {
		inside = append(inside, w.Reach...)
	}
	in := func(a netip.Addr) bool {
		return slices.ContainsFunc(inside, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if cfg.SIP.Mode == SIPOff {
		return
	}
	for i, s := range cfg.SIP.Servers {
		for _, a := range s.Addresses {
			if units.IsPrivate(a) && !in(a) {
				c.warn(raw.SIP.Servers.items[i].Address.at,
					"%s is private, and in no network of this box or of a site: it is dropped on WANs unless wan[].reach has it", a)
			}
		}
	}
}

// hostPrefix is a single address as a network.
func hostPrefix(s scalar) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(s.text)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// eachReach calls f for each entry that is a prefix.
func (c *checker) eachReach(raw *rawFile, f func(scalar, netip.Prefix)) {
	for _, w := range raw.WAN.items {
		for _, s := range w.Reach.items {
			p, ok := hostPrefix(s)
			if !ok {
				var err error
				p, err = netip.ParsePrefix(s.text)
				ok = err == nil
			}
			if ok && s.ok() {
				f(s, p)
			}
		}
	}
}
