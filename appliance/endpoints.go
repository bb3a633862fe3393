package appliance

import (
	"context"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/endpoint"
	"ringway/appliance/problem"
	"ringway/tunnel"
)

// nameQuery is what the endpoint names are looked up with. d.mu is not held: a slow name server must not hold
// up anything else.
func (d *Daemon) nameQuery(ctx context.Context) endpoint.Query {
	cfg := d.config()
	alive := map[tunnel.PublicKey]bool{}
	for _, c := range tunnel.Classes {
		st, err := d.engines[c].Status(ctx)
		if err != nil {
			continue
		}
		for _, k := range endpoint.Alive(st.Peers) {
			alive[k] = true
		}
	}
	servers := append(d.leases.NameServers(), d.dialer.NameServers()...)
	return endpoint.Query{Sites: cfg.TunnelSites(), Families: families(cfg), Servers: servers, Alive: alive}
}

// namesLookedUp makes problems of the names that do not resolve.
func (d *Daemon) namesLookedUp(changed bool, failed map[string]error) {
	for _, p := range d.problems.List() {
		if p.Component == ownEndpoint && failed[p.Subject] == nil {
			d.own.endpoint.Resolve(p.Subject)
		}
	}
	for host, err := range failed {
		news := report(d.own.endpoint, problem.Problem{
			Subject: host, Severity: problem.Warning,
			Action: "check the name and the box's name servers; a known address is used until then",
		}, err)
		if news {
			d.log.Warn("endpoint name does not resolve", "endpoint", host, "error", err)
		}
	}
	if changed {
		d.touch()
	}
}

// observeEndpoints gathers where the engines have their peers, also from the kernel's, which reports nothing
// by itself.
func (d *Daemon) observeEndpoints(ctx context.Context) {
	sites := d.config().TunnelSites()
	tunnels := d.askTunnels(ctx)
	var voice []tunnel.PeerStatus
	for _, t := range tunnels {
		if t.Class == tunnel.Voice && t.Error == "" {
			voice = t.Peers
		}
	}
	for _, t := range tunnels {
		if t.Error != "" {
			continue
		}
		if t.Class == tunnel.Voice {
			d.lines.Observe(t.Peers)
		}
		if d.pathMTUs.Observe(time.Now(), t.Class, t.Peers) {
			d.log.Info("the length of packets that paths take has changed", "bytes", d.pathMTUs.MTUs(d.config().TunnelSites()))
			d.touch()
		}
		d.checkPeers(t.Class, d.engines[t.Class], t)
		moved, retried := d.endpoints.Observe(t.Class, t.Peers)
		if moved {
			d.roamed.Trigger()
		}
		if d.endpoints.Steer(t.Class, sites, t.Peers, voice) || retried {
			d.touch()
		}
	}
	_ = d.endpoints.SaveInTime() // it logs its errors and tries again
	d.confirmMTUs(ctx)
}

// confirmLimit bounds how long an engine may take to answer.
const confirmLimit = time.Second

// confirmMTUs has the engines find out whether long packets still pass where some are sent. An engine that cannot be
// asked is asked again when more are.
func (d *Daemon) confirmMTUs(ctx context.Context) {
	keys := d.pathMTUs.Long(time.Now())
	if len(keys) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	for _, c := range tunnel.Classes {
		if err := d.engines[c].ConfirmMTU(ctx, keys...); err != nil {
			d.log.Debug("cannot have the engine confirm what paths take", "class", c, "error", err)
		}
	}
}

// families are the address families of the WANs: a lease is of DHCPv4 or a session, and IPv6 may come besides.
func families(cfg *config.Config) (f endpoint.Families) {
	for _, w := range cfg.WANs {
		if w.Leased() {
			f.IPv4 = true
		}
		f.MaybeIPv6 = f.MaybeIPv6 || w.Autoconf()
		for _, a := range w.Addresses {
			f.IPv4 = f.IPv4 || a.Addr().Is4()
			f.IPv6 = f.IPv6 || a.Addr().Is6()
		}
	}
	return f
}
