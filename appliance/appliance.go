// Package appliance is the composition: the config goes in, the kernel and the engines are told, and kept
// as told. It is the only room that knows tunnels, queues, firewall and routing together; what each of them
// wants is decided in their own rooms, what they get is decided in wanted.go. Only cmd/ringway imports it.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/firewall/nft"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/kernel"
	"ringway/tunnel/plane"
)

// Options start a daemon.
type Options struct {
	ConfigPath string
	Paths      Paths
	Build      string // version of this binary
	Log        *slog.Logger
	// Reasons are those for which each userspace engine drops packets: their counters are shown from the first look on, and what a
	// plane counts besides is one more reason, "other".
	Reasons map[tunnel.EngineName][]string
}

// Daemon is the running appliance.
type Daemon struct {
	opts      Options
	log       *slog.Logger
	since     time.Time
	endpoints *endpointMemory
	clock     *clockFloor
	slots     map[tunnel.Class]*slot
	stopAsked chan struct{}
	stopOnce  sync.Once
	lookAgain chan struct{} // the config or a lease changed: look the names up
	dirty     chan struct{} // somebody changed the network: look again
	steer     chan struct{} // a site was heard elsewhere: its queue is another address's now
	leases    *leases
	reflector *reflector
	metrics   *metricsServer
	ready     chan struct{}

	mu       sync.Mutex // held over a whole reconciliation; guards what follows
	running  loaded     // what cfg and secrets are of
	cfg      *config.Config
	secrets  secrets
	trial    *trial
	facts    facts
	journal  *journal
	resolved map[string]netip.Addr // by endpoint name
	moved    map[string]time.Time  // when each came to mean that
	life     context.Context       // of what outlives a call
	problems map[string]string     // by what has it
	rounds   Rounds
	ending   bool // nothing is to be applied any more
}

// New reads the config and the secrets. Nothing is changed yet. A wrong config comes back as config.Problems.
func New(o Options) (*Daemon, error) {
	path, err := filepath.Abs(o.ConfigPath)
	if err != nil {
		return nil, err
	}
	o.ConfigPath = path
	d := &Daemon{opts: o, log: o.Log, since: time.Now(), clock: newClockFloor(o.Paths.clock()), reflector: newReflector(o.Log),
		stopAsked: make(chan struct{}), lookAgain: make(chan struct{}, 1), dirty: make(chan struct{}, 1), steer: make(chan struct{}, 1), ready: make(chan struct{}),
		resolved: map[string]netip.Addr{}, moved: map[string]time.Time{}, problems: map[string]string{}}
	d.metrics = newMetricsServer(o.Log, metricsHandler(o.Log, &collector{build: o.Build, status: d.Status, reasons: o.Reasons, now: time.Now}))
	d.trial = newTrial(d, o.Paths, path, o.Log)
	l, err := d.trial.begin()
	if err != nil {
		return nil, err
	}
	d.running, d.cfg, d.secrets = l, l.cfg, l.keys
	for _, w := range d.cfg.Warnings {
		o.Log.Warn("config", "problem", w.String())
	}
	return d, nil
}

// load checks a config for this daemon's path and reads its secrets.
func (d *Daemon) load(text []byte, name string) (loaded, error) {
	cfg, err := config.Parse(d.opts.ConfigPath, text, config.Named(name))
	if err != nil {
		return loaded{}, err
	}
	if os.Geteuid() != 0 {
		return loaded{}, errors.New("run needs root (it opens tunnel devices and sets routes, rules and queues); `ringway plan` shows without root what it would do")
	}
	keys, err := readSecrets(cfg)
	return loaded{text, cfg, keys}, err
}

// Run brings everything up and keeps it so until SIGTERM (leaves all that forwards), or SIGINT or a stop request
// (takes all away). ctx is not watched for signals; ending it is the same as SIGTERM.
func (d *Daemon) Run(ctx context.Context) error {
	p := d.opts.Paths
	if err := p.make(); err != nil {
		return err
	}
	unlock, err := takeLock(p.lock(), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := d.trial.begin() // again: a daemon that ended since New may have left something else
	if err != nil {
		return err
	}
	d.running, d.cfg, d.secrets = l, l.cfg, l.keys

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)

	// Planes and leases are let go or stopped by end, in its order; the end of ctx must not do it before.
	life, endLife := context.WithCancel(context.WithoutCancel(ctx))
	defer endLife()
	d.life = life
	d.leases = newLeases(p.leases(), d.log, func() { d.touch(); d.lookSoon() })
	d.raiseClock()
	d.endpoints = loadEndpoints(p.endpoints(), d.log)
	d.slots = map[tunnel.Class]*slot{}
	for _, c := range tunnel.Classes {
		d.slots[c] = &slot{class: c, log: d.log, anew: d.endpoints.anew, plane: func(c tunnel.Class) (engine, error) {
			return plane.NewSupervisor(plane.Config{Class: c, RunDir: p.planes(), UAPIDir: p.UAPI, Log: d.log,
				OpenTUN: descriptor.OpenTUN, OpenUDP: descriptor.OpenUDP,
				OnEndpoints: func(eps map[tunnel.PublicKey]netip.AddrPort) {
					if d.endpoints.saw(c, eps) {
						d.roamed()
					}
				}})
		}, clear: func(ctx context.Context, want tunnel.Settings) error {
			if want.Engine == tunnel.EngineKernel {
				return plane.Quit(ctx, p.planes(), p.UAPI, c)
			}
			return kernel.Remove(want.Interface)
		}}
	}
	if err := d.start(ctx); err != nil {
		return err
	}

	control := &controlServer{path: p.socket(), log: d.log, group: d.controlGroup, status: d.Status, queues: d.Queues, metrics: d.metrics.handler, reload: d.reload, upgrade: d.upgrade,
		apply: d.apply, confirm: d.confirm, undo: d.undo,
		stop: func() { d.stopOnce.Do(func() { close(d.stopAsked) }) }}
	tasks := []task{
		newTask("control socket", control.run),
		newTask("watch of the kernel's network", d.watchKernel),
		newTask("watch of the ruleset", func(ctx context.Context, ready func()) error { return nft.Watch(ctx, ready, d.touch) }),
		newTask("watch of the queues", func(ctx context.Context, ready func()) error { return tc.Watch(ctx, ready, d.touch) }),
		newTask("reconciliation", d.reconcileWhenDirty),
		newTask("queues of sites", d.steerWhenRoamed),
		newTask("endpoint names", d.keepNames),
		d.reflector,
		every("confirmation", time.Second, d.lookAtTrial),
		d.metrics,
		every("endpoint memory", time.Second, d.saveEndpoints()),
		every("clock floor", clockSaveInterval, func(context.Context) { d.saveClock() }),
		newTask("systemd watchdog", d.feedWatchdog),
		newTask("signals", func(ctx context.Context, ready func()) error {
			ready()
			return d.handleSignals(ctx, signals, cancel)
		}),
	}
	err = runTasks(ctx, tasks, func() {
		close(d.ready)
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=up")
		d.mu.Lock()
		defer d.mu.Unlock()
		d.log.Info("ready", "site", d.cfg.Site, "sites", len(d.cfg.Sites))
	})
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if ctx.Err() != nil { // we were asked to end
		err = nil
	}
	return errors.Join(err, d.end())
}

// start brings the machine to what the config wants, in the order that never leaves a gap for clear text.
func (d *Daemon) start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.probe(); err != nil {
		return err
	}
	j, err := loadJournal(d.opts.Paths.journal())
	if err != nil {
		// A way back that is lost must not keep calls from being made; what is Ringway's is known by its numbers.
		d.log.Error("the record of what was here before cannot be read; `ringway stop` will remove what is Ringway's and restore no more", "error", err)
	}
	if j == nil {
		j = &journal{}
	}
	d.journal = j
	for _, name := range j.Devices { // of a config that named its devices otherwise
		if name != d.cfg.Tunnels[tunnel.Voice].Interface && name != d.cfg.Tunnels[tunnel.Data].Interface {
			if err := kernel.Remove(name); err != nil {
				d.log.Warn("an earlier tunnel device stays", "error", err)
			}
		}
	}
	return d.trial.startLocked(ctx, d.running)
}

// probe finds out once what this kernel can do. What it lacks is said in status, and done without.
func (d *Daemon) probe() error {
	var err error
	if d.facts.queues, err = tc.Probe(); err != nil {
		return fmt.Errorf("probe the kernel's queues: %w", err)
	}
	if d.facts.firewallMissing, err = nft.Probe(); err != nil {
		return fmt.Errorf("probe nftables: %w", err)
	}
	if d.facts.kernelWireGuard, err = kernel.Supported(); err != nil {
		d.log.Warn("cannot tell whether the kernel has WireGuard; taking wireguard-go", "error", err)
	}
	return nil
}

// reconcileLocked compares and applies, whole. It returns what it changed in nft, ip, tc and wg words. Applied twice,
// the second changes nothing. The order is the safe one: first what drops, then what routes, so that at no moment a
// site's prefix has a way out in clear. A firewall that cannot be set ends it, as does a way back that cannot be noted
// (which leaves the firewall set); everything else that fails is a
// problem of its own and keeps nothing else from working: a card that is not there is no reason to have no tunnels.
func (d *Daemon) reconcileLocked(ctx context.Context) (lines []string, err error) {
	if d.ending {
		return nil, errEnding
	}
	failed := false
	defer func() {
		d.rounds.Runs++
		d.rounds.Changes += uint64(len(lines))
		d.rounds.Last = time.Now()
		if failed || err != nil {
			d.rounds.Failed++
		}
	}()
	if d.facts.refused, err = d.journal.refuse(d.cfg); err != nil {
		return nil, err
	}
	w := want(d.cfg, d.factsLocked())
	// The firewall first, and by itself: it is a table of Ringway's own, of which there is nothing to note.
	if lines, err = d.journal.applyFirewall(w.firewall); err != nil {
		return lines, err
	}
	if err := d.journal.note(w, d.opts.Paths.journal()); err != nil {
		return lines, err
	}
	did := func(what string, more []string, err error) {
		lines = append(lines, more...)
		failed = failed || err != nil
		if err != nil && (d.problems[what] == "" || d.problems[what] != err.Error()) {
			d.log.Error("not as the config wants it", "what", what, "error", err)
		}
		d.setProblemLocked(what, err)
	}
	more, err := d.journal.applyRouting(w.routing)
	did("network", more, err)
	more, err = d.journal.applyQueues(w.queues)
	did("queues", more, errors.Join(err, refusedQueues(d.cfg, d.facts.refused)))
	for _, old := range d.freePorts(w.devices) {
		did("tunnel "+string(old), nil, d.slots[old].stop(ctx))
	}
	for _, dev := range w.devices {
		more, err := d.slots[dev.Class].configure(ctx, d.life, dev)
		did("tunnel "+string(dev.Class), more, err)
	}
	// Routes through tunnel devices, now that these are there.
	if more, err = d.journal.applyRouting(w.routing); err != nil || len(more) > 0 {
		did("network", more, err)
	}
	d.reflector.follow(d.cfg)
	d.metrics.follow(d.cfg)
	d.journal.Last = w.routing
	if have, err := rtnl.Observe(routing.Scope(w.routing)); err == nil {
		var missing error
		if m := append(routing.Missing(w.routing, have), routing.Conflicts(w.routing, have)...); len(m) > 0 {
			missing = errors.New(strings.Join(m, "; "))
		}
		d.setProblemLocked("devices", missing)
	}
	return lines, d.journal.save(d.opts.Paths.journal())
}

// factsLocked is what the plan depends on, as it is now.
func (d *Daemon) factsLocked() facts {
	f := d.facts
	f.secrets, f.endpoint, f.heard, f.leases = d.secrets, d.endpointOf, d.heardAt, d.leases.held()
	f.wanMTU = wanMTU(d.cfg)
	f.through = func(c tunnel.Class, s tunnel.Site) string { return through(d.heardAt, c, s) }
	return f
}

// through asks the kernel which interface leads to where a site is; "" where nobody knows.
func through(heard func(tunnel.Class, tunnel.Site) (netip.AddrPort, uint64), c tunnel.Class, s tunnel.Site) string {
	at, _ := heard(c, s)
	if !at.IsValid() {
		return ""
	}
	name, err := rtnl.Through(at.Addr(), uint32(outerMark(c)))
	if err != nil { // no route: no packet either
		return ""
	}
	return name
}

var errEnding = errors.New("the daemon is ending")

// freePorts lists the tunnels that hold a port which the config now gives to the other one: both
// have to let go before either can have it.
func (d *Daemon) freePorts(devices []tunnel.Device) (out []tunnel.Class) {
	for _, a := range devices {
		for _, b := range devices {
			held := d.slots[b.Class].port()
			if a.Class != b.Class && held == a.Settings.ListenPort && held != b.Settings.ListenPort {
				out = append(out, b.Class)
			}
		}
	}
	return out
}

// wanMTU reads the interfaces' own: a queue must not cut or refuse what its link takes.
func wanMTU(cfg *config.Config) map[string]int {
	out := map[string]int{}
	for _, w := range cfg.WANs {
		if i, err := net.InterfaceByName(w.Interface); err == nil {
			out[w.Interface] = i.MTU
		}
	}
	return out
}

func (d *Daemon) upgrade(ctx context.Context, class string) error {
	s, ok := d.slots[tunnel.Class(class)]
	if !ok {
		return fmt.Errorf("%q is no class of tunnel (allowed: voice, data)", class)
	}
	return s.upgrade(ctx)
}

func (d *Daemon) handleSignals(ctx context.Context, signals <-chan os.Signal, cancel context.CancelFunc) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.stopAsked:
			cancel()
			return nil
		case s := <-signals:
			switch s {
			case unix.SIGHUP:
				_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
				if _, err := d.reload(ctx); err != nil {
					d.log.Error("reload refused; what runs runs on", "error", err)
				}
				_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
			case unix.SIGINT:
				d.stopOnce.Do(func() { close(d.stopAsked) })
			default:
				cancel()
				return nil
			}
		}
	}
}

// end takes everything away when a stop was asked for, and else only leaves.
func (d *Daemon) end() error {
	d.mu.Lock()
	d.ending = true // a reload that waits for the lock must not put back what is taken away
	d.mu.Unlock()
	d.saveClock()
	errs := []error{d.endpoints.save()}
	d.leases.end()
	select {
	case <-d.stopAsked:
	default:
		for _, s := range d.slots {
			s.leave()
		}
		d.log.Info("the daemon ends; tunnels, queues and rules stay (`ringway stop` takes them away)")
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := stopOwnUnit(ctx); err != nil {
		d.log.Warn("systemd may start again what was stopped", "error", err)
	}
	for _, c := range tunnel.Classes {
		errs = append(errs, d.slots[c].stop(ctx))
	}
	errs = append(errs, d.opts.Paths.takeAway(ctx, d.journal))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.log.Info("stopped; the machine is as it was found")
	return d.opts.Paths.remove()
}

// takeLock holds the lock as long as the daemon lives. The file goes at a stop, so a lock on a file that has
// lost its name is none: then another is taken.
func takeLock(path string, flags int) (release func(), err error) {
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, errLocked{path}
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("look at lock: %w", err)
		}
		if named, err := os.Stat(path); err == nil && os.SameFile(mine, named) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

// errLocked says that a daemon holds the lock.
type errLocked struct{ path string }

func (e errLocked) Error() string {
	return fmt.Sprintf("another ringway daemon runs here (%s is locked); `ringway status` shows it, `ringway reload` makes it read its config again", e.path)
}
