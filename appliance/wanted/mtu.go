package wanted

import (
	"fmt"
	"maps"
	"slices"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/tunnel"
)

// SiteMTU is how long packets inside the tunnels to a site may be so that none leaves in fragments, and why.
type SiteMTU struct {
	Site        string
	Voice, Data ClassMTU
	Short       tunnel.InnerMTU // what routes and TCP's segments to the site keep to; 0: what the devices take
	Path        string          // what decides how long packets outside may be: "lte0 takes 1400 bytes"
}

// ClassMTU is the MTU of one class, and what decides it, in words.
type ClassMTU struct {
	MTU tunnel.InnerMTU
	Why string
}

// siteMTUs finds the MTU of each site's path: what the smallest of the WANs that can carry it takes, or what probing
// found where that is less. cfg is as config.OnWANs returns it.
func siteMTUs(cfg *config.Config, f Facts) (out []SiteMTU) {
	slow := cfg.SiteMTUs()
	for _, s := range cfg.Sites {
		wire, why := pathMTU(cfg, s, f)
		m := SiteMTU{Site: s.Name, Path: why}
		for _, c := range tunnel.Classes {
			if mtu, short := cfg.PathMTU(s.Via(c), wire); short && (m.Short == 0 || mtu < m.Short) {
				m.Short = mtu
			}
		}
		m.Voice = m.class(cfg, f, s.Via(tunnel.Voice), 0)
		m.Data = m.class(cfg, f, s.Via(tunnel.Data), slow[s.Name])
		out = append(out, m)
	}
	return out
}

// pathMTU is how long outer packets to a site may be, and why.
func pathMTU(cfg *config.Config, s config.Site, f Facts) (wire int, why string) {
	for _, w := range cfg.WANs {
		n, byLink := w.WireMTU(f.WireMTU[w.Interface])
		if !w.Reaches(s) || wire > 0 && n >= wire {
			continue
		}
		wire, why = n, fmt.Sprintf("%s takes %d bytes", w.Interface, n)
		if byLink {
			why = fmt.Sprintf("the link of %s takes %d bytes", w.Interface, n)
		}
	}
	if n := f.PathMTU[s.Name]; n > 0 && n < wire && shorter(cfg, s, n, wire) {
		wire, why = n, fmt.Sprintf("the path takes %d bytes", n)
	}
	return wire, why
}

// shorter reports whether packets inside have to be shorter where the path takes n bytes than where it takes wire.
// Probing finds lengths in steps, so that one below what the WAN takes may mean the same.
func shorter(cfg *config.Config, s config.Site, n, wire int) bool {
	return slices.ContainsFunc(tunnel.Classes, func(c tunnel.Class) bool {
		here, _ := cfg.PathMTU(s.Via(c), n)
		there, _ := cfg.PathMTU(s.Via(c), wire)
		return here < there
	})
}

// probeMTU is the longest outer packet that paths are probed for: no device sends longer ones over IPv6. Where both
// tunnels' mtu is set by hand nothing follows from what paths take, and none is. cfg is as config.OnWANs returns it.
func probeMTU(cfg *config.Config, f Facts) int {
	if !cfg.AutoMTU[tunnel.Voice] && !cfg.AutoMTU[tunnel.Data] || len(cfg.Sites) == 0 {
		return 0
	}
	return max(cfg.WidestMTU(f.WireMTU)+tunnel.OverheadIPv6, tunnel.LeastProbeMTU)
}

// class is the MTU of a class that tunnel c carries; slow is what a slow line leaves, 0: no bound.
func (m SiteMTU) class(cfg *config.Config, f Facts, c tunnel.Class, slow int) ClassMTU {
	device := cfg.Tunnels[c].MTU
	path := within(device, int(m.Short))
	mtu := within(path, slow)
	slowLine := cfg.AutoMTU[c] && int(device) < cfg.WidestMTU(f.WireMTU)
	switch {
	case mtu < path, mtu == device && slowLine:
		return ClassMTU{mtu, "a line is slow"}
	case !cfg.AutoMTU[c] && mtu == device:
		return ClassMTU{mtu, fmt.Sprintf("tunnels[%s].mtu says", c)}
	case mtu == config.DefaultMTU:
		return ClassMTU{mtu, "it is the default"}
	}
	return ClassMTU{mtu, m.Path}
}

// within is mtu, or bound where that is less; 0: no bound.
func within(mtu tunnel.InnerMTU, bound int) tunnel.InnerMTU {
	if bound > 0 {
		return min(mtu, tunnel.InnerMTU(bound))
	}
	return mtu
}

// shortPaths groups sites by what TCP's segments keep to, for the firewall.
func shortPaths(cfg *config.Config, mtus []SiteMTU) (out []firewall.ShortPath) {
	byMTU := map[int]firewall.ShortPath{}
	for i, m := range mtus {
		if m.Short == 0 {
			continue
		}
		p := byMTU[int(m.Short)]
		p.MTU = int(m.Short)
		p.Networks = append(p.Networks, cfg.Sites[i].Networks()...)
		byMTU[p.MTU] = p
	}
	for _, mtu := range slices.Sorted(maps.Keys(byMTU)) {
		out = append(out, byMTU[mtu])
	}
	return out
}

// shortest is the least of all sites; 0: all take what the devices do.
func shortest(mtus []SiteMTU) (least int) {
	for _, m := range mtus {
		if n := int(m.Short); n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

// Fragmented is a WAN on which full packets leave in fragments although nothing has to be sent so, and what to do.
type Fragmented struct {
	WAN    string
	Text   string
	Action string
}

// Fragments lists the WANs whose packets are shorter than those of tunnels, by their setting or since IPv6 needs more.
func Fragments(cfg *config.Config, f Facts) (out []Fragmented) {
	cfg = cfg.OnWANs(f.WireMTU)
	for _, w := range cfg.WANs {
		wire, _ := w.WireMTU(f.WireMTU[w.Interface])
		for _, s := range cfg.Sites {
			found, is := fragmented(cfg, w, s, wire)
			if is && w.Reaches(s) {
				out = append(out, found)
				break
			}
		}
	}
	return out
}

func fragmented(cfg *config.Config, w config.WAN, s config.Site, wire int) (Fragmented, bool) {
	overhead := w.Overhead(s)
	for _, c := range tunnel.Classes {
		mtu, _ := cfg.PathMTU(c, wire)
		if !s.Has(c) || int(mtu)+overhead <= wire {
			continue
		}
		f := Fragmented{WAN: w.Interface}
		f.Text = fmt.Sprintf("full packets to %s leave in fragments: the %s tunnel's MTU of %d and WireGuard's %d bytes "+
			"exceed the %d that the WAN takes", s.Name, c, mtu, overhead, wire)
		f.Action = fmt.Sprintf("set tunnels[%s].mtu: auto", c)
		if cfg.AutoMTU[c] { // as small as IPv6 allows
			f.Action = fmt.Sprintf("raise the WAN's MTU to %d: IPv6 networks need packets of 1280 bytes inside",
				int(mtu)+overhead)
		}
		return f, true
	}
	return Fragmented{}, false
}
