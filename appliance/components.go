package appliance

import (
	"context"
	"maps"
	"net/http"
	"time"

	"ringway/appliance/calls"
	"ringway/appliance/component"
	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/lease"
	"ringway/appliance/line"
	"ringway/appliance/metrics"
	"ringway/appliance/reflector"
	"ringway/appliance/wanted"
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
		Log: d.log, File: d.opts.Paths.lines(), Changed: d.touch,
		Reroute: func(ctx context.Context, c tunnel.Class, r tunnel.Reroute) error {
			return d.engines[c].Reroute(ctx, r)
		},
	})
	return component.List{
		d.lines,
		d.leases,
		d.calls,
		reflector.New(d.log),
		metrics.New(d.log, http.HandlerFunc(d.serveMetrics)),
	}
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
		RunDir: d.opts.Paths.planes(), RecordDir: d.opts.Paths.records(), Log: d.log, Engine: voiceEngine{d},
		Queues:  func() ([]qos.QueueStats, error) { return wanQueues(d.config()) },
		Budgets: func(cfg *config.Config) admission.Plan { return wanted.CallBudgets(cfg, d.factsLocked()) },
		Sets: func(name string) (calls.Set, bool) {
			if d.ruleset == nil {
				return nil, false
			}
			return d.ruleset.Set(name)
		},
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
