// Package appliance is the composition: it reads the config, brings the components up, and keeps the kernel and the
// tunnels' engines as the config wants them. What that is, is decided in package wanted and in the domains; here it is
// compared, applied and kept.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ringway/appliance/announcer"
	"ringway/appliance/calls"
	"ringway/appliance/clock"
	"ringway/appliance/commit"
	"ringway/appliance/compare"
	"ringway/appliance/component"
	"ringway/appliance/config"
	"ringway/appliance/control"
	"ringway/appliance/dial"
	"ringway/appliance/endpoint"
	"ringway/appliance/engine"
	"ringway/appliance/exposition"
	"ringway/appliance/journal"
	"ringway/appliance/lease"
	"ringway/appliance/line"
	"ringway/appliance/lock"
	"ringway/appliance/media"
	"ringway/appliance/pathmtu"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/appliance/systemd"
	"ringway/appliance/task"
	"ringway/appliance/wanted"
	"ringway/debounce"
	"ringway/firewall/nft"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// Options start a daemon.
type Options struct {
	ConfigPath string
	Paths      Paths
	Build      string // version of this binary
	Log        *slog.Logger

	// Reasons are those for which each userspace engine drops packets. Their counters are exported from the start, with
	// value zero; what a plane counts besides is exported with the reason "other".
	Reasons map[tunnel.EngineName][]string
}

// Daemon is the running appliance.
type Daemon struct {
	opts  Options
	log   *slog.Logger
	since time.Time
	leaks leaks

	components     component.List
	leases         *lease.Keeper // one of the components, as lines and calls are
	announcer      *announcer.Announcer
	lines          *line.Lines
	dialer         *dial.Dialer
	calls          *calls.Calls
	media          *media.Media
	engines        map[tunnel.Class]*engine.Holder
	endpoints      *endpoint.Memory
	names          *endpoint.Names
	pathMTUs       *pathmtu.Sites
	clock          *clock.Floor
	metricsHandler http.Handler
	problems       *problem.Set
	own            ownProblems       // the daemon's, by what they are about
	reports        component.Reports // those of components

	ready    chan struct{} // closed when every task is ready
	stop     chan struct{} // closed when a stop is requested
	stopOnce sync.Once
	dirty    task.Signal         // the kernel's state, or what the config wants of it, changed: reconcile
	roamed   *debounce.Debouncer // a site was heard at another address: its packets belong in another queue

	sysctlDrift drift                   // of watchSettings
	peerDrift   map[tunnel.Class]*drift // of observeEndpoints

	mu      sync.Mutex    // held for a whole reconciliation; guards the fields below
	running config.Loaded // what was applied last, with its keys
	cfg     *config.Config
	commit  *commit.Committer
	facts   wanted.Facts // what probe found; factsLocked adds the rest
	mtus    []wanted.SiteMTU
	sysctls []routing.Sysctl // that the last round wanted and the kernel does not report
	wireMTU map[string]int   // of the WANs in the last round
	journal *journal.Journal
	ruleset *nft.Ruleset    // the firewall, and the owners of its dynamic sets
	life    context.Context // of planes: it outlives the request that started them
	rounds  status.Rounds
	closed  []journal.Closed // networks that left the config
	ending  bool             // nothing may be applied any more
}

// New reads the config and its keys. It changes nothing. A wrong config is a config.Problems error.
func New(o Options) (*Daemon, error) {
	path, err := filepath.Abs(o.ConfigPath)
	if err != nil {
		return nil, err
	}
	o.ConfigPath = path

	d := &Daemon{
		opts: o, log: o.Log, since: time.Now(),
		clock: clock.NewFloor(o.Paths.clock()), problems: problem.NewSet(time.Now),
		ready: make(chan struct{}), stop: make(chan struct{}),
		dirty: task.NewSignal(), roamed: debounce.New(roaming),
		peerDrift: map[tunnel.Class]*drift{},
	}
	if d.own, err = claimProblems(d.problems); err != nil {
		return nil, err
	}
	if d.media, err = d.newMedia(); err != nil {
		return nil, err
	}
	if d.calls, err = d.newCalls(); err != nil {
		return nil, err
	}
	d.components = d.newComponents()
	files := commit.Files{Config: path, Record: o.Paths.trial(), Refused: o.Paths.refused()}
	d.commit = commit.New(machine{d}, files, o.Log)

	l, err := d.commit.Load()
	if err != nil {
		return nil, err
	}
	d.running, d.cfg = l, l.Config
	for _, w := range d.cfg.Warnings {
		o.Log.Warn("config", "problem", w.String())
	}
	return d, nil
}

// load checks a config for this daemon's path and reads its keys.
func (d *Daemon) load(text []byte, name string) (config.Loaded, error) {
	if os.Geteuid() == 0 {
		return config.ParseWithKeys(d.opts.ConfigPath, text, config.Named(name))
	}

	if _, err := config.Parse(d.opts.ConfigPath, text, config.Named(name)); err != nil {
		return config.Loaded{}, err
	}
	return config.Loaded{}, errors.New("run needs root, to open tunnel devices and to set routes, rules and queues; " +
		"`ringway plan` shows without root what it would do")
}

// Run brings everything up and keeps it up, until SIGTERM (everything goes on forwarding) or until SIGINT or a stop
// request (everything is removed). The end of ctx is the same as SIGTERM.
func (d *Daemon) Run(ctx context.Context) error {
	if err := d.opts.Paths.make(); err != nil {
		return err
	}
	unlock, err := lock.Take(d.opts.Paths.lock(), true)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := d.commit.Load() // again: a daemon that ended since New may have left another config
	if err != nil {
		return err
	}
	d.running, d.cfg = l, l.Config

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)

	// end releases or stops planes, in its own order; the end of ctx must not do so before.
	life, endLife := context.WithCancel(context.WithoutCancel(ctx))
	defer endLife()
	d.life = life

	if d.reports, err = d.components.Own(d.problems); err != nil {
		return err
	}
	d.open()
	if err := d.start(ctx); err != nil {
		return err
	}
	defer d.ruleset.Close()

	err = task.RunAll(ctx, d.tasks(signals, cancel), d.announce)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if ctx.Err() != nil { // the end was requested
		err = nil
	}
	return errors.Join(err, d.end())
}

// open prepares what needs the state directory. Only the daemon that holds the lock may do so.
func (d *Daemon) open() {
	d.metricsHandler = exposition.Handler(d.log, d.newExposition())
	d.raiseClock()
	d.endpoints = endpoint.Load(d.opts.Paths.endpoints(), d.log)
	d.pathMTUs = pathmtu.Load(d.opts.Paths.pathMTUs(), time.Now(), d.log)
	d.endpoints.NameLines(func(a netip.Addr) string { return d.lines.Interface(a) })
	d.names = endpoint.NewNames(d.endpoints, d.nameQuery, d.namesLookedUp)
	d.engines = d.newEngines()
}

// tasks are what runs for as long as the daemon does.
func (d *Daemon) tasks(signals <-chan os.Signal, cancel context.CancelFunc) []task.Task {
	server := &control.Server{
		Path: d.opts.Paths.Socket(), Log: d.log, Group: d.controlGroup,
		Status: d.Status, Queues: d.Queues, Metrics: d.metricsHandler, Plan: d.plan,
		Calls: d.calls.Calls, Phones: d.calls.Phones, Ladder: d.calls.Ladder, Records: d.calls.Records,
		Capture: d.calls.Capture, Bans: d.calls.Bans, Unban: d.calls.Unban, Forget: d.calls.Forget,
		Reload: d.reload, Apply: d.apply, Confirm: d.confirm, Undo: d.undo, Upgrade: d.upgrade,
		Stop: d.requestStop,
	}
	return append(d.components.Tasks(), []task.Task{
		{Name: "control socket", Run: server.Run},
		{Name: "network watch", Run: d.watchKernel},
		{Name: "ruleset watch", Run: func(ctx context.Context, ready func()) error {
			return d.ruleset.Watch(ctx, ready, d.touch)
		}},
		{Name: "other rulesets", Run: d.watchChains},
		{Name: "queue watch", Run: func(ctx context.Context, ready func()) error {
			return tc.Watch(ctx, ready, d.touch)
		}},
		{Name: "reconciliation", Run: d.reconcileWhenDirty},
		{Name: "site queues", Run: func(ctx context.Context, ready func()) error {
			ready()
			d.roamed.Run(ctx, d.steerSites)
			return nil
		}},
		{Name: "endpoint names", Run: d.names.Run},
		task.Every("confirmation", time.Second, d.checkDeadline),
		task.Every("endpoint memory", time.Second, d.observeEndpoints),
		task.Every("clock floor", clock.SaveInterval, func(context.Context) { d.saveClock() }),
		task.Every("settings watch", settingsInterval, d.watchSettings),
		{Name: "systemd watchdog", Run: d.feedWatchdog},
		{Name: "signals", Run: func(ctx context.Context, ready func()) error {
			ready()
			d.handleSignals(ctx, signals, cancel)
			return nil
		}},
	}...)
}

// announce says that every task is ready.
func (d *Daemon) announce() {
	close(d.ready)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=up")

	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.Info("ready", "site", d.cfg.Site, "sites", len(d.cfg.Sites))
}

// start applies the config for the first time.
func (d *Daemon) start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.probe(); err != nil {
		return err
	}

	j, err := journal.Load(d.opts.Paths.journal())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A lost journal must not prevent calls; what is Ringway's is recognised by its numbers.
		d.log.Error("cannot read what the machine was like before; `ringway stop` will remove what is Ringway's "+
			"and restore nothing else", "error", err)
	}
	d.journal = j
	counters, _ := nft.Counters() // an earlier daemon has reported these; without one there are none
	d.leaks.look(counters, time.Now())
	for _, name := range j.Devices() {
		if name == d.cfg.Tunnels[tunnel.Voice].Interface || name == d.cfg.Tunnels[tunnel.Data].Interface {
			continue
		}
		if err := kernel.Remove(name); err != nil {
			d.log.Warn("cannot remove the tunnel device of an earlier config", "error", err)
		}
	}
	return d.commit.Start(ctx, d.running)
}

// probe finds out once what this kernel can do. The status lists what it lacks.
func (d *Daemon) probe() error {
	var err error
	if d.facts.Queues, err = tc.Probe(); err != nil {
		return fmt.Errorf("probe the kernel's queues: %w", err)
	}
	if d.facts.FirewallMissing, err = nft.Probe(); err != nil {
		return fmt.Errorf("probe nftables: %w", err)
	}
	if d.ruleset, err = nft.NewRuleset(); err != nil {
		return err
	}
	if d.facts.KernelWireGuard, err = kernel.Supported(); err != nil {
		d.log.Warn("cannot find out whether the kernel has WireGuard; using wireguard-go", "error", err)
	}
	return nil
}

// factsLocked is what the wanted state depends on besides the config, as it is now.
func (d *Daemon) factsLocked() wanted.Facts {
	f := d.facts
	f.Keys, f.Endpoint, f.Heard = d.running.Keys, d.endpoints.Tell, d.endpoints.Where
	f.Remotes = d.endpoints.Remotes
	held := d.leases.Held()
	d.dialer.AddTo(held, d.cfg)
	f.Leases, f.Advertised, f.Delegated = held.Leases, held.Advertised, held.Delegated
	f.WANMTU = compare.WANMTU(d.cfg)
	f.WireMTU = compare.WireMTU(f.WANMTU)
	f.Through = compare.ThroughWAN(d.endpoints.Where)
	f.Silent = d.lines.Silent()
	f.PathMTU = d.pathMTUs.MTUs(d.cfg.TunnelSites())
	return f
}

func (d *Daemon) upgrade(ctx context.Context, class string) error {
	switch class {
	case calls.Name:
		return d.calls.Upgrade(ctx)
	case media.Name:
		return d.media.Upgrade(ctx)
	}
	s, ok := d.engines[tunnel.Class(class)]
	if !ok {
		return fmt.Errorf("%q is not a class of tunnel (allowed: voice, data, calls, media)", class)
	}
	return s.Upgrade(ctx)
}

func (d *Daemon) requestStop() { d.stopOnce.Do(func() { close(d.stop) }) }

func (d *Daemon) handleSignals(ctx context.Context, signals <-chan os.Signal, cancel context.CancelFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.stop:
			cancel()
			return
		case s := <-signals:
			switch s {
			case unix.SIGHUP:
				d.reloadOnSignal(ctx)
			case unix.SIGINT:
				d.requestStop()
			default:
				cancel()
				return
			}
		}
	}
}

func (d *Daemon) reloadOnSignal(ctx context.Context) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
	if _, err := d.reload(ctx); err != nil {
		d.log.Error("reload refused; the previous config goes on running", "error", err)
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// end removes everything if a stop was requested. Otherwise everything goes on forwarding.
func (d *Daemon) end() error {
	d.forbidChanges()
	d.saveClock()
	errs := []error{d.endpoints.Save()}

	select {
	case <-d.stop:
		return errors.Join(append(errs, d.removeAll())...)
	default:
	}
	for _, e := range d.engines {
		e.Release()
	}
	d.log.Info("daemon ends; tunnels, queues and rules stay (`ringway stop` removes them)")
	return errors.Join(errs...)
}

// forbidChanges keeps a reload that waits for the lock from restoring what is being removed.
func (d *Daemon) forbidChanges() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
}

func (d *Daemon) removeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d.mu.Lock()
	defer d.mu.Unlock()

	if err := systemd.StopOwnUnit(ctx); err != nil {
		d.log.Warn("systemd may start the daemon again", "error", err)
	}
	d.announcer.Farewell()
	errs := []error{d.calls.Stop(ctx), d.media.Stop(ctx)}
	for _, c := range tunnel.Classes {
		errs = append(errs, d.engines[c].Stop(ctx))
	}
	errs = append(errs, d.opts.Paths.takeAway(ctx, d.journal))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.log.Info("stopped; the machine is as it was found")
	return d.opts.Paths.remove()
}
