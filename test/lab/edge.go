package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ringway/appliance"
	"ringway/appliance/control"
	"ringway/appliance/problem"
	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/tunnel"
)

// edgeDeadline bounds the time until an edge's tunnels are up and a packet gets through.
const edgeDeadline = 60 * time.Second

// Edge is the appliance of one branch: a host that runs the shipped program, or stock wireguard-go.
type Edge struct {
	*host.Host
	pair     *Pair
	side     side
	far      side
	key      tunnel.PrivateKey
	identity tunnel.PrivateKey // for the key channel

	Binary string // the program ringway that the next Start runs; empty: the lab's

	stock bool // wireguard-go with one tunnel in place of Ringway, or no tunnel at all

	mu   sync.Mutex
	main *host.Process // `ringway run`, or wireguard-go; nil where the kernel alone forwards
}

// bringUp starts both edges and waits until phones and PCs reach each other.
func (p *Pair) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, edgeDeadline, fmt.Errorf("not up after %s", edgeDeadline))
	defer cancel()
	for i, s := range sides {
		e := &Edge{Host: p.Host(s.edge), pair: p, side: s, far: sides[1-i]}
		e.stock = p.Name != Ringway || (s.edge == EdgeB && p.lab.Options.StockFarEnd)
		var err error
		if e.identity, err = tunnel.NewPrivateKey(); err != nil {
			return err
		}
		if e.key, err = tunnel.NewPrivateKey(); err != nil {
			return err
		}
		p.edges[s.edge] = e
	}
	for _, e := range p.edges {
		if err := e.setUp(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	// One after the other, as two boxes in two towns come up: two instances of wireguard-go that start a
	// handshake within the same millisecond may disagree about their session, and notice only after 15 s.
	for _, s := range sides {
		e := p.edges[s.edge]
		err := e.Start(ctx)
		if err == nil && s != sides[1] {
			err = e.wait(ctx, func(st Status) bool { return st.Ready })
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if err := p.WaitUp(ctx); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

// WaitUp waits until the edges are ready and a packet has got through in both classes.
func (p *Pair) WaitUp(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, e := range p.edges {
		g.Go(func() error { return e.WaitReady(gctx) })
	}
	for _, from := range []struct{ host, to, tos string }{
		{PhoneA, p.Address(PhoneB), "0xb8"}, // EF: unmarked packets of a phone are class data
		{PCA, p.Address(PCB), "0"},
	} {
		g.Go(func() error { return p.Host(from.host).WaitReach(gctx, from.to, from.tos) })
	}
	return g.Wait()
}

func (e *Edge) setUp(ctx context.Context) error {
	if e.stock {
		return e.setUpBaseline(ctx)
	}
	return e.setUpRingway()
}

// Start starts the edge's program; it does not wait until it is ready.
func (e *Edge) Start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	start := e.startRingway
	if e.stock {
		start = e.startBaseline
	}
	var err error
	e.main, err = start(ctx)
	return err
}

// Kill sends SIGKILL to the edge's program and waits for its end. Processes that it started keep running.
func (e *Edge) Kill(ctx context.Context) error { return e.end(ctx, unix.SIGKILL) }

// Terminate asks the edge's program to end, as a service manager does, and waits for it.
func (e *Edge) Terminate(ctx context.Context) error { return e.end(ctx, unix.SIGTERM) }

func (e *Edge) end(ctx context.Context, s unix.Signal) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.main == nil {
		return fmt.Errorf("%s is not running", e.Name)
	}
	e.main.Signal(s)
	err := e.main.Wait(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) && (s == unix.SIGKILL || exit.Success()) {
		return nil
	}
	return err
}

// Restart ends the edge's program and starts it again.
func (e *Edge) Restart(ctx context.Context) error {
	if err := e.Terminate(ctx); err != nil {
		return err
	}
	return e.Start(ctx)
}

// Reload has the program reread its configuration.
func (e *Edge) Reload() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.main.Signal(unix.SIGHUP)
}

// Log is the path of the edge's log in this process's mount namespace.
func (e *Edge) Log() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.main.Log
}

// WaitReady waits for a handshake with the far edge in every tunnel.
func (e *Edge) WaitReady(ctx context.Context) error { return e.wait(ctx, Status.up) }

func (e *Edge) wait(ctx context.Context, good func(Status) bool) error {
	if e.stock {
		return nil // wireguard-go starts a handshake with the first packet
	}
	for {
		s, err := e.Status(ctx)
		if err == nil && good(s) {
			return nil
		}
		if err == nil {
			err = errors.New("not ready, or no handshake in some tunnel yet")
		}
		e.mu.Lock()
		main := e.main
		e.mu.Unlock()
		select {
		case <-main.Ended:
			return fmt.Errorf("%s: `ringway run` exited (%v):\n%s", e.Name, main.Err(), main.LastWords())
		default:
		}
		if perr := host.Pause(ctx, 100*time.Millisecond); perr != nil {
			return fmt.Errorf("%s: %w: %w; its log ends:\n%s", e.Name, perr, err, main.LastWords())
		}
	}
}

// Alive returns an error if an edge's program has exited.
func (p *Pair) Alive() error {
	var errs []error
	for _, s := range sides {
		e := p.edges[s.edge]
		e.mu.Lock()
		main := e.main
		e.mu.Unlock()
		if main == nil {
			continue
		}
		select {
		case <-main.Ended:
			errs = append(
				errs,
				fmt.Errorf("%s: %s: its program exited (%v):\n%s", p.Name, e.Name, main.Err(), main.LastWords()),
			)
		default:
		}
	}
	return errors.Join(errs...)
}

// Status is the part of `ringway status --json` that the lab reads.
type Status struct {
	Build    string                `json:"build"`
	PID      int                   `json:"pid"`
	Ready    bool                  `json:"ready"`
	Tunnels  []tunnel.DeviceStatus `json:"tunnels"`
	Queues   []qos.QueueStats      `json:"queues"`
	Problems []problem.Problem     `json:"problems"`
}

func (s Status) up() bool {
	peers := 0
	for _, t := range s.Tunnels {
		for _, p := range t.Peers {
			peers++
			if p.LastHandshake.IsZero() {
				return false
			}
		}
	}
	return s.Ready && peers > 0
}

// Tunnel finds the device of a class.
func (s Status) Tunnel(c tunnel.Class) (tunnel.DeviceStatus, bool) {
	for _, t := range s.Tunnels {
		if t.Class == c {
			return t, true
		}
	}
	return tunnel.DeviceStatus{}, false
}

// Status asks the running daemon.
func (e *Edge) Status(ctx context.Context) (Status, error) {
	var s Status
	out, err := e.StatusJSON(ctx)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("%s: read the status: %w", e.Name, err)
	}
	return s, nil
}

// StatusJSON is what `ringway status --json` prints. It asks the daemon itself: to start a program takes more of the
// processor than the daemon's answer, and who waits for something asks often.
func (e *Edge) StatusJSON(ctx context.Context) ([]byte, error) {
	paths := appliance.Paths{Run: e.Path(appliance.DefaultPaths().Run)}
	c := control.NewClient(paths.Socket())
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name, err)
	}
	return json.Marshal(st)
}
