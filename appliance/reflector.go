package appliance

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/stamp"
	"ringway/tunnel"
)

// reflector is the task that answers probes from the sites (package stamp), so that the way between two boxes is measured
// without a tool at the far end. Two things keep it from everybody else: its sockets are bound to the tunnels' devices, and the
// firewall lets in nothing for its port from anywhere but there. Each holds by itself.
//
// It lives in the daemon and not in a plane, which has no socket but its tunnel's: while a daemon restarts, probes
// are not answered, and calls go on.
type reflector struct {
	log   *slog.Logger
	port  uint16
	stamp stamp.Reflector
	ready chan struct{}
	once  sync.Once
	again chan struct{} // what is wanted, or a device, may have changed

	mu       sync.Mutex // guards what follows
	wanted   []reflectOn
	ears     map[string]ear    // by device
	problems map[string]string // by device
}

// reflectOn is a tunnel's device, and the mark of answers where the kernel does not tell that of the question.
type reflectOn struct {
	device string
	mark   qos.Mark
}

// ear is a listener on a device as it was: one that went and came back has another index, and hears nothing.
type ear struct {
	*stamp.Listener
	on    reflectOn
	index int
}

func newReflector(log *slog.Logger) *reflector {
	return &reflector{log: log, port: stamp.Port, ready: make(chan struct{}), again: make(chan struct{}, 1),
		ears: map[string]ear{}, problems: map[string]string{}}
}

// follow takes up what the config wants. It does not wait.
func (r *reflector) follow(cfg *config.Config) {
	var wanted []reflectOn
	if cfg.Control.Reflector {
		for _, c := range tunnel.Classes {
			wanted = append(wanted, reflectOn{cfg.Tunnels[c].Interface, qos.MarkInner | qos.ClassMark(outerClass(c))})
		}
	}
	r.mu.Lock()
	r.wanted = wanted
	r.mu.Unlock()
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// Run answers until ctx ends.
func (r *reflector) Run(ctx context.Context) error {
	defer r.close()
	for {
		r.look()
		r.once.Do(func() { close(r.ready) })
		select {
		case <-ctx.Done():
			return nil
		case <-r.again:
		}
	}
}

// Ready is closed once the first look is done.
func (r *reflector) Ready() <-chan struct{} { return r.ready }

func (r *reflector) String() string { return "reflector" }

// look opens what is wanted and closes what is not. A device that is not there yet is looked for again when the kernel tells of it.
func (r *reflector) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, e := range r.ears {
		index := deviceIndex(name)
		if err := e.Err(); err != nil {
			r.log.Warn("reflector", "error", err)
		} else if slices.Contains(r.wanted, e.on) && e.index == index {
			continue
		}
		e.Close()
		delete(r.ears, name)
	}
	clear(r.problems)
	for _, w := range r.wanted {
		index := deviceIndex(w.device)
		if _, open := r.ears[w.device]; open || index == 0 {
			continue
		}
		l, err := r.stamp.Listen(stamp.Listen{Device: w.device, Port: r.port, Mark: uint32(w.mark), MarkMask: uint32(qos.MarkAll)})
		if err != nil {
			r.problems[w.device] = err.Error() + "; end what has the port, or set control.reflector: false"
			continue
		}
		r.ears[w.device] = ear{l, w, index}
	}
}

func (r *reflector) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, e := range r.ears {
		e.Close()
		delete(r.ears, name)
	}
}

func deviceIndex(name string) int {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return i.Index
}

// ReflectorStatus is what the reflector does. Its fields are added, never renamed.
type ReflectorStatus struct {
	Devices []string `json:"devices"` // where it answers; none: it is off, or the devices are not there
	Port    uint16   `json:"port"`
	stamp.Stats
}

func (r *reflector) status() (ReflectorStatus, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	devices := slices.AppendSeq([]string{}, maps.Keys(r.ears)) // in JSON a list, also when there is none
	slices.Sort(devices)
	return ReflectorStatus{Devices: devices, Port: r.port, Stats: r.stamp.Stats()}, slices.Collect(maps.Values(r.problems))
}
