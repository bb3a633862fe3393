package appliance

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// What the daemon does while nothing happens: it looks after names, leases, the clock floor, and
// whatever somebody else changes in the kernel.

const (
	reconcileInterval = time.Minute           // what no notification tells of is looked at this often
	steerPause        = 50 * time.Millisecond // sites that move together are one change
)

// watchKernel marks the state dirty when links, addresses, routes or rules change.
func (d *Daemon) watchKernel(ctx context.Context, ready func()) error {
	ready()
	return rtnl.Watch(ctx, func(e rtnl.Event) {
		d.leases.recheck(e.CarrierUp)
		d.touch()
	})
}

// touch asks for a reconciliation soon.
func (d *Daemon) touch() {
	select {
	case d.dirty <- struct{}{}:
	default:
	}
}

func (d *Daemon) reconcileWhenDirty(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.dirty:
		case <-tick.C:
		}
		d.mu.Lock()
		lines, err := d.reconcileLocked(ctx)
		d.setProblemLocked("reconciliation", err)
		d.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			d.log.Error("the kernel is not as the config wants it", "error", err)
		}
		for _, l := range lines {
			d.log.Info("mended", "change", l)
		}
	}
}

func (d *Daemon) setProblemLocked(what string, err error) {
	if err == nil {
		delete(d.problems, what)
		return
	}
	d.problems[what] = err.Error()
}

// endpointOf is where a device should look for a site: where it was last heard, unless its configured
// endpoint means something new. d.mu is held.
func (d *Daemon) endpointOf(c tunnel.Class, s tunnel.Site) (netip.AddrPort, int) {
	var resolved netip.AddrPort
	if a := d.resolved[s.Endpoint]; a.IsValid() {
		resolved = netip.AddrPortFrom(a, s.Port(c))
	}
	return d.endpoints.choose(c, s.PublicKey, resolved)
}

// heardAt is where a site is now, as far as anybody knows: where it was last heard, or else where it is meant to be. d.mu is held.
func (d *Daemon) heardAt(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) {
	if at, when := d.endpoints.current(c, s.PublicKey); at.IsValid() {
		return at, when
	}
	if a := d.resolved[s.Endpoint]; a.IsValid() {
		return netip.AddrPortFrom(a, s.Port(c)), 0
	}
	return netip.AddrPort{}, 0
}

// roamed asks for the queues of sites to be told apart by where these are now.
func (d *Daemon) roamed() {
	select {
	case d.steer <- struct{}{}:
	default:
	}
}

// steerWhenRoamed keeps the firewall's maps of who is where, and no more: a hub's sites come in by the hundred after an
// outage of its line, and a whole reconciliation for each would be late for all.
func (d *Daemon) steerWhenRoamed(ctx context.Context, ready func()) error {
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.steer:
		}
		pause := time.NewTimer(steerPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		d.mu.Lock()
		var err error
		if !d.ending {
			_, err = d.journal.applyFirewall(wantFirewall(d.cfg, d.factsLocked()))
		}
		d.setProblemLocked("queues of sites", err)
		d.mu.Unlock()
		if err != nil {
			d.log.Error("the queues of sites that moved are not told apart", "error", err)
		}
	}
}

// saveEndpoints gathers what the engines heard and writes it when it changed: also from the kernel
// engine, which tells nobody.
func (d *Daemon) saveEndpoints() func(context.Context) {
	saved := false
	return func(ctx context.Context) {
		changed := d.endpoints.takeChanged()
		for _, c := range tunnel.Classes {
			st, err := d.slots[c].status(ctx)
			if err != nil {
				continue
			}
			eps := map[tunnel.PublicKey]netip.AddrPort{}
			for _, p := range st.Peers {
				if p.Endpoint.IsValid() && !p.LastHandshake.IsZero() {
					eps[p.PublicKey] = p.Endpoint
				}
				if d.endpoints.giveUp(c, p.PublicKey, p.LastHandshake) {
					d.log.Info("site is silent where it was last heard; trying its configured endpoint", "site", p.Site, "class", c)
					changed = true
					d.touch()
				}
			}
			if d.endpoints.saw(c, eps) {
				changed = true
				d.roamed()
			}
		}
		if changed || !saved {
			if err := d.endpoints.save(); err != nil {
				d.log.Warn("endpoint memory is not saved", "error", err)
				return
			}
			saved = true
		}
	}
}

func (d *Daemon) raiseClock() {
	moved, err := d.clock.raise()
	if err != nil {
		d.log.Warn("clock floor", "error", err)
		d.problems["clock"] = err.Error()
	}
	if moved > 0 {
		d.log.Warn("the clock stood before the last known time and was set forward, or no peer would shake hands", "by", moved.Round(time.Second))
	}
	d.saveClock()
}

func (d *Daemon) saveClock() {
	if err := d.clock.save(); err != nil {
		d.log.Warn("clock floor is not saved", "error", err)
	}
}

// feedWatchdog tells systemd that the daemon lives, where the unit asks for it: that it ticks, and that nothing
// has held the state for longer than the watchdog's patience.
func (d *Daemon) feedWatchdog(ctx context.Context, ready func()) error {
	ready()
	patience, err := daemon.SdWatchdogEnabled(false)
	if err != nil || patience == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(patience / 4)
	defer tick.Stop()
	free := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if d.mu.TryLock() {
			d.mu.Unlock()
			free = time.Now()
		}
		if time.Since(free) < patience {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

// controlGroup is the id of the group that may read the status; 0 for none.
func (d *Daemon) controlGroup() int {
	d.mu.Lock()
	name := d.cfg.Control.Group
	d.mu.Unlock()
	if name == "" {
		return 0
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0
	}
	return id
}

// Status is what the daemon says of itself. A part that cannot be read is a problem in it, not an error.
func (d *Daemon) Status(ctx context.Context) (Status, error) {
	d.mu.Lock()
	st := Status{Site: d.cfg.Site, Build: d.opts.Build, Config: d.opts.ConfigPath, PID: os.Getpid(), Since: d.since, Confirmation: d.trial.status(), Reconcile: d.rounds}
	cfg, f := d.cfg, d.facts
	for _, p := range d.problems {
		st.Problems = append(st.Problems, p)
	}
	st.Problems = append(st.Problems, d.leases.problems()...)
	d.mu.Unlock()
	select {
	case <-d.ready:
		st.Ready = true
	default:
	}
	for _, c := range tunnel.Classes {
		t, err := d.slots[c].status(ctx)
		t.Threads, t.Error = d.slots[c].threads(), ""
		if err != nil {
			t.Error = err.Error()
			st.Problems = append(st.Problems, "tunnel "+string(c)+": "+err.Error())
		}
		st.Tunnels = append(st.Tunnels, t)
		st.Problems = append(st.Problems, refusedCalls(t)...)
		for _, m := range d.slots[c].lacks() {
			name, cost, _ := strings.Cut(m, ": ")
			st.Features = append(st.Features, FeatureStatus{fmt.Sprintf("%s for the %s plane", name, c), cost})
		}
	}
	st.Features = append(st.Features, machineLacks()...)
	st.addKernel(cfg, f)
	var wrong []string
	st.Reflector, wrong = d.reflector.status()
	st.Problems = append(st.Problems, wrong...)
	st.Metrics, wrong = d.metrics.status()
	st.Problems = append(st.Problems, wrong...)
	slices.Sort(st.Problems)
	st.Problems = slices.Compact(st.Problems)
	return st, nil
}
