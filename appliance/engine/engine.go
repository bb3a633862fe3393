// Package engine runs the tunnel of a class with the engine that the config names, and replaces it when that
// changes.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ringway/appliance/plan"
	"ringway/appliance/task"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// Engine drives the WireGuard device of one class, whatever encrypts in it.
type Engine interface {
	Configure(ctx context.Context, d tunnel.Device) error
	Status(ctx context.Context) (tunnel.DeviceStatus, error)
	Reroute(ctx context.Context, r tunnel.Reroute) error
	Stop(ctx context.Context) error // removes the device
}

// runner is an engine that needs supervision, such as one in a process.
type runner interface {
	Run(ctx context.Context) error
}

// upgrader is an engine whose running code can be replaced.
type upgrader interface {
	Upgrade(ctx context.Context) error
}

// sandboxed is an engine in a confined process: which restrictions hold, and which this machine did not allow.
type sandboxed interface {
	Sandbox() (holds, missing []string)
}

// scheduled is an engine with threads whose scheduling matters.
type scheduled interface {
	Threads() []tunnel.ThreadStatus
}

// Config says how the engines of a class are made and what they are told.
type Config struct {
	Class tunnel.Class
	Log   *slog.Logger

	NewPlane func() (Engine, error)                                // makes the supervisor of a userspace engine
	Clear    func(ctx context.Context, want tunnel.Settings) error // removes what another engine holds for the class
	Told     func(tunnel.Device)                                   // called when the engine was told a device
	Latest   func(tunnel.Device) tunnel.Device                     // a device with each peer where it was last heard
}

// Holder holds the engine of one class. It is safe for concurrent use.
type Holder struct {
	Config

	mu     sync.Mutex
	name   tunnel.EngineName
	device string
	engine Engine
	end    context.CancelFunc // of the runner
	ended  chan struct{}
	last   tunnel.Device // what the engine was told
}

// New returns a Holder that has no engine yet.
func New(c Config) *Holder { return &Holder{Config: c} }

// Compare returns what Configure would change, in words of wg(8), without keys.
func (h *Holder) Compare(ctx context.Context, d tunnel.Device) plan.Tunnel {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.compareLocked(ctx, d)
}

func (h *Holder) compareLocked(ctx context.Context, d tunnel.Device) plan.Tunnel {
	if h.engine == nil {
		return plan.Tunnel{Lines: plan.Device(d)}
	}
	if h.device != d.Settings.Interface || h.name != d.Settings.Engine {
		return plan.Tunnel{Lines: plan.Device(d), Made: true}
	}
	st, err := h.engine.Status(ctx)
	if err != nil { // an engine that does not answer is told everything
		return plan.Tunnel{Lines: d.Words()}
	}
	return plan.Tunnel{Lines: deviceChanges(d, h.last, WithKeysOf(h.last, st))}
}

// deviceChanges is what leads a device from what the engine was told last, and has, to d.
func deviceChanges(d, last tunnel.Device, have tunnel.Observed) []string {
	lines := tunnel.Diff(d, have, &last, time.Now()).Words()
	was := last.Settings
	if was.PadTo = d.Settings.PadTo; was != d.Settings { // padding is part of Outer
		lines = append(lines, d.Words()[0])
	}
	if d.Settings.Engine.PerPacket() && !last.Outer.Equal(d.Outer) {
		lines = append(lines, plan.OuterWords(d))
	}
	if !last.Admission.Equal(d.Admission) {
		lines = append(lines, plan.AdmissionWords(d))
	}
	if !slices.Equal(last.Sources, d.Sources) {
		lines = append(lines, plan.SourcesWords(d))
	}
	if last.ProbeMTU != d.ProbeMTU {
		lines = append(lines, plan.ProbingWords(d))
	}
	if !last.Copies.Equal(d.Copies) {
		lines = append(lines, plan.CopiesWords(d))
	}
	if last.Measured != d.Measured {
		lines = append(lines, plan.MeasuredWords(d))
	}
	return lines
}

// Changed says whether st, a status that the engine gave, shows another device than the engine was told: somebody else
// changed it.
func (h *Holder) Changed(st tunnel.DeviceStatus) bool {
	e, last := h.current()
	return e != nil && len(tunnel.Diff(last, WithKeysOf(last, st), &last, time.Now()).Words()) > 0
}

// Configure makes the class's device be as d says, with the engine that d names. ctx bounds this call;
// life bounds what it starts. It returns what it changed, as Compare says it.
func (h *Holder) Configure(ctx, life context.Context, d tunnel.Device) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changes := h.compareLocked(ctx, d)
	if err := h.configureLocked(ctx, life, d); err != nil {
		return nil, fmt.Errorf("tunnel %s: %w", h.Class, err)
	}
	return changes.Lines, nil
}

func (h *Holder) configureLocked(ctx, life context.Context, d tunnel.Device) error {
	if h.engine != nil && (h.name != d.Settings.Engine || h.device != d.Settings.Interface) {
		h.Log.Info("replacing the engine or the device of a tunnel", "class", h.Class,
			"engine", d.Settings.Engine, "device", d.Settings.Interface)
		if err := h.stopLocked(ctx); err != nil {
			return err
		}
	}
	if h.engine == nil {
		// An earlier daemon may have left the class with the other engine.
		if err := h.Clear(ctx, d.Settings); err != nil {
			return err
		}
		e, err := h.newEngine(d.Settings.Engine)
		if err != nil {
			return err
		}
		h.engine = e
		h.name, h.device = d.Settings.Engine, d.Settings.Interface
		if r, ok := h.engine.(runner); ok {
			h.runLocked(life, r)
		}
	}
	h.last = d
	if err := h.engine.Configure(ctx, d); err != nil {
		return err
	}
	h.Told(d)
	return nil
}

func (h *Holder) newEngine(name tunnel.EngineName) (Engine, error) {
	switch name {
	case tunnel.EngineKernel:
		return kernel.New(h.Latest), nil
	case tunnel.EngineWireGuardGo, tunnel.EngineRealtime:
		return h.NewPlane()
	}
	return nil, fmt.Errorf("this build has no engine %q", name)
}

// Port is the listen port that the class's engine holds, 0 for none.
func (h *Holder) Port() uint16 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.engine == nil {
		return 0
	}
	return h.last.Settings.ListenPort
}

// supervisionPause is how long after it failed the supervision of a plane is started again.
const supervisionPause = 500 * time.Millisecond

// runLocked supervises the runner's plane. The supervision is restarted if it fails: without it, a tunnel
// stays dead when its plane dies.
func (h *Holder) runLocked(life context.Context, r runner) {
	ctx, cancel := context.WithCancel(life)
	ended := make(chan struct{})
	h.end, h.ended = cancel, ended
	go func() {
		defer close(ended)
		task.Restart(ctx, supervisionPause, r.Run, func(err error) {
			h.Log.Error("supervision of a plane failed, restarting", "class", h.Class, "error", err)
		})
	}()
}

// stopLocked removes the engine and its device.
func (h *Holder) stopLocked(ctx context.Context) error {
	if h.engine == nil {
		return nil
	}
	err := h.engine.Stop(ctx)
	h.releaseLocked()
	h.engine = nil
	return err
}

// Release ends the supervision only: the plane goes on forwarding.
func (h *Holder) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.releaseLocked()
}

func (h *Holder) releaseLocked() {
	if h.end != nil {
		h.end()
		<-h.ended
		h.end = nil
	}
}

// Stop removes the engine and its device.
func (h *Holder) Stop(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stopLocked(ctx)
}

func (h *Holder) current() (Engine, tunnel.Device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.engine, h.last
}

// Status asks the engine, and adds what only the daemon knows.
func (h *Holder) Status(ctx context.Context) (tunnel.DeviceStatus, error) {
	e, last := h.current()
	if e == nil {
		return tunnel.DeviceStatus{Class: h.Class}, errors.New("not up yet")
	}
	st, err := e.Status(ctx)
	st.Class, st.Interface, st.Engine = h.Class, last.Settings.Interface, last.Settings.Engine
	site := map[tunnel.PublicKey]string{}
	for _, p := range last.Peers {
		site[p.PublicKey] = p.Site
	}
	for i, p := range st.Peers {
		st.Peers[i].Site = site[p.PublicKey]
	}
	return st, err
}

// Reroute has the engine choose again which of our addresses it sends from.
func (h *Holder) Reroute(ctx context.Context, r tunnel.Reroute) error {
	e, _ := h.current()
	if e == nil {
		return nil
	}
	return e.Reroute(ctx, r)
}

// Missing lists the restrictions of its plane that this machine did not allow.
func (h *Holder) Missing() []string {
	e, _ := h.current()
	if b, ok := e.(sandboxed); ok {
		_, missing := b.Sandbox()
		missing = slices.Clone(missing)
		slices.Sort(missing) // what was tried both before and after the start is listed once
		return slices.Compact(missing)
	}
	return nil
}

// Threads is how the engine's forwarding threads are scheduled.
func (h *Holder) Threads() []tunnel.ThreadStatus {
	e, _ := h.current()
	if t, ok := e.(scheduled); ok {
		return t.Threads()
	}
	return nil
}

// Upgrade replaces the running plane by one of this build.
func (h *Holder) Upgrade(ctx context.Context) error {
	e, _ := h.current()
	if u, ok := e.(upgrader); ok {
		return u.Upgrade(ctx)
	}
	return fmt.Errorf("tunnel %s runs in the kernel: there is no plane to replace", h.Class)
}

// WithKeysOf returns a status with the keys of d: a status holds none.
func WithKeysOf(d tunnel.Device, st tunnel.DeviceStatus) tunnel.Observed {
	o := tunnel.Observed{PrivateKey: d.PrivateKey, ListenPort: st.ListenPort}
	psk := map[tunnel.PublicKey]tunnel.PresharedKey{}
	for _, p := range d.Peers {
		psk[p.PublicKey] = p.PresharedKey
	}
	for _, p := range st.Peers {
		o.Peers = append(o.Peers, tunnel.ObservedPeer{PeerStatus: p, PresharedKey: psk[p.PublicKey]})
	}
	return o
}
