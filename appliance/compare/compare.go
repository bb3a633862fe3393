// Package compare observes the machine and compares it with what a config makes of it: for a reload, which
// applies the difference, and for `ringway plan`, which prints it.
package compare

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"ringway/appliance/config"
	"ringway/appliance/journal"
	"ringway/appliance/plan"
	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// Comparison is what a config makes of the machine, what the machine is like, and what leads from one to the
// other. A reload applies it and `ringway plan` prints it: both come from Config.
type Comparison struct {
	Cfg      *config.Config
	Facts    wanted.Facts
	Wanted   wanted.State
	Observed plan.Observed
	Closed   []journal.Closed // networks that are no config's any more
	plan.Difference
}

// Engines asks the engines what they would change for their devices.
type Engines func(context.Context, []tunnel.Device) []plan.Tunnel

// Config observes the machine and compares it with what cfg makes of it. It changes nothing but the journal's
// idea of interfaces that are left alone: for a plan it is given a copy.
func Config(
	ctx context.Context,
	cfg *config.Config,
	f wanted.Facts,
	j *journal.Journal,
	engines Engines,
) Comparison {
	c := Comparison{Cfg: cfg, Facts: f}
	var refuseErr error
	c.Facts.Refused, refuseErr = j.ForeignQueues(cfg)
	c.Closed = j.Closing(cfg)
	var reach []netip.Prefix
	for _, w := range cfg.WANs {
		reach = append(reach, w.Reach...)
	}
	c.Facts.Closed = journal.Shut(c.Closed, inUse(cfg, f), reach)
	c.Wanted = wanted.From(cfg, c.Facts)

	before := j.Before()
	c.Observed = plan.Observed{
		Firewall: plan.See(nft.Observe()),
		Routing:  plan.See(rtnl.Observe(routing.Scope(c.Wanted.Routing, before.Last, before.Routing))),
		Queues:   plan.See(tc.Observe(c.Wanted.Queues.Over(before.Queues).Interfaces())),
		Tunnels:  engines(ctx, c.Wanted.Devices),
	}
	if refuseErr != nil {
		c.Observed.Queues = plan.See(qos.State{}, refuseErr)
	}
	c.Difference = plan.Compare(c.Wanted, c.Observed, before)
	return c
}

// inUse are the networks and addresses that cfg needs, other than in tunnels: a network that left the config may
// hold them.
func inUse(cfg *config.Config, f wanted.Facts) []netip.Prefix {
	networks := journal.NetworksOf(cfg)
	used := slices.Concat(networks.Own, networks.Sites)
	host := func(a netip.Addr) { used = append(used, netip.PrefixFrom(a.WithZone(""), a.BitLen())) }
	for _, w := range cfg.WANs {
		for _, p := range w.Addresses {
			used = append(used, p.Masked())
		}
		if l, ok := f.Leases[w.Interface]; ok && w.Leased() {
			used = append(used, l.Address.Masked())
			for _, a := range slices.Concat(l.Gateways, l.DNS, []netip.Addr{l.Server}) {
				if a.IsValid() {
					host(a)
				}
			}
		}
	}
	for _, s := range cfg.Sites {
		for _, h := range s.Endpoints() {
			if a, err := netip.ParseAddr(h); err == nil {
				host(a)
			}
		}
	}
	return used
}

// Describe is c as a plan.
func (c Comparison) Describe(o plan.Options) (plan.Plan, error) {
	if o.All {
		return plan.Whole(c.Cfg, c.Facts, c.Wanted, o), nil
	}
	return plan.Describe(c.Cfg, c.Facts, c.Wanted, c.Observed, c.Difference, o)
}

// OtherChains lists the chains of other programs that may drop packets of cfg's box. On a machine that has none of the
// interfaces, or for a user who may not see them, there are none.
func OtherChains(cfg *config.Config) []firewall.OtherChain {
	names := cfg.Cards()
	for _, w := range cfg.WANs {
		names = append(names, w.Interface)
	}
	here := slices.ContainsFunc(names, func(name string) bool { _, err := net.InterfaceByName(name); return err == nil })
	if !here {
		return nil
	}
	chains, err := nft.Others()
	if err != nil {
		return nil
	}
	return chains
}

// ThroughWAN asks the kernel which interface leads to where a site is; "" where nobody knows.
func ThroughWAN(
	where func(tunnel.Class, tunnel.Site) (netip.AddrPort, uint64),
) func(tunnel.Class, tunnel.Site) string {
	return func(c tunnel.Class, s tunnel.Site) string {
		at, _ := where(c, s)
		if !at.IsValid() {
			return ""
		}
		name, err := rtnl.Through(at.Addr(), uint32(wanted.OuterMark(c)))
		if err != nil { // no route: no packet either
			return ""
		}
		return name
	}
}

// WireMTU is how long packets that leave by the WANs may be: what the interfaces take, link says, or less where a
// router advertised so for IPv6 (RFC 4861, section 4.6.4). An interface that is not there is not listed.
//
// The sockets of tunnels go by the interface alone: believing an advertisement, too, has to happen here.
func WireMTU(link map[string]int) map[string]int {
	out := map[string]int{}
	for name, mtu := range link {
		out[name] = mtu
		if n, err := rtnl.IPv6MTU(name); err == nil && n > 0 {
			out[name] = min(mtu, n)
		}
	}
	return out
}

// WANMTU reads the interfaces' own: a queue must not cut or refuse what its link takes.
func WANMTU(cfg *config.Config) map[string]int {
	out := map[string]int{}
	for _, w := range cfg.WANs {
		if i, err := net.InterfaceByName(w.Interface); err == nil {
			out[w.Interface] = i.MTU
		}
	}
	return out
}
