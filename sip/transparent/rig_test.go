package transparent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/sip/message"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// patience is how long a test waits for what has to come.
const patience = 10 * time.Second

var noDeadline time.Time

// Addresses of the rig, IPv4 and IPv6.
var (
	phone  = [2]netip.Addr{netip.MustParseAddr("10.1.10.10"), netip.MustParseAddr("2001:db8:1::10")}
	second = [2]netip.Addr{netip.MustParseAddr("10.1.10.11"), netip.MustParseAddr("2001:db8:1::11")}
	pbx    = [2]netip.Addr{netip.MustParseAddr("10.2.10.20"), netip.MustParseAddr("2001:db8:2::20")}
	// inside is a second address of the PBX, which counts as behind a tunnel.
	inside = [2]netip.Addr{netip.MustParseAddr("10.2.10.21"), netip.MustParseAddr("2001:db8:2::21")}
	// dead is an address that swallows TCP.
	dead = [2]netip.Addr{netip.MustParseAddr("10.2.10.99"), netip.MustParseAddr("2001:db8:2::99")}
)

var families = [2]string{"IPv4", "IPv6"}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// boxRules take everything that crosses the box. tproxy comes before the mark, so that packets pass unread while
// nobody listens. Errors about packets that are too long for a path come to the box, too, although they bear the
// phone's address.
const boxRules = `
table inet sip {
	counter inside { }
	counter outside { }
	counter unmarked { }
	chain taken {
		type filter hook prerouting priority -90; policy accept;
		iif "lo" return
		fib daddr type { local, multicast, broadcast } return
		icmp type destination-unreachable icmp code frag-needed meta mark set 0x8000 accept
		icmpv6 type packet-too-big meta mark set 0x8000 accept
		iifname "near" meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to 127.0.0.1:5280 meta mark set 0x8000 accept
		iifname "far" meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to 127.0.0.1:5281 meta mark set 0x8000 accept
		iifname "near" meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to [::1]:5280 meta mark set 0x8000 accept
		iifname "far" meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to [::1]:5281 meta mark set 0x8000 accept
	}
	chain leaving {
		type filter hook output priority 0; policy accept;
		meta mark 0x1400 counter name "inside"
		meta mark 0x400 counter name "outside"
		meta l4proto { tcp, udp } oif != "lo" meta mark != { 0x400, 0x1400 } counter name "unmarked"
		tcp flags rst accept comment "bears the code point of the segment that it answers"
		meta l4proto { tcp, udp } oif != "lo" ip dscp != cs3 counter name "unmarked"
		meta l4proto { tcp, udp } oif != "lo" ip6 dscp != cs3 counter name "unmarked"
	}
}
`

// rig is:
//
//	phone 10.1.10.10, .11 ---near--- box ---far--- 10.2.10.20, .21 pbx
type rig struct {
	t               testing.TB
	phone, box, pbx *netnstest.NS
	listeners       []Listener
	seen            chan *seen
	unreachable     chan netip.AddrPort
	handle          Handler // after seen was told; nil: let all pass

	relay *Relay
	run   chan error // what Run returned
}

// seen is a message as the Handler saw it.
type seen struct {
	from, to netip.AddrPort
	near     bool
	reason   message.Reason
	callID   string
	raw      string
}

func (s *seen) String() string {
	return fmt.Sprintf("%s>%s near=%t %s %q %d bytes", s.from, s.to, s.near, s.reason, s.callID, len(s.raw))
}

func newRig(t testing.TB) *rig {
	t.Helper()
	netnstest.Root(t)
	if _, benchmark := t.(*testing.B); !benchmark { // whose runner has goroutines of its own
		t.Cleanup(func() { goleak.VerifyNone(t) }) // after all other cleanups
	}
	r := &rig{
		t: t, phone: netnstest.New(t), box: netnstest.New(t), pbx: netnstest.New(t),
		seen: make(chan *seen, 1<<16), unreachable: make(chan netip.AddrPort, 1000),
	}
	for _, ns := range []*netnstest.NS{r.phone, r.box, r.pbx} { // link-local addresses are usable at once
		script(ns, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")
	}
	veth(t, r.phone, "lan", r.box, "near")
	veth(t, r.pbx, "lan", r.box, "far")
	script(r.box, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1
		sysctl -qw net.ipv4.conf.near.rp_filter=1 net.ipv4.conf.far.rp_filter=1
		ip addr add 10.1.10.1/24 dev near; ip addr add 2001:db8:1::1/64 dev near nodad
		ip addr add 10.2.10.1/24 dev far; ip addr add 2001:db8:2::1/64 dev far nodad
		for family in -4 -6; do
			ip $family route add local default dev lo table 5280
			ip $family rule add priority 5190 iif near fwmark 0x8000/0x8000 lookup 5280
			ip $family rule add priority 5191 iif far fwmark 0x8000/0x8000 lookup 5280
		done
		nft -f - <<-'RULES'
		`+boxRules+`
		RULES`)
	r.host(r.phone, "near", "10.1.10.1", "2001:db8:1::1", phone, second)
	r.host(r.pbx, "far", "10.2.10.1", "2001:db8:2::1", pbx, inside, dead)
	r.pbx.Run("nft", "add table inet dead")
	r.pbx.Run("nft", "add chain inet dead in { type filter hook input priority 0; }")
	r.pbx.Run("nft", "add rule inet dead in meta l4proto tcp ip daddr "+dead[0].String()+" drop")
	r.pbx.Run("nft", "add rule inet dead in meta l4proto tcp ip6 daddr "+dead[1].String()+" drop")
	r.openListeners()
	t.Cleanup(func() {
		if t.Failed() && r.relay != nil {
			s := r.relay.Stats()
			maps.DeleteFunc(s.Counts, func(_ string, n uint64) bool { return n == 0 })
			t.Log(s)
		}
		if out, err := r.box.Try("nft", "list", "counter", "inet", "sip", "unmarked"); err == nil {
			assert.Contains(t, out, "packets 0 ", "a packet left without a mark or code point")
		}
	})
	return r
}

// host gives a namespace beside the box its addresses.
func (r *rig) host(ns *netnstest.NS, boxDevice, router4, router6 string, addresses ...[2]netip.Addr) {
	r.t.Helper()
	for _, a := range addresses {
		script(ns, fmt.Sprintf("ip addr add %s/24 dev lan; ip addr add %s/64 dev lan nodad", a[0], a[1]))
		meet(r.box, boxDevice, ns, "lan", a[0].String(), a[1].String())
	}
	script(ns, fmt.Sprintf("ip route add default via %s; ip -6 route add default via %s", router4, router6))
	meet(ns, "lan", r.box, boxDevice, router4, router6)
}

// meet tells a the link address of its neighbour b. The kernel's table of those that are learned is one for all
// namespaces, and other tests may fill it.
func meet(a *netnstest.NS, deviceA string, b *netnstest.NS, deviceB string, addresses ...string) {
	fields := strings.Fields(b.Run("ip", "-o", "link", "show", deviceB))
	link := fields[slices.Index(fields, "link/ether")+1]
	for _, address := range addresses {
		a.Run("ip", "neigh", "add", address, "lladdr", link, "dev", deviceA, "nud", "permanent")
	}
}

// veth joins two namespaces, and waits until packets pass: before, the kernel drops them without any error.
func veth(t testing.TB, a *netnstest.NS, nameA string, b *netnstest.NS, nameB string) {
	t.Helper()
	netnstest.Veth(t, a, nameA, b, nameB)
	for ns, name := range map[*netnstest.NS]string{a: nameA, b: nameB} {
		polltest.Require(t, func() bool {
			return strings.Contains(ns.Run("ip", "link", "show", name), "state UP")
		}, patience, time.Millisecond)
	}
}

func script(ns *netnstest.NS, text string) { ns.Run("sh", "-ec", text) }

func (r *rig) openListeners() {
	require.NoError(r.t, r.box.Do(func() error {
		for port, isNear := range map[uint16]bool{5280: true, 5281: false} {
			for _, ip := range []string{"127.0.0.1", "::1"} {
				for _, transport := range []Transport{UDP, TCP} {
					fd, err := Listen(transport, at(netip.MustParseAddr(ip), port), Marking{0x400, 0x60})
					if err != nil {
						return err
					}
					r.listeners = append(r.listeners, Listener{FD: fd, Near: isNear})
				}
			}
		}
		return nil
	}))
	r.t.Cleanup(func() {
		for _, l := range r.listeners {
			unix.Close(l.FD)
		}
	})
}

// open is what the daemon does.
func (r *rig) open(_ context.Context, kind SocketKind, n int) (fds []int, err error) {
	m := Marking{0x400, 0x60}
	if kind.Inside {
		m.Mark = 0x1400
	}
	err = r.box.Do(func() error {
		for range n {
			fd, err := OpenEgress(kind, m)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	return fds, err
}

func (r *rig) config() Config {
	return Config{
		Listeners: slices.Clone(r.listeners), Open: r.open,
		Inside: func(a netip.Addr) bool { return a == inside[0] || a == inside[1] },
		Handle: func(m *Message) Action {
			s := &seen{from: m.From, to: m.To, near: m.FromNear, reason: m.Reason, raw: string(m.Raw)}
			if m.Reason == message.None {
				s.callID = string(m.SIP.CallID())
			}
			r.seen <- s
			if r.handle != nil {
				return r.handle(m)
			}
			return Action{}
		},
		Unreachable: func(to netip.AddrPort) { r.unreachable <- to },
		// On a busy machine the first datagram may wait for its socket for longer than a phone would.
		Limits: Limits{Fetch: patience},
	}
}

// start runs a relay until the test ends. change may be nil.
func (r *rig) start(change func(*Config)) *Relay {
	r.t.Helper()
	c := r.config()
	if change != nil {
		change(&c)
	}
	relay, err := New(c)
	require.NoError(r.t, err)
	r.runRelay(relay)
	return relay
}

func (r *rig) runRelay(relay *Relay) {
	run := make(chan error, 1)
	r.relay, r.run = relay, run
	go func() { run <- relay.Run(context.Background()) }()
	var once sync.Once
	r.t.Cleanup(func() {
		once.Do(func() {
			relay.Close()
			assert.NoError(r.t, <-run)
		})
	})
}

// next is the next message that the Handler sees.
func (r *rig) next() *seen {
	r.t.Helper()
	select {
	case s := <-r.seen:
		return s
	case <-time.After(patience):
		require.Fail(r.t, "no message came to the handler", "%v", r.relay.Stats())
		return nil
	}
}

func (r *rig) count(name string) uint64 {
	r.t.Helper()
	n, known := r.relay.Stats().Counts[name]
	require.True(r.t, known, "no counter %q", name)
	return n
}

func (r *rig) waitCount(name string, n uint64) {
	r.t.Helper()
	polltest.Require(r.t, func() bool { return r.count(name) >= n }, patience, time.Millisecond,
		"%s: %v", name, r.relay.Stats())
}

// reuse lets several sockets of a namespace have one port.
func reuse(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
}

func (r *rig) udp(ns *netnstest.NS, a netip.AddrPort) *net.UDPConn {
	r.t.Helper()
	var c *net.UDPConn
	require.NoError(r.t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		return err
	}))
	r.t.Cleanup(func() { c.Close() })
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// receive reads one datagram, and who sent it.
func receive(t testing.TB, c *net.UDPConn) (raw string, from netip.AddrPort) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func sendTo(t testing.TB, c *net.UDPConn, to netip.AddrPort, raw string) {
	t.Helper()
	_, err := c.WriteToUDPAddrPort([]byte(raw), to)
	require.NoError(t, err)
}

func (r *rig) listen(ns *netnstest.NS, a netip.AddrPort) *net.TCPListener {
	r.t.Helper()
	var l net.Listener
	require.NoError(r.t, ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		return err
	}))
	r.t.Cleanup(func() { l.Close() })
	tcp := l.(*net.TCPListener)
	require.NoError(r.t, tcp.SetDeadline(time.Now().Add(patience)))
	return tcp
}

func (r *rig) tryDial(ns *netnstest.NS, from, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse, Timeout: patience}
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = d.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(patience))
}

func (r *rig) dial(ns *netnstest.NS, from, to netip.AddrPort) *net.TCPConn {
	r.t.Helper()
	c, err := r.tryDial(ns, from, to)
	require.NoError(r.t, err)
	return c
}

func (r *rig) accept(l *net.TCPListener) *net.TCPConn {
	r.t.Helper()
	c, err := l.AcceptTCP()
	require.NoError(r.t, err)
	r.t.Cleanup(func() { c.Close() })
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// connect connects a phone to the PBX through the relay.
func (r *rig) connect(from, to netip.AddrPort) (a, b *net.TCPConn) {
	r.t.Helper()
	l := r.listen(r.pbx, to)
	defer l.Close()
	a = r.dial(r.phone, from, to)
	return a, r.accept(l)
}

// gets reads exactly what is expected.
func gets(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	n, err := readFull(c, b)
	require.NoError(t, err, "after %q", b[:n])
	require.Equal(t, want, string(b))
}

func readFull(c net.Conn, b []byte) (n int, err error) {
	for n < len(b) {
		k, err := c.Read(b[n:])
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

func puts(t testing.TB, c net.Conn, raw string) {
	t.Helper()
	_, err := c.Write([]byte(raw))
	require.NoError(t, err)
}

// ends checks that nothing comes before a connection ends so.
func ends(t testing.TB, c net.Conn, want error) {
	t.Helper()
	b := make([]byte, 1)
	n, err := c.Read(b)
	require.Zero(t, n)
	require.ErrorIs(t, err, want)
}

// request makes a message of at least so many bytes.
func request(method, callID string, size int) string {
	head := method + " sip:200@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/TCP 10.1.10.10;branch=z9hG4bK1\r\n" +
		"From: <sip:100@192.0.2.1>;tag=1\r\nTo: <sip:200@192.0.2.1>\r\nCall-ID: " + callID + "\r\nCSeq: 1 " + method +
		"\r\n"
	body := strings.Repeat("x", max(0, size-len(head)-30))
	return head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}
