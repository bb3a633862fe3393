package plane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// Times of the supervision. A plane that dies is back at once; one that keeps dying costs at most one
// start a second.
const (
	callTimeout  = 2 * time.Second // longest a healthy plane takes for an answer
	readyTimeout = 5 * time.Second // from exec to hello, and for a whole configuration, on a machine that is busy
	quitTimeout  = time.Second
	killTimeout  = 5 * time.Second
	healthEvery  = 3 * time.Second
	healthTries  = 3
	steadyAfter  = 10 * time.Second // a plane that lived so long did not die of its start
	redialAfter  = 50 * time.Millisecond
	backoffFirst = 10 * time.Millisecond
	backoffLast  = 900 * time.Millisecond
)

// Config is what a Supervisor needs to know. Class, RunDir, UAPIDir, OpenTUN and OpenUDP must be given.
type Config struct {
	Class   tunnel.Class
	RunDir  string // control socket and pid file; made 0700
	UAPIDir string // /var/run/wireguard, where wg(8) looks

	// OpenTUN and OpenUDP make the devices, in the network namespace that is theirs.
	OpenTUN func(name string, mtu, txqlen int) (*os.File, error)
	OpenUDP func(port uint16, mark uint32, tos uint8, b tunnel.Bounds) (udp4, udp6 *os.File, err error)
	// SetLink changes MTU and queue of a device that is there; nil: by ioctl.
	SetLink func(name string, mtu, txqlen int) error

	Args   []string          // of the plane process after argv[0]; default {"plane"}
	Env    []string          // besides what the room itself sets
	Engine tunnel.EngineName // what `auto` means here; default: tunnel.Auto without a kernel that has WireGuard

	// OnEndpoints hears where peers are, so that the daemon can keep it over a restart of the machine.
	// It is called from the connection's reader and must not block, nor call the Supervisor.
	OnEndpoints func(map[tunnel.PublicKey]netip.AddrPort)

	Log         *slog.Logger
	HealthEvery time.Duration // 0: the default
}

// Supervisor keeps the plane of one class alive and as configured. It is a task (Run, Ready, String)
// and an engine (Configure, Status, Handshake, Stop).
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	program int // descriptor of the binary
	unpriv  bool
	speaks  int // ProtocolMajor; a test plays a newer daemon

	// op is held by whatever changes planes or descriptors, and may be held for seconds. Order: op, mu.
	op   sync.Mutex
	res  resources
	have parameters // what the descriptors are set to

	mu        sync.Mutex // guards what follows, and is held for moments; written only with op held too, but for endpoints
	cur       *running
	wanted    *tunnel.Device
	endpoints map[tunnel.PublicKey]netip.AddrPort // last known, also of sites that dial in
	restarts  int
	failures  int // starts in a row that did not last
	died      time.Time
	stopped   bool
	closed    bool

	changed   chan struct{} // cur is another
	ready     chan struct{}
	readyOnce sync.Once
	logs      sync.WaitGroup
}

// running is a plane that forwards, and the connection to it.
type running struct {
	proc    *process
	conn    *client
	hello   Hello
	since   time.Time
	adopted bool
	missing []string
	lift    bool     // a forwarding thread that lowered itself cannot come back by itself
	stderr  *os.File // read end; nil for an adopted one
}

// parameters is what is set from outside on the descriptors of a plane.
type parameters struct {
	iface  string
	port   uint16
	mark   uint32
	tos    uint8        // as the sockets have it
	outer  tunnel.Outer // as the engine was told
	admit  tunnel.Admission
	mtu    int
	bounds tunnel.Bounds
	engine tunnel.EngineName
}

func (p parameters) equal(q parameters) bool {
	return p.iface == q.iface && p.port == q.port && p.mark == q.mark && p.tos == q.tos && p.outer.Equal(q.outer) && p.admit.Equal(q.admit) &&
		p.mtu == q.mtu && p.bounds == q.bounds && p.engine == q.engine
}

// NewSupervisor makes a supervisor; it starts and touches nothing.
func NewSupervisor(cfg Config) (*Supervisor, error) {
	switch {
	case cfg.Class == "", cfg.RunDir == "", cfg.UAPIDir == "", cfg.OpenTUN == nil, cfg.OpenUDP == nil:
		return nil, errors.New("supervise a plane: class, directories or openers are missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SetLink == nil {
		cfg.SetLink = setLink
	}
	if cfg.Engine == "" {
		cfg.Engine = tunnel.Auto(cfg.Class, false)
	}
	if cfg.Args == nil {
		cfg.Args = []string{"plane"}
	}
	if cfg.HealthEvery == 0 {
		cfg.HealthEvery = healthEvery
	}
	program, err := openProgram()
	if err != nil {
		return nil, err
	}
	return &Supervisor{
		cfg: cfg, log: cfg.Log.With("class", string(cfg.Class)), program: program, unpriv: os.Geteuid() != 0, speaks: ProtocolMajor,
		res: noResources, endpoints: map[tunnel.PublicKey]netip.AddrPort{},
		changed: make(chan struct{}, 1), ready: make(chan struct{}),
	}, nil
}

func (s *Supervisor) String() string { return "plane " + string(s.cfg.Class) }

// Ready is closed when the plane forwards for the first time.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// Run watches the plane until ctx ends. Then it lets go: the plane forwards on, for the next daemon to adopt.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.Close()
	health := time.NewTicker(s.cfg.HealthEvery)
	defer health.Stop()
	missed := 0
	for {
		cur, delay := s.look()
		var exited, lost <-chan struct{}
		var again <-chan time.Time
		switch {
		case cur != nil:
			exited, lost = cur.proc.exited, cur.conn.gone
		case delay >= 0:
			again = time.After(delay)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			missed = 0
		case <-exited:
			s.bury(cur, "")
		case <-lost:
			// A dying plane's connection ends a moment before its process does.
			select {
			case <-exited:
				s.bury(cur, "")
			case <-time.After(callTimeout / 4):
				s.bury(cur, "closed its control connection")
			case <-ctx.Done():
			}
		case <-again:
			s.revive(ctx)
		case <-health.C:
			if cur == nil {
				continue
			}
			if err := s.healthy(ctx, cur); err == nil {
				missed = 0
			} else if missed++; missed >= healthTries && ctx.Err() == nil {
				s.bury(cur, "hangs: "+err.Error())
			}
		}
	}
}

// look says which plane runs, or else how long to wait before the next try; negative: none is wanted.
func (s *Supervisor) look() (cur *running, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cur != nil || s.wanted == nil || s.stopped || s.closed:
		return s.cur, -1
	case s.failures == 0:
		return nil, 0
	}
	return nil, min(backoffFirst<<min(s.failures-1, 10), backoffLast)
}

// healthy asks for the status, not for a hello: that goes through the engine's locks.
func (s *Supervisor) healthy(ctx context.Context, cur *running) error {
	r, err := cur.conn.call(ctx, message{Type: typeStatus})
	if err == nil && r.m.Status != nil {
		s.learn(r.m.Status.Peers)
	}
	if err == nil && cur.lift {
		bringBack(ctx, cur.proc.pid)
	}
	return err
}

func (s *Supervisor) current() *running {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur
}

func (s *Supervisor) setCurrent(r *running) {
	s.mu.Lock()
	s.cur = r
	s.mu.Unlock()
	s.poke()
}

// bury clears away a plane that died, or, with a reason, one that is of no use any more.
func (s *Supervisor) bury(gone *running, why string) {
	s.op.Lock()
	defer s.op.Unlock()
	if s.current() != gone { // replaced or stopped meanwhile
		return
	}
	if !gone.proc.dead() {
		s.log.Warn("plane is replaced", "pid", gone.proc.pid, "reason", why)
		s.kill(gone)
	} else {
		s.log.Warn("plane died", "pid", gone.proc.pid, "reason", gone.proc.reason, "lived", time.Since(gone.since).Round(time.Millisecond))
	}
	s.mu.Lock()
	s.died = time.Now()
	if s.died.Sub(gone.since) > steadyAfter {
		s.failures = 0
	}
	s.mu.Unlock()
	s.drop(gone)
	s.setCurrent(nil)
}

// revive starts a plane where one is wanted and none runs. The first one comes at once, the next ones slower and slower.
func (s *Supervisor) revive(ctx context.Context) {
	s.op.Lock()
	defer s.op.Unlock()
	if s.stopped || s.closed || s.wanted == nil || s.current() != nil {
		return
	}
	s.mu.Lock()
	s.failures++
	s.restarts++
	tries, died := s.failures, s.died
	s.mu.Unlock()
	next, err := s.open(s.have) // what is still there stays: that is all, unless somebody deleted the device
	if err == nil {
		s.adoptResources(next, s.have)
		err = s.bringUp(ctx, *s.wanted)
	}
	if err != nil {
		s.log.Error("plane does not start, trying again", "error", err, "tries", tries)
		return
	}
	s.log.Info("plane is back", "pid", s.current().proc.pid, "after", time.Since(died).Round(time.Millisecond))
}

// want remembers what the plane has to hold, for whenever it has to be started again.
func (s *Supervisor) want(dev *tunnel.Device) {
	s.mu.Lock()
	s.wanted = dev
	s.mu.Unlock()
	s.poke()
}

func (s *Supervisor) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// drop closes what belongs to a plane that is gone.
func (s *Supervisor) drop(r *running) {
	r.conn.close()
	r.proc.letGo()
	if r.stderr != nil {
		r.stderr.Close()
	}
}

// Close lets the plane go without ending it, and closes all descriptors. Run does it.
func (s *Supervisor) Close() {
	s.op.Lock()
	defer s.op.Unlock()
	if s.closed {
		return
	}
	cur := s.current()
	s.mu.Lock()
	s.closed, s.cur = true, nil
	s.mu.Unlock()
	if cur != nil {
		s.drop(cur)
	}
	s.res.close()
	s.res = noResources
	closeFDs(s.program)
	s.logs.Wait()
}

// launch starts a plane process with res, for engine; it has none yet, so that it touches no packet.
func (s *Supervisor) launch(ctx context.Context, res resources, engine tunnel.EngineName) (*running, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make control connection: %w", err)
	}
	defer closeFDs(pair[1])
	names, files := res.each()
	sp := spawning{program: s.program, args: append([]string{"ringway"}, s.cfg.Args...), env: s.cfg.Env, class: s.cfg.Class, engine: engine,
		names: append([]string{fileConnection}, names...), files: append([]int{pair[1]}, files...), own: !s.unpriv}
	read, write, err := os.Pipe() // what the runtime says when it crashes
	if err != nil {
		closeFDs(pair[0])
		return nil, err
	}
	sp.stderr = int(write.Fd())
	proc, missing, err := spawn(sp)
	write.Close()
	if err != nil {
		closeFDs(pair[0])
		read.Close()
		return nil, err
	}
	r := &running{proc: proc, missing: missing, stderr: read, since: time.Now()}
	s.logs.Go(func() { s.readStderr(read, proc.pid) })
	abandon := func(err error) (*running, error) {
		_ = proc.kill()
		<-proc.exited
		err = fmt.Errorf("%w (%s)", err, proc.reason)
		if r.conn != nil {
			r.conn.close()
		}
		proc.letGo()
		read.Close()
		return nil, err
	}
	conn, err := asConn(pair[0])
	if err != nil {
		return abandon(err)
	}
	if r.conn, err = newClient(conn, s.event); err != nil {
		return abandon(err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if r.hello, _, err = r.conn.hello(ctx, true); err != nil {
		return abandon(fmt.Errorf("new plane %s says nothing: %w", s.cfg.Class, err))
	}
	s.tune(r, engine)
	return r, nil
}

// ignite gives a launched plane its engine and the whole device, and has it shake hands at once.
func (s *Supervisor) ignite(ctx context.Context, r *running, dev tunnel.Device, p parameters) error {
	text := tunnel.Diff(s.withLastEndpoints(dev), tunnel.Observed{}, nil, time.Now()).SetText()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if _, err := r.conn.call(ctx, message{Type: typeStart, Start: &startRequest{
		Engine: p.engine, Interface: p.iface, MTU: p.mtu, Bounds: p.bounds, Outer: p.outer, Admission: p.admit, Text: text, Handshake: true,
	}}); err != nil {
		return err
	}
	var err error
	if r.hello, _, err = r.conn.hello(ctx, true); err != nil {
		return err
	}
	switch {
	case s.realtime(r):
		r.missing = append(r.missing, realtimeThreads(r.proc.pid)...)
	case s.cfg.Class == tunnel.Voice: // threads made since inherit; this is for one that was just being made
		tune(r.proc.pid, s.cfg.Class, p.engine)
	}
	return s.writePID(r.proc.pid)
}

// tune prepares the process of a plane that runs engine, or is to.
func (s *Supervisor) tune(r *running, engine tunnel.EngineName) {
	r.missing = append(r.missing, tune(r.proc.pid, s.cfg.Class, engine)...)
	if s.cfg.Class == tunnel.Voice && engine == tunnel.EngineRealtime {
		lift, missing := realtimeLimits(r.proc.pid)
		r.lift, r.missing = lift, append(r.missing, missing...)
	}
}

// realtime says whether the plane has forwarding threads that are to be real-time.
func (s *Supervisor) realtime(r *running) bool {
	return s.cfg.Class == tunnel.Voice && r.hello.Running && r.hello.Engine == tunnel.EngineRealtime
}

// bringUp starts a plane on the descriptors that are there.
func (s *Supervisor) bringUp(ctx context.Context, dev tunnel.Device) error {
	r, err := s.launch(ctx, s.res, s.have.engine)
	if err != nil {
		return err
	}
	if err := s.ignite(ctx, r, dev, s.have); err != nil {
		s.end(r)
		return err
	}
	s.installed(r)
	return nil
}

// installed makes r the plane that is watched.
func (s *Supervisor) installed(r *running) {
	s.setCurrent(r)
	s.readyOnce.Do(func() { close(s.ready) })
	s.log.Info("plane forwards", "pid", r.proc.pid, "build", r.hello.Build, "engine", string(r.hello.Engine), "interface", r.hello.Interface,
		"adopted", r.adopted, "sandbox", r.hello.Sandbox)
	if missing := slices.Concat(r.missing, r.hello.Missing); len(missing) > 0 {
		s.log.Warn("plane runs with less than it should have", "pid", r.proc.pid, "missing", missing)
	}
}

// end tells a plane to quit and makes sure that it does.
func (s *Supervisor) end(r *running) {
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	_, err := r.conn.call(ctx, message{Type: typeQuit})
	if err == nil || errors.Is(err, errLost) {
		select {
		case <-r.proc.exited:
		case <-ctx.Done():
		}
	}
	s.kill(r)
	s.drop(r)
}

// endAfter ends a plane whose last answer was err: one that said nothing for so long is not asked to quit.
func (s *Supervisor) endAfter(r *running, err error) {
	if !errors.Is(err, errSilent) {
		s.end(r)
		return
	}
	s.kill(r)
	s.drop(r)
}

// kill ends a plane's process, also a stopped one. It waits for the end, but not for good: one that the kernel
// holds runs no line of its program any more.
func (s *Supervisor) kill(r *running) {
	if r.proc.dead() {
		return
	}
	err := r.proc.kill()
	select {
	case <-r.proc.exited:
		return
	case <-time.After(killTimeout):
	}
	s.log.Error("plane cannot be ended", "pid", r.proc.pid, "error", err)
}

// event takes what a plane pushes.
func (s *Supervisor) event(m message) {
	switch m.Type {
	case typeEndpoints:
		moved := map[tunnel.PublicKey]netip.AddrPort{}
		for k, a := range m.Endpoints {
			if key, err := tunnel.ParsePublicKey(k); err == nil && a.IsValid() {
				moved[key] = a
			}
		}
		s.remember(moved)
	case typeLog:
		if m.Log == nil {
			return
		}
		args := []any{"from", "plane"}
		for k, v := range m.Log.Attrs {
			args = append(args, k, v)
		}
		s.log.Log(context.Background(), slog.Level(m.Log.Level), m.Log.Message, args...)
	}
}

// learn takes endpoints out of a status.
func (s *Supervisor) learn(peers []tunnel.PeerStatus) {
	seen := map[tunnel.PublicKey]netip.AddrPort{}
	for _, p := range peers {
		if p.Endpoint.IsValid() {
			seen[p.PublicKey] = p.Endpoint
		}
	}
	s.remember(seen)
}

func (s *Supervisor) remember(at map[tunnel.PublicKey]netip.AddrPort) {
	moved := map[tunnel.PublicKey]netip.AddrPort{}
	s.mu.Lock()
	for k, a := range at {
		if s.endpoints[k] != a {
			s.endpoints[k], moved[k] = a, a
		}
	}
	s.mu.Unlock()
	if len(moved) > 0 && s.cfg.OnEndpoints != nil {
		s.cfg.OnEndpoints(moved)
	}
}

// withLastEndpoints is dev with its peers where they were seen last.
func (s *Supervisor) withLastEndpoints(dev tunnel.Device) tunnel.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	dev.Peers = slices.Clone(dev.Peers)
	for i := range dev.Peers {
		if a, ok := s.endpoints[dev.Peers[i].PublicKey]; ok {
			dev.Peers[i].Endpoint = a
		}
	}
	return dev
}

// readStderr logs what a plane's runtime writes, bounded: a trace of hundreds of goroutines helps nobody.
func (s *Supervisor) readStderr(f io.Reader, pid int) {
	const maxLines = 60
	buf := make([]byte, 4096)
	var line []byte
	lines := 0
	for {
		n, err := f.Read(buf)
		for _, b := range buf[:n] {
			if b != '\n' && len(line) < 512 {
				line = append(line, b)
				continue
			}
			if b == '\n' {
				if lines++; lines <= maxLines && len(line) > 0 {
					s.log.Error("plane writes", "pid", pid, "line", string(line))
				}
				line = line[:0]
			}
		}
		if err != nil {
			return
		}
	}
}
