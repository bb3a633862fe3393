package config

import (
	"fmt"
	"net/netip"

	"ringway/routing"
)

// Lengths of a prefix that may be asked for.
const (
	widestPrefix    = 48
	narrowestPrefix = 64
)

// routerSuffix is the last half of this box's address in a delegated network, unless the config has another one.
var routerSuffix = netip.MustParseAddr("::1")

// dhcp6 reads what is asked for by DHCPv6. Without the key nothing is.
func (c *checker) dhcp6(r rawDHCP6, w *WAN) {
	if r.key == "" {
		return
	}
	if w.PPPoE != nil {
		c.wrong(r.at, "is not supported over PPPoE (allowed: on a WAN without pppoe)")
	}
	w.PrefixBits = c.integer(r.Prefix, 0, widestPrefix, narrowestPrefix)
	w.DHCP6Address = c.yesNo(r.Address, true)
	w.DHCP6 = w.PrefixBits > 0 || w.DHCP6Address
	if !w.DHCP6 && !r.Prefix.bad && !r.Prefix.set {
		c.wrong(r.at, "asks for nothing (allowed: a prefix of %d to %d, or address: true, or omit the key)",
			widestPrefix, narrowestPrefix)
	}
}

// subnets gives LANs their parts of the prefixes that are delegated to WANs.
func (c *checker) subnets(raw *rawFile, cfg *Config) {
	taken := map[string]at{}
	for _, of := range []struct {
		raw  []rawLAN
		lans []routing.LAN
	}{{raw.Voice.items, cfg.Voice}, {raw.Data.items, cfg.Data}} {
		for i, r := range of.raw {
			of.lans[i].Subnet = c.subnet(r, cfg, taken)
		}
	}
}

func (c *checker) subnet(r rawLAN, cfg *Config, taken map[string]at) (n routing.Subnet) {
	if !r.PrefixFrom.set {
		for _, s := range []scalar{r.Subnet, r.Suffix} {
			if s.set {
				c.wrong(s.at, "is set, but prefix_from is not (allowed: only with the WAN that the prefix comes from)")
			}
		}
		return n
	}
	suffix := c.suffix(r.Suffix)
	w, ok := c.delegating(r.PrefixFrom, cfg)
	if !r.Subnet.set {
		c.missing(r.at, "subnet", "the number of this network in the prefix, from 0; each once")
		return n
	}
	if !ok {
		return n
	}
	number := c.integer(r.Subnet, -1, 0, 1<<(narrowestPrefix-w.PrefixBits)-1)
	if number < 0 {
		return n
	}
	key := fmt.Sprintf("%s %d", w.Interface, number)
	if first, dup := taken[key]; dup {
		c.wrong(r.Subnet.at, "%d of %s is already used by %s in line %d (allowed: each subnet once)",
			number, w.Interface, first.key, first.line)
		return n
	}
	taken[key] = r.Subnet.at
	return routing.Subnet{WAN: w.Interface, Number: number, Suffix: suffix}
}

// delegating is the WAN of that name.
func (c *checker) delegating(s scalar, cfg *Config) (WAN, bool) {
	if !s.ok() {
		return WAN{}, false
	}
	for _, w := range cfg.WANs {
		if w.Interface == s.text && w.PrefixBits > 0 {
			return w, true
		}
	}
	c.wrong(s.at, "%s is not a WAN that asks for a prefix (allowed: the interface of a WAN with dhcp6.prefix)",
		show(s.text))
	return WAN{}, false
}

func (c *checker) suffix(s scalar) netip.Addr {
	if !s.ok() {
		return routerSuffix
	}
	a, err := netip.ParseAddr(s.text)
	b := a.As16()
	if err != nil || !a.Is6() || a.Zone() != "" || [8]byte(b[:8]) != [8]byte{} || a.IsUnspecified() {
		c.wrong(s.at, "%s is not the last half of an IPv6 address (allowed: like ::1, the first 64 bits zero)",
			show(s.text))
		return routerSuffix
	}
	return a
}

// Delegated is cfg with the networks that its LANs have by prefixes delegated to WANs, by interface. short are the LANs
// whose subnet a prefix does not have.
func (cfg *Config) Delegated(prefixes map[string][]routing.Delegation) (out *Config, short []Short) {
	next := *cfg
	fill := func(lans []routing.LAN) []routing.LAN {
		all := make([]routing.LAN, len(lans))
		for i, l := range lans {
			l.Delegated = nil
			for _, d := range prefixes[l.Subnet.WAN] {
				if a, ok := l.Subnet.In(d.Prefix); ok {
					l.Delegated = append(l.Delegated, a)
				} else if !d.Deprecated {
					short = append(short, Short{LAN: l, Prefix: d.Prefix})
				}
			}
			all[i] = l
		}
		return all
	}
	next.Voice, next.Data = fill(cfg.Voice), fill(cfg.Data)
	return &next, short
}

// Short is a prefix that is too long for a LAN's subnet.
type Short struct {
	LAN    routing.LAN
	Prefix netip.Prefix
}

// HasSubnets reports whether some LAN has a part of a delegated prefix.
func (cfg *Config) HasSubnets() bool {
	for _, lans := range [][]routing.LAN{cfg.Voice, cfg.Data} {
		for _, l := range lans {
			if l.Subnet.WAN != "" {
				return true
			}
		}
	}
	return false
}
