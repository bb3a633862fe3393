package nft

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// aFirstSequenceNumber is a phone's own (relay.dial).
const aFirstSequenceNumber = 0x5eed1234

// pass is what a relay does with a connection: it opens the other half, from the same address, and copies.
func (r *relay) pass(near *net.TCPConn, mark int) {
	r.t.Helper()
	from, to := near.RemoteAddr().String(), near.LocalAddr().String()
	far, err := r.dial(r.edge, from, to, mark, 0)
	require.NoError(r.t, err, "from %s to %s; counters %v", from, to, r.counters())
	go func() { _, _ = io.Copy(far, near) }()
	go func() { _, _ = io.Copy(near, far) }()
}

// echo answers each connection with what it sent, and tells who opened it.
func (r *relay) echo(n *netnstest.NS, host string, port int) <-chan netip.AddrPort {
	l := r.listenTCP(n, host, port)
	peers := make(chan netip.AddrPort, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			peers <- netip.MustParseAddrPort(c.RemoteAddr().String())
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return peers
}

// assertEchoes sends and receives size bytes.
func (r *relay) assertEchoes(c net.Conn, size int, what string) {
	r.t.Helper()
	sent := bytes.Repeat([]byte("REGISTER"), size/8)
	require.NoError(r.t, c.SetDeadline(time.Now().Add(5*time.Second)))
	go func() { _, _ = c.Write(sent) }()
	received := make([]byte, len(sent))
	n, err := io.ReadFull(c, received)
	require.NoError(r.t, err, "%s: %d of %d bytes came back; counters %v", what, n, len(sent), r.counters())
	assert.True(r.t, bytes.Equal(sent, received), what)
}

// T3, T4. A connection goes through the relay as two that have the same addresses and ports, and conntrack, which has
// one entry for both, is asked about one of them only.
func TestTCPThroughTheRelay(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	invalid := r.invalid()
	for _, c := range []struct {
		what             string
		src, dst         string
		n                *netnstest.NS
		side, seenAs     string
		mark             int
		device, priority string
	}{
		{"to a site", at(phone4, 31000), at(farPhone4, 5060), r.far, "lan4", at(phone4, 31000), markToSite, "rw-voice", ""},
		{"over IPv6", at(phone6, 31000), at(farPhone6, 5060), r.far, "lan6", at(phone6, 31000), markToSite, "rw-voice", ""},
		{"to a server's own port", at(phone4, 31002), at(farPBX4, 7000), r.far, "lan4", at(phone4, 31002), markToSite, "", ""},
		{"to a provider", at(phone4, 31004), at(internet4, 5060), r.internet, "lan4", at(boxWAN4, 31004), markToLAN, "", ""},
	} {
		to := netip.MustParseAddrPort(c.dst)
		peers := r.echo(c.n, to.Addr().String(), int(to.Port()))
		phone, err := r.dial(r.phone, c.src, c.dst, 0, aFirstSequenceNumber)
		require.NoError(t, err, c.what)
		near := r.accept(c.side, c.what)
		assert.Equal(t, []string{c.dst, c.src}, []string{near.LocalAddr().String(), near.RemoteAddr().String()}, c.what)
		r.pass(near, c.mark)
		r.assertEchoes(phone, 64<<10, c.what)
		assert.Equal(t, c.seenAs, (<-peers).String(), c.what)

		entries := r.tracked(" sport=" + c.src[strings.LastIndex(c.src, ":")+1:] + " ")
		if assert.NotEmpty(t, entries, c.what) {
			assert.Contains(t, entries[0], " mark=33792 ", "class signalling, of a relay: 0x8400")
		}
		phone.Close()
	}
	assert.NotRegexp(t, `packets [1-9]`, invalid(), "packets that conntrack takes for another connection's")
	assert.Zero(t, r.counters()[firewall.CounterInvalidWAN].Packets)
}

// Far ends open connections too: to SIP ports, and a server to whatever port a phone has registered.
func TestTCPFromFarEnds(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	invalid := r.invalid()
	for _, c := range []struct{ what, src, dst string }{
		{"to a SIP port", at(farPhone4, 32000), at(phone4, 5060)},
		{"from a server to any port", at(farPBX4, 32002), at(phone4, 40404)},
	} {
		to := netip.MustParseAddrPort(c.dst)
		peers := r.echo(r.phone, phone4, int(to.Port()))
		far, err := r.dial(r.far, c.src, c.dst, 0, aFirstSequenceNumber)
		require.NoError(t, err, c.what)
		r.pass(r.accept("far4", c.what), markToLAN)
		r.assertEchoes(far, 64<<10, c.what)
		assert.Equal(t, c.src, (<-peers).String(), c.what)
		assert.Empty(t, r.tracked(" iif=voice0 "), c.what)
	}
	assert.NotRegexp(t, `packets [1-9]`, invalid())

	// A phone's own connections to a server, and others' to any port, are none of the relay's.
	for _, c := range []struct {
		what     string
		from, to *netnstest.NS
		src, dst string
	}{
		{"a phone to a server's web page", r.phone, r.far, at(phone4, 32004), at(farPBX4, 443)},
		{"a far phone to any port", r.far, r.phone, at(farPhone4, 32006), at(phone4, 40406)},
	} {
		to := netip.MustParseAddrPort(c.dst)
		peers := r.echo(c.to, to.Addr().String(), int(to.Port()))
		conn, err := r.dial(c.from, c.src, c.dst, 0, 0)
		require.NoError(t, err, c.what)
		r.assertEchoes(conn, 64<<10, c.what)
		assert.Equal(t, c.src, (<-peers).String(), c.what)
		assert.NotEmpty(t, r.tracked(" sport="+c.src[strings.LastIndex(c.src, ":")+1:]+" "), "%s: tracked", c.what)
	}
}

// T9. A destination that does not answer the relay is the phone's to reach; the relay's connections to it stay.
func TestBypassedDestinations(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	for _, c := range []struct{ src, dst, side string }{
		{phone4, farPhone4, "lan4"}, {phone6, farPhone6, "lan6"},
	} {
		peers := r.echo(r.far, c.dst, 5060)
		before, err := r.dial(r.phone, at(c.src, 33000), at(c.dst, 5060), 0, 0)
		require.NoError(t, err)
		r.pass(r.accept(c.side, "no bypass yet"), markToSite)
		r.assertEchoes(before, 800, "through the relay")
		<-peers

		set, key := firewall.Bypass(netip.MustParseAddrPort(at(c.dst, 5060)))
		require.NoError(t, owner(t, r.sets, set).Add(t.Context(), 30*time.Second, key))
		direct, err := r.dial(r.phone, at(c.src, 33002), at(c.dst, 5060), 0, 0)
		require.NoError(t, err)
		r.assertEchoes(direct, 800, "past the relay")
		assert.Equal(t, at(c.src, 33002), (<-peers).String())
		assert.NotEmpty(t, r.tracked(" sport=33002 "), "tracked, as whatever passes")
		r.assertEchoes(before, 800, "the connection that the relay has")

		require.NoError(t, owner(t, r.sets, set).Delete(t.Context(), key))
		_, err = r.dial(r.phone, at(c.src, 33004), at(c.dst, 5060), 0, 0)
		require.NoError(t, err)
		r.accept(c.side, "bypassed no more")
	}
}

// A connection that was opened past the relay is reset when there is one, so that the phone opens it again.
func TestAConnectionThatPassedUnreadIsReset(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	r.release("sip_tcp")
	r.echo(r.far, farPhone4, 5060)
	c, err := r.dial(r.phone, at(phone4, 34000), at(farPhone4, 5060), 0, 0)
	require.NoError(t, err)
	r.assertEchoes(c, 800, "unread")

	r.take("sip_tcp")
	_, err = c.Write([]byte("REGISTER"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 10))
	require.ErrorIs(t, err, unix.ECONNRESET)
}

// behindANarrowPath adds a server behind the far site, to which packets of 1300 bytes go at most, while both ends
// believe in 1500 (T6). The route says so: a veth device with that MTU would not receive more either.
//
//	edge rw-voice -- voice far deep -- eth0 server 10.2.10.50, 2001:db8:2:10::50
func (r *relay) behindANarrowPath() *netnstest.NS {
	server := netnstest.New(r.t)
	netnstest.Veth(r.t, r.far, "deep", server, "eth0")
	for n, lines := range map[*netnstest.NS][]string{
		r.far: {
			"addr add 192.0.2.9/30 dev deep", "addr add 2001:db8:b::1/64 dev deep nodad",
			"route add 10.2.10.50/32 via 192.0.2.10 mtu lock 1300",
			"-6 route add 2001:db8:2:10::50/128 via 2001:db8:b::2 mtu lock 1300",
			"route replace default via 192.0.2.1 src 10.2.10.2",
			"-6 route replace default via 2001:db8:a::1 src 2001:db8:2:10::2",
		},
		server: {
			"addr add 192.0.2.10/30 dev eth0", "addr add 2001:db8:b::2/64 dev eth0 nodad",
			"addr add 10.2.10.50/32 dev lo", "addr add 2001:db8:2:10::50/128 dev lo nodad",
			"route add default via 192.0.2.9", "-6 route add default via 2001:db8:b::1",
		},
	} {
		for _, l := range lines {
			n.Run("ip", strings.Fields(l)...)
		}
	}
	r.far.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	return server
}

// T6. The relay learns how large a packet may be on the path, though the errors bear the phone's address.
func TestThePathMTUReachesTheRelay(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	server := r.behindANarrowPath()
	for side, c := range map[string]struct{ src, dst string }{
		"lan4": {phone4, "10.2.10.50"}, "lan6": {phone6, "2001:db8:2:10::50"},
	} {
		r.echo(server, c.dst, 5060)
		phone, err := r.dial(r.phone, at(c.src, 35000), at(c.dst, 5060), 0, aFirstSequenceNumber)
		require.NoError(t, err)
		r.pass(r.accept(side, "TCP"), markToSite)
		r.assertEchoes(phone, 8<<10, side+": TCP")
	}
}

// The ends of a connection that passes unread have to learn it themselves.
func TestConnectionsThatPassUnreadKeepTheirErrors(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	server := r.behindANarrowPath()
	r.release("sip_tcp")
	for _, c := range []struct{ src, dst string }{{phone4, "10.2.10.50"}, {phone6, "2001:db8:2:10::50"}} {
		r.echo(server, c.dst, 5060)
		phone, err := r.dial(r.phone, at(c.src, 35000), at(c.dst, 5060), 0, 0)
		require.NoError(t, err)
		r.assertEchoes(phone, 8<<10, c.src)
	}
}

// A datagram that does not fit is lost; the next one of that size is sent in parts. In IPv4 nobody need learn that if
// the relay lets the routers do it.
func TestThePathMTUReachesTheRelaysUDP(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	server := r.behindANarrowPath()
	for _, c := range []struct{ src, dst string }{{phone6, "2001:db8:2:10::50"}, {phone4, "10.2.10.50"}} {
		to, from := r.listen(server, c.dst, 5060), r.socket(c.src, 35002, markToSite)
		raw, err := from.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}))
		polltest.Assert(t, func() bool {
			r.sendBytes(from, c.dst, 5060, 0, make([]byte, 1400))
			require.NoError(t, to.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			n, err := to.Read(make([]byte, 2000))
			return err == nil && n == 1400
		}, 3*time.Second, 10*time.Millisecond, c.src)
	}
}

// That a port is closed is the phone's to know: its datagram went there, whoever passed it on.
func TestAClosedPortReachesThePhone(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	for side, c := range map[string]struct{ src, dst string }{"lan4": {phone4, farPhone4}, "lan6": {phone6, farPhone6}} {
		var phone *net.UDPConn
		require.NoError(t, r.phone.Do(func() (err error) {
			phone, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(c.src, 5060))),
				net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at(c.dst, 5060))))
			return err
		}))
		defer phone.Close()
		_, err := phone.Write([]byte("OPTIONS"))
		require.NoError(t, err)
		r.expect(side, at(c.src, 5060), at(c.dst, 5060), "the request")
		r.send(r.socket(c.src, 5060, markToSite), c.dst, 5060, 0)

		require.NoError(t, phone.SetReadDeadline(time.Now().Add(3*time.Second)))
		_, err = phone.Read(make([]byte, 10))
		require.ErrorIs(t, err, unix.ECONNREFUSED, "%s: %v", side, r.counters())
		require.False(t, errors.Is(err, os.ErrDeadlineExceeded))
	}
}
