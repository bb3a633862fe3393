package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"ringway/test/lab/host"
)

// The hosts of a pair of branches.
const (
	PhoneA   = "phone-a"
	PCA      = "pc-a"
	EdgeA    = "edge-a"
	Provider = "provider"
	EdgeB    = "edge-b"
	PhoneB   = "phone-b"
	PCB      = "pc-b"
)

var hostNames = []string{PhoneA, PCA, EdgeA, Provider, EdgeB, PhoneB, PCB}

// Topology is one pair of branches, as `ringway lab --help` draws it.
const Topology = `  berlin                                                                            munich
  phone-a 10.1.10.10 --- voice0 .1                              voice0 .1 --- phone-b 10.2.10.10
                                  edge-a --- provider --- edge-b
  pc-a    10.1.20.10 ---  data0 .1   |                    |     data0 .1 --- pc-b    10.2.20.10
                        198.51.100.2 |                    | 203.0.113.2`

// side is one branch: its hosts and addresses.
type side struct {
	phone, pc, edge string
	site            string // of the edge, in configs/branch-SITE.yaml
	voice, data     lan
	wan             lan    // the edge's own address is .host, the provider is the gateway
	provider        string // the provider's device towards this side
}

type lan struct {
	network         string // of IPv4, /24
	network6        string // of IPv6, /64
	edge, edge6     string // the edge's address
	remote, remote6 string // of the phone, the PC or, on the WAN, the provider
}

var sides = [2]side{
	{
		phone: PhoneA, pc: PCA, edge: EdgeA, site: "berlin", provider: "wan-a",
		voice: lan{
			"10.1.10.0/24",
			"2001:db8:1:10::/64",
			"10.1.10.1",
			"2001:db8:1:10::1",
			"10.1.10.10",
			"2001:db8:1:10::10",
		},
		data: lan{
			"10.1.20.0/24",
			"2001:db8:1:20::/64",
			"10.1.20.1",
			"2001:db8:1:20::1",
			"10.1.20.10",
			"2001:db8:1:20::10",
		},
		wan: lan{
			"198.51.100.0/24",
			"2001:db8:a::/64",
			"198.51.100.2",
			"2001:db8:a::2",
			"198.51.100.1",
			"2001:db8:a::1",
		},
	},
	{
		phone: PhoneB, pc: PCB, edge: EdgeB, site: "munich", provider: "wan-b",
		voice: lan{
			"10.2.10.0/24",
			"2001:db8:2:10::/64",
			"10.2.10.1",
			"2001:db8:2:10::1",
			"10.2.10.10",
			"2001:db8:2:10::10",
		},
		data: lan{
			"10.2.20.0/24",
			"2001:db8:2:20::/64",
			"10.2.20.1",
			"2001:db8:2:20::1",
			"10.2.20.10",
			"2001:db8:2:20::10",
		},
		wan: lan{
			"203.0.113.0/24",
			"2001:db8:b::/64",
			"203.0.113.2",
			"2001:db8:b::2",
			"203.0.113.1",
			"2001:db8:b::1",
		},
	},
}

// SecondPC adds an address to a PC, as if it were another host, and returns it.
func (p *Pair) SecondPC(ctx context.Context, host string) (string, error) {
	address := strings.TrimSuffix(p.Address(host), "10") + "11"
	net := lan{}.of(p.inner())
	return address, p.Host(host).IP(ctx, nil, "addr replace "+address+net.length+" dev eth0"+net.flags)
}

// Ports of the phones. Each call has its own media port, counted from the first in steps of four (RTP and
// RTCP of audio, and of a video that is never used).
const (
	sipPort   = 5060
	mediaPort = 20000
	maxCalls  = 500
	lastMedia = mediaPort + 4*(maxCalls+1)
)

// PathName names a pair after what joins its branches.
type PathName string

// The pairs that may run beside each other. `ringway lab` builds the first two, `ringway bench link` any.
const (
	Ringway  PathName = "ringway"  // the appliance: a tunnel a class, queues, marks
	Baseline PathName = "baseline" // what people use today: one stock wireguard-go tunnel, no queues
	FQCoDel  PathName = "fq_codel" // the same behind the rate less the default margin, with fq_codel
	Cake     PathName = "cake"     // the same with cake, diffserv4
	Kernel   PathName = "kernel"   // no tunnel: what forwarding alone costs, the lower bound

	// With lines only; the baseline there has a default route by each line, the first preferred.
	Single    PathName = "single"        // stock wireguard-go with the first line alone
	Duplicate PathName = "duplicate-all" // stock wireguard-go, all of it sent by both lines
)

var pathNames = []PathName{Ringway, Baseline, FQCoDel, Cake, Kernel, Single, Duplicate}

// stock reports whether the pair has one stock wireguard-go tunnel for everything.
func (p PathName) stock() bool {
	return p == Baseline || p == FQCoDel || p == Cake || p == Single || p == Duplicate
}

// overLines reports whether the pair can be where there are lines.
func (p PathName) overLines() bool {
	return p == Ringway || p == Baseline || p == Single || p == Duplicate
}

// Host is one machine of the lab.
type Host = host.Host

// Pair is two whole branches and the provider between them.
type Pair struct {
	Name  PathName
	lab   *Lab
	hosts map[string]*Host
	edges map[string]*Edge
	lines []*line // of berlin; none: its WAN is the provider's own

	provider *host.Process
}

// Host finds a host by its name in the topology; it panics for an unknown name.
func (p *Pair) Host(name string) *Host {
	h, ok := p.hosts[name]
	if !ok {
		panic("no host " + name + " in the lab")
	}
	return h
}

// Edge is the edge of side a or b.
func (p *Pair) Edge(side string) *Edge {
	e, ok := p.edges["edge-"+side]
	if !ok {
		panic("no edge " + side + " in the lab")
	}
	return e
}

// newPair creates the hosts and joins them with cables. It sets the addresses of phones, PCs and provider;
// the edges set their own.
func (l *Lab) newPair(ctx context.Context, name PathName) (*Pair, error) {
	p := &Pair{Name: name, lab: l, hosts: map[string]*Host{}, edges: map[string]*Edge{}}
	made := make([]*Host, len(hostNames))
	var g errgroup.Group
	for i, n := range hostNames {
		g.Go(func() (err error) {
			made[i], err = l.world.NewHost(n)
			return err
		})
	}
	err := g.Wait()
	for i, h := range made {
		if h != nil {
			p.hosts[hostNames[i]] = h
		}
	}
	if err != nil {
		return p, err
	}
	for _, h := range made {
		if err := h.Do(quietIPv6); err != nil {
			return p, fmt.Errorf("prepare host %s: %w", h.Name, err)
		}
		if err := h.IP(ctx, nil, "link set lo up"); err != nil {
			return p, err
		}
	}
	for _, s := range sides {
		if err := p.cable(ctx, s); err != nil {
			return p, err
		}
	}
	for i := range p.lineCount() {
		if _, err := p.newLine(ctx, i); err != nil {
			return p, err
		}
	}
	return p, nil
}

// quietIPv6 makes addresses usable at once, without duplicate address detection: no other host on these links
// could own them.
func quietIPv6() error {
	for _, conf := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has no such file
			return err
		}
	}
	return nil
}

// cable joins the hosts of one side. Both ends of a veth are created where they belong, so that no device
// ever appears in the machine's own network.
func (p *Pair) cable(ctx context.Context, s side) error {
	edge, provider := p.Host(s.edge), p.Host(Provider)
	for _, c := range []struct {
		host, device string
		far          *Host
		farDevice    string
		net          lan
		family       Family
	}{
		{s.phone, "eth0", edge, "voice0", s.voice, p.inner()},
		{s.pc, "eth0", edge, "data0", s.data, p.inner()},
		{Provider, s.provider, edge, "wan0", s.wan, p.outer()},
	} {
		h := p.Host(c.host)
		if h == provider && s == sides[0] && p.lineCount() > 0 {
			continue // by lines instead
		}
		if err := h.IP(
			ctx, c.far, "link add "+c.device+" type veth peer name "+c.farDevice+" netns /proc/self/fd/3"); err != nil {
			return err
		}
		if c.host == s.phone {
			// A network card splits what a tunnel's engine has merged (UDP GRO) before it reaches a phone;
			// the capture has to see single packets.
			if err := edge.Do(func() error { return host.SinglePackets(c.farDevice) }); err != nil {
				return fmt.Errorf("%s: %w", edge.Name, err)
			}
			if err := h.Do(func() error { return host.SinglePackets(c.device) }); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		lines := []string{"link set " + c.device + " up"}
		for _, f := range families(c.family) {
			n := c.net.of(f)
			lines = append(lines, "addr add "+n.remote+n.length+" dev "+c.device+n.flags)
			if h != provider {
				lines = append(lines, "route add default via "+n.edge)
			}
		}
		if err := h.IP(ctx, nil, lines...); err != nil {
			return err
		}
	}
	return likeAPhone(ctx, p.Host(s.phone))
}

// likeAPhone marks what SIPp sends as real phones do, RTP as EF and SIP as CS3, and keeps the kernel from
// answering RTP with "port unreachable": SIPp sends media from raw sockets and listens on none.
func likeAPhone(ctx context.Context, h *Host) error {
	_, err := h.RunInput(ctx, fmt.Sprintf(`table inet phone {
	chain send {
		type filter hook output priority mangle
		udp sport %[1]d-%[2]d ip dscp set ef
		udp sport %[1]d-%[2]d ip6 dscp set ef
		meta l4proto { tcp, udp } th sport %[3]d ip dscp set cs3
		meta l4proto { tcp, udp } th sport %[3]d ip6 dscp set cs3
	}
	chain receive {
		type filter hook input priority filter
		udp dport %[1]d-%[2]d drop
	}
}
`, mediaPort, lastMedia, sipPort), "nft", "-f", "-")
	return err
}
