// Package rival brings up tunnels of every kind between two edges, side by side: Ringway's plane, stock
// wireguard-go, Nebula, OpenVPN and no tunnel at all. Each has its own networks behind the edges, so that a
// packet's address selects its path. Stock programs run as their manuals say, without tuning, as people use
// them. It needs root.
package rival

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"ringway/test/lab/host"
)

// Kind is what joins the edges on a path; the names are in the JSON of the benchmarks.
type Kind string

// The kinds.
const (
	Ringway           Kind = "ringway"
	WireGuardGoShared Kind = "wireguard-go-shared" // carries the bulk traffic as well
	WireGuardGo       Kind = "wireguard-go"
	Nebula            Kind = "nebula"
	OpenVPN           Kind = "openvpn"
	Kernel            Kind = "kernel" // plain forwarding, nothing is encrypted: the lower bound
)

// Kinds lists them in the order of reports.
var Kinds = []Kind{Ringway, WireGuardGoShared, WireGuardGo, Nebula, OpenVPN, Kernel}

// Edge is one end of every tunnel.
type Edge struct {
	Host *host.Host
	WAN  string // its address towards the other edge
}

// Networks are the prefixes behind each edge on one path.
type Networks struct{ A, B []string }

// Tunnel is a path that is up.
type Tunnel struct {
	Kind    Kind
	Program string // what carries the packets, with its version

	processes []*host.Process // a's end first
	device    string
	port      int
}

// Alive returns an error if a program of the tunnel has exited.
func (t *Tunnel) Alive() error {
	for _, p := range t.processes {
		select {
		case <-p.Ended:
			return fmt.Errorf("%s: a program of the tunnel exited (%v):\n%s", t.Kind, p.Err(), p.LastWords())
		default:
		}
	}
	return nil
}

// upTime bounds the time that a tunnel takes to come up.
const upTime = 30 * time.Second

// Up brings a tunnel up; when it returns, devices and routes exist. The caller checks whether packets get
// through: some tunnels start a handshake with the first packet only.
func Up(ctx context.Context, kind Kind, a, b Edge, n Networks, p Programs, engine string) (*Tunnel, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upTime, fmt.Errorf("not up after %s", upTime))
	defer cancel()
	i := slices.Index(Kinds, kind)
	if i < 0 {
		return nil, fmt.Errorf("unknown path %q", kind)
	}
	w := spec{
		kind:     kind,
		a:        a,
		b:        b,
		nets:     n,
		port:     51820 + i,
		device:   fmt.Sprintf("tun-%d", i),
		programs: p,
		engine:   engine,
	}
	var t *Tunnel
	var err error
	switch kind {
	case Ringway:
		t, err = w.ringway(ctx)
	case WireGuardGoShared, WireGuardGo:
		t, err = w.wireguardGo(ctx)
	case Nebula:
		t, err = w.nebula(ctx)
	case OpenVPN:
		t, err = w.openVPN(ctx)
	case Kernel:
		t, err = w.kernel(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("bring up the path %s: %w", kind, err)
	}
	t.Kind, t.device, t.port = kind, w.device, w.port
	return t, nil
}

// spec describes a tunnel that is being brought up.
type spec struct {
	kind     Kind
	a, b     Edge
	nets     Networks
	port     int    // of UDP, on both edges
	device   string // on both edges
	programs Programs
	engine   string
}

// end is one edge from the tunnel's point of view.
type end struct {
	near, far       Edge
	behind, farther []string // networks behind the near and the far edge
	first           bool     // a: where a protocol has a server and a client
}

func (w spec) ends() []end {
	return []end{{w.a, w.b, w.nets.A, w.nets.B, true}, {w.b, w.a, w.nets.B, w.nets.A, false}}
}

func (w spec) kernel(ctx context.Context) (*Tunnel, error) {
	for _, e := range w.ends() {
		var lines []string
		for _, n := range e.farther {
			lines = append(lines, "route add "+n+" via "+e.far.WAN)
		}
		if err := e.near.Host.IP(ctx, nil, lines...); err != nil {
			return nil, err
		}
	}
	return &Tunnel{Program: "Linux forwarding, no tunnel"}, nil
}

// routeIn routes the far networks into the tunnel's device.
func (w spec) routeIn(ctx context.Context, e end, lines ...string) error {
	for _, n := range e.farther {
		lines = append(lines, "route add "+n+" dev "+w.device)
	}
	return e.near.Host.IP(ctx, nil, lines...)
}

// waitDevice waits until the tunnel's device exists, and is up if requested.
func (w spec) waitDevice(ctx context.Context, h *host.Host, p *host.Process, up bool) error {
	for {
		there := false
		err := h.Do(func() error {
			d, err := net.InterfaceByName(w.device)
			there = err == nil && (!up || d.Flags&net.FlagUp != 0)
			return nil
		})
		if err != nil || there {
			return err
		}
		select {
		case <-p.Ended:
			return fmt.Errorf("%s: the program exited (%v):\n%s", h.Name, p.Err(), p.LastWords())
		default:
		}
		if err := host.Pause(ctx, 20*time.Millisecond); err != nil {
			return errors.Join(
				fmt.Errorf("%s: wait for device %s: %w", h.Name, w.device, err),
				errors.New(p.LastWords()),
			)
		}
	}
}
