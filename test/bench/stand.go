package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"ringway/test/bench/probe"
	"ringway/test/bench/rival"
	"ringway/test/lab"
	"ringway/test/lab/host"
)

// The hosts of the testbed.
const (
	phoneA = "phone-a"
	pcA    = "pc-a"
	edgeA  = "edge-a"
	edgeB  = "edge-b"
	pcB    = "pc-b"
	phoneB = "phone-b"
)

// Topology is the testbed, as `ringway bench jitter --help` draws it.
const Topology = `  phone-a 10.16.1.10, 10.17.1.10 … --- voice0                  voice0 --- phone-b 10.16.2.10, 10.17.2.10 …
                                          edge-a --- wan --- edge-b
  pc-a    10.15.1.10               ---  data0                   data0 --- pc-b    10.15.2.10`

// network is the first half of a network's address: three octets of IPv4, or 64 bits of IPv6.
type network string

func (n network) six() bool { return strings.Contains(string(n), ":") }

// at is the address of a host in it.
func (n network) at(host int) string {
	if n.six() {
		return fmt.Sprintf("%s::%d", n, host)
	}
	return fmt.Sprintf("%s.%d", n, host)
}

// on is the address with the arguments that ip addr add needs.
func (n network) on(host int) string {
	if n.six() {
		return n.at(host) + "/64 nodad"
	}
	return n.at(host) + "/24"
}

func (n network) prefix() string {
	if n.six() {
		return string(n) + "::/64"
	}
	return string(n) + ".0/24"
}

// Numbers of the hosts in their networks.
const (
	router, guest    = 1, 10
	numberA, numberB = 1, 2 // the edges on the WAN
)

func (s *stand) wan() network {
	if s.family == lab.IPv6 {
		return "2001:db8:a:1"
	}
	return "198.51.100"
}

// bulkNets are the networks of the bulk, behind each edge.
func (s *stand) bulkNets() (a, b network) { return s.nets(15) }

// bulkTo is the receiver of the bulk traffic.
func (s *stand) bulkTo() string {
	_, b := s.bulkNets()
	return b.at(guest)
}

func (s *stand) nets(number int) (a, b network) {
	if s.family == lab.IPv6 {
		return network(fmt.Sprintf("2001:db8:%d:1", number)), network(fmt.Sprintf("2001:db8:%d:2", number))
	}
	return network(fmt.Sprintf("10.%d.1", number)), network(fmt.Sprintf("10.%d.2", number))
}

// stand is the testbed: two branches joined by several tunnels at the same time. The cable between the edges
// has no limit: the processor is the bottleneck.
type stand struct {
	family lab.Family
	world  *host.World
	hosts  map[string]*host.Host
	paths  []standPath
}

type standPath struct {
	tunnel *rival.Tunnel
	a, b   string // the phones' addresses, which select the path
}

// pathNets are the networks of the path i.
func (s *stand) pathNets(i int) (a, b network) { return s.nets(16 + i) }

// newStand builds hosts and cables, without tunnels.
func newStand(ctx context.Context, binary string, family lab.Family, paths int) (_ *stand, err error) {
	s := &stand{family: family, hosts: map[string]*host.Host{}}
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
	if err := a.IP(ctx, b, "link add wan0 type veth peer name wan0 netns /proc/self/fd/3",
		"addr add "+s.wan().on(numberA)+" dev wan0", "link set wan0 up"); err != nil {
		return nil, err
	}
	if err := b.IP(ctx, nil, "addr add "+s.wan().on(numberB)+" dev wan0", "link set wan0 up"); err != nil {
		return nil, err
	}
	for _, side := range []struct{ edge, phone, pc string }{{edgeA, phoneA, pcA}, {edgeB, phoneB, pcB}} {
		edge := s.hosts[side.edge]
		if err := edge.Do(forward); err != nil {
			return nil, err
		}
		pick := func(a, b network) (near, far network) {
			if side.edge == edgeB {
				return b, a
			}
			return a, b
		}
		var voice [][2]network
		for i := range paths {
			near, far := pick(s.pathNets(i))
			voice = append(voice, [2]network{near, far})
		}
		near, far := pick(s.bulkNets())
		if err := cable(ctx, edge, "voice0", s.hosts[side.phone], voice); err != nil {
			return nil, err
		}
		if err := cable(ctx, edge, "data0", s.hosts[side.pc], [][2]network{{near, far}}); err != nil {
			return nil, err
		}
		// A network card splits what a tunnel's engine has merged (UDP GRO) before it reaches a phone.
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

// cable joins a host to its edge. Of each pair of networks the first is on the cable, the second is reached
// over it.
func cable(ctx context.Context, edge *host.Host, device string, h *host.Host, networks [][2]network) error {
	if err := edge.IP(ctx, h, "link add "+device+" type veth peer name eth0 netns /proc/self/fd/3",
		"link set "+device+" up"); err != nil {
		return err
	}
	lines := []string{"link set eth0 up"}
	var onEdge []string
	for _, n := range networks {
		onEdge = append(onEdge, "addr add "+n[0].on(router)+" dev "+device)
		lines = append(
			lines,
			"addr add "+n[0].on(guest)+" dev eth0",
			"route add "+n[1].prefix()+" via "+n[0].at(router)+" src "+n[0].at(guest),
		)
	}
	if err := edge.IP(ctx, nil, onEdge...); err != nil {
		return err
	}
	return h.IP(ctx, nil, lines...)
}

// forward enables forwarding in the network namespace of the calling thread.
func forward() error {
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil &&
			(f == "ipv4/ip_forward" || !os.IsNotExist(err)) {
			return fmt.Errorf("forward packets: %w", err)
		}
	}
	return nil
}

func (s *stand) edges() (a, b rival.Edge) {
	return rival.Edge{
			Host: s.hosts[edgeA],
			WAN:  s.wan().at(numberA),
		}, rival.Edge{
			Host: s.hosts[edgeB],
			WAN:  s.wan().at(numberB),
		}
}

// reachTime bounds the time from a tunnel's start to the first packet through it.
const reachTime = 30 * time.Second

// join brings up a tunnel of each kind, one after the other, and waits until packets get through.
func (s *stand) join(
	ctx context.Context,
	kinds []rival.Kind,
	p rival.Programs,
	engine string,
	say func(string, ...any),
) error {
	a, b := s.edges()
	for i, kind := range kinds {
		say("bringing up %s", kind)
		netA, netB := s.pathNets(i)
		n := rival.Networks{A: []string{netA.prefix()}, B: []string{netB.prefix()}}
		if kind == rival.WireGuardGoShared {
			bulkA, bulkB := s.bulkNets()
			n.A, n.B = append(n.A, bulkA.prefix()), append(n.B, bulkB.prefix())
		}
		t, err := rival.Up(ctx, kind, a, b, n, p, engine)
		if err != nil {
			return err
		}
		path := standPath{tunnel: t, a: netA.at(guest), b: netB.at(guest)}
		s.paths = append(s.paths, path)
		ctx, cancel := context.WithTimeoutCause(ctx, reachTime, fmt.Errorf("no packet got through in %s", reachTime))
		err = s.hosts[phoneA].WaitReach(ctx, path.b, "0xb8")
		cancel()
		if err != nil {
			return errors.Join(fmt.Errorf("path %s: %w", kind, err), t.Alive())
		}
	}
	return nil
}

// ends are the paths as one phone's probe sees them.
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

// alive returns an error if a tunnel's program has exited.
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

// standing are the kinds that must be up to measure the wanted ones: the bulk goes through the shared one.
func standing(wanted []rival.Kind) []rival.Kind {
	var out []rival.Kind
	for _, k := range rival.Kinds {
		if k == rival.WireGuardGoShared || slices.Contains(wanted, k) {
			out = append(out, k)
		}
	}
	return out
}
