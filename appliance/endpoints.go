package appliance

import (
	"context"

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
	return endpoint.Query{Sites: cfg.TunnelSites(), Families: families(cfg), Servers: d.leases.NameServers(), Alive: alive}
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
	for _, t := range d.askTunnels(ctx) {
		if t.Error != "" {
			continue
		}
		if t.Class == tunnel.Voice {
			d.lines.Observe(t.Peers)
		}
		d.checkPeers(t.Class, d.engines[t.Class], t)
		moved, retried := d.endpoints.Observe(t.Class, t.Peers)
		if moved {
			d.roamed.Trigger()
		}
		if retried {
			d.touch()
		}
	}
	_ = d.endpoints.Save() // it logs its errors and tries again
}

// families are the address families of the WANs. DHCP here is DHCPv4.
func families(cfg *config.Config) (f endpoint.Families) {
	for _, w := range cfg.WANs {
		if w.DHCP {
			f.IPv4, f.MaybeIPv6 = true, true
		}
		for _, a := range w.Addresses {
			f.IPv4 = f.IPv4 || a.Addr().Is4()
			f.IPv6 = f.IPv6 || a.Addr().Is6()
		}
	}
	return f
}
