package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/qos"
	"ringway/tunnel"
)

// Bounds under which a valid rate deserves a word.
const (
	fewCalls = 5
)

// notes collects what is allowed and still worth knowing. It runs on files without problems.
func (c *checker) notes(raw *rawFile, cfg *Config, nets *networkSet) {
	for i, w := range cfg.WANs {
		r := raw.WAN.items[i]
		uplink := pick(r.Uplink, at{r.line, r.key + ".uplink"})
		switch n := cfg.Calls(w); {
		case w.Uplink == 0:
			c.warn(
				uplink,
				"is not set: nothing is shaped on %s, and calls wait behind data in the provider's queue",
				w.Interface,
			)
		case n < fewCalls:
			c.warn(
				uplink,
				"%s leaves media %s, enough for %d simultaneous G.711 calls",
				w.Uplink,
				kbit(w.Media(cfg.Classes)),
				n,
			)
		}
		c.slow(raw, cfg, w, uplink)
		if !w.Autoconf() && len(w.Gateways) == 0 {
			c.warn(pick(scalar{at: r.Gateway.at, set: r.Gateway.set}, at{r.line, r.key + ".gateway"}),
				"is not set: only sites on the WAN's own networks can be reached through %s", w.Interface)
		}
	}
	c.sipNotes(raw, cfg)
	c.mediaNotes(raw, cfg)
	c.srtpNotes(raw, cfg)
	if len(cfg.Sites) == 0 {
		c.warn(at{raw.Sites.line, "sites"}, "is empty: there are no tunnels and no calls to other sites")
	}
	own4 := lanHas(cfg.Voice, is4) || lanHas(cfg.Data, is4)
	own6 := lanHas(cfg.Voice, is6) || lanHas(cfg.Data, is6)
	for i, s := range cfg.Sites {
		for _, p := range s.Networks() {
			if p.Addr().Is4() && !own4 || p.Addr().Is6() && !own6 {
				c.warn(
					at{raw.Sites.items[i].line, raw.Sites.items[i].key},
					"%s is %s, but no local network is: nothing here can reach it",
					p,
					familyName(p.Addr()),
				)
				break
			}
		}
	}
	c.copyNotes(raw, cfg)
	c.longPackets(raw, cfg)
	for _, r := range raw.Tunnels.items {
		if e := cfg.Tunnels[tunnel.Voice].Engine; r.Name.text == string(tunnel.Voice) && r.Engine.set &&
			e != tunnel.EngineAuto &&
			!e.PerPacket() &&
			c.admits(cfg) {
			c.warn(
				r.Engine.at,
				"%s does not see single packets, so calls are not admitted one by one: over budget, every call loses "+
					"packets (use realtime, or set classes[media].admission: false)",
				e,
			)
		}
	}
	c.sameOuter(raw, cfg)
}

// longPackets says what a link layer leaves for packets inside, and which tunnels take more than that by their setting.
func (c *checker) longPackets(raw *rawFile, cfg *Config) {
	for i, w := range cfg.WANs {
		auto := slices.ContainsFunc(tunnel.Classes, func(t tunnel.Class) bool { return cfg.AutoMTU[t] })
		if w.LinkMTU == 0 || w.PPPoE != nil || !auto {
			continue
		}
		inner, _ := cfg.PathMTU(tunnel.Voice, w.LinkMTU)
		c.warn(
			raw.WAN.items[i].Link.at,
			"%s carries packets of %d bytes: with mtu: auto, packets inside the tunnels have at most %d, and less where "+
				"the interface takes less",
			raw.WAN.items[i].Link.text,
			w.LinkMTU,
			inner,
		)
	}
	for _, r := range raw.Tunnels.items {
		s := cfg.Tunnels[tunnel.Class(r.Name.text)]
		if autoMTU(r) {
			continue
		}
		for _, w := range cfg.WANs {
			overhead := tunnel.OverheadIPv4
			if cfg.anyOuterIPv6(w) {
				overhead = tunnel.OverheadIPv6
			}
			if wire, _ := w.WireMTU(0); int(s.MTU)+overhead > wire {
				c.warn(
					pick(r.MTU, r.at),
					"%d with WireGuard's %d bytes exceed a WAN MTU of %d: packets are fragmented",
					s.MTU,
					overhead,
					wire,
				)
				break
			}
		}
	}
}

// admits says whether calls are to be admitted up to a budget.
func (c *checker) admits(cfg *Config) bool {
	shaped := slices.ContainsFunc(cfg.WANs, func(w WAN) bool { return w.Uplink > 0 })
	return shaped && slices.ContainsFunc(cfg.Classes, func(cl qos.Class) bool { return cl.Admission })
}

// slow says how long one packet keeps a slow WAN busy while a call's packet waits, and what was done about it.
func (c *checker) slow(raw *rawFile, cfg *Config, w WAN, uplink at) {
	rate, bound := w.Shaped(), w.Serialization
	if rate == 0 || bound == 0 {
		return
	}
	takes := func(n qos.ByteCount) time.Duration { return rate.Serialization(n).Round(100 * time.Microsecond) }
	where := map[tunnel.Class]at{tunnel.Voice: uplink, tunnel.Data: uplink} // what set the mtu
	auto := true                                                            // of data
	for _, r := range raw.Tunnels.items {
		if t := tunnel.Class(r.Name.text); !autoMTU(r) {
			where[t], auto = r.MTU.at, auto && t != tunnel.Data
		}
	}
	data, full := cfg.Tunnels[tunnel.Data].MTU, cfg.FullPacket(w, tunnel.Data)
	late := rate.Serialization(full) > bound
	most := cfg.WidestMTU(nil)
	switch fit := w.FitTunnel(cfg.Tunnel(tunnel.Data), cfg.anyOuterIPv6(w), rate, cfg.leastMTU(), most); {
	case late && auto:
		c.warn(
			uplink,
			"%s is slow: even the smallest MTU of the data tunnel, %d, takes %v (%d bytes at %s), and a voice "+
				"packet may have to wait that long (serialization: %v)",
			w.Uplink,
			data,
			takes(full),
			full,
			kbit(rate),
			bound,
		)
	case late:
		c.warn(
			where[tunnel.Data],
			"%d takes %v on %s (%d bytes at %s), and a voice packet may have to wait that long (serialization: %v; "+
				"auto would be %d)",
			data,
			takes(full),
			w.Interface,
			full,
			kbit(rate),
			bound,
			cfg.dataMTU(cfg.WidestMTU(nil)),
		)
	case auto && fit == int(data) && int(data) < most:
		c.warn(
			uplink,
			"%s is slow: the data tunnel's MTU is set to %d, so that a voice packet waits at most %v behind one of "+
				"its packets (%d bytes at %s)",
			w.Uplink,
			data,
			bound,
			full,
			kbit(rate),
		)
	}
	if sent, received := w.InternetMTUs(); sent > 0 || received > 0 {
		var parts []string
		for _, p := range []struct {
			what string
			n    int
		}{{"sent", sent}, {"received", received}} {
			if p.n > 0 {
				parts = append(parts, fmt.Sprintf("%d bytes %s", p.n, p.what))
			}
		}
		c.warn(
			uplink,
			"%s is slow: TCP to the internet is limited to packets of %s (over IPv6 %d at least); other packets take up to %v",
			w.Uplink,
			strings.Join(parts, ", "),
			minIPv6MTU,
			takes(w.Metered(qos.InternetMTU)),
		)
	}
	if n := cfg.FullPacket(w, tunnel.Voice); rate.Serialization(n) > bound {
		c.warn(
			where[tunnel.Voice],
			"%d bytes is the size of a large signalling packet: it takes %v on %s (%d bytes at %s), and a voice "+
				"packet may have to wait that long (serialization: %v)",
			cfg.Tunnels[tunnel.Voice].MTU,
			takes(n),
			w.Interface,
			n,
			kbit(rate),
			bound,
		)
	}
}

// sameOuter: the WAN's queues tell classes of one tunnel apart by the outer DSCP alone.
func (c *checker) sameOuter(raw *rawFile, cfg *Config) {
	seen := map[qos.DSCP]qos.ClassName{}
	for _, cl := range cfg.Classes {
		first, dup := seen[cl.Outer]
		if !dup {
			seen[cl.Outer] = cl.Name
			continue
		}
		pos := raw.Classes.at
		for _, r := range raw.Classes.items {
			if r.Name.text == string(cl.Name) || r.Name.text == string(first) {
				pos = pick(r.Outer, pos)
			}
		}
		c.warn(pos, "%s is the outer DSCP of %s and %s: the WAN cannot distinguish them", cl.Outer, first, cl.Name)
	}
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// copyNotes says what copies of voice need that is not there.
func (c *checker) copyNotes(raw *rawFile, cfg *Config) {
	for i, s := range cfg.Sites {
		at := raw.Sites.items[i].Copies.at
		if s.Copies == tunnel.CopiesOnLoss && s.Tunnels != tunnel.CarriedBoth {
			c.warn(at, "on_loss needs a far end that tells what is lost, which only Ringway does: with %s alone nothing is "+
				"sent twice (use always)", s.Tunnels)
		}
		if s.Copies == tunnel.CopiesOff {
			continue
		}
		for _, w := range cfg.WANs {
			b, ok := cfg.SiteBudget(w, s, !lanHas(cfg.Voice, is4))
			if ok && b.Rate > 0 && len(cfg.WANs) == 1 && b.Calls(qos.G711) < 2 {
				c.warn(at, "%s has a voice budget of %s, which has no room for a call and its copy", w.Interface, kbit(b.Rate))
			}
		}
	}
}
