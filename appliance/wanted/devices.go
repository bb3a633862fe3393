package wanted

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

// OuterMark is what sockets of a class's tunnel set on ciphertext.
func OuterMark(c tunnel.Class) qos.Mark {
	if c == tunnel.Voice {
		return qos.MarkOuterVoice
	}
	return qos.MarkOuterData
}

// OuterClass is the traffic class whose queue and code point a tunnel's ciphertext takes by default. Engines
// that see only whole devices mark all of a tunnel alike; realtime tells the classes apart (outer).
func OuterClass(c tunnel.Class) qos.ClassName {
	if c == tunnel.Voice {
		return qos.Media
	}
	return qos.Data
}

// innerClasses are the traffic classes that a tunnel carries.
func innerClasses(c tunnel.Class) []qos.ClassName {
	if c == tunnel.Voice {
		return []qos.ClassName{qos.Media, qos.Signalling}
	}
	return []qos.ClassName{qos.Data, qos.Background}
}

// outer is how a tunnel's packets look from outside. An engine that sees packets marks them by the class
// inside, which the inner DSCP says: the firewall writes each class's own on the way into the tunnel (chain
// remark), so that is what counts; the code points by which phones' packets are known are there for what
// passes it as it is.
func outer(cfg *config.Config, c tunnel.Class) tunnel.Outer {
	o := tunnel.Outer{TOS: cfg.Class(OuterClass(c)).Outer.TOS(), PadTo: cfg.Tunnels[c].PadTo}
	marks := map[qos.DSCP]qos.DSCP{}
	for _, n := range innerClasses(c) {
		class := cfg.Class(n)
		for _, d := range class.DSCP {
			marks[d] = class.Outer
		}
	}
	for _, n := range innerClasses(c) {
		d := cfg.Class(n).Outer
		marks[d] = d
	}
	for _, inner := range slices.Sorted(maps.Keys(marks)) {
		o.Marks = append(o.Marks, tunnel.OuterMark{Inner: uint8(inner), Outer: uint8(marks[inner])})
	}
	return o
}

func devices(cfg *config.Config, f Facts, queues qos.Input, mtus []SiteMTU) []tunnel.Device {
	var out []tunnel.Device
	for _, c := range tunnel.Classes {
		class := cfg.Class(OuterClass(c))
		d := tunnel.Device{Class: c, Settings: cfg.Tunnels[c], FwMark: uint32(OuterMark(c)), Outer: outer(cfg, c),
			PrivateKey: f.Keys.Private, Bounds: bounds(slowestUplink(cfg), class, widestMTU(cfg, f), int(cfg.Tunnels[c].MTU))}
		if n := shortest(mtus); n > 0 && cfg.AutoMTU[c] { // a padded packet has to fit the path as well
			d.Outer.PadTo = min(d.Outer.PadTo, n)
		}
		if leaf := smallestLeaf(cfg, class, widestMTU(cfg, f)); leaf > 0 && d.Bounds.SuperPacket > int(leaf/2) {
			if d.Bounds.SuperPacket = int(leaf / 2); d.Bounds.SuperPacket < 2*int(cfg.Tunnels[c].MTU) {
				d.Bounds.SuperPacket = 0
			}
		}
		if d.Settings.Engine == tunnel.EngineAuto {
			d.Settings.Engine = tunnel.Auto(c, f.KernelWireGuard)
		}
		if d.Settings.Engine != tunnel.EngineWireGuardGo {
			d.Bounds.FlowPackets = 0
		} else if d.Bounds.FlowPackets > 0 { // the TUN's queue is emptied at once, and drops blindly what comes meanwhile
			d.Bounds.TxQueueLen = max(d.Bounds.TxQueueLen, flowTUN)
			if len(cfg.Sites) > 1 { // each may have a packet that waits for its own line, and the others go on
				d.Bounds.SendBuffer += len(cfg.Sites) * sitePacket
			}
		}
		if c == tunnel.Voice && d.Settings.Engine.PerPacket() {
			d.Admission = engineAdmission(cfg, f, queues)
			d.Measured = measured(cfg)
			d.Copies = copies(cfg, f, queues)
		}
		if d.Settings.Engine.PerPacket() {
			d.Sources, d.Paths = paths(cfg, f, c)
			d.ProbeMTU = probeMTU(cfg, f)
		}
		for _, s := range cfg.Sites {
			if !s.Has(c) {
				continue
			}
			p := tunnel.Peer{
				Site:       s.Name,
				PublicKey:  s.PublicKey,
				AllowedIPs: sortedNetworks(s.Networks()),
				Keepalive:  s.Keepalive,
			}
			p.PresharedKey = f.Keys.Preshared[s.Name]
			if s.Tunnels == tunnel.CarriedBoth || s.Tunnels == "" {
				p.PresharedKey = tunnel.ClassPresharedKey(p.PresharedKey, c)
			}
			if f.Endpoint != nil {
				p.Endpoint, p.EndpointRevision = f.Endpoint(c, s.Site)
			}
			d.Peers = append(d.Peers, p)
		}
		slices.SortFunc(d.Peers, func(a, b tunnel.Peer) int { return cmp.Compare(a.Site, b.Site) })
		out = append(out, d)
	}
	return out
}

func sortedNetworks(n []netip.Prefix) []netip.Prefix {
	slices.SortFunc(n, tunnel.ComparePrefix)
	return slices.Compact(n)
}
