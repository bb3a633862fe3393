package appliance

import (
	"context"
	"fmt"

	"ringway/appliance/compare"
	"ringway/appliance/config"
	"ringway/appliance/plan"
	"ringway/tunnel"
)

// plan returns what a reload with this text would change. It is the comparison that the reload itself makes,
// from copies of what the daemon has learned. It opens no key file: keys are those of the running config.
func (d *Daemon) plan(ctx context.Context, text []byte, name string, o plan.Options) (plan.Plan, error) {
	if err := o.Check(); err != nil {
		return plan.Plan{}, err
	}
	cfg, err := config.Parse(d.opts.ConfigPath, text, config.Named(name), config.WithoutKeyFiles())
	if err != nil {
		return plan.Plan{}, err
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return plan.Plan{}, errEnding
	}
	if err := d.conflict(cfg); err != nil {
		return plan.Plan{}, err // as a reload would say
	}
	keys, unread := d.running.KeysFor(cfg)
	endpoints := d.endpoints.Clone()
	endpoints.SetLiterals(cfg.TunnelSites())
	f := d.facts
	held := d.leases.HeldFor(cfg)
	d.dialer.AddTo(held, cfg)
	f.Keys, f.Leases, f.Advertised, f.WANMTU = keys, held.Leases, held.Advertised, compare.WANMTU(cfg)
	f.Delegated = held.Delegated
	f.Silent = d.lines.Silent()
	f.PathMTU = d.pathMTUs.MTUs(cfg.TunnelSites())
	f.WireMTU = compare.WireMTU(f.WANMTU)
	f.Remotes = endpoints.Remotes
	f.Endpoint, f.Heard, f.Through = endpoints.Tell, endpoints.Where, compare.ThroughWAN(endpoints.Where)
	c := compare.Config(
		ctx,
		cfg,
		f,
		d.journal.Clone(),
		func(ctx context.Context, devices []tunnel.Device) []plan.Tunnel {
			tunnels := d.compareTunnels(ctx, devices)
			for i := range tunnels {
				tunnels[i].Note = unreadNote(unread)
			}
			return tunnels
		},
	)
	p, err := c.Describe(o)
	p.Build = d.opts.Build
	return p, err
}

func unreadNote(files int) string {
	if files == 0 {
		return ""
	}
	return fmt.Sprintf("key files that the running config does not use: %d; a plan opens no key file, "+
		"so their keys are not compared", files)
}
