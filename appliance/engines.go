package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// engine drives the WireGuard device of one class, whatever encrypts in it.
type engine interface {
	Configure(ctx context.Context, d tunnel.Device) error
	Status(ctx context.Context) (tunnel.DeviceStatus, error)
	Stop(ctx context.Context) error // takes the device away
}

// runner is an engine that has to be looked after, as one with a process has.
type runner interface {
	Run(ctx context.Context) error
}

// upgrader is an engine whose running code can be replaced.
type upgrader interface {
	Upgrade(ctx context.Context) error
}

// sandboxed is an engine in a process that was to give up its rights: which it holds to, which it could not.
type sandboxed interface {
	Sandbox() (holds, missing []string)
}

// scheduled is an engine with threads whose scheduling matters.
type scheduled interface {
	Threads() []tunnel.ThreadStatus
}

// slot holds the engine of one class over reloads that change which engine that is.
type slot struct {
	class tunnel.Class
	log   *slog.Logger
	plane func(tunnel.Class) (engine, error)           // makes the userspace engine's supervisor
	clear func(context.Context, tunnel.Settings) error // takes away what another engine has for the class
	anew  func(tunnel.Device) tunnel.Device            // with what a new engine cannot know of its peers

	mu     sync.Mutex
	name   tunnel.EngineName
	device string
	engine engine
	end    context.CancelFunc // of the runner
	ended  chan struct{}
	last   tunnel.Device
}

// configure makes the class's device be as d says, with the engine that d names. ctx bounds this call;
// life bounds what it starts. It returns what it changed in the words of wg(8), without keys.
func (s *slot) configure(ctx, life context.Context, d tunnel.Device) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var have tunnel.Observed
	var prev *tunnel.Device
	if s.engine != nil && s.device == d.Settings.Interface && s.name == d.Settings.Engine {
		if st, err := s.engine.Status(ctx); err == nil {
			before := s.last
			have, prev = withKeysOf(before, st), &before
		}
	}
	if err := s.configureLocked(ctx, life, d); err != nil {
		return nil, fmt.Errorf("tunnel %s: %w", s.class, err)
	}
	if prev == nil {
		return d.Words(), nil
	}
	lines := tunnel.Diff(d, have, prev, time.Now()).Words()
	was := prev.Settings
	if was.PadTo = d.Settings.PadTo; was != d.Settings { // padding is of Outer
		lines = append(lines, d.Words()[0])
	}
	if d.Settings.Engine.PerPacket() && !prev.Outer.Equal(d.Outer) {
		lines = append(lines, outerWords(d))
	}
	if !prev.Admission.Equal(d.Admission) {
		lines = append(lines, admissionWords(d))
	}
	return lines, nil
}

func (s *slot) configureLocked(ctx, life context.Context, d tunnel.Device) error {
	if s.engine != nil && (s.name != d.Settings.Engine || s.device != d.Settings.Interface) {
		s.log.Info("tunnel changes its engine or device and is made anew", "class", s.class, "engine", d.Settings.Engine, "device", d.Settings.Interface)
		if err := s.stopLocked(ctx); err != nil {
			return err
		}
	}
	if s.engine == nil {
		// An earlier daemon may have left the class with the other engine.
		if err := s.clear(ctx, d.Settings); err != nil {
			return err
		}
		switch d.Settings.Engine {
		case tunnel.EngineKernel:
			s.engine = kernel.New()
		case tunnel.EngineWireGuardGo, tunnel.EngineRealtime:
			e, err := s.plane(s.class)
			if err != nil {
				return err
			}
			s.engine = e
		default:
			return fmt.Errorf("no engine %q in this build", d.Settings.Engine)
		}
		s.name, s.device = d.Settings.Engine, d.Settings.Interface
		d = s.anew(d)
		if r, ok := s.engine.(runner); ok {
			s.runLocked(life, r)
		}
	}
	s.last = d
	return s.engine.Configure(ctx, d)
}

// port is the listen port that the class's engine holds, 0 for none.
func (s *slot) port() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		return 0
	}
	return s.last.Settings.ListenPort
}

// runLocked looks after the runner: one that gives up is started again, for a tunnel that is
// not supervised would stay dead when its plane dies.
func (s *slot) runLocked(life context.Context, r runner) {
	ctx, cancel := context.WithCancel(life)
	s.end, s.ended = cancel, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		for ctx.Err() == nil {
			if err := r.Run(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("supervision of a plane failed and starts again", "class", s.class, "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(500 * time.Millisecond):
				}
			}
		}
	}(s.ended)
}

// stopLocked takes engine and device away.
func (s *slot) stopLocked(ctx context.Context) error {
	if s.engine == nil {
		return nil
	}
	err := s.engine.Stop(ctx)
	s.leaveLocked()
	s.engine = nil
	return err
}

// leave ends the supervision and nothing else: the plane forwards on.
func (s *slot) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked()
}

func (s *slot) leaveLocked() {
	if s.end != nil {
		s.end()
		<-s.ended
		s.end = nil
	}
}

func (s *slot) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopLocked(ctx)
}

func (s *slot) status(ctx context.Context) (tunnel.DeviceStatus, error) {
	s.mu.Lock()
	e, last := s.engine, s.last
	s.mu.Unlock()
	if e == nil {
		return tunnel.DeviceStatus{Class: s.class}, errors.New("not up yet")
	}
	st, err := e.Status(ctx)
	st.Class, st.Interface, st.Engine = s.class, last.Settings.Interface, last.Settings.Engine
	site := map[tunnel.PublicKey]string{}
	for _, p := range last.Peers {
		site[p.PublicKey] = p.Site
	}
	for i, p := range st.Peers {
		st.Peers[i].Site = site[p.PublicKey]
	}
	return st, err
}

// lacks is what the class's plane was denied by this machine.
func (s *slot) lacks() []string {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if b, ok := e.(sandboxed); ok {
		_, missing := b.Sandbox()
		missing = slices.Clone(missing)
		slices.Sort(missing) // what was tried before and after the start is missed once
		return slices.Compact(missing)
	}
	return nil
}

// threads is how the engine's forwarding threads are scheduled.
func (s *slot) threads() []tunnel.ThreadStatus {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if t, ok := e.(scheduled); ok {
		return t.Threads()
	}
	return nil
}

func (s *slot) upgrade(ctx context.Context) error {
	s.mu.Lock()
	e := s.engine
	s.mu.Unlock()
	if u, ok := e.(upgrader); ok {
		return u.Upgrade(ctx)
	}
	return fmt.Errorf("tunnel %s runs in the kernel: there is no plane to replace", s.class)
}
