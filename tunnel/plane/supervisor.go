package plane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/process"
	"ringway/tunnel"
)

// Config is what a Supervisor needs to know. Class, RunDir, UAPIDir, OpenTUN and OpenUDP must be given.
type Config struct {
	Class   tunnel.Class
	RunDir  string // of control socket and pid file; made 0700
	UAPIDir string // /var/run/wireguard, where wg(8) looks

	// OpenTUN and OpenUDP make the devices, in the network namespace that is theirs.
	OpenTUN func(name string) (*os.File, error)
	OpenUDP func(port uint16, mark uint32, tos uint8, b tunnel.Bounds) (udp4, udp6 *os.File, err error)

	Program string            // file that planes run; empty: this process's own binary
	Args    []string          // of the plane process after argv[0]; default {"plane"}
	Env     []string          // besides what the supervision sets
	Engine  tunnel.EngineName // what `auto` means here; default: tunnel.Auto without a kernel that has WireGuard

	// OnEndpoints is told where the plane has its peers; most of the time nothing has changed. It is called
	// from the connection's reader and must not block, nor call the Supervisor.
	OnEndpoints func(map[tunnel.PublicKey]netip.AddrPort)
	// Latest returns a device with each peer where it was last heard, for a plane that starts; nil: where the
	// device says.
	Latest func(tunnel.Device) tunnel.Device

	Log    *slog.Logger
	Timing process.Timing // zero fields: the defaults
}

// Supervisor keeps the plane of one class alive and as configured. It is a task (Run, Ready, String) and an
// engine (Configure, Status, Stop).
type Supervisor struct {
	cfg   Config
	log   *slog.Logger
	procs *process.Supervisor // held while planes or descriptors change. Order: procs, mu
	major int                 // of the protocol that is spoken here; a test plays a newer daemon

	res     resources  // held with procs
	have    parameters // what the descriptors are set to, and what the plane was told
	stopped bool

	mu     sync.Mutex // guards what follows, and is held for moments; wanted is written only with procs held, too
	run    *running
	wanted *tunnel.Device
}

// running is a plane that forwards.
type running struct {
	*process.Instance
	about about
	lift  bool // a forwarding thread that lowered itself cannot come back by itself
}

// NewSupervisor makes a supervisor; it starts and touches nothing.
func NewSupervisor(cfg Config) (*Supervisor, error) {
	if cfg.Class == "" || cfg.RunDir == "" || cfg.UAPIDir == "" || cfg.OpenTUN == nil || cfg.OpenUDP == nil {
		return nil, errors.New("supervise a plane: Class, RunDir, UAPIDir, OpenTUN and OpenUDP are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Args == nil {
		cfg.Args = []string{"plane"}
	}
	if cfg.OnEndpoints == nil {
		cfg.OnEndpoints = func(map[tunnel.PublicKey]netip.AddrPort) {}
	}
	if cfg.Latest == nil {
		cfg.Latest = func(d tunnel.Device) tunnel.Device { return d }
	}
	cfg.Timing = cfg.Timing.WithDefaults()
	cfg.Engine = cmp.Or(cfg.Engine, tunnel.Auto(cfg.Class, false))

	s := &Supervisor{
		cfg: cfg, log: cfg.Log.With("class", string(cfg.Class)), major: ProtocolMajor,
		res: noResources,
	}
	var err error
	s.procs, err = process.New(process.Config{
		Kind: kindOf(cfg.Class, cfg.Args, cfg.Env), RunDir: cfg.RunDir, Timing: cfg.Timing, Log: s.log,
		Program: cfg.Program, Check: s.check, Revive: s.revive,
		Events: map[string]func(*process.Message){typeEndpoints: s.endpointsMoved},
	})
	return s, err
}

func (s *Supervisor) String() string { return "plane " + string(s.cfg.Class) }

// Ready is closed when the plane forwards for the first time.
func (s *Supervisor) Ready() <-chan struct{} { return s.procs.Ready() }

// Run watches the plane until ctx ends. Then it detaches: the plane keeps forwarding, for the next daemon to
// adopt.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.Close()
	return s.procs.Run(ctx)
}

// Close detaches from the plane without ending it, and closes all descriptors. Run does it.
func (s *Supervisor) Close() {
	s.procs.Close()
	s.procs.Lock()
	defer s.procs.Unlock()
	s.stopped = true
	s.res.close()
	s.res = noResources
}

// current is the plane that is watched; nil if none is.
func (s *Supervisor) current() *running {
	i := s.procs.Current()
	s.mu.Lock()
	defer s.mu.Unlock()
	if i == nil || s.run == nil || s.run.Instance != i {
		return nil
	}
	return s.run
}

// watch makes r the plane that is watched.
func (s *Supervisor) watch(r *running) {
	s.mu.Lock()
	s.run = r
	s.mu.Unlock()
	s.procs.Watch(r.Instance)
	s.log.Info("plane forwards", "pid", r.PID(), "build", r.Hello.Build, "engine", string(r.about.Engine),
		"interface", r.about.Interface, "adopted", r.Adopted, "sandbox", r.Hello.Sandbox)
	if missing := slices.Concat(r.Missing, r.Hello.Missing); len(missing) > 0 {
		s.log.Warn("plane runs with less than it should have", "pid", r.PID(), "missing", missing)
	}
}

// want remembers what the plane has to hold, for whenever it has to be started again.
func (s *Supervisor) want(dev *tunnel.Device) {
	s.mu.Lock()
	s.wanted = dev
	s.mu.Unlock()
	s.procs.Want(dev != nil)
}

// check is the health check. It asks for the status, not for a hello: that goes through the engine's locks.
func (s *Supervisor) check(ctx context.Context, i *process.Instance) error {
	var a statusAnswer
	if err := i.Ask(ctx, process.Request{Type: typeStatus}, &a); err != nil {
		return err
	}
	if a.Status != nil {
		s.learn(a.Status.Peers)
	}
	if r := s.current(); r != nil && r.Instance == i && r.lift {
		scheduled(r.PID()).RaiseLowered(ctx)
	}
	return nil
}

// revive starts a plane in place of one that ended.
func (s *Supervisor) revive(ctx context.Context) error {
	if s.stopped || s.wanted == nil {
		return nil
	}
	next, err := s.open(s.have) // what is still there stays: that is all, unless somebody deleted the device
	if err != nil {
		return err
	}
	s.keepResources(next, s.have)
	return s.bringUp(ctx, *s.wanted)
}

// bringUp starts a plane on the descriptors that are there.
func (s *Supervisor) bringUp(ctx context.Context, dev tunnel.Device) error {
	s.have.Settings = settingsOf(dev) // also what the plane before it did not know
	r, err := s.launch(ctx, s.res, s.have.engine)
	if err != nil {
		return err
	}
	if err := s.startEngine(ctx, r, dev, s.have); err != nil {
		s.procs.End(r.Instance)
		return err
	}
	s.watch(r)
	return nil
}

// launch starts a plane process, for engine; it has none yet, so that it touches no packet.
func (s *Supervisor) launch(ctx context.Context, res resources, engine tunnel.EngineName) (*running, error) {
	i, err := s.procs.Launch(ctx, res.named(), beforeExec(s.cfg.Class, engine))
	if err != nil {
		return nil, err
	}
	r := &running{Instance: i}
	s.tune(r, engine)
	return r, nil
}

// startEngine gives a launched plane its engine and the whole device, and has it shake hands at once.
func (s *Supervisor) startEngine(ctx context.Context, r *running, dev tunnel.Device, p parameters) error {
	text := tunnel.Diff(s.cfg.Latest(dev), tunnel.Observed{}, nil, time.Now()).SetText()
	start := startParameters{
		Engine: p.engine, Interface: p.iface, Settings: p.Settings, Text: text, Handshake: true,
	}
	request := process.Request{Type: typeStart, Body: startRequest{start}, Within: s.cfg.Timing.Ready}
	if err := r.Ask(ctx, request, nil); err != nil {
		return err
	}
	if err := s.procs.Refresh(ctx, r.Instance); err != nil {
		return err
	}
	if err := r.DecodeHello(&r.about); err != nil {
		return err
	}
	s.have.Settings = r.about.Settings // a plane of another build may know fewer
	switch {
	case s.realtime(r):
		r.Missing = append(r.Missing, scheduled(r.PID()).Raise()...)
	case s.cfg.Class == tunnel.Voice: // threads made since inherit it; this is for one that was just being made
		tune(r.PID(), s.cfg.Class, p.engine)
	}
	return s.procs.Record(r.Instance)
}

// tune prepares the process of a plane that runs engine, or is to.
func (s *Supervisor) tune(r *running, engine tunnel.EngineName) {
	r.Missing = append(r.Missing, tune(r.PID(), s.cfg.Class, engine)...)
	if s.cfg.Class == tunnel.Voice && engine == tunnel.EngineRealtime {
		lift, missing := scheduled(r.PID()).SetLimits(s.cfg.Timing.HealthEvery)
		r.lift, r.Missing = lift, append(r.Missing, missing...)
	}
}

// realtime says whether the plane has forwarding threads that are to be real-time.
func (s *Supervisor) realtime(r *running) bool {
	return s.cfg.Class == tunnel.Voice && r.about.Running && r.about.Engine == tunnel.EngineRealtime
}

// adopt takes over a plane that an earlier daemon left. A plane that speaks another major version is ended;
// where it hands its descriptors back, the devices stay.
func (s *Supervisor) adopt(ctx context.Context) error {
	i, files, err := s.procs.Adopt(ctx)
	if err != nil || i == nil {
		return err
	}
	r := &running{Instance: i}
	res, err := resourcesOf(files)
	name := ""
	if err == nil {
		if name, err = tunName(res.tun); err != nil {
			res.close()
		}
	}
	if err != nil {
		s.log.Warn("a plane of an earlier daemon has no usable descriptors and is replaced",
			"pid", i.PID(), "error", err)
		s.procs.End(i)
		return nil
	}

	if err := i.DecodeHello(&r.about); err != nil {
		res.close()
		s.procs.End(i)
		return err
	}
	s.res = res
	s.have = parameters{iface: name, engine: r.about.Engine, Settings: r.about.Settings}
	s.have.port, s.have.mark, s.have.tos = socketParameters(res)
	ignorePathMTU(res)
	if i.Hello.Major != s.major || !r.about.Running || r.about.Class != s.cfg.Class {
		s.log.Warn("a plane of an earlier daemon does not fit and is replaced; its devices are kept",
			"pid", i.PID(), "build", i.Hello.Build, "protocol", i.Hello.Major, "spoken_here", s.major)
		s.procs.End(i)
		return nil
	}
	s.tune(r, r.about.Engine)
	if s.realtime(r) {
		r.Missing = append(r.Missing, scheduled(i.PID()).Raise()...)
	}
	s.watch(r)
	return nil
}

// Status is what the plane says of itself, with what the supervisor knows.
func (s *Supervisor) Status(ctx context.Context) (tunnel.DeviceStatus, error) {
	cur, restarts := s.current(), s.procs.Restarts()
	if cur == nil {
		d := tunnel.DeviceStatus{Class: s.cfg.Class, Restarts: restarts}
		return d, fmt.Errorf("plane %s is not running", s.cfg.Class)
	}
	var a statusAnswer
	if err := cur.Ask(ctx, process.Request{Type: typeStatus}, &a); err != nil {
		return tunnel.DeviceStatus{Class: s.cfg.Class, PlanePID: cur.PID(), Restarts: restarts}, err
	}
	if a.Status == nil {
		return tunnel.DeviceStatus{}, fmt.Errorf("plane %s answered without a status", s.cfg.Class)
	}
	d := *a.Status
	s.learn(d.Peers)
	d.Class, d.Interface, d.Engine = s.cfg.Class, cur.about.Interface, cur.about.Engine
	d.PlanePID, d.PlaneBuild, d.Since = cur.PID(), cur.Hello.Build, cur.Hello.Started
	d.Restarts, d.Adopted, d.PlaneLogDropped = restarts, cur.Adopted, s.procs.LogDropped()
	return d, nil
}

// PID is the running plane's id; 0 if there is none.
func (s *Supervisor) PID() int {
	if cur := s.current(); cur != nil {
		return cur.PID()
	}
	return 0
}

// Sandbox is what the running plane gave up, and what it could not.
func (s *Supervisor) Sandbox() (holds, missing []string) {
	cur := s.current()
	if cur == nil {
		return nil, nil
	}
	return cur.Hello.Sandbox, slices.Concat(cur.Missing, cur.Hello.Missing)
}

// Stop ends the plane, also one that this daemon never adopted, and removes everything of it: the device goes
// with the last descriptor.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	if s.procs.Closed() {
		return errStopped
	}
	if s.current() == nil && s.res == noResources {
		if err := s.adopt(ctx); err != nil {
			return err
		}
	}
	s.stopped = true
	s.want(nil)
	if cur := s.current(); cur != nil {
		s.procs.Watch(nil)
		s.procs.End(cur.Instance)
	}
	iface := s.have.iface
	s.res.close()
	s.res, s.have = noResources, parameters{}
	if iface != "" {
		s.removeUAPISocket(iface)
	}
	s.procs.RemoveFiles()
	return nil
}

// observe asks the plane for all that its engine holds, with secrets, and learns where its peers are.
func (s *Supervisor) observe(ctx context.Context, r *running) (tunnel.Observed, error) {
	var a uapiText
	if err := r.Ask(ctx, process.Request{Type: typeUAPI, Long: true}, &a); err != nil {
		return tunnel.Observed{}, err
	}
	have, err := tunnel.ParseUAPI(strings.NewReader(a.Text))
	if err == nil {
		s.learn(have.Status().Peers)
	}
	return have, err
}

// endpointsMoved takes the event of that name.
func (s *Supervisor) endpointsMoved(m *process.Message) {
	var e endpointsEvent
	if err := m.Decode(&e); err != nil {
		return
	}
	moved := map[tunnel.PublicKey]netip.AddrPort{}
	for k, a := range e.Endpoints {
		if key, err := tunnel.ParsePublicKey(k); err == nil && a.IsValid() {
			moved[key] = a
		}
	}
	s.cfg.OnEndpoints(moved)
}

// learn takes endpoints out of a status.
func (s *Supervisor) learn(peers []tunnel.PeerStatus) {
	seen := map[tunnel.PublicKey]netip.AddrPort{}
	for _, p := range peers {
		if p.Endpoint.IsValid() {
			seen[p.PublicKey] = p.Endpoint
		}
	}
	s.cfg.OnEndpoints(seen)
}
