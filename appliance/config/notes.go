package config

import (
	"net/netip"
	"time"

	"ringway/qos"
	"ringway/tunnel"
)

// Bounds under which a valid rate deserves a word.
const (
	slowUplink = 768 * qos.Kbit // a full data packet then takes longer than a voice packet's 20 ms interval less its slack
	fewCalls   = 5
	fullFrame  = qos.ByteCount(1514)
	wanMTU     = 1500
)

// notes collects what is allowed and still worth knowing. It runs on files without problems.
func (c *checker) notes(raw *rawFile, cfg *Config, nets *networkSet) {
	for i, w := range cfg.WANs {
		r := raw.WAN.items[i]
		uplink := pick(r.Uplink, at{r.line, r.key + ".uplink"})
		switch n := cfg.Calls(w); {
		case w.Uplink == 0:
			c.warn(uplink, "is not set: nothing is shaped on %s, and calls wait behind data in the provider's queue", w.Interface)
		case n < fewCalls:
			c.warn(uplink, "%s leaves media %s: G.711 calls at once: %d", w.Uplink, kbit(cfg.mediaRate(w)), n)
		}
		if w.Uplink > 0 && w.Uplink < slowUplink {
			c.warn(uplink, "%s is slow: a call's packet may wait %v behind one full data packet (a smaller mtu of tunnels[data] helps)",
				w.Uplink, w.Shaped().Serialization(fullFrame).Round(time.Millisecond))
		}
		if !w.DHCP && len(w.Gateways) == 0 {
			c.warn(pick(scalar{at: r.Gateway.at, set: r.Gateway.set}, at{r.line, r.key + ".gateway"}),
				"is not set: only sites on the WAN's own networks can be reached through %s", w.Interface)
		}
	}
	if len(cfg.Sites) == 0 {
		c.warn(at{raw.Sites.line, "sites"}, "is empty: no tunnels, no calls to other sites")
	}
	own4 := lanHas(cfg.Voice, is4) || lanHas(cfg.Data, is4)
	own6 := lanHas(cfg.Voice, is6) || lanHas(cfg.Data, is6)
	for i, s := range cfg.Sites {
		for _, p := range s.Networks() {
			if p.Addr().Is4() && !own4 || p.Addr().Is6() && !own6 {
				c.warn(at{raw.Sites.items[i].line, raw.Sites.items[i].key}, "%s is %s, and no network here is: nothing here can reach it", p, familyName(p.Addr()))
				break
			}
		}
	}
	for _, r := range raw.Tunnels.items {
		s := cfg.Tunnels[tunnel.Class(r.Name.text)]
		if s.MTU+tunnel.OverheadIPv4 > wanMTU {
			c.warn(pick(r.MTU, r.at), "%d with WireGuard's %d bytes is more than a WAN of %d takes: packets leave in fragments", s.MTU, tunnel.OverheadIPv4, wanMTU)
		}
	}
	c.sameOuter(raw, cfg)
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
		c.warn(pos, "%s is the outer DSCP of %s and %s: on the WAN they cannot be told apart", cl.Outer, first, cl.Name)
	}
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() }
