// Package reflector answers probes from the sites (RFC 8762, package stamp), so that the path between two boxes can be
// measured without a tool at the far end.
//
// Two independent things keep everybody else out: the sockets are bound to the tunnels' devices, and the firewall
// accepts the port nowhere else. The reflector lives in the daemon, since a plane has no socket but its tunnel's: while
// the daemon restarts, probes are not answered and calls go on.
package reflector

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/appliance/wanted"
	"ringway/qos"
	"ringway/stamp"
	"ringway/tunnel"
)

// Name is the component's name, and that of its section of the status.
const Name = "reflector"

// Reflector is the component.
type Reflector struct {
	log   *slog.Logger
	port  uint16
	stamp stamp.Reflector
	again task.Signal // the config or a device may have changed

	mu        sync.Mutex // guards what follows
	wanted    []binding
	listeners map[string]listener // by device
	problems  []problem.Problem
}

// binding is a tunnel's device to answer on. mark is for replies where the kernel does not report that of the probe.
type binding struct {
	device string
	mark   qos.Mark
}

// listener is an open socket. A device that was removed and made again has another index, and the old socket receives
// nothing from it.
type listener struct {
	*stamp.Listener
	binding binding
	index   int
}

// New returns a reflector on the port of RFC 8762.
func New(log *slog.Logger) *Reflector {
	return &Reflector{
		log:       log,
		port:      stamp.Port,
		again:     task.NewSignal(),
		listeners: map[string]listener{},
	}
}

// Name is the component's name.
func (r *Reflector) Name() string { return Name }

// Follow takes up what cfg asks for.
func (r *Reflector) Follow(cfg *config.Config) {
	var bindings []binding
	if cfg.Control.Reflector {
		for _, c := range tunnel.Classes {
			mark := qos.MarkInner | qos.ClassMark(wanted.OuterClass(c))
			bindings = append(bindings, binding{cfg.Tunnels[c].Interface, mark})
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = bindings
	r.again.Raise()
}

// Run answers until ctx ends.
func (r *Reflector) Run(ctx context.Context, ready func()) error {
	defer r.close()
	return r.again.Loop(ctx, ready, func(context.Context) { r.look() })
}

// look opens the sockets that are wanted and closes the others. For a device that does not exist yet, the daemon calls
// Follow again once the kernel reports it. Only Run's goroutine changes the listeners, so the lock is not held during
// system calls: Follow must not wait for them.
func (r *Reflector) look() {
	r.mu.Lock()
	wanted, listeners := r.wanted, maps.Clone(r.listeners)
	r.mu.Unlock()

	for device, l := range listeners {
		if err := l.Err(); err != nil {
			r.log.Warn("probes are no longer answered, reopening", "device", device, "error", err)
		} else if slices.Contains(wanted, l.binding) && l.index == deviceIndex(device) {
			continue
		}
		l.Close()
		delete(listeners, device)
	}

	var problems []problem.Problem
	for _, b := range wanted {
		index := deviceIndex(b.device)
		if _, open := listeners[b.device]; open || index == 0 {
			continue
		}

		l, err := r.stamp.Listen(stamp.Listen{
			Device: b.device, Port: r.port, Mark: uint32(b.mark), MarkMask: uint32(qos.MarkAll),
		})
		if err != nil {
			problems = append(problems, problem.Problem{
				Subject: b.device, Severity: problem.Warning, Text: err.Error(),
				Action: "stop the program that uses the port, or set control.reflector: false",
			})
			continue
		}
		listeners[b.device] = listener{l, b, index}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners, r.problems = listeners, problems
}

func (r *Reflector) close() {
	r.mu.Lock()
	listeners := r.listeners
	r.listeners = map[string]listener{}
	r.mu.Unlock()

	for _, l := range listeners {
		l.Close()
	}
}

// deviceIndex is 0 for a device that does not exist.
func deviceIndex(name string) int {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return i.Index
}

// Problems lists the devices on which probes cannot be answered.
func (r *Reflector) Problems() []problem.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()

	return slices.Clone(r.problems)
}

// Status says where probes are answered, and how many were.
func (r *Reflector) Status() fmt.Stringer {
	r.mu.Lock()
	defer r.mu.Unlock()

	devices := slices.AppendSeq([]string{}, maps.Keys(r.listeners)) // JSON shows an empty list, not null
	slices.Sort(devices)
	return Status{Devices: devices, Port: r.port, Stats: r.stamp.Stats()}
}
