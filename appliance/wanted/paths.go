package wanted

import (
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/tunnel"
)

// paths is what the engine of a class needs to know of paths. sources are the addresses of the lines, in order of
// preference: the first of each family that leads out; none where there is one line and no site has several addresses.
func paths(cfg *config.Config, f Facts, c tunnel.Class) (sources []netip.Addr, p tunnel.Paths) {
	if len(cfg.WANs) < 2 && !slices.ContainsFunc(cfg.Sites, hasSeveral) {
		return nil, p
	}
	metered := MeteredWANs(cfg)
	for _, w := range cfg.WANs {
		paid := slices.Contains(metered, w.Interface)
		if paid && c == tunnel.Data { // it carries calls only
			continue
		}
		for _, a := range lineAddresses(w, f) {
			sources = append(sources, a)
			p.Lines = append(p.Lines, tunnel.PathLine{Source: a, Rate: w.Uplink, Metered: paid})
		}
	}
	for _, s := range cfg.Sites {
		peer := tunnel.PeerPaths{Key: s.PublicKey, Rate: s.Downlink}
		if hasSeveral(s) && f.Remotes != nil {
			peer.Remotes = f.Remotes(c, s.Site)
		}
		if s.Has(c) && (len(peer.Remotes) > 1 || peer.Rate > 0) {
			p.Peers = append(p.Peers, peer)
		}
	}
	return sources, p
}

func hasSeveral(s config.Site) bool { return len(s.MoreEndpoints) > 0 }

// lineAddresses are the address of each family that a WAN's line leads out from.
func lineAddresses(w config.WAN, f Facts) (all []netip.Addr) {
	addresses, gateways := learned(w, f)
	for _, v4 := range []bool{true, false} {
		i := slices.IndexFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
		leads := slices.ContainsFunc(gateways, func(g netip.Addr) bool { return g.Is4() == v4 })
		if i >= 0 && leads {
			all = append(all, addresses[i].Addr())
		}
	}
	return all
}

// learned are the addresses and gateways of a WAN: those of the config, of its lease (DHCP, PPPoE), and of its router
// advertisements. routing puts the same ones on the device.
func learned(w config.WAN, f Facts) (addresses []netip.Prefix, gateways []netip.Addr) {
	addresses, gateways = slices.Clone(w.Addresses), slices.Clone(w.Gateways)
	if l, ok := f.Leases[w.Interface]; ok && w.Leased() && l.Address.IsValid() {
		addresses, gateways = append(addresses, l.Address), append(gateways, l.Gateways...)
	}
	if a := f.Advertised[w.Interface]; w.Autoconf() {
		addresses = append(addresses, a.Addresses...)
		if a.Gateway.IsValid() {
			gateways = append(gateways, a.Gateway)
		}
	}
	return addresses, gateways
}
