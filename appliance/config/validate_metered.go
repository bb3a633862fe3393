package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"ringway/tunnel"
	"ringway/units"
)

const (
	maxTargets = 4
	maxFromDay = 28 // every month has it
)

// targets reads the addresses that show whether a line delivers.
func (c *checker) targets(l scalars) []netip.Addr {
	if len(l.items) > maxTargets {
		c.wrong(l.at, "has %d elements (allowed: up to %d)", len(l.items), maxTargets)
	}
	var out []netip.Addr
	for _, s := range l.items {
		if !s.ok() {
			continue
		}
		a, err := netip.ParseAddr(s.text)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() ||
			a.IsLinkLocalUnicast():
			c.wrong(s.at, "%s is not an address of a host on the internet (allowed: like 9.9.9.9 or 2620:fe::fe)", show(s.text))
		case slices.Contains(out, a):
			c.wrong(s.at, "%s is given twice (allowed: once)", a)
		default:
			out = append(out, a)
		}
	}
	return out
}

// targetsOthers refuses targets that no packet of this WAN reaches.
func (c *checker) targetsOthers(raw *rawFile, cfg *Config, nets *networkSet) {
	for i, w := range cfg.WANs {
		for _, s := range raw.WAN.items[i].Targets.items {
			a, err := netip.ParseAddr(s.text)
			if err != nil || !s.ok() || a.IsLinkLocalUnicast() {
				continue // said already
			}
			in := func(p netip.Prefix) bool { return p.Contains(a) }
			if n, ok := nets.holding(a); ok && !n.wan {
				c.wrong(s.at, "%s is inside %s of %s, which is never reached over a WAN in clear "+
					"(allowed: a host on the internet)", a, n.prefix, n.key)
			} else if units.IsPrivate(a) && !slices.ContainsFunc(w.Reach, in) && !slices.Contains(w.Gateways, a) {
				c.wrong(s.at, "%s is private and would be dropped on this WAN "+
					"(allowed: a host on the internet, or one in reach)", a)
			}
		}
	}
}

var volume = regexp.MustCompile(`^([1-9][0-9]{0,5})(MB|GB|TB)$`)

// metered reads the budget of a line whose volume counts; nil: it does not.
func (c *checker) metered(r rawMetered) *Volume {
	if r.line == 0 {
		return nil
	}
	v := &Volume{FromDay: c.integer(r.FromDay, 1, 1, maxFromDay)}
	if s := r.Budget; s.ok() {
		m := volume.FindStringSubmatch(s.text)
		if m == nil {
			c.wrong(s.at, "%s is not a volume (allowed: an integer up to 999999 with MB, GB or TB, like 5GB)", show(s.text))
			return v
		}
		n, _ := strconv.ParseUint(m[1], 10, 64) // at most six digits
		v.Budget = n * map[string]uint64{"MB": 1e6, "GB": 1e9, "TB": 1e12}[m[2]]
	}
	return v
}

// meteredNotes says what a metered line means for data, and for sites with one tunnel.
func (c *checker) meteredNotes(raw *rawFile, cfg *Config) {
	var first at
	others := false
	for i, w := range cfg.WANs {
		switch {
		case w.Volume == nil:
			others = true
		case first.line == 0:
			first = raw.WAN.items[i].Metered.at
		}
	}
	if first.line == 0 {
		return
	}
	if !others {
		c.warn(first, "no WAN is left for data: the internet of the LANs and the data tunnel stay closed (allowed: "+
			"another WAN that is not metered)")
	}
	for _, s := range cfg.Sites {
		switch {
		case s.Has(tunnel.Voice) && s.Has(tunnel.Data):
		case s.Has(tunnel.Voice):
			c.warn(first, "site %s has the voice tunnel alone: its data goes over this line, too", s.Name)
		default:
			c.warn(first, "site %s has the data tunnel alone: its calls do not go over this line", s.Name)
		}
	}
}
