package wanted

import (
	"cmp"
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
	"ringway/units"
)

func firewallInput(cfg *config.Config, f Facts, queues qos.Input, mtus []SiteMTU) firewall.Input {
	in := firewall.Input{
		Classes:       cfg.Classes,
		LocalServices: served(cfg),
		Reflector:     cfg.Control.Reflector,
		Missing:       f.FirewallMissing,
		Dynamic:       DynamicSets(cfg),
		Signalling:    signalling(cfg),
		ShortPaths:    shortPaths(cfg, mtus),
		Terminated:    terminated(cfg, f),
		Boxes:         farBoxes(cfg),
	}
	in.Reach, in.Endpoints = reach(cfg, f), privateEndpoints(cfg)
	in.Parents = parents(cfg)
	in.Lines, in.Metered = lineMarks(cfg), MeteredWANs(cfg)
	for _, w := range cfg.WANs {
		in.WANs = append(in.WANs, w.Interface)
		if w.Autoconf() {
			in.DHCP = append(in.DHCP, w.Interface)
		}
		sent, received := w.InternetMTUs()
		if wire, _ := w.WireMTU(f.WireMTU[w.Interface]); wire < qos.InternetMTU {
			// As any router on such a line does: ICMP to servers is often filtered.
			sent, received = int(within(tunnel.InnerMTU(wire), sent)), int(within(tunnel.InnerMTU(wire), received))
		}
		if sent > 0 || received > 0 {
			in.Slow = append(in.Slow, firewall.SlowWAN{Device: w.Interface, Sent: sent, Received: received})
		}
	}
	lans := func(ls []routing.LAN) (out []firewall.LAN) {
		for _, l := range ls {
			out = append(out, firewall.LAN{
				Device: l.Device(), Networks: l.Networks(), Delegated: l.DelegatedNetworks(),
			})
		}
		return out
	}
	in.Voice, in.Data = lans(cfg.Voice), lans(cfg.Data)
	in.Subnets, in.Elsewhere = cfg.HasSubnets(), elsewhere(cfg, f)
	for _, c := range tunnel.Classes {
		t := cfg.Tunnels[c]
		in.Tunnels = append(
			in.Tunnels,
			firewall.Tunnel{Class: string(c), Device: t.Interface, ListenPort: t.ListenPort, MTU: int(t.MTU)},
		)
	}
	in.Peers, in.PeerQueues = peers(cfg, f, queues), len(cfg.Sites) > 0
	for _, p := range qos.Priorities(queues) {
		in.Priorities = append(in.Priorities, firewall.Priority{WAN: p.WAN, Class: p.Class, ClassID: p.ClassID})
	}
	in.Downlink = downlink(cfg, queues)
	in.SiteNetworks = f.Closed
	for _, s := range cfg.Sites {
		in.SiteVoiceNetworks = append(in.SiteVoiceNetworks, s.VoiceNetworks...)
		in.SiteDataNetworks = append(in.SiteDataNetworks, s.DataNetworks...)
		in.SiteFlatNetworks = append(in.SiteFlatNetworks, s.FlatNetworks...)
		if s.Tunnels == tunnel.CarriedVoice || s.Tunnels == tunnel.CarriedData {
			in.SingleSiteNetworks = append(in.SingleSiteNetworks, s.Networks()...)
		}
	}
	return in
}

// elsewhere says of each WAN which delegated prefixes are not its own.
func elsewhere(cfg *config.Config, f Facts) (out []firewall.Elsewhere) {
	if !cfg.HasSubnets() || len(cfg.WANs) < 2 {
		return nil
	}
	for _, w := range cfg.WANs {
		e := firewall.Elsewhere{Device: w.Interface}
		for _, o := range cfg.WANs {
			for _, d := range f.Delegated[o.Interface] {
				if o.Interface != w.Interface {
					e.Networks = append(e.Networks, d.Prefix)
				}
			}
		}
		out = append(out, e)
	}
	return out
}

// reach says which private addresses may be reached over each WAN.
func reach(cfg *config.Config, f Facts) []firewall.Reach {
	out := make([]firewall.Reach, 0, len(cfg.WANs))
	for _, w := range cfg.WANs {
		r := firewall.Reach{Device: w.Interface, Networks: w.Reach, Gateways: w.Gateways}
		if l, ok := f.Leases[w.Interface]; ok && w.Leased() {
			r.Gateways, r.DNS = append(slices.Clone(w.Gateways), l.Gateways...), l.DNS
			if l.Server.IsValid() {
				r.DHCP = []netip.Addr{l.Server}
			}
		}
		out = append(out, r)
	}
	return out
}

// privateEndpoints are the sites' that the config gives as private addresses.
func privateEndpoints(cfg *config.Config) (out []netip.Addr) {
	for _, s := range cfg.Sites {
		for _, host := range s.Endpoints() {
			if a, err := netip.ParseAddr(host); err == nil && units.IsPrivate(a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// parents are the network cards of VLANs, and the devices below PPP sessions, that carry no network of ours by
// themselves.
func parents(cfg *config.Config) (out []string) {
	untagged := map[string]bool{}
	for _, w := range cfg.WANs {
		untagged[w.Interface] = true
	}
	lans := slices.Concat(cfg.Voice, cfg.Data)
	for _, l := range lans {
		untagged[l.Device()] = true
	}
	add := func(device string) {
		if !untagged[device] && !slices.Contains(out, device) {
			out = append(out, device)
		}
	}
	for _, l := range lans {
		add(l.Interface)
	}
	for _, w := range cfg.WANs {
		if w.Card != "" {
			add(w.Card)
			add(w.Under())
		}
	}
	return out
}

// downlink says which queue what comes in takes on the LANs that have one.
func downlink(cfg *config.Config, queues qos.Input) (d firewall.Downlink) {
	for _, q := range qos.Downlinks(queues) {
		d.WANs = append(d.WANs, firewall.WANQueue{WAN: q.WAN, ClassID: q.ClassID})
	}
	if len(d.WANs) == 0 {
		return d
	}
	d.CallsID = qos.CallsID
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		if slices.Contains(queues.LANs, l.Interface) {
			d.LANs = append(d.LANs, l.Device())
		}
	}
	return d
}

// served is what the box serves to data networks: the config's services, and metrics where they are not for
// the box alone.
func served(cfg *config.Config) []qos.PortMatch {
	out := slices.Clone(cfg.Control.Services)
	for _, a := range cfg.Control.Metrics {
		if !a.Addr().IsLoopback() {
			out = append(out, qos.PortMatch{Protocol: qos.TCP, Low: a.Port(), High: a.Port()})
		}
	}
	return out
}

// peers says which queue the ciphertext to each site takes, by where the site is now. Where two are said to
// be in one place, as after a NAT gave a port to another, it is the one heard there last.
func peers(cfg *config.Config, f Facts, queues qos.Input) []firewall.Peer {
	if f.Heard == nil {
		return nil
	}
	id := map[string]map[qos.ClassName]uint32{}
	for _, p := range qos.SitePriorities(queues) {
		if id[p.Site] == nil {
			id[p.Site] = map[qos.ClassName]uint32{}
		}
		id[p.Site][p.Class] = p.ClassID
	}
	type heard struct {
		firewall.Peer
		when uint64
	}
	var all []heard
	for _, s := range cfg.Sites {
		for _, c := range tunnel.Classes {
			at, when := f.Heard(c, s.Site)
			if !s.Has(c) || !at.IsValid() || id[s.Name] == nil {
				continue
			}
			// Also where it may be sent to at any moment: the move must not have to wait for the firewall.
			places := []netip.AddrPort{at}
			if f.Remotes != nil && len(s.MoreEndpoints) > 0 {
				places = append(places, f.Remotes(c, s.Site)...)
			}
			for i, at := range places {
				if i > 0 {
					when = 0
				}
				for _, n := range innerClasses(c) {
					all = append(all, heard{firewall.Peer{Endpoint: at, Class: n, ClassID: id[s.Name][n]}, when})
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b heard) int { return cmp.Compare(b.when, a.when) })
	out := make([]firewall.Peer, len(all))
	for i, h := range all {
		out[i] = h.Peer
	}
	return out
}
