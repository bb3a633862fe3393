package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// Environment of a plane, set by the daemon.
const (
	envFiles = "RINGWAY_PLANE_FILES" // names of the descriptors from 3 on, in order
	envOwner = "RINGWAY_PLANE_OWNER" // uid of the daemon
	envClass = "RINGWAY_PLANE_CLASS"

	fileConnection = "connection" // the daemon's own end of a socket pair
	firstFile      = 3

	maxConnections = 8
	pushTimeout    = time.Second
)

// Options is what the binary gives the plane command.
type Options struct {
	Engines map[tunnel.EngineName]NewEngine
	Build   string // version of the binary, for status
}

// Main is the process `ringway plane`. It returns when it is told to quit, at SIGTERM (the machine goes
// down: the supervisor never sends one), or when the engine ends, which is an error.
func Main(o Options) error {
	// A plane outlives the terminal and the daemon: neither a hang-up nor an interrupt meant for the
	// daemon's process group ends it, nor a write to a log that nobody reads any more.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	defer signal.Stop(term)

	class := tunnel.Class(os.Getenv(envClass))
	files, err := inherited(os.Getenv(envFiles))
	if err != nil {
		return err
	}
	owner, err := strconv.ParseUint(os.Getenv(envOwner), 10, 32)
	if err != nil {
		return fmt.Errorf("this command is started by ringway run, not by hand")
	}
	// The name that ps and top show; the program was executed as /proc/self/fd/N.
	_ = os.WriteFile("/proc/self/comm", []byte("rw-plane-"+string(class)), 0)
	_, _ = time.Now().Local().Zone() // read the time zone while files can be read
	limitMemory()
	program := programPages()
	holds, missing := sandbox(class)

	s := &server{
		options: o, class: class, owner: uint32(owner), files: files, program: program,
		hello: Hello{Major: ProtocolMajor, Minor: ProtocolMinor, Build: buildName(o.Build), Class: class, PID: os.Getpid(),
			Started: time.Now().UTC(), Sandbox: holds, Missing: missing},
		quit:  make(chan struct{}),
		ended: make(chan error, 1),
		wires: map[*wire]bool{},
	}
	s.log = newPushLog(s)
	return s.run(term)
}

func buildName(b string) string {
	if b != "" {
		return b
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, set := range info.Settings {
			if set.Key == "vcs.revision" {
				return set.Value
			}
		}
	}
	return "unknown"
}

// inherited gives the descriptors their names.
func inherited(names string) (map[string]int, error) {
	files := map[string]int{}
	if names == "" {
		return nil, errors.New("this command is started by ringway run, not by hand")
	}
	for i, n := range strings.Split(names, ",") {
		fd := firstFile + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("descriptor %d (%s) was not handed over: %w", fd, n, err)
		}
		unix.CloseOnExec(fd)
		files[n] = fd
	}
	return files, nil
}

// server is the plane's side of the control protocol.
type server struct {
	options Options
	class   tunnel.Class
	owner   uint32
	files   map[string]int // held for the whole life: what `fds` gives back
	program []pages        // what was mapped of the program at the start
	log     *pushLog

	quit     chan struct{}
	quitOnce sync.Once
	ended    chan error

	mu       sync.Mutex // guards what follows; never held while the engine works
	hello    Hello
	engine   Engine
	starting bool
	wires    map[*wire]bool // true: it watches
	listener net.Listener
	uapi     net.Listener

	tasks sync.WaitGroup
}

// run serves until the end of the plane.
func (s *server) run(term <-chan os.Signal) error {
	conn, err := asConn(s.files[fileConnection])
	if err != nil {
		return fmt.Errorf("take the daemon's connection: %w", err)
	}
	delete(s.files, fileConnection)
	w, err := newWire(conn, false)
	if err != nil {
		return err
	}
	s.tasks.Go(s.log.run)
	if !s.add(w) {
		return errors.New("no room for the daemon's connection")
	}
	s.tasks.Go(func() {
		s.serve(w)
		// A daemon that died before it started the engine has left a process that nobody would find.
		s.mu.Lock()
		orphan := s.engine == nil
		s.mu.Unlock()
		if orphan {
			s.stop()
		}
	})

	select {
	case <-s.quit:
	case <-term:
	case err = <-s.ended:
	}
	s.stop()
	s.mu.Lock()
	engine := s.engine
	for _, l := range []net.Listener{s.listener, s.uapi} {
		if l != nil {
			l.Close()
		}
	}
	for w := range s.wires {
		w.close()
	}
	s.mu.Unlock()
	if engine != nil {
		err = errors.Join(err, engine.Close())
	}
	over := make(chan struct{})
	go func() { s.tasks.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(quitTimeout / 2): // an engine that keeps a connection: the process ends with it
	}
	return err
}

func (s *server) stop() { s.quitOnce.Do(func() { close(s.quit) }) }

// add takes a connection in, bounded.
func (s *server) add(w *wire) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wires) >= maxConnections {
		return false
	}
	s.wires[w] = false
	return true
}

// accept lets later daemons in. It starts with the engine, so that while a plane is replaced
// only the one that forwards answers.
func (s *server) accept(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		w, err := newWire(c, false)
		if err != nil {
			c.Close()
			continue
		}
		cred, err := peer(c)
		refusal := ""
		switch {
		case err != nil:
			refusal = "who calls cannot be told"
		case cred.Uid != 0 && cred.Uid != s.owner:
			refusal = fmt.Sprintf("uid %d may not control a plane (allowed: root, the daemon's user)", cred.Uid)
		case !s.add(w):
			refusal = fmt.Sprintf("more than %d connections", maxConnections)
		}
		if refusal != "" {
			s.log.Warn("control connection refused", "reason", refusal)
			_ = w.write(message{Type: "refused", Error: refusal}, nil, pushTimeout)
			w.close()
			continue
		}
		s.tasks.Go(func() { s.serve(w) })
	}
}

// serve answers one connection's requests in order.
func (s *server) serve(w *wire) {
	defer func() {
		s.mu.Lock()
		delete(s.wires, w)
		s.mu.Unlock()
		w.close()
	}()
	for {
		m, files, _, err := w.read()
		closeFDs(files...) // no request carries any
		if err != nil {
			return
		}
		answer, out := s.handle(w, m)
		answer.Type, answer.ID = m.Type, m.ID
		if err := w.write(answer, out, pushTimeout); err != nil {
			return
		}
		if m.Type == typeQuit {
			s.stop()
			return
		}
	}
}

// handle does one request.
func (s *server) handle(w *wire, m message) (message, []int) {
	fail := func(format string, a ...any) (message, []int) { return message{Error: fmt.Sprintf(format, a...)}, nil }
	s.mu.Lock()
	engine := s.engine
	hello := s.hello
	if m.Type == typeHello {
		s.wires[w] = s.wires[w] || m.Watch
	}
	s.mu.Unlock()

	switch m.Type { // these three never change (protocol.go)
	case typeHello:
		if m.Watch {
			s.log.wake()
		}
		return message{Hello: &hello}, nil
	case typeQuit:
		return message{}, nil
	case typeFiles:
		return s.give()
	}
	if m.Version != ProtocolMajor {
		return fail("protocol %d is not spoken here (this plane speaks %d)", m.Version, ProtocolMajor)
	}
	if m.Type == typeStart {
		if err := s.start(m.Start); err != nil {
			return fail("%v", err)
		}
		return message{}, nil
	}
	known := map[string]bool{typeSet: true, typeUAPI: true, typeStatus: true, typeHandshake: true, typeBounds: true, typeLink: true, typeOuter: true, typeAdmission: true}
	switch {
	case !known[m.Type]:
		return fail("unknown request %q (this plane speaks protocol %d.%d)", m.Type, ProtocolMajor, ProtocolMinor)
	case engine == nil:
		return fail("request %q before start", m.Type)
	}
	switch m.Type {
	case typeSet:
		if err := engine.Set(strings.NewReader(m.Text)); err != nil {
			return fail("%v", err)
		}
	case typeUAPI:
		var b strings.Builder
		if err := engine.Get(&b); err != nil {
			return fail("%v", err)
		}
		return message{Text: b.String()}, nil
	case typeStatus:
		status := engine.Status()
		return message{Status: &status}, nil
	case typeHandshake:
		engine.Handshake(m.Keys...)
	case typeBounds:
		if m.Bounds == nil {
			return fail("request %q without bounds", m.Type)
		}
		if err := engine.SetBounds(*m.Bounds); err != nil {
			return fail("%v", err)
		}
		s.mu.Lock()
		s.hello.Bounds = *m.Bounds
		s.mu.Unlock()
	case typeLink:
		if m.MTU <= 0 {
			return fail("request %q without an MTU", m.Type)
		}
		if err := engine.SetMTU(m.MTU); err != nil {
			return fail("%v", err)
		}
		s.mu.Lock()
		s.hello.MTU = m.MTU
		s.mu.Unlock()
	case typeOuter:
		if m.Outer == nil {
			return fail("request %q without what it is about", m.Type)
		}
		if e, ok := engine.(marker); ok {
			if err := e.SetOuter(*m.Outer); err != nil {
				return fail("%v", err)
			}
		}
		s.mu.Lock()
		s.hello.Outer = *m.Outer
		s.mu.Unlock()
	case typeAdmission:
		if m.Admission == nil {
			return fail("request %q without what it is about", m.Type)
		}
		if e, ok := engine.(admitter); ok {
			if err := e.SetAdmission(*m.Admission); err != nil {
				return fail("%v", err)
			}
		}
		s.mu.Lock()
		s.hello.Admission = *m.Admission
		s.mu.Unlock()
	}
	return message{}, nil
}

// give hands duplicates of everything that the daemon needs to run this plane's successor.
func (s *server) give() (message, []int) {
	var a message
	var fds []int
	for _, n := range []string{fileTUN, fileUDP4, fileUDP6, fileUAPI, fileControl} {
		if fd, ok := s.files[n]; ok {
			a.Files = append(a.Files, n)
			fds = append(fds, fd)
		}
	}
	return a, fds
}

// start makes the engine. It happens once in a plane's life.
func (s *server) start(r *startRequest) (err error) {
	if r == nil {
		return errors.New("start without its parameters")
	}
	s.mu.Lock()
	again := s.starting
	s.starting = true
	s.mu.Unlock()
	if again {
		return errors.New("started already")
	}
	create, ok := s.options.Engines[r.Engine]
	if !ok {
		return fmt.Errorf("this build has no engine %q", r.Engine)
	}
	var f Files
	defer func() {
		for _, x := range []*os.File{f.TUN, f.UDP4, f.UDP6} {
			if x != nil {
				x.Close()
			}
		}
	}()
	for _, x := range []struct {
		name string
		to   **os.File
	}{{fileTUN, &f.TUN}, {fileUDP4, &f.UDP4}, {fileUDP6, &f.UDP6}} {
		fd, ok := s.files[x.name]
		if !ok {
			continue
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		if *x.to, err = asFile(fd, x.name); err != nil {
			return err
		}
	}
	limitRuntime(s.class, r.Engine)
	engine, err := create(Start{Files: f, Class: s.class, Bounds: r.Bounds, MTU: r.MTU, Log: slog.New(s.log.handler())})
	if err != nil {
		return fmt.Errorf("start engine %s: %w", r.Engine, err)
	}
	if e, ok := engine.(marker); ok { // before it has a peer to send to
		if err := e.SetOuter(r.Outer); err != nil {
			return errors.Join(fmt.Errorf("configure engine %s: %w", r.Engine, err), engine.Close())
		}
	}
	if e, ok := engine.(admitter); ok {
		if err := e.SetAdmission(r.Admission); err != nil {
			return errors.Join(fmt.Errorf("configure engine %s: %w", r.Engine, err), engine.Close())
		}
	}
	if err := engine.Set(strings.NewReader(r.Text)); err != nil {
		return errors.Join(fmt.Errorf("configure engine %s: %w", r.Engine, err), engine.Close())
	}
	if r.Handshake {
		engine.Handshake()
	}
	control, err := s.listen(fileControl)
	if err != nil {
		return errors.Join(err, engine.Close())
	}
	uapi, err := s.listen(fileUAPI)
	if err != nil {
		return errors.Join(err, engine.Close())
	}
	s.mu.Lock()
	s.engine, s.listener, s.uapi = engine, control, uapi
	s.hello.Running, s.hello.Engine, s.hello.Interface = true, r.Engine, r.Interface
	s.hello.MTU, s.hello.Bounds, s.hello.Outer, s.hello.Admission = r.MTU, r.Bounds, r.Outer, r.Admission
	s.mu.Unlock()
	s.tasks.Go(func() { s.accept(control) })
	s.tasks.Go(func() { _ = engine.ServeUAPI(uapi) })
	s.tasks.Go(func() { s.watch(engine) })
	letGoOf(s.program)
	return nil
}

// listen makes a listener of a duplicate of an inherited socket: closing it leaves the file alone.
func (s *server) listen(name string) (*net.UnixListener, error) {
	f, err := asFile(s.files[name], name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on inherited %s: %w", name, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("inherited %s is no unix socket", name)
	}
	return u, nil
}

// watch pushes endpoint changes, and ends the plane with its engine: a plane without an engine
// would look alive and forward nothing.
func (s *server) watch(engine Engine) {
	moved := engine.Endpoints()
	for {
		select {
		case m, ok := <-moved:
			if !ok {
				moved = nil
				continue
			}
			e := message{Type: typeEndpoints, Endpoints: map[string]netip.AddrPort{}}
			for k, a := range m {
				e.Endpoints[k.String()] = a
			}
			s.push(e)
		case <-engine.Done():
			select {
			case <-s.quit:
			default:
				s.ended <- errors.New("the engine ended by itself")
			}
			return
		}
	}
}

// push sends an event to every connection that watches. It says whether one took it.
func (s *server) push(m message) (taken bool) {
	s.mu.Lock()
	var to []*wire
	for w, watches := range s.wires {
		if watches {
			to = append(to, w)
		}
	}
	s.mu.Unlock()
	for _, w := range to {
		if err := w.write(m, nil, pushTimeout); err != nil {
			w.close() // a daemon that does not read is as good as gone; it finds the plane again
			continue
		}
		taken = true
	}
	return taken
}

// pushLog is the plane's log. Its lines go to the daemon, which has a place to write to; while there
// is none, the last ones wait.
type pushLog struct {
	*slog.Logger
	server  *server
	records chan logRecord
	woken   chan struct{}
}

const logBacklog = 128

func newPushLog(s *server) *pushLog {
	p := &pushLog{server: s, records: make(chan logRecord, logBacklog), woken: make(chan struct{}, 1)}
	p.Logger = slog.New(p.handler())
	return p
}

func (p *pushLog) handler() slog.Handler { return &pushHandler{log: p} }

func (p *pushLog) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *pushLog) run() {
	var waiting []logRecord
	for {
		select {
		case <-p.server.quit:
			return
		case <-p.woken:
		case r := <-p.records:
			waiting = append(waiting, r)
		}
		for len(waiting) > 0 && p.server.push(message{Type: typeLog, Log: &waiting[0]}) {
			waiting = waiting[1:]
		}
		if len(waiting) > logBacklog {
			waiting = append([]logRecord(nil), waiting[len(waiting)-logBacklog:]...)
		}
	}
}

// pushHandler makes records of what is logged; it never blocks.
type pushHandler struct {
	log    *pushLog
	attrs  []slog.Attr
	prefix string
}

func (h *pushHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *pushHandler) Handle(_ context.Context, r slog.Record) error {
	out := logRecord{Time: r.Time.UTC(), Level: int(r.Level), Message: r.Message, Attrs: map[string]any{}}
	put := func(prefix string, a slog.Attr) { out.Attrs[prefix+a.Key] = a.Value.Resolve().String() }
	for _, a := range h.attrs {
		put("", a)
	}
	r.Attrs(func(a slog.Attr) bool { put(h.prefix, a); return true })
	select {
	case h.log.records <- out:
	default:
	}
	return nil
}

func (h *pushHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = append([]slog.Attr(nil), h.attrs...)
	for _, a := range attrs {
		n.attrs = append(n.attrs, slog.Attr{Key: h.prefix + a.Key, Value: a.Value})
	}
	return &n
}

func (h *pushHandler) WithGroup(name string) slog.Handler {
	n := *h
	n.prefix += name + "."
	return &n
}
