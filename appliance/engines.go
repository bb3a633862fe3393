package appliance

import (
	"context"
	"net/netip"

	"ringway/appliance/engine"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/kernel"
	"ringway/tunnel/plane"
)

// newEngines makes the holders of the tunnels' engines. Nothing is started yet.
func (d *Daemon) newEngines() map[tunnel.Class]*engine.Holder {
	holders := map[tunnel.Class]*engine.Holder{}
	for _, c := range tunnel.Classes {
		holders[c] = engine.New(engine.Config{
			Class: c, Log: d.log,
			NewPlane: func() (engine.Engine, error) { return d.newPlane(c) },
			Clear:    func(ctx context.Context, want tunnel.Settings) error { return d.clearEngine(ctx, c, want) },
			Told:     d.endpoints.Told,
			Latest:   d.endpoints.Latest,
		})
	}
	return holders
}

func (d *Daemon) newPlane(c tunnel.Class) (engine.Engine, error) {
	return plane.NewSupervisor(d.planeConfig(c))
}

func (d *Daemon) planeConfig(c tunnel.Class) plane.Config {
	p := d.opts.Paths
	return plane.Config{
		Class: c, RunDir: p.planes(), UAPIDir: p.UAPI, Log: d.log,
		OpenTUN: descriptor.OpenTUN, OpenUDP: descriptor.OpenUDP,
		OnEndpoints: func(at map[tunnel.PublicKey]netip.AddrPort) {
			if d.endpoints.Heard(c, at) {
				d.roamed.Trigger()
			}
		},
		Latest: d.endpoints.Latest,
	}
}

// clearEngine removes what the other kind of engine holds for a class, as an earlier daemon may have left it.
func (d *Daemon) clearEngine(ctx context.Context, c tunnel.Class, want tunnel.Settings) error {
	if want.Engine == tunnel.EngineKernel {
		return plane.Quit(ctx, d.opts.Paths.planes(), d.opts.Paths.UAPI, c)
	}
	return kernel.Remove(want.Interface)
}
