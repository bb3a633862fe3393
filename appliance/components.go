package appliance

import (
	"context"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/announcer"
	"ringway/appliance/calls"
	"ringway/appliance/component"
	"ringway/appliance/config"
	"ringway/appliance/dial"
	"ringway/appliance/exposition"
	"ringway/appliance/lease"
	"ringway/appliance/line"
	"ringway/appliance/media"
	"ringway/appliance/metered"
	"ringway/appliance/metrics"
	"ringway/appliance/reflector"
	"ringway/appliance/unmarked"
	"ringway/appliance/wanted"
	"ringway/firewall/conntrack"
	"ringway/qos"
	"ringway/sip/admission"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// newComponents lists the daemon's long-lived parts. A part that is added here is run and stopped with the daemon,
// follows every config, and appears in status, problems and metrics.
func (d *Daemon) newComponents() component.List {
	d.leases = lease.New(d.opts.Paths.leases(), d.log, func() { d.touch(); d.names.Again() })
	d.lines = line.New(line.Options{
		Log: d.log, File: d.opts.Paths.lines(), Targets: d.opts.Paths.targets(), Changed: d.touch,
		Flush: conntrack.Flush, Gateways: d.gateways,
		Reroute: func(ctx context.Context, c tunnel.Class, r tunnel.Reroute) error {
			return d.engines[c].Reroute(ctx, r)
		},
	})
	d.leases.Where = func(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) { return d.endpoints.Where(c, s) }
	d.leases.Remotes = func(c tunnel.Class, s tunnel.Site) []netip.AddrPort { return d.endpoints.Remotes(c, s) }
	d.announcer = announcer.New(d.opts.Paths.leases(), d.log, d.leases.Delegated)
	d.dialer = dial.New(dial.Options{
		Dir: d.opts.Paths.dialed(), Adverts: d.opts.Paths.leases(), Log: d.log,
		Changed: func() { d.touch(); d.names.Again() },
	})
	return component.List{
		d.lines,
		d.leases,
		metered.New(d.opts.Paths.metered(), d.log),
		d.announcer,
		d.dialer,
		d.media, // before calls, which ask it for whom media is re-keyed
		d.media.Channels(),
		d.calls,
		reflector.New(d.log),
		unmarked.New(d.log),
		metrics.New(d.log, http.HandlerFunc(d.serveMetrics)),
	}
}

// gateways are those that a lease and advertisements gave a WAN. d.mu may be held.
func (d *Daemon) gateways(device string) []netip.Addr {
	held := d.leases.Held()
	gateways := slices.Clone(held.Leases[device].Gateways)
	for _, g := range []netip.Addr{held.Advertised[device].Gateway, d.dialer.Gateway(device)} {
		if g.IsValid() {
			gateways = append(gateways, g)
		}
	}
	return gateways
}

// newExposition is what Prometheus gets, in HTTP and over the control socket alike.
func (d *Daemon) newExposition() *exposition.Collector {
	reasons := map[tunnel.EngineName][]string{tunnel.EngineKernel: kernel.Reasons()}
	maps.Copy(reasons, d.opts.Reasons)

	sources := []exposition.Source{metrics.Box{}, metrics.Tunnels{Reasons: reasons}, metrics.Queues{}}
	return &exposition.Collector{
		Build:   d.opts.Build,
		Status:  d.Status,
		Now:     time.Now,
		Sources: append(sources, d.components.Sources()...),
	}
}

// serveMetrics answers with the exposition. Run makes that before anything listens.
func (d *Daemon) serveMetrics(w http.ResponseWriter, r *http.Request) {
	d.metricsHandler.ServeHTTP(w, r)
}

// newCalls makes the component that has signalling read. The firewall's sets are there once the daemon runs.
func (d *Daemon) newCalls() (*calls.Calls, error) {
	return calls.New(calls.Options{
		Media: d.media.Change, Relayed: d.media.Relay, SeenHere: d.media.Seen,
		RunDir: d.opts.Paths.planes(), RecordDir: d.opts.Paths.records(), Log: d.log, Engine: voiceEngine{d},
		Queues: func() ([]qos.QueueStats, error) { return wanQueues(d.config()) },
		OnLANs: func(cfg *config.Config) *config.Config {
			cfg, _ = cfg.Delegated(d.leases.HeldFor(cfg).Delegated)
			return cfg
		},
		Budgets: func(cfg *config.Config) admission.Plan { return wanted.CallBudgets(cfg, d.factsLocked()) },
		Sets: func(name string) (calls.Set, bool) {
			if d.ruleset == nil {
				return nil, false
			}
			return d.ruleset.Set(name)
		},
	})
}

// newMedia makes the component that has media re-keyed.
func (d *Daemon) newMedia() (*media.Media, error) {
	return media.New(media.Options{
		RunDir: d.opts.Paths.planes(), Log: d.log, Changed: d.touch,
		Wanted:   func(cfg *config.Config) (*wanted.Media, error) { return wanted.MediaOf(cfg, d.factsLocked()) },
		Identity: func() tunnel.PrivateKey { return d.running.Keys.Identity },
	})
}

// voiceEngine is the engine of the voice tunnel, whichever it is by then.
type voiceEngine struct{ d *Daemon }

func (v voiceEngine) Reserve(
	ctx context.Context, wanted ...tunnel.Reservation,
) ([]tunnel.ReservationStatus, error) {
	return v.d.engines[tunnel.Voice].Reserve(ctx, wanted...)
}

func (v voiceEngine) Unreserve(ctx context.Context, flows ...tunnel.Flow) error {
	return v.d.engines[tunnel.Voice].Unreserve(ctx, flows...)
}

func (v voiceEngine) Reservations(ctx context.Context) ([]tunnel.ReservationStatus, error) {
	return v.d.engines[tunnel.Voice].Reservations(ctx)
}

func (v voiceEngine) Series(ctx context.Context) (all []tunnel.SeriesStatus, beyond uint64, err error) {
	return v.d.engines[tunnel.Voice].Series(ctx)
}

func (v voiceEngine) Keeper() int { return v.d.engines[tunnel.Voice].Keeper() }
