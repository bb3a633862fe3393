package wanted

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

// copies says to which sites calls are sent twice, and how much that may take on each WAN: what its queues have for
// calls. A WAN whose uplink is not known bounds nothing. As soon as calls with one site are sent twice all sites are
// listed: the calls of the others leave less for copies.
func copies(cfg *config.Config, f Facts, queues qos.Input) (c tunnel.Copies) {
	wanted := func(s config.Site) bool {
		return s.Copies != tunnel.CopiesOff && s.Copies != "" && s.Via(tunnel.Voice) == tunnel.Voice
	}
	if !slices.ContainsFunc(cfg.Sites, wanted) || len(cfg.WANs) == 0 {
		return c
	}
	budgets, index := make([]qos.Budgets, len(cfg.WANs)), map[string]int{}
	for i, w := range cfg.WANs {
		line := tunnel.CopyLine{Sources: addressesOf(w, f)}
		line.Overhead = qos.EthernetHeader
		for _, q := range queues.WANs {
			if q.Interface != w.Interface || q.Shaped() == 0 {
				continue
			}
			line.Overhead, line.MPU, line.ATM = qos.EthernetHeader+q.Overhead, q.MPU, q.Cells == qos.ATM
			if budgets[i] = qos.VoiceBudgets(q.Line, queues.Sites, queues.Classes); !budgets[i].Reserved {
				line.Rate = budgets[i].Pool
			}
		}
		index[w.Interface] = i
		c.Lines = append(c.Lines, line)
	}
	for _, s := range cfg.Sites {
		if s.Via(tunnel.Voice) != tunnel.Voice {
			continue
		}
		wan := cfg.WANs[0].Interface
		if len(cfg.WANs) > 1 && f.Through != nil {
			wan = cmp.Or(f.Through(tunnel.Voice, s.Site), wan)
		}
		site := tunnel.CopySite{Key: s.PublicKey, When: cmp.Or(s.Copies, tunnel.CopiesOff), Line: index[wan]}
		for i := range budgets {
			site.Rates = append(site.Rates, budgets[i].Sites[s.Name])
		}
		c.Sites = append(c.Sites, site)
	}
	slices.SortFunc(c.Sites, func(x, y tunnel.CopySite) int { return bytes.Compare(x.Key[:], y.Key[:]) })
	c.Media = mediaMarks(cfg)
	return c
}

// addressesOf are all of ours on a WAN.
func addressesOf(w config.WAN, f Facts) (all []netip.Addr) {
	addresses, _ := learned(w, f)
	for _, a := range addresses {
		all = append(all, a.Addr())
	}
	return all
}
