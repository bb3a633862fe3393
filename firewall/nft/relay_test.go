package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

// Marks that a relay's sockets carry: to a site, and to a LAN or WAN.
const markToSite, markToLAN = 0x1400, 0x400

const internet6, box6 = "2001:db8:99::1", "2001:db8:1:10::1"

// farOther6 is an address of the far voice network beside farPhone6, which Allow lists.
const farOther6 = "2001:db8:2:10::3"

// relay is the world of packets_test.go with the sockets of a SIP relay on the edge, and the sets that it owns. It
// passes nothing on by itself.
type relay struct {
	*world
	sets *Ruleset
	udp  map[string]*net.UDPConn // lan4, lan6, far4, far6
	tcp  map[string]*net.TCPListener
}

// signalled is the branch whose SIP goes to a relay.
func signalled(mode firewall.SignallingMode) firewall.Input {
	in := branch()
	port := func(p qos.Protocol, low, high uint16) qos.PortMatch {
		return qos.PortMatch{Protocol: p, Low: low, High: high}
	}
	in.Classes[2].Ports = append(in.Classes[2].Ports, port(qos.UDP, 3478, 3478))
	in.Dynamic = append(firewall.HoleSets("calls", 256, 16, time.Minute, nil),
		firewall.SignallingSets("calls", firewall.SignallingBounds{
			Devices: 16, DeviceLife: time.Minute, Bans: 16, BanLife: time.Hour, Bypasses: 16, BypassLife: 30 * time.Second,
		})...)
	in.Signalling = firewall.Signalling{
		Mode:  mode,
		Ports: []qos.PortMatch{port(qos.UDP, 5060, 5060), port(qos.TCP, 5060, 5060), port(qos.UDP, 5090, 5092)},
		Servers: []firewall.SignallingServer{{
			Address: netip.MustParseAddr(farPBX4), Ports: []qos.PortMatch{port(qos.UDP, 7000, 7000), port(qos.TCP, 7000, 7000)},
		}},
		Allow: []firewall.AllowedMedia{
			{Network: netip.MustParsePrefix("10.2.0.0/16"), Ports: []qos.PortMatch{port(qos.UDP, 9000, 9010)}},
			{Network: netip.MustParsePrefix("2001:db8:2:10::2/128")}, // all ports
		},
	}
	return in
}

// farPBX4 is a server in the far data network, behind the voice tunnel.
const farPBX4 = "10.2.20.3"

// newRelay opens the relay's sockets and gives it all devices.
func newRelay(t *testing.T, in firewall.Input) *relay {
	r := relayWorld(t, in)
	r.open()
	r.take("sip_udp")
	r.take("sip_tcp")
	return r
}

func relayWorld(t *testing.T, in firewall.Input) *relay {
	w := newWorld(t, in)
	for _, l := range []string{
		"addr add 2001:db8:99::1/64 dev eth0 nodad", "-6 route add 2001:db8:1::/48 via 2001:db8:99::2",
	} {
		w.internet.Run("ip", strings.Fields(l)...)
	}
	w.far.Run("ip", strings.Fields("addr add "+farOther6+"/128 dev lo nodad")...)
	w.edge.Run("ip", strings.Fields("addr add 2001:db8:99::2/64 dev wan0 nodad")...)
	w.edge.Run("ip", strings.Fields("-6 route add default via 2001:db8:99::1")...)
	// as package routing makes them
	for _, family := range []string{"-4", "-6"} {
		w.edge.Run("ip", family, "route", "add", "local", "default", "dev", "lo", "table", "5275")
		for _, d := range devices {
			w.edge.Run("ip", family, "rule", "add", "pref", "5190", "iif", d, "fwmark", "0x8000/0x8000", "lookup", "5275")
		}
	}
	return &relay{
		world: w, sets: openRuleset(t, w.edge, thisKernel(t), in.Dynamic...),
		udp: map[string]*net.UDPConn{}, tcp: map[string]*net.TCPListener{},
	}
}

var devices = []string{"voice0", "data0", "rw-voice", "rw-data", "wan0"}

func (r *relay) take(set string) {
	require.NoError(r.t, owner(r.t, r.sets, set).Add(r.t.Context(), time.Minute, devices...))
}

func (r *relay) release(set string) {
	require.NoError(r.t, owner(r.t, r.sets, set).Clear(r.t.Context()))
}

// open listens on both ports, in both families and transports.
func (r *relay) open() {
	for side, port := range map[string]int{"lan": firewall.SignallingPortLAN, "far": firewall.SignallingPortFar} {
		mark := map[string]int{"lan": markToLAN, "far": markToSite}[side]
		for family, host := range map[string]string{"4": "0.0.0.0", "6": "::"} {
			r.udp[side+family] = r.socket(host, port, 0)
			var l net.Listener
			require.NoError(r.t, r.edge.Do(func() (err error) {
				lc := net.ListenConfig{Control: transparent("tcp"+family, mark)}
				l, err = lc.Listen(context.Background(), "tcp"+family, net.JoinHostPort(host, fmt.Sprint(port)))
				return err
			}))
			r.tcp[side+family] = l.(*net.TCPListener)
		}
	}
	r.t.Cleanup(r.close)
}

// close is the relay's death.
func (r *relay) close() {
	for _, c := range r.udp {
		c.Close()
	}
	for _, l := range r.tcp {
		l.Close()
	}
}

// socket is one of the relay's for UDP, with an address that may be another's.
func (r *relay) socket(host string, port, mark int) *net.UDPConn {
	r.t.Helper()
	var c net.PacketConn
	require.NoError(r.t, r.edge.Do(func() (err error) {
		lc := net.ListenConfig{Control: transparent(network(host), mark)}
		c, err = lc.ListenPacket(context.Background(), network(host), net.JoinHostPort(host, fmt.Sprint(port)))
		return err
	}))
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func transparent(network string, mark int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var errs error
		set := func(fd uintptr, level, option, value int) {
			errs = errors.Join(errs, unix.SetsockoptInt(int(fd), level, option, value))
		}
		err := c.Control(func(fd uintptr) {
			if strings.HasSuffix(network, "4") {
				set(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else {
				set(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
			switch network {
			case "udp4":
				set(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1)
			case "udp6":
				set(fd, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1)
			}
			set(fd, unix.SOL_SOCKET, unix.SO_RCVMARK, 1)
			if mark != 0 {
				set(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)
			}
		})
		return errors.Join(errs, err)
	}
}

// taken is what the relay received.
type taken struct {
	from, to netip.AddrPort
	payload  string
	mark     uint32
}

// got waits for one datagram; ok is false if nothing comes within wait.
func (r *relay) got(side string, wait time.Duration) (d taken, ok bool) {
	r.t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 256)
	c := r.udp[side]
	require.NoError(r.t, c.SetReadDeadline(time.Now().Add(wait)))
	n, m, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return d, false
	}
	require.NoError(r.t, err)
	d = taken{from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), payload: string(buf[:n])}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	require.NoError(r.t, err)
	for _, c := range messages {
		level, kind := int(c.Header.Level), int(c.Header.Type)
		switch {
		case level == unix.SOL_IP && kind == unix.IP_ORIGDSTADDR:
			d.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(c.Data[4:8])), binary.BigEndian.Uint16(c.Data[2:]))
		case level == unix.SOL_IPV6 && kind == unix.IPV6_ORIGDSTADDR:
			d.to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(c.Data[8:24])), binary.BigEndian.Uint16(c.Data[2:]))
		case level == unix.SOL_SOCKET && kind == unix.SO_MARK:
			d.mark = binary.NativeEndian.Uint32(c.Data)
		}
	}
	return d, true
}

// expect waits for one datagram on side, with these addresses.
func (r *relay) expect(side, from, to, what string) taken {
	r.t.Helper()
	d, ok := r.got(side, 3*time.Second)
	require.True(r.t, ok, "%s: the relay got nothing on %s; counters %v", what, side, r.counters())
	assert.Equal(r.t, []string{from, to}, []string{d.from.String(), d.to.String()}, what)
	return d
}

// nothing asserts that no datagram is waiting for the relay. What was sent before it must have arrived elsewhere.
func (r *relay) nothing(what string) {
	r.t.Helper()
	for side := range r.udp {
		d, ok := r.got(side, time.Millisecond)
		assert.False(r.t, ok, "%s: the relay got %v on %s", what, d, side)
	}
}

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// payloadOf waits for one datagram and its sender.
func (r *relay) payloadOf(c *net.UDPConn, what string) (string, netip.AddrPort) {
	r.t.Helper()
	buf := make([]byte, 4096)
	require.NoError(r.t, c.SetReadDeadline(time.Now().Add(3*time.Second)))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	require.NoError(r.t, err, "%s: nothing arrived; counters %v", what, r.counters())
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// tracked are the lines of conntrack's table whose first packet has the text.
func (r *relay) tracked(text string) (lines []string) {
	for _, l := range strings.Split(r.edge.Run("cat", "/proc/net/nf_conntrack"), "\n") {
		first := l
		if answer := strings.LastIndex(l, " src="); answer > 0 {
			first = l[:answer+1]
		}
		if strings.Contains(first, text) {
			lines = append(lines, l)
		}
	}
	return lines
}

// invalid counts the packets that conntrack could not place, in a table that is not Ringway's.
func (r *relay) invalid() func() string {
	r.edge.Run("nft", `table inet invalid {
		counter in { }
		counter out { }
		chain in { type filter hook prerouting priority -140; meta l4proto tcp ct state invalid counter name in; }
		chain out { type filter hook output priority -140; meta l4proto tcp ct state invalid counter name out; }
	}`)
	return func() string { return r.edge.Run("nft", "list", "counters", "table", "inet", "invalid") }
}

// listenTCP listens in n and answers each connection with the address that it came from and what it sent.
func (r *relay) listenTCP(n *netnstest.NS, host string, port int) *net.TCPListener {
	r.t.Helper()
	var l net.Listener
	require.NoError(r.t, n.Do(func() (err error) {
		l, err = net.Listen("tcp"+network(host)[3:], at(host, port))
		return err
	}))
	r.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// dial connects from a source address in n. isn is the first sequence number: a phone has its own, while namespaces of
// one kernel would choose the same for the same addresses (T3). 0: the kernel's.
func (r *relay) dial(n *netnstest.NS, from, to string, mark int, isn uint32) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{
			Timeout: 3 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)),
			Control: func(_, _ string, raw syscall.RawConn) error { return dialOptions(raw, from, mark, isn) },
		}
		c, err = d.Dial("tcp", to)
		return err
	})
	if err == nil {
		r.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func dialOptions(raw syscall.RawConn, from string, mark int, isn uint32) error {
	var errs error
	err := raw.Control(func(fd uintptr) {
		set := func(level, option, value int) {
			errs = errors.Join(errs, unix.SetsockoptInt(int(fd), level, option, value))
		}
		if mark != 0 {
			set(unix.SOL_SOCKET, unix.SO_MARK, mark)
			if netip.MustParseAddrPort(from).Addr().Is4() {
				set(unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else {
				set(unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
		}
		if isn != 0 {
			const sendQueue, offWithoutProbe = 2, -1
			set(unix.SOL_TCP, unix.TCP_REPAIR, 1)
			set(unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, sendQueue)
			set(unix.SOL_TCP, unix.TCP_QUEUE_SEQ, int(int32(isn)))
			set(unix.SOL_TCP, unix.TCP_REPAIR, offWithoutProbe)
		}
	})
	return errors.Join(errs, err)
}

// accept waits for a connection that TPROXY gave to the relay.
func (r *relay) accept(side, what string) *net.TCPConn {
	r.t.Helper()
	l := r.tcp[side]
	require.NoError(r.t, l.SetDeadline(time.Now().Add(3*time.Second)))
	c, err := l.AcceptTCP()
	require.NoError(r.t, err, "%s; counters %v", what, r.counters())
	r.t.Cleanup(func() { c.Close() })
	return c
}
