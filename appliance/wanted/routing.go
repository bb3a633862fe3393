package wanted

import (
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

func routingInput(cfg *config.Config, f Facts, queues qos.Input, devs []tunnel.Device, mtus []SiteMTU) routing.Input {
	in := routing.Input{LANs: append(slices.Clone(cfg.Voice), cfg.Data...), Leases: f.Leases, Advertised: f.Advertised,
		Delegated: f.Delegated, Silent: f.Silent,
		VoiceSource: routing.FirstAddresses(cfg.Voice), DataSource: routing.FirstAddresses(cfg.Data),
		Marks: routing.Marks{
			OuterValues: []uint32{
				uint32(qos.MarkOuterVoice),
				uint32(qos.MarkOuterData),
			}, OuterMask: uint32(qos.MarkOuterMask),
			VoiceValues: []uint32{
				uint32(qos.MarkInner | qos.ClassMark(qos.Media)),
				uint32(qos.MarkInner | qos.ClassMark(qos.Signalling)),
			},
			DataValues: []uint32{
				uint32(qos.MarkInner | qos.ClassMark(qos.Data)),
				uint32(qos.MarkInner | qos.ClassMark(qos.Background)),
			},
			ClassMask: uint32(qos.MarkInner | qos.MarkClassMask),
		}}
	if cfg.SIP.Mode != config.SIPOff {
		in.Marks.Relayed, in.Marks.RelayedMask = uint32(qos.MarkRelayed), uint32(qos.MarkRelayed)
	}
	in.Metered = MeteredWANs(cfg)
	if lines := lineMarks(cfg); len(lines) > 0 {
		in.Marks.Lines, in.Marks.LineMask = map[string]uint32{}, uint32(qos.MarkLineMask)
		for _, l := range lines {
			in.Marks.Lines[l.Device] = uint32(l.Mark)
		}
	}
	in.Parents = parents(cfg)
	if cfg.Machine.Tune {
		in.SoftirqBudget = SoftirqBudget
	}
	for _, w := range cfg.WANs {
		in.WANs = append(in.WANs, upstream(w, queues))
	}
	name := map[tunnel.Class]string{}
	for _, d := range devs {
		name[d.Class] = d.Settings.Interface
		in.Tunnels = append(
			in.Tunnels,
			routing.TunnelDevice{
				Class:      string(d.Class),
				Name:       d.Settings.Interface,
				MTU:        int(d.Settings.MTU),
				TxQueueLen: d.Bounds.TxQueueLen,
				GSOMax:     d.Bounds.DeviceGSO,
			},
		)
	}
	in.Endpoints = endpoints(cfg, f)
	if slices.ContainsFunc(devs, func(d tunnel.Device) bool { return d.Settings.Engine == tunnel.EngineKernel }) {
		in.LockedMTUs = map[string]int{}
		for _, w := range cfg.WANs {
			in.LockedMTUs[w.Interface], _ = w.WireMTU(f.WireMTU[w.Interface])
		}
	}
	slow := cfg.SiteMTUs()
	for i, s := range cfg.Sites {
		r := routing.SiteRoute{Name: s.Name, Prefixes: s.Networks(),
			VoiceDevice: name[s.Via(tunnel.Voice)], DataDevice: name[s.Via(tunnel.Data)], MTU: int(mtus[i].Short)}
		if slow[s.Name] > 0 {
			r.DataMTU = int(within(tunnel.InnerMTU(slow[s.Name]), r.MTU))
		}
		in.Sites = append(in.Sites, r)
	}
	if len(f.Closed) > 0 {
		in.Sites = append(in.Sites, routing.SiteRoute{Prefixes: f.Closed})
	}
	return in
}

// endpoints is where the tunnels' packets go: where sites are now, and where the config says.
func endpoints(cfg *config.Config, f Facts) (out []netip.Addr) {
	add := func(at netip.AddrPort) {
		if a := at.Addr().Unmap().WithZone(""); at.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, s := range cfg.Sites {
		for _, c := range tunnel.Classes {
			if f.Heard != nil {
				at, _ := f.Heard(c, s.Site)
				add(at)
			}
			if f.Endpoint != nil {
				at, _ := f.Endpoint(c, s.Site)
				add(at)
			}
			if f.Remotes != nil {
				for _, at := range f.Remotes(c, s.Site) {
					add(at)
				}
			}
		}
	}
	return out
}

// SoftirqBudget is how many packets the kernel takes from its network cards before a thread that waits may
// run, while Ringway does (machine.tune). The kernel's 300 are a millisecond and more in which no forwarding
// thread of calls gets the core that took them, where the kernel is not preemptible; fewer cost a busy box
// some throughput.
const SoftirqBudget = 16
