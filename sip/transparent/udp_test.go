package transparent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/sip/message"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func TestDatagramsGoOnAsTheyCame(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	stun := string([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}) + strings.Repeat("t", 12)
	for f, family := range families {
		a := r.udp(r.phone, at(phone[f], 5062))
		b := r.udp(r.pbx, at(pbx[f], 5060))
		for _, c := range []struct {
			name, raw string
			reason    message.Reason
		}{
			{"request", request("INVITE", "a", 0), message.None},
			{"request of 4 KB", request("INVITE", "a", 4096), message.None}, // sip.md, T14
			{"largest datagram", request("INVITE", "a", 65000), message.None},
			{"ping", "\r\n\r\n", message.KeepAlive}, // RFC 5626, section 3.5.1
			{"STUN", stun, message.KeepAlive},       // section 3.5.2
			{"nothing", "", message.KeepAlive},
			{"garbage", "\x00\xff garbage\n", message.BadStartLine},
		} {
			t.Run(family+" "+c.name, func(t *testing.T) {
				callID := ""
				if c.reason == message.None {
					callID = "a"
				}
				sendTo(t, a, at(pbx[f], 5060), c.raw)
				raw, from := receive(t, b)
				assert.True(t, c.raw == raw, "%d bytes arrived of %d", len(raw), len(c.raw))
				assert.Equal(t, at(phone[f], 5062), from)
				want := seen{at(phone[f], 5062), at(pbx[f], 5060), true, c.reason, callID, c.raw}
				assert.Equal(t, &want, r.next())

				sendTo(t, b, at(phone[f], 5062), c.raw)
				raw, from = receive(t, a)
				assert.True(t, c.raw == raw, "%d bytes arrived of %d", len(raw), len(c.raw))
				assert.Equal(t, at(pbx[f], 5060), from)
				want = seen{at(pbx[f], 5060), at(phone[f], 5062), false, c.reason, callID, c.raw}
				assert.Equal(t, &want, r.next())
			})
		}
	}
}

// Both ends use port 5060, so one egress socket on that port serves both directions and both phones. It must never
// take what is for a listener (sip.md, T8).
func TestOneSocketServesAPort(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f := range families {
		a, b := r.udp(r.phone, at(phone[f], 5060)), r.udp(r.phone, at(second[f], 5060))
		c := r.udp(r.pbx, at(pbx[f], 5060))
		for n := range 20 {
			for i, p := range []struct {
				address netip.Addr
				raw     string
			}{{phone[f], fmt.Sprint("a", n)}, {second[f], fmt.Sprint("b", n)}} {
				conn := a
				if i == 1 {
					conn = b
				}
				sendTo(t, conn, at(pbx[f], 5060), p.raw)
				raw, from := receive(t, c)
				assert.Equal(t, p.raw, raw)
				assert.Equal(t, at(p.address, 5060), from)
				sendTo(t, c, from, raw+" answered")
				raw, from = receive(t, conn)
				assert.Equal(t, p.raw+" answered", raw)
				assert.Equal(t, at(pbx[f], 5060), from)
			}
		}
		assert.Equal(t, f+1, r.relay.Stats().Egress)
	}

	// What is sent to the box's own addresses does reach the egress socket, and must not wait there.
	a := r.udp(r.phone, at(phone[0], 5063))
	for range 100 {
		sendTo(t, a, netip.MustParseAddrPort("10.1.10.1:5060"), strings.Repeat("x", 1000))
	}
	sendTo(t, a, at(pbx[0], 5099), "after them")
	r.waitCount("udp_passed", 161)
	_, _, err := unix.Recvfrom(r.bound(egressKey{port: 5060}).fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	assert.ErrorIs(t, err, unix.EAGAIN, "nothing waits there")
}

func TestTunnelSidePacketsBearAnotherMark(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f := range families {
		a := r.udp(r.phone, at(phone[f], 5062))
		for _, to := range []netip.Addr{inside[f], pbx[f], inside[f]} {
			b := r.udp(r.pbx, at(to, 5060))
			sendTo(t, a, at(to, 5060), "x")
			receive(t, b)
			b.Close()
		}
	}
	assert.Contains(t, r.box.Run("nft", "list", "counter", "inet", "sip", "inside"), "packets 4 ")
	assert.Contains(t, r.box.Run("nft", "list", "counter", "inet", "sip", "outside"), "packets 2 ")

	for f := range families {
		for _, to := range []netip.Addr{pbx[f], inside[f]} {
			r.box.Run("nft", "reset", "counters")
			a, b := r.connect(at(phone[f], 5062), at(to, 5060))
			puts(t, a, "\r\n")
			gets(t, b, "\r\n")
			counted := r.box.Run("nft", "list", "counter", "inet", "sip", "inside")
			assert.Equal(t, to == pbx[f], strings.Contains(counted, "packets 0 "), "TCP to %s: %s", to, counted)
			reset(a)
			ends(t, b, unix.ECONNRESET)
		}
	}
}

func TestDatagramHandler(t *testing.T) {
	r := newRig(t)
	secret := make(chan []byte, 1)
	var key []byte // of the listener's goroutine
	r.handle = func(m *Message) Action {
		switch string(m.Raw) {
		case "refuse":
			return Action{Drop: true, Reply: []byte("488")}
		case "change":
			return Action{Raw: []byte("changed")}
		case "secret":
			key = []byte("a key")
			return Action{Raw: key, Secret: true}
		case "after":
			secret <- key
			return Action{Drop: true}
		case "empty":
			return Action{Raw: []byte{}}
		}
		return Action{}
	}
	r.start(nil)
	for f := range families {
		a, b := r.udp(r.phone, at(phone[f], 5062)), r.udp(r.pbx, at(pbx[f], 5060))
		for _, raw := range []string{"refuse", "change", "secret", "empty", "pass"} {
			sendTo(t, a, at(pbx[f], 5060), raw)
		}
		for _, want := range []string{"changed", "a key", "", "pass"} {
			raw, _ := receive(t, b)
			assert.Equal(t, want, raw)
		}
		sendTo(t, a, at(pbx[f], 5060), "after")
		assert.Equal(t, make([]byte, 5), <-secret, "overwritten once it has gone on")
		raw, from := receive(t, a)
		assert.Equal(t, "488", raw)
		assert.Equal(t, at(pbx[f], 5060), from, "in the name of the one that was asked")
	}
	assert.Equal(t, uint64(2), r.count("replies"))
	assert.Equal(t, uint64(4), r.count("udp_dropped_by_handler"))
}

func TestEgressSocketsAreBounded(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Limits.Egress = 4 })
	b := r.udp(r.pbx, at(pbx[0], 5060))
	steady := r.udp(r.phone, at(phone[0], 5062))
	var first int
	for n := range 20 {
		other := r.udp(r.phone, at(phone[0], uint16(6000+n)))
		for _, conn := range []*net.UDPConn{steady, other} {
			sendTo(t, conn, at(pbx[0], 5060), "x")
			_, from := receive(t, b)
			assert.Equal(t, conn.LocalAddr().String(), from.String())
		}
		s := r.bound(egressKey{port: 5062})
		require.NotNil(t, s)
		fd := s.fd
		if n == 0 {
			first = fd
		}
		assert.Equal(t, first, fd, "a socket that is used stays")
	}
	assert.Equal(t, 4, r.relay.Stats().Egress)
	assert.Equal(t, uint64(21-4), r.count("egress_evicted"))
}

// Behind the PBX's router is a narrow path. An IPv4 datagram is fragmented there. An IPv6 one is lost, and the error
// about it teaches the box; SIP sends it again.
//
//	phone ---near--- box ---far--- pbx, which routes ---1300 bytes--- other
func TestNarrowPath(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	other := netnstest.New(t)
	veth(t, r.pbx, "narrow", other, "lan")
	far := [2]netip.Addr{netip.MustParseAddr("10.3.10.30"), netip.MustParseAddr("2001:db8:3::30")}
	script(r.pbx, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip addr add 10.3.10.1/24 dev narrow; ip addr add 2001:db8:3::1/64 dev narrow nodad
		ip link set narrow mtu 1300`)
	script(other, `
		ip addr add 10.3.10.30/24 dev lan; ip addr add 2001:db8:3::30/64 dev lan nodad
		ip route add default via 10.3.10.1; ip -6 route add default via 2001:db8:3::1`)
	meet(r.pbx, "narrow", other, "lan", "10.3.10.30", "2001:db8:3::30")
	meet(other, "lan", r.pbx, "narrow", "10.3.10.1", "2001:db8:3::1")
	script(r.box, "ip route add 10.3.10.0/24 via 10.2.10.20; ip route add 2001:db8:3::/64 via 2001:db8:2::20")
	for f, family := range families {
		a, b := r.udp(r.phone, at(phone[f], 5062)), r.udp(other, at(far[f], 5060))
		for i, size := range []int{1400, 1400, 4000} {
			one := request("INVITE", "a", size)
			sendTo(t, a, at(far[f], 5060), one)
			if f == 1 && i == 0 {
				polltest.Require(t, func() bool {
					return strings.Contains(r.box.Run("ip", "-6", "route", "get", far[f].String()), "mtu 1300")
				}, patience, time.Millisecond)
				continue
			}
			raw, _ := receive(t, b)
			assert.True(t, one == raw, "%s, %d bytes", family, size)
		}

		l := r.listen(other, at(far[f], 5060))
		c := r.dial(r.phone, at(phone[f], 5063), at(far[f], 5060))
		d := r.accept(l)
		one := request("INVITE", "a", 3000)
		puts(t, c, one)
		gets(t, d, one)
		puts(t, d, one)
		gets(t, c, one)
	}
}

// A stranger who sends from a port of this machine's own must not keep its programs from the port, nor take their
// packets.
func TestPortsOfThisMachineAreItsOwn(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Reserved = func(port uint16) bool { return port == 51820 } })
	b := r.udp(r.pbx, at(pbx[0], 5060))
	held := r.udp(r.box, netip.MustParseAddrPort("0.0.0.0:51821"))

	sendTo(t, r.udp(r.phone, at(phone[0], 51820)), at(pbx[0], 5060), "x")
	r.waitCount("udp_reserved_port", 1)
	free := r.udp(r.box, netip.MustParseAddrPort("0.0.0.0:51820"))

	sendTo(t, r.udp(r.phone, at(phone[0], 51821)), at(pbx[0], 5060), "x")
	r.waitCount("bind_failed", 1)
	a := r.udp(r.phone, at(phone[0], 5062))
	for _, own := range []string{"10.1.10.1:51820", "10.1.10.1:51821"} {
		sendTo(t, a, netip.MustParseAddrPort(own), "for "+own)
	}
	raw, _ := receive(t, free)
	assert.Equal(t, "for 10.1.10.1:51820", raw)
	raw, _ = receive(t, held)
	assert.Equal(t, "for 10.1.10.1:51821", raw)

	// The listener's own port: its datagrams must not come to a second socket.
	sendTo(t, r.udp(r.phone, at(phone[0], 5280)), at(pbx[0], 5060), "x")
	r.waitCount("bind_failed", 2)
	for range 10 {
		sendTo(t, a, at(pbx[0], 5060), "y")
	}
	for got := 0; got < 10; {
		if raw, _ := receive(t, b); raw == "y" {
			got++
		}
	}
}

// What comes to a listener without TPROXY would be sent to the listener again, and again.
func TestDatagramsToTheListenerItself(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f, listener := range []string{"127.0.0.1:5280", "[::1]:5280"} {
		own := r.udp(r.box, netip.MustParseAddrPort([]string{"127.0.0.1:5062", "[::1]:5062"}[f]))
		sendTo(t, own, netip.MustParseAddrPort(listener), "x")
		r.waitCount("sent_to_relay", uint64(f+1))
	}
	assert.Empty(t, r.seen)
}

func TestWhatIsNotRelayed(t *testing.T) {
	loopback := source{at: netip.MustParseAddrPort("127.0.0.1:5280")}
	wildcard := source{at: netip.MustParseAddrPort("[::]:5280")}
	for _, c := range []struct {
		by       source
		from, to string
		want     event
	}{
		{loopback, "10.1.10.10:5062", "10.2.10.20:5060", none},
		{loopback, "10.1.10.10:5280", "10.2.10.20:5280", none},
		{loopback, "10.1.10.10:5062", "127.0.0.1:5280", sentToRelay},
		{loopback, "10.1.10.10:5062", "127.0.0.1:5060", unusableAddress},
		{loopback, "127.0.0.1:5062", "10.2.10.20:5060", unusableAddress},
		{loopback, "10.1.10.10:0", "10.2.10.20:5060", unusableAddress},
		{loopback, "0.0.0.0:5062", "10.2.10.20:5060", unusableAddress},
		{loopback, "10.1.10.10:5062", "224.0.1.75:5060", unusableAddress},
		{wildcard, "[2001:db8:1::10]:5062", "[2001:db8:2::20]:5060", none},
		{wildcard, "[2001:db8:1::10]:5062", "[2001:db8:2::20]:5280", sentToRelay},
		{wildcard, "[fe80::1]:5062", "[2001:db8:2::20]:5060", unusableAddress},
		{wildcard, "[2001:db8:1::10]:5062", "[fe80::1]:5060", unusableAddress},
	} {
		got := c.by.refuses(netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to))
		assert.Equal(t, eventNames[c.want], eventNames[got], "%s to %s", c.from, c.to)
	}
}

// A listener that nobody told to report destinations.
func TestDatagramsWithoutADestination(t *testing.T) {
	r := newRig(t)
	l := r.udp(r.box, netip.MustParseAddrPort("127.0.0.1:5290"))
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		r.start(func(c *Config) { c.Listeners = []Listener{{FD: int(fd)}} })
	}))
	sendTo(t, r.udp(r.box, netip.MustParseAddrPort("127.0.0.1:5062")), netip.MustParseAddrPort("127.0.0.1:5290"), "x")
	r.waitCount("udp_no_original_destination", 1)
}

// While the daemon opens no sockets, what needs a new one is dropped soon, and all else passes.
func TestWithoutFreshSockets(t *testing.T) {
	r := newRig(t)
	var broken atomic.Bool
	var opened atomic.Int32
	r.start(func(c *Config) {
		c.Limits.Fresh, c.Limits.Fetch = 1, time.Hour
		c.Open = func(ctx context.Context, kind SocketKind, _ int) ([]int, error) {
			if broken.Load() {
				return nil, errors.New("the daemon does not answer")
			}
			if kind == (SocketKind{Transport: UDP}) {
				defer opened.Add(1)
			}
			return r.open(ctx, kind, 1)
		}
	})
	b := r.udp(r.pbx, at(pbx[0], 5060))
	a := r.udp(r.phone, at(phone[0], 5062))
	sendTo(t, a, at(pbx[0], 5060), "x")
	receive(t, b)

	// One is used, one waits, and the next one is at hand: with fewer, a message would wait for Fetch.
	polltest.Require(t, func() bool { return opened.Load() == 3 }, patience, time.Millisecond)
	broken.Store(true)
	failing := &r.relay.fresh.failing[SocketKind{Transport: UDP}.index()]
	for port := uint16(7000); r.count("no_fresh_socket") < 10; port++ {
		sendTo(t, r.udp(r.phone, at(phone[0], port)), at(pbx[0], 5060), "new")
		r.next()
		if port == 7001 { // the two sockets that were there are used
			polltest.Require(t, failing.Load, patience, time.Millisecond)
		}
	}
	sendTo(t, a, at(pbx[0], 5060), "known")
	for raw := ""; raw != "known"; raw, _ = receive(t, b) {
	}
	assert.Positive(t, r.count("open_failed"))

	broken.Store(false)
	conn := r.udp(r.phone, at(phone[0], 9000))
	polltest.Require(t, func() bool {
		sendTo(t, conn, at(pbx[0], 5060), "again")
		return r.bound(egressKey{port: 9000}) != nil
	}, patience, time.Millisecond)
}

func TestSendErrorsAreCounted(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f := range families {
		a, b := r.udp(r.phone, at(phone[f], 5062)), r.udp(r.pbx, at(pbx[f], 5060))
		n := uint64(f + 1)
		sendTo(t, a, []netip.AddrPort{
			netip.MustParseAddrPort("203.0.113.1:5060"), netip.MustParseAddrPort("[2001:db8:9::1]:5060")}[f], "no route")
		r.waitCount("udp_send_unreachable", n)

		r.box.Run("nft", "insert", "rule", "inet", "sip", "leaving", "meta", "l4proto", "udp", "drop")
		sendTo(t, a, at(pbx[f], 5060), "firewall")
		r.waitCount("udp_send_refused", n)
		script(r.box, `nft delete rule inet sip leaving handle $(nft -a list chain inet sip leaving |
			sed -n '/udp drop/s/.*handle //p')`)

		sendTo(t, a, at(pbx[f], 5060), "passes")
		raw, _ := receive(t, b)
		assert.Equal(t, "passes", raw)
	}
}

// bound is the egress socket of a key; nil: there is none.
func (r *rig) bound(key egressKey) *egressSocket {
	t := r.relay.egress
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[key]
}
