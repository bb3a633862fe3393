package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"ringway/test/bench/probe"
	"ringway/test/bench/rival"
	"ringway/test/lab/host"
)

// The hosts of the stand.
const (
	phoneA = "phone-a"
	pcA    = "pc-a"
	edgeA  = "edge-a"
	edgeB  = "edge-b"
	pcB    = "pc-b"
	phoneB = "phone-b"
)

// Topology is the stand, as `ringway bench jitter --help` draws it.
const Topology = `  phone-a 10.16.1.10, 10.17.1.10 … --- voice0                  voice0 --- phone-b 10.16.2.10, 10.17.2.10 …
                                          edge-a --- wan --- edge-b
  pc-a    10.15.1.10               ---  data0                   data0 --- pc-b    10.15.2.10`

// Addresses towards each other, and of the bulk.
const (
	wanA, wanB   = "198.51.100.1", "198.51.100.2"
	bulkA, bulkB = "10.15.1", "10.15.2"
)

// stand is two branches joined by several tunnels at the same time. Nothing bounds the cable between the edges: the
// processor is the bottleneck.
type stand struct {
	world *host.World
	hosts map[string]*host.Host
	paths []standPath
}

type standPath struct {
	tunnel *rival.Tunnel
	a, b   string // the phones' addresses on it, that choose the way
}

// prefixes of the path i, three octets each.
func prefixes(i int) (a, b string) { return fmt.Sprintf("10.%d.1", 16+i), fmt.Sprintf("10.%d.2", 16+i) }

// newStand builds hosts and cables; no tunnel is up yet.
func newStand(ctx context.Context, binary string, paths int) (_ *stand, err error) {
	s := &stand{hosts: map[string]*host.Host{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.world, err = host.NewWorld(binary); err != nil {
		return nil, err
	}
	for _, n := range []string{phoneA, pcA, edgeA, edgeB, pcB, phoneB} {
		h, err := s.world.NewHost(n)
		if err != nil {
			return nil, err
		}
		s.hosts[n] = h
		if err := h.IP(ctx, nil, "link set lo up"); err != nil {
			return nil, err
		}
	}
	a, b := s.hosts[edgeA], s.hosts[edgeB]
	if err := a.IP(ctx, b, "link add wan0 type veth peer name wan0 netns /proc/self/fd/3", "addr add "+wanA+"/24 dev wan0", "link set wan0 up"); err != nil {
		return nil, err
	}
	if err := b.IP(ctx, nil, "addr add "+wanB+"/24 dev wan0", "link set wan0 up"); err != nil {
		return nil, err
	}
	for _, side := range []struct{ edge, phone, pc string }{{edgeA, phoneA, pcA}, {edgeB, phoneB, pcB}} {
		edge := s.hosts[side.edge]
		if err := edge.Do(forward); err != nil {
			return nil, err
		}
		pick := func(a, b string) (near, far string) {
			if side.edge == edgeB {
				return b, a
			}
			return a, b
		}
		var voice [][2]string
		for i := range paths {
			near, far := pick(prefixes(i))
			voice = append(voice, [2]string{near, far})
		}
		near, far := pick(bulkA, bulkB)
		if err := cable(ctx, edge, "voice0", s.hosts[side.phone], voice); err != nil {
			return nil, err
		}
		if err := cable(ctx, edge, "data0", s.hosts[side.pc], [][2]string{{near, far}}); err != nil {
			return nil, err
		}
		// What a tunnel's engine joined (UDP GRO) is cut again by a network card before it reaches a phone.
		for _, e := range []struct {
			h      *host.Host
			device string
		}{{edge, "voice0"}, {s.hosts[side.phone], "eth0"}} {
			if err := e.h.Do(func() error { return host.SinglePackets(e.device) }); err != nil {
				return nil, fmt.Errorf("%s: %w", e.h.Name, err)
			}
		}
	}
	return s, nil
}

// cable joins a host to its edge. Of each pair of networks (three octets) the first is on the cable, the second is reached over it.
func cable(ctx context.Context, edge *host.Host, device string, h *host.Host, networks [][2]string) error {
	if err := edge.IP(ctx, h, "link add "+device+" type veth peer name eth0 netns /proc/self/fd/3", "link set "+device+" up"); err != nil {
		return err
	}
	lines := []string{"link set eth0 up"}
	var onEdge []string
	for _, n := range networks {
		onEdge = append(onEdge, "addr add "+n[0]+".1/24 dev "+device)
		lines = append(lines, "addr add "+n[0]+".10/24 dev eth0", "route add "+n[1]+".0/24 via "+n[0]+".1 src "+n[0]+".10")
	}
	if err := edge.IP(ctx, nil, onEdge...); err != nil {
		return err
	}
	return h.IP(ctx, nil, lines...)
}

// forward makes a router of the network namespace that the calling thread is in.
func forward() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return nil
}

func (s *stand) edges() (a, b rival.Edge) {
	return rival.Edge{Host: s.hosts[edgeA], WAN: wanA}, rival.Edge{Host: s.hosts[edgeB], WAN: wanB}
}

// reachTime is how long a tunnel may take from being up to the first packet through it.
const reachTime = 30 * time.Second

// join brings up a tunnel of each kind, one after the other, and waits until packets come through.
func (s *stand) join(ctx context.Context, kinds []rival.Kind, p rival.Programs, engine string, say func(string, ...any)) error {
	a, b := s.edges()
	for i, kind := range kinds {
		say("bringing up %s", kind)
		netA, netB := prefixes(i)
		n := rival.Networks{A: []string{netA + ".0/24"}, B: []string{netB + ".0/24"}}
		if kind == rival.WireGuardGoShared {
			n.A, n.B = append(n.A, bulkA+".0/24"), append(n.B, bulkB+".0/24")
		}
		t, err := rival.Up(ctx, kind, a, b, n, p, engine)
		if err != nil {
			return err
		}
		path := standPath{tunnel: t, a: netA + ".10", b: netB + ".10"}
		s.paths = append(s.paths, path)
		ctx, cancel := context.WithTimeoutCause(ctx, reachTime, fmt.Errorf("nothing came through in %s", reachTime))
		err = s.hosts[phoneA].WaitReach(ctx, path.b, "0xb8")
		cancel()
		if err != nil {
			return errors.Join(fmt.Errorf("path %s: %w", kind, err), t.Alive())
		}
	}
	return nil
}

// ends are the paths as the probe of one phone sees them.
func (s *stand) ends(phone string) []probe.Ends {
	var out []probe.Ends
	for _, p := range s.paths {
		e := probe.Ends{Local: p.a, Remote: p.b}
		if phone == phoneB {
			e.Local, e.Remote = e.Remote, e.Local
		}
		out = append(out, e)
	}
	return out
}

// alive says which tunnel's program has ended.
func (s *stand) alive() error {
	var errs []error
	for _, p := range s.paths {
		errs = append(errs, p.tunnel.Alive())
	}
	return errors.Join(errs...)
}

func (s *stand) close() {
	if s.world != nil {
		s.world.Close()
	}
	for _, h := range s.hosts {
		h.Close()
	}
}

// standing are the kinds that have to be up so that the wanted ones can be measured: bulk goes through the shared one.
func standing(wanted []rival.Kind) []rival.Kind {
	var out []rival.Kind
	for _, k := range rival.Kinds {
		if k == rival.WireGuardGoShared || slices.Contains(wanted, k) {
			out = append(out, k)
		}
	}
	return out
}
