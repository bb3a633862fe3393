// Package twice sends every datagram of a tunnel by every line, as engarde and other bonding programs do: a rival for
// the lab. It knows nothing of what it carries. The far end's tunnel drops the second copy, because its window against
// replays has seen the first.
//
//	tunnel --- near [relay] wan0 ---.              .--- [relay] near --- tunnel
//	                        wan1 --- the internet --- listen
package twice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config is one end. It has either lines and the far end's address, or an address on which it is called.
type Config struct {
	Near   netip.AddrPort `json:"near"`   // on this host, where the tunnel sends to
	Tunnel netip.AddrPort `json:"tunnel"` // on this host, where the tunnel listens

	Lines  []Line         `json:"lines,omitempty"`
	Remote netip.AddrPort `json:"remote,omitzero"`

	Listen netip.AddrPort `json:"listen,omitzero"`
}

// Line is one way out.
type Line struct {
	Device  string     `json:"device,omitempty"` // packets leave by it whatever the routes say; empty: by the routes
	Address netip.Addr `json:"address"`
}

// forgotten is after how long without a datagram a caller is not sent to any more; callers bounds how many there are.
const (
	forgotten = 30 * time.Second
	callers   = 8
)

const longest = 65535

// waiting bounds the datagrams that a line has not taken yet. A line without a carrier takes none for seconds, while
// the kernel looks for its neighbour there, and the other line must not wait for it.
const waiting = 64

// Relay is one end that runs.
type Relay struct {
	config Config
	near   *net.UDPConn
	out    []*net.UDPConn // of the lines, or the one that listens

	mu    sync.Mutex
	heard []caller
}

type caller struct {
	at   netip.AddrPort
	last time.Time
}

// New opens the sockets of one end.
func New(c Config) (*Relay, error) {
	r := &Relay{config: c}
	var err error
	if r.near, err = open(c.Near, ""); err != nil {
		return nil, err
	}
	ways := []Line{{Address: c.Listen.Addr()}}
	if len(c.Lines) > 0 {
		ways = c.Lines
	}
	for _, w := range ways {
		conn, err := open(netip.AddrPortFrom(w.Address, c.Listen.Port()), w.Device)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.out = append(r.out, conn)
	}
	return r, nil
}

func open(at netip.AddrPort, device string) (*net.UDPConn, error) {
	l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if device == "" {
			return nil
		}
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }), err)
	}}
	c, err := l.ListenPacket(context.Background(), "udp", at.String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", at, err)
	}
	return c.(*net.UDPConn), nil
}

// Near is the address to which the tunnel sends.
func (r *Relay) Near() netip.AddrPort { return r.near.LocalAddr().(*net.UDPAddr).AddrPort() }

// Listens is the address at which the far end calls, where there are no lines.
func (r *Relay) Listens() netip.AddrPort { return r.out[0].LocalAddr().(*net.UDPAddr).AddrPort() }

// Close ends Run.
func (r *Relay) Close() error {
	var errs []error
	for _, c := range append([]*net.UDPConn{r.near}, r.out...) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Run passes datagrams on until Close. What a line does not take is lost there, as on any cable.
func (r *Relay) Run() {
	var wg sync.WaitGroup
	for _, c := range r.out {
		wg.Go(func() {
			each(c, func(b []byte, from netip.AddrPort) {
				if len(r.config.Lines) == 0 {
					r.hear(from)
				}
				_, _ = r.near.WriteToUDPAddrPort(b, r.config.Tunnel)
			})
		})
	}
	queues := make([]chan []byte, len(r.config.Lines))
	for i := range queues {
		queues[i] = make(chan []byte, waiting)
		wg.Go(func() {
			for b := range queues[i] {
				_, _ = r.out[i].WriteToUDPAddrPort(b, r.config.Remote)
			}
		})
	}
	wg.Go(func() {
		defer func() {
			for _, q := range queues {
				close(q)
			}
		}()
		each(r.near, func(b []byte, _ netip.AddrPort) {
			if len(r.config.Lines) == 0 {
				for _, to := range r.known() {
					_, _ = r.out[0].WriteToUDPAddrPort(b, to)
				}
				return
			}
			b = slices.Clone(b)
			for _, q := range queues {
				select {
				case q <- b:
				default:
				}
			}
		})
	})
	wg.Wait()
}

// each calls f with every datagram until the socket is closed.
func each(c *net.UDPConn, f func(b []byte, from netip.AddrPort)) {
	buffer := make([]byte, longest)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil:
			f(buffer[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}
}

// hear remembers a caller; the one that was heard longest ago makes room.
func (r *Relay) hear(from netip.AddrPort) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.heard {
		if r.heard[i].at == from {
			r.heard[i].last = now
			return
		}
	}
	if len(r.heard) == callers {
		oldest := 0
		for i, c := range r.heard {
			if c.last.Before(r.heard[oldest].last) {
				oldest = i
			}
		}
		r.heard = slices.Delete(r.heard, oldest, oldest+1)
	}
	r.heard = append(r.heard, caller{from, now})
}

// known are the callers that were heard lately.
func (r *Relay) known() (to []netip.AddrPort) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.heard {
		if now.Sub(c.last) < forgotten {
			to = append(to, c.at)
		}
	}
	return to
}
