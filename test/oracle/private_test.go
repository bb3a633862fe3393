package oracle

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// homeRouter is the provider as edge-a sees it: it leases one address of a private network, from a server
// in another one, and names a DNS server of the first.
type homeRouter struct {
	network         string // first three octets
	renewed         atomic.Int32
	router, server  netip.Addr
	dns, box, other netip.Addr
}

// leaseSeconds is short, so that a test sees renewals.
const leaseSeconds = 6

func newHomeRouter(t *testing.T, l *lab.Lab, network string) *homeRouter {
	t.Helper()
	host := func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("%s.%d", network, n)) }
	r := &homeRouter{
		network: network, router: host(1), dns: host(2), other: host(9), box: host(20),
		server: netip.MustParseAddr("10.250.0.3"),
	}
	provider := l.Host(lab.Provider)
	sh(t, provider, fmt.Sprintf("for a in %s %s %s; do ip addr add $a/24 dev wan-a; done; "+
		"for a in %s 10.77.0.1; do ip addr add $a/32 dev lo; done", r.router, r.dns, r.other, r.server))

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		_, _ = provider.Run(ctx, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file=",
			"--no-resolv", "--no-hosts", "--bind-interfaces", "--except-interface=lo", "--listen-address="+r.dns.String(),
			"--address=/munich.example/"+addressB)
	}()
	r.serve(t, provider)
	return r
}

// serve answers every DISCOVER and REQUEST (RFC 2131).
func (r *homeRouter) serve(t *testing.T, provider *lab.Host) {
	t.Helper()
	var c net.PacketConn
	require.NoError(t, provider.Do(func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err == nil {
					err = unix.BindToDevice(int(fd), "wan-a")
				}
			})
			return cmpErr(cerr, err)
		}}
		c, err = lc.ListenPacket(t.Context(), "udp4", "0.0.0.0:67")
		return err
	}))
	ended := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-ended })
	go func() {
		defer close(ended)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if n < 244 {
				continue
			}
			renewal := !netip.AddrFrom4([4]byte(b[12:16])).IsUnspecified()
			to := net.Addr(&net.UDPAddr{IP: net.IPv4bcast, Port: 68})
			if renewal {
				r.renewed.Add(1)
				to = from
			}
			_, _ = c.WriteTo(r.answer(b[:n]), to)
		}
	}()
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// answer is an OFFER to a DISCOVER and an ACK to a REQUEST.
func (r *homeRouter) answer(request []byte) []byte {
	kind := byte(5)
	if i := slices.Index(request[240:], 53); i >= 0 && request[240+i+2] == 1 {
		kind = 2
	}
	a := make([]byte, 240)
	copy(a, request[:240])
	a[0] = 2
	copy(a[16:], r.box.AsSlice())
	option := func(code byte, value []byte) { a = append(append(a, code, byte(len(value))), value...) }
	seconds := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	option(53, []byte{kind})
	option(54, r.server.AsSlice())
	option(51, seconds(leaseSeconds))
	option(58, seconds(1))
	option(1, []byte{255, 255, 255, 0})
	option(3, r.router.AsSlice())
	option(6, r.dns.AsSlice())
	return append(a, 255)
}

// drops gives a drop counter of the firewall.
func drops(t *testing.T, e *lab.Edge, name string) (packets int) {
	t.Helper()
	out := sh(t, e.Host, "nft list counter inet ringway "+name)
	_, rest, _ := strings.Cut(out, "packets ")
	_, err := fmt.Sscan(rest, &packets)
	require.NoError(t, err, out)
	return packets
}

// sentTo gives the destinations of what the edge sent on its WAN in clear, other than neighbour discovery.
func sentTo(frames []capture.Frame) map[string]int {
	out := map[string]int{}
	for _, f := range frames {
		switch f.Kind {
		case capture.WireGuard, capture.ARP, capture.ND:
		default:
			if !f.Outgoing {
				out[f.Destination.Addr().String()]++
			}
		}
	}
	return out
}

// A box behind a home router, and one in a provider's shared space: the lease is renewed with a server that is
// elsewhere, the far end's name is looked up with the lease's DNS server, the far end hears the box at a private
// address, and hosts reach the internet. They do not reach the network that the lease is of, until the config says so.
func TestAWANWithAPrivateAddress(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"192.168.178", "100.64.7"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			l := branches(t)
			e, pc := l.Edge("a"), l.Host(lab.PCA)
			r := newHomeRouter(t, l, network)
			text, err := e.Config()
			require.NoError(t, err)
			var lines []string
			for _, line := range strings.Split(string(text), "\n") {
				switch {
				case strings.Contains(line, "gateway:"):
					continue
				case strings.Contains(line, "address: "+addressA):
					line = "    address: dhcp"
				case strings.Contains(line, "endpoint: "+addressB):
					line = "    endpoint: munich.example"
				}
				lines = append(lines, line)
			}
			config := strings.Join(lines, "\n")
			require.NotContains(t, config, addressB)
			sh(t, e.Host, ringway+" stop") // nothing is remembered of where the far end was
			sh(t, e.Host, "rm -f /var/lib/ringway/endpoints.json")
			require.NoError(t, e.WriteConfig([]byte(config)))
			wan, err := capture.StartFrames(netPath(l.Host(lab.Provider)), "wan-a")
			require.NoError(t, err)
			require.NoError(t, e.Start(t.Context()))
			require.NoError(t, e.WaitReady(within(t, 2*patience)))
			reaches(t, l.Host(lab.PhoneA), "10.2.10.10")
			reaches(t, pc, "203.0.113.1")
			polltest.Require(t, func() bool { return r.renewed.Load() >= 2 }, patience, 20*time.Millisecond, "no renewals")
			assert.Contains(t, sh(t, e.Host, "ip -4 addr show dev wan0"), r.box.String())
			far, err := l.Edge("b").Status(t.Context())
			require.NoError(t, err)
			for _, d := range far.Tunnels {
				assert.Equal(t, r.box, d.Peers[0].Endpoint.Addr(), "where munich hears berlin")
			}
			sh(t, l.Host(lab.Provider), "ping -c 1 -W 3 -I "+r.other.String()+" "+r.box.String())

			// Nothing of that is open to hosts, nor anything else that is private.
			for _, to := range []string{r.router.String(), r.other.String(), r.server.String(), "10.77.0.1"} {
				had := drops(t, e, "private_wan")
				_, err := pc.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "1", to)
				assert.Error(t, err, to)
				assert.Greater(t, drops(t, e, "private_wan"), had, to)
			}
			_, err = e.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "1", "10.77.0.1")
			assert.Error(t, err, "nor to the box")
			frames, err := wan.Stop()
			require.NoError(t, err)
			seen := sentTo(frames)
			assert.Positive(t, seen[r.server.String()], "renewals: %v", seen)
			assert.Positive(t, seen[r.dns.String()], "look-ups: %v", seen)
			for _, a := range []netip.Addr{r.server, r.dns, r.router} {
				delete(seen, a.String())
			}
			assert.Equal(t, 1, seen[r.other.String()], "the answer to its ping: %v", seen)
			assert.NotContains(t, seen, "10.77.0.1")

			require.NoError(t, e.WriteConfig([]byte(strings.Replace(config, "    address: dhcp",
				"    address: dhcp\n    reach: [10.77.0.1, "+network+".0/24]", 1))))
			sh(t, e.Host, ringway+" reload")
			reaches(t, pc, "10.77.0.1")
			reaches(t, pc, r.other.String())
			assert.Contains(t, sh(t, e.Host, ringway+" status"), "private_wan")
		})
	}
}

// Whatever routes lead our own and the other site's networks out of the WAN, as a lease or an advertisement inside them
// does, the WAN carries none of it, although those routes are more specific than the LANs'.
func TestRoutesOnAWANCarryNothingOfOurs(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	require.NoError(t, e.WaitReady(within(t, 2*patience)))
	sh(t, e.Host, strings.Join([]string{
		"ip -6 addr add 2001:db8:f::2/64 dev wan0 nodad",
		"ip route add 10.1.10.0/25 dev wan0", "ip route add 10.2.10.0/25 dev wan0 table 5271",
		"ip -6 route add 2001:db8:1:10::/65 dev wan0 metric 1",
		// somebody answers there for every address
		"for a in 10.1.10.10 10.2.10.10 2001:db8:1:10::10; do ip neigh replace $a lladdr 02:00:00:00:00:99 dev wan0 " +
			"nud permanent; done",
	}, "\n"))
	wan, err := capture.StartFrames(netPath(l.Host(lab.Provider)), "wan-a")
	require.NoError(t, err)
	own, leak := drops(t, e, "own_wan"), drops(t, e, "leak_wan")
	const packets = 50
	for _, to := range []string{"10.1.10.10", "2001:db8:1:10::10"} {
		c := socket(t, l.Host(lab.PCA), 0)
		for range packets {
			_, err := c.WriteToUDPAddrPort([]byte("INVITE sip:1@x SIP/2.0\r\n\r\n"),
				netip.AddrPortFrom(netip.MustParseAddr(to), 5060))
			require.NoError(t, err)
		}
	}
	c := socket(t, l.Host(lab.PhoneA), 0)
	mark(t, c, false, dscp["EF"]<<2)
	for range packets {
		_, err := c.WriteToUDPAddrPort([]byte("this belongs in a tunnel"), netip.MustParseAddrPort("10.2.10.10:9000"))
		require.NoError(t, err)
		if drops(t, e, "leak_wan") > leak { // the daemon removes what somebody put into its table
			break
		}
	}
	polltest.Assert(t, func() bool { return drops(t, e, "own_wan") >= own+2*packets }, patience, 20*time.Millisecond)
	assert.Contains(t, sh(t, e.Host, ringway+" status"),
		"PROBLEM: clear-text own_wan: packets for a network of this box were routed to a WAN in clear and dropped")
	_, err = l.Host(lab.PCA).Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "5", "203.0.113.1")
	require.NoError(t, err)
	frames, err := wan.Stop()
	require.NoError(t, err)
	seen := sentTo(frames)
	assert.Equal(t, 1, seen["203.0.113.1"], "the watch is blind: %v", seen)
	for to := range seen {
		a := netip.MustParseAddr(to)
		for _, n := range []string{"10.0.0.0/8", "2001:db8:1::/48", "2001:db8:2::/48"} {
			assert.False(t, netip.MustParsePrefix(n).Contains(a), "in clear to %s: %v", to, seen)
		}
	}
}

// The WAN answers ARP for its own address, and for none of the LANs'.
func TestAWANAnswersARPForItself(t *testing.T) {
	t.Parallel()
	l := branches(t)
	provider := l.Host(lab.Provider)
	require.NoError(t, l.Edge("a").WaitReady(within(t, 2*patience)))
	sh(t, provider, "for a in 10.1.10.1 10.1.20.1; do ip route replace $a/32 dev wan-a; done; ip neigh flush dev wan-a")
	answers := func(a string) bool {
		_, _ = provider.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "1", a)
		out, err := provider.Run(t.Context(), "ip", "neigh", "show", a, "dev", "wan-a")
		return err == nil && strings.Contains(out, "lladdr")
	}
	assert.True(t, answers(addressA))
	assert.False(t, answers("10.1.10.1"))
	assert.False(t, answers("10.1.20.1"))
}

// A SIP trunk on the provider's private network, read on its way: closed until reach lists it, then it answers a phone.
func TestATrunkOnAPrivateNetwork(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e, provider := l.Edge("a"), l.Host(lab.Provider)
	sh(t, provider, "ip addr add 10.77.0.1/32 dev lo")
	var trunk *net.UDPConn
	require.NoError(t, provider.Do(func() (err error) {
		trunk, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 5060})
		return err
	}))
	ended := make(chan struct{})
	t.Cleanup(func() { trunk.Close(); <-ended })
	go func() {
		defer close(ended)
		b := make([]byte, 2000)
		for {
			n, from, err := trunk.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			answer := strings.Replace(string(b[:n]), "OPTIONS sip:trunk@10.77.0.1 SIP/2.0", "SIP/2.0 200 OK", 1)
			_, _ = trunk.WriteToUDPAddrPort([]byte(answer), from)
		}
	}()
	phone := socket(t, l.Host(lab.PhoneA), 5060)
	number := 0
	answered := func(within time.Duration) bool {
		number++
		_, err := phone.WriteToUDPAddrPort([]byte(strings.Join([]string{
			"OPTIONS sip:trunk@10.77.0.1 SIP/2.0", "Via: SIP/2.0/UDP 10.1.10.10:5060;branch=z9hG4bK" + fmt.Sprint(number),
			"From: <sip:10@berlin>;tag=1", "To: <sip:trunk@10.77.0.1>", "Call-ID: " + fmt.Sprint(number) + "@10.1.10.10",
			"CSeq: 1 OPTIONS", "Max-Forwards: 70", "Content-Length: 0", "", "",
		}, "\r\n")), netip.MustParseAddrPort("10.77.0.1:5060"))
		require.NoError(t, err)
		require.NoError(t, phone.SetReadDeadline(time.Now().Add(within)))
		b := make([]byte, 2000)
		n, err := phone.Read(b)
		return err == nil && strings.HasPrefix(string(b[:n]), "SIP/2.0 200 OK")
	}
	text, err := e.Config()
	require.NoError(t, err)
	reload := func(old, with string) {
		t.Helper()
		changed := strings.Replace(string(text), old, with, 1) + "\nsip:\n  mode: observe\n"
		require.NoError(t, e.WriteConfig([]byte(changed)))
		sh(t, e.Host, ringway+" reload")
	}
	reload("", "")
	polltest.Require(t, func() bool {
		out, err := e.Run(t.Context(), "nft", "list", "set", "inet", "ringway", "sip_udp")
		return err == nil && strings.Contains(out, "voice0")
	}, patience, 20*time.Millisecond, "nothing reads signalling")
	had := drops(t, e, "private_wan")
	assert.False(t, answered(time.Second))
	assert.Greater(t, drops(t, e, "private_wan"), had)

	wan, err := capture.StartFrames(netPath(provider), "wan-a")
	require.NoError(t, err)
	reload("    uplink:", "    reach: [10.77.0.1]\n    uplink:")
	require.True(t, polledFor(patience, func() bool { return answered(time.Second) }))
	frames, err := wan.Stop()
	require.NoError(t, err)
	sip := 0
	for _, f := range frames {
		if f.Kind == capture.SIP && !f.Outgoing {
			sip++
			assert.Equal(t, addressA, f.Source.Addr().String(), "translated")
		}
	}
	assert.Positive(t, sip)
}

func polledFor(d time.Duration, done func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if done() {
			return true
		}
	}
	return false
}
