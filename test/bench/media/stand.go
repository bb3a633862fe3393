package media

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"ringway/srtp/suite"
	"ringway/test/bench/cost"
	"ringway/test/bench/rival"
	"ringway/test/lab/host"
)

// Topology is one path's hosts, as `ringway bench media --help` draws them.
const Topology = `  caller 10.1.0.2:4000 --- 10.1.0.1 lan0 box tun0 10.2.0.1 --- 10.2.0.2:4000 callee`

// Addresses and ports. All calls have the same addresses at the ends, and each its own ports at the box.
var (
	callerAt = netip.MustParseAddrPort("10.1.0.2:4000")
	calleeAt = netip.MustParseAddrPort("10.2.0.2:4000")
	boxA     = netip.MustParseAddr("10.1.0.1")
	boxB     = netip.MustParseAddr("10.2.0.1")
)

const (
	firstPort = 20_000
	lastPort  = 29_999
	upTime    = 30 * time.Second // of a path
)

// call is what is known of a call at both ends.
type call struct {
	ports [2]uint16 // of the box, towards the caller and the callee
	// sends and gets are the keys of what each end sends and is sent; of no suite: RTP.
	sends, gets [2]secret
}

// stand is one path in one case: its hosts, what runs on the box, the sockets of the ends, and the calls.
type stand struct {
	path    Path
	name    string
	program string // that runs Ringway's media plane
	caller  *host.Host
	box     *host.Host
	callee  *host.Host
	process *host.Process // of the box; nil: the kernel forwards
	cores   cost.Cores
	sockets [2]*socket
	to      [2][4]byte
	flows   []*flow
	bare    int // bytes of memory of the box's processes without calls
}

// newStand builds the hosts, starts what is measured and sets the calls up.
func newStand(ctx context.Context, w *host.World, r *run, p Path, c Case, s suite.Suite) (_ *stand, err error) {
	st := &stand{
		path: p, name: fmt.Sprintf("%s-%s-%s", p, c, s), cores: r.cores, program: r.o.Helper,
		to: [2][4]byte{boxA.As4(), boxB.As4()},
	}
	if len(r.o.Builds) == 2 { // each with its own
		st.program = r.o.build(p)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.alive())
			st.close()
		}
	}()
	if err := st.hosts(ctx, w); err != nil {
		return nil, err
	}
	for end, at := range []netip.AddrPort{callerAt, calleeAt} {
		if st.sockets[end], err = open([]*host.Host{st.caller, st.callee}[end], at); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, upTime, fmt.Errorf("not up after %s", upTime))
	defer cancel()
	calls, err := st.begin(ctx, c, s, r.o.Calls)
	if err != nil {
		return nil, err
	}
	if err := st.know(calls); err != nil {
		return nil, err
	}
	if err := st.check(ctx); err != nil {
		return nil, err
	}
	return st, nil
}

// hosts makes the hosts and cables.
func (s *stand) hosts(ctx context.Context, w *host.World) (err error) {
	for _, h := range []struct {
		at   **host.Host
		name string
	}{{&s.caller, "caller"}, {&s.box, "box"}, {&s.callee, "callee"}} {
		if *h.at, err = w.NewHost(h.name + "-" + s.name); err != nil {
			return err
		}
		if err := (*h.at).IP(ctx, nil, "link set lo up"); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		end       *host.Host
		device    string
		box, addr netip.Addr
	}{{s.caller, "lan0", boxA, callerAt.Addr()}, {s.callee, "tun0", boxB, calleeAt.Addr()}} {
		if err := s.box.IP(ctx, l.end, "link add name "+l.device+" type veth peer name eth0 netns /proc/self/fd/3",
			"addr add "+l.box.String()+"/16 dev "+l.device, "link set "+l.device+" up"); err != nil {
			return err
		}
		if err := l.end.IP(ctx, nil, "addr add "+l.addr.String()+"/16 dev eth0", "link set eth0 up",
			"route add default via "+l.box.String()); err != nil {
			return err
		}
	}
	if err := s.box.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	}); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return errors.Join(
		cost.Steer(s.caller, "eth0", s.cores.Ends), cost.Steer(s.callee, "eth0", s.cores.Ends),
		cost.Steer(s.box, "lan0", s.cores.Box), cost.Steer(s.box, "tun0", s.cores.Box),
	)
}

// begin starts what is measured, and returns the calls that it has set up.
func (s *stand) begin(ctx context.Context, c Case, callee suite.Suite, n int) ([]call, error) {
	switch s.path {
	case Kernel:
		s.to = [2][4]byte{calleeAt.Addr().As4(), callerAt.Addr().As4()}
		calls := make([]call, n)
		for i := range calls {
			calls[i].ports = [2]uint16{calleeAt.Port(), callerAt.Port()}
		}
		return calls, nil
	case RTPEngine:
		return s.beginRTPEngine(ctx, c, callee, n)
	}
	return s.beginRingway(ctx, c, callee, n)
}

// spawn starts a program on the box's core. It finds one core, as on a machine that has no other.
func (s *stand) spawn(name string, args ...string) (err error) {
	words := append([]string{"-c", fmt.Sprint(s.cores.Box)}, args...)
	s.process, err = s.box.Spawn(name, s.box.Command("taskset", words...))
	return err
}

// know makes the flows of the calls.
func (s *stand) know(calls []call) error {
	for i, c := range calls {
		for end := range 2 {
			f := &flow{to: c.ports[end], ssrc: uint32(firstSSRC + 2*i + end), next: 1}
			if err := f.keys(c.sends[end], c.gets[1-end]); err != nil {
				return err
			}
			s.flows = append(s.flows, f)
		}
	}
	return nil
}

// processes are those that are measured.
func (s *stand) processes() ([]int, error) { return rival.WithChildren(s.process.PID()) }

func (s *stand) memory() (int, error) {
	pids, err := s.processes()
	if err != nil {
		return 0, err
	}
	return cost.Memory(pids)
}

// alive returns an error if the box's program has exited.
func (s *stand) alive() error {
	if s.process == nil {
		return nil
	}
	select {
	case <-s.process.Ended:
		return fmt.Errorf("the program of %s exited: %w: %s", s.path, s.process.Err(), s.process.LastWords())
	default:
		return nil
	}
}

func (s *stand) close() {
	for _, x := range s.sockets {
		x.close()
	}
	for _, h := range []*host.Host{s.caller, s.box, s.callee} {
		if h != nil {
			h.Close()
		}
	}
}
