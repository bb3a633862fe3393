package media

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/srtp/media/rules"
	"ringway/test/netnstest"
)

// Marks of the tests' boxes.
const (
	markDelivered = 0x40
	markLAN       = 0x41
	markTunnel    = 0x42
)

var mediaPorts = rules.Ports{First: 40000, Last: 40999}

// box is a network namespace with a relay behind the rules of the firewall.
type box struct {
	*netnstest.NS
	t       testing.TB
	sockets [sides]Sockets
	relay   *Relay
}

// boxPlan is what a box differs in.
type boxPlan struct {
	ns             *netnstest.NS
	lan, tunnel    []string // our addresses, with their prefixes
	packetsPerPort int      // 0: as many as there are
	longest        time.Duration
	changed        func(Update)
	dtls           func(uint64, netip.AddrPort, []byte)
}

// newBox has a relay listen in a namespace whose devices are lan and tun.
func newBox(t testing.TB, p boxPlan) *box {
	b := &box{NS: p.ns, t: t}
	plan := rules.Plan{
		Table: "media", Ports: mediaPorts, Delivered: markDelivered, PacketsPerPort: 100_000,
		LAN:    rules.Side{Interfaces: []string{"lan"}, Mark: markLAN},
		Tunnel: rules.Side{Interfaces: []string{"tun"}, Mark: markTunnel},
	}
	if p.packetsPerPort > 0 {
		plan.PacketsPerPort = p.packetsPerPort
	}
	for side, s := range map[Side]struct {
		at     *rules.Side
		prefix []string
	}{LAN: {&plan.LAN, p.lan}, Tunnel: {&plan.Tunnel, p.tunnel}} {
		for _, prefix := range s.prefix {
			s.at.Addresses = append(s.at.Addresses, netip.MustParsePrefix(prefix).Addr())
		}
		require.NoError(t, p.ns.Do(func() (err error) {
			sock := &b.sockets[side]
			for v6, port := range []*uint16{&s.at.Port4, &s.at.Port6} {
				if sock.In[v6], *port, err = ListenIn(v6 == 1, 0); err != nil {
					return err
				}
				if sock.Out[v6], err = OpenOut(v6 == 1, s.at.Mark); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	t.Cleanup(func() {
		for _, s := range b.sockets {
			for _, f := range append(s.In[:], s.Out[:]...) {
				_ = f.Close()
			}
		}
	})
	text, err := plan.Text()
	require.NoError(t, err)
	cmd := b.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	b.start(p)
	return b
}

// start starts a relay with the box's sockets: a process and the next one have the same.
func (b *box) start(p boxPlan) {
	longest := p.longest
	if longest == 0 {
		longest = time.Minute // the machine may be busy, and that is not what is tested
	}
	r, err := New(Options{
		Sockets: b.sockets, Changed: p.changed, DTLS: p.dtls, longest: longest,
		Alone: os.Getenv(envAlone) != "", Threads: 1,
	})
	require.NoError(b.t, err)
	b.relay = r
	b.t.Cleanup(r.Close)
}

// envAlone has relays pin their threads.
const envAlone = "TEST_ALONE"

// link joins namespaces, and gives their devices addresses.
func link(t testing.TB, a *netnstest.NS, nameA string, atA []string, b *netnstest.NS, nameB string, atB []string) {
	netnstest.Veth(t, a, nameA, b, nameB)
	for ns, at := range map[*netnstest.NS]struct {
		name string
		all  []string
	}{a: {nameA, atA}, b: {nameB, atB}} {
		for _, prefix := range at.all {
			args := []string{"addr", "add", prefix, "dev", at.name}
			if strings.Contains(prefix, ":") {
				args = append(args, "nodad")
			}
			ns.Run("ip", args...)
		}
	}
}

// Networks: a phone at one box, its voice address, and the same at the other.
var (
	phoneA  = []string{"192.0.2.7/24", "2001:db8:1::7/64"}
	lanA    = []string{"192.0.2.1/24", "2001:db8:1::1/64"}
	tunnelA = []string{"198.51.100.1/24", "2001:db8:2::1/64"}
	tunnelB = []string{"198.51.100.2/24", "2001:db8:2::2/64"}
	lanB    = []string{"203.0.113.1/24", "2001:db8:3::1/64"}
	phoneB  = []string{"203.0.113.7/24", "2001:db8:3::7/64"}
)

func at(prefix string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParsePrefix(prefix).Addr(), port)
}

// branch is a phone, a box, and a host at the other end of its tunnel.
type branch struct{ phone, box, far *netnstest.NS }

func newBranch(t testing.TB) *branch {
	n := &branch{netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	link(t, n.phone, "eth", phoneA, n.box, "lan", lanA)
	link(t, n.box, "tun", tunnelA, n.far, "eth", tunnelB)
	return n
}

// branches is phone A - box A - box B - phone B.
type branches struct{ phoneA, boxA, boxB, phoneB *netnstest.NS }

func newBranches(t testing.TB) *branches {
	n := &branches{netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	link(t, n.phoneA, "eth", phoneA, n.boxA, "lan", lanA)
	link(t, n.boxA, "tun", tunnelA, n.boxB, "tun", tunnelB)
	link(t, n.boxB, "lan", lanB, n.phoneB, "eth", phoneB)
	return n
}

// endpoint is a UDP socket of a phone.
type endpoint struct {
	t testing.TB
	*net.UDPConn
	to netip.AddrPort
}

func listen(t testing.TB, ns *netnstest.NS, local, to netip.AddrPort) *endpoint {
	e := &endpoint{t: t, to: to}
	require.NoError(t, ns.Do(func() (err error) {
		e.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		return err
	}))
	t.Cleanup(func() { e.Close() })
	return e
}

func (e *endpoint) send(p []byte) {
	_, err := e.WriteToUDPAddrPort(p, e.to)
	require.NoError(e.t, err)
}

// receive is the next packet that arrives, and from where.
func (e *endpoint) receive() ([]byte, netip.AddrPort) {
	b := make([]byte, 4096)
	require.NoError(e.t, e.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, from, err := e.ReadFromUDPAddrPort(b)
	require.NoError(e.t, err)
	return b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// nothing fails if a packet has arrived.
func (e *endpoint) nothing() {
	e.t.Helper()
	raw, err := e.SyscallConn()
	require.NoError(e.t, err)
	require.NoError(e.t, raw.Control(func(fd uintptr) {
		var b [4096]byte
		_, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
	}))
	require.ErrorIs(e.t, err, unix.EAGAIN, "a packet arrived")
}

// counts is what is known of a leg.
func (b *box) counts(leg uint64) Counts {
	for _, c := range b.relay.Counts() {
		if c.ID == leg {
			return c
		}
	}
	require.Fail(b.t, fmt.Sprintf("no leg %d", leg))
	return Counts{}
}
