package plane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/tunnel"
)

// Options is what the binary gives the plane command.
type Options struct {
	Engines map[tunnel.EngineName]NewEngine
	Build   string // version of the binary, for status
}

// Main is the process `ringway plane`. It returns when it is told to quit, at SIGTERM, or when the engine
// ends, which is an error.
func Main(o Options) error {
	s := &server{options: o, class: tunnel.Class(os.Getenv(envClass))}
	child, err := process.NewChild(process.ChildOptions{
		Protocol:  process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		EnvPrefix: envPrefix,
		Build:     o.Build,
		Sandbox:   sandboxOf(s.class),
		Handlers:  s.handlers(),
		Hello:     s.hello,
	})
	if err != nil {
		return err
	}
	s.child = child
	return child.Run(s.shut)
}

// server is the plane's side of the requests.
type server struct {
	options Options
	class   tunnel.Class
	child   *process.Child

	mu       sync.Mutex // guards what follows; never held while the engine works
	about    about
	engine   Engine
	starting bool
	uapi     net.Listener
}

// hello is the plane's part of every hello.
func (s *server) hello() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.about
	a.Class = s.class
	return a
}

// shut ends the engine.
func (s *server) shut() error {
	s.mu.Lock()
	engine, uapi := s.engine, s.uapi
	s.mu.Unlock()
	if engine == nil {
		return nil
	}
	uapi.Close()
	return engine.Close()
}

// handlers are the requests that a plane answers.
func (s *server) handlers() map[string]process.Handler {
	return map[string]process.Handler{
		typeStart:     s.handleStart,
		typeSettings:  s.withEngine(s.handleSettings),
		typeSet:       s.withEngine(s.handleSet),
		typeUAPI:      s.withEngine(s.handleUAPI),
		typeStatus:    s.withEngine(s.handleStatus),
		typeHandshake: s.withEngine(s.handleHandshake),

		typeReserve:      s.withEngine(s.handleReserve),
		typeRelease:      s.withEngine(s.handleRelease),
		typeReservations: s.withEngine(s.handleReservations),

		typeSeries: s.withEngine(s.handleSeries),

		typeReroute: s.withEngine(s.handleReroute),

		typeConfirmMTU: s.withEngine(s.handleConfirmMTU),

		olderBounds:    s.withEngine(s.handleSettings),
		olderLink:      s.withEngine(s.handleSettings),
		olderOuter:     s.withEngine(s.handleSettings),
		olderAdmission: s.withEngine(s.handleSettings),
	}
}

// withEngine refuses a request as long as there is no engine.
func (s *server) withEngine(handle func(e Engine, m *process.Message) (process.Reply, error)) process.Handler {
	return func(_ context.Context, m *process.Message) (process.Reply, error) {
		s.mu.Lock()
		engine := s.engine
		s.mu.Unlock()
		if engine == nil {
			return process.Reply{}, fmt.Errorf("request %q before start", m.Type)
		}
		return handle(engine, m)
	}
}

func (s *server) handleSet(e Engine, m *process.Message) (process.Reply, error) {
	var r uapiText
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	return process.Reply{}, e.Set(strings.NewReader(r.Text))
}

func (s *server) handleUAPI(e Engine, _ *process.Message) (process.Reply, error) {
	var b strings.Builder
	err := e.Get(&b)
	return process.Reply{Body: uapiText{Text: b.String()}}, err
}

func (s *server) handleStatus(e Engine, _ *process.Message) (process.Reply, error) {
	status := e.Status()
	return process.Reply{Body: statusAnswer{Status: &status}}, nil
}

func (s *server) handleHandshake(e Engine, m *process.Message) (process.Reply, error) {
	var r handshakeRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	e.Handshake(r.Keys...)
	return process.Reply{}, nil
}

// handleSettings takes `settings`, or a request of protocol 1.2 or older for one setting.
func (s *server) handleSettings(e Engine, m *process.Message) (process.Reply, error) {
	var change Settings
	if err := m.Decode(&change); err != nil {
		return process.Reply{}, err
	}
	if change.empty() && m.Type != typeSettings {
		return process.Reply{}, fmt.Errorf("request %q: missing payload", m.Type)
	}
	return process.Reply{}, s.change(e, change)
}

// change applies a change and remembers what holds by now.
func (s *server) change(e Engine, change Settings) error {
	done, err := change.apply(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.about.Settings = s.about.with(done)
	return err
}

// handleStart makes the engine. It happens once in a plane's life.
func (s *server) handleStart(_ context.Context, m *process.Message) (process.Reply, error) {
	var r startRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	again := s.starting
	s.starting = true
	s.mu.Unlock()
	if again {
		return process.Reply{}, errors.New("started already")
	}
	engine, err := s.makeEngine(r.Start)
	if err != nil {
		return process.Reply{}, err
	}
	if err := s.open(engine, r.Start); err != nil {
		return process.Reply{}, errors.Join(err, engine.Close())
	}
	return process.Reply{}, nil
}

// makeEngine makes the engine and configures it.
func (s *server) makeEngine(r startParameters) (Engine, error) {
	create, ok := s.options.Engines[r.Engine]
	if !ok {
		return nil, fmt.Errorf("this build has no engine %q", r.Engine)
	}
	files, err := s.engineFiles()
	defer files.close()
	if err != nil {
		return nil, err
	}
	limitRuntime(s.class, r.Engine)
	engine, err := create(Start{
		Files: files, Class: s.class, Bounds: r.bounds(), MTU: r.mtu(), Log: s.child.Log(),
	})
	if err != nil {
		return nil, fmt.Errorf("start engine %s: %w", r.Engine, err)
	}

	// How packets look and how many may leave is set before there is a peer to send to.
	rest := r.Settings
	rest.MTU, rest.Bounds = nil, nil
	if _, err = rest.apply(engine); err == nil {
		err = engine.Set(strings.NewReader(r.Text))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure engine %s: %w", r.Engine, err), engine.Close())
	}
	if r.Handshake {
		engine.Handshake()
	}
	return engine, nil
}

// open lets later daemons and wg(8) in.
func (s *server) open(engine Engine, r startParameters) error {
	uapi, err := s.child.Listen(fileUAPI)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.engine, s.uapi = engine, uapi
	s.about = about{Running: true, Engine: r.Engine, Interface: r.Interface, Settings: r.Settings}
	s.mu.Unlock()
	s.child.Go(func() { _ = engine.ServeUAPI(uapi) })
	s.child.Go(func() { s.watch(engine) })
	return s.child.Open()
}

// engineFiles are duplicates of the descriptors that an engine works on.
func (s *server) engineFiles() (f Files, err error) {
	for _, x := range []struct {
		name string
		to   **os.File
	}{{fileTUN, &f.TUN}, {fileUDP4, &f.UDP4}, {fileUDP6, &f.UDP6}} {
		fd := s.child.FD(x.name)
		if fd == process.NoFD {
			continue
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return f, fmt.Errorf("make %s non-blocking: %w", x.name, err)
		}
		if *x.to, err = process.AsFile(fd, x.name); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f Files) close() {
	for _, x := range []*os.File{f.TUN, f.UDP4, f.UDP6} {
		if x != nil {
			x.Close()
		}
	}
}

// watch pushes endpoint changes, and ends the plane with its engine: a plane without an engine would look
// alive and forward nothing.
func (s *server) watch(engine Engine) {
	moved := engine.Endpoints()
	for {
		select {
		case m, ok := <-moved:
			if !ok {
				moved = nil
				continue
			}
			e := endpointsEvent{Endpoints: map[string]netip.AddrPort{}}
			for k, a := range m {
				e.Endpoints[k.String()] = a
			}
			s.child.Push(typeEndpoints, e)
		case <-engine.Done():
			select {
			case <-s.child.Quitting():
			default:
				s.child.End(errors.New("the engine stopped unexpectedly"))
			}
			return
		}
	}
}
