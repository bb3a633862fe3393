package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/lab/capture"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// behindRouter is the branch with a WAN behind a home router, as its DHCP lease says it.
func behindRouter() firewall.Input {
	in := branch()
	in.Reach = []firewall.Reach{{
		Device: "wan0", Networks: prefixes("192.168.100.1/32", "fd99::/48", "10.1.0.0/16", "10.2.0.0/16"),
		Gateways: []netip.Addr{netip.MustParseAddr("192.168.178.1"), netip.MustParseAddr("fe80::1")},
		DNS:      []netip.Addr{netip.MustParseAddr("192.168.178.2"), netip.MustParseAddr("fd98::53")},
		DHCP:     []netip.Addr{netip.MustParseAddr("10.250.0.3")},
	}}
	in.Endpoints = []netip.Addr{netip.MustParseAddr("10.66.1.1")}
	return in
}

// newRouterWorld is world with that router:
//
//	phone, pc --- edge 192.168.178.20 wan0 --- .1 internet: everything that the edge sends there arrives
func newRouterWorld(t *testing.T, in firewall.Input) *world {
	w := newWorld(t, in)
	mac := macOf(w.internet, "eth0")
	w.edge.IP(
		"addr add 192.168.178.20/24 dev wan0", "route replace default via 192.168.178.1 dev wan0",
		"-6 addr add 2001:db8:f::2/64 dev wan0 nodad", "-6 addr add fd98::2/64 dev wan0 nodad",
		"-6 route add default via fe80::1 dev wan0", "neigh replace fe80::1 lladdr "+mac+" dev wan0 nud permanent",
	)
	for _, host := range []string{"192.168.178.1", "192.168.178.2", "192.168.178.9", "fd98::53", "fd98::9"} {
		w.edge.IP("neigh replace " + host + " lladdr " + mac + " dev wan0 nud permanent")
	}
	w.internet.Run("ip", "addr", "add", "192.168.178.9/24", "dev", "eth0")
	return w
}

func macOf(n *netnstest.NS, device string) string {
	_, rest, _ := strings.Cut(n.Run("ip", "-o", "link", "show", "dev", device), "link/ether ")
	mac, _, _ := strings.Cut(rest, " ")
	return mac
}

// watchWAN counts, from here on, the packets to dst that arrive at the far end of the WAN.
func (w *world) watchWAN() func(dst string) (n int, from string) {
	w.t.Helper()
	f, err := capture.StartFrames(fmt.Sprintf("/proc/self/fd/%d", w.internet.FD()), "eth0")
	require.NoError(w.t, err)
	return func(dst string) (n int, from string) {
		frames, err := f.Stop()
		require.NoError(w.t, err)
		for _, frame := range frames {
			if !frame.Outgoing && frame.Destination.Addr() == netip.MustParseAddr(dst) && frame.Kind != capture.ND {
				n++
				from = frame.Source.Addr().String()
			}
		}
		return n, from
	}
}

// settled waits until what was sent before has arrived: packets of one WAN keep their order.
func (w *world) settled() {
	w.t.Helper()
	from, to := w.listen(w.edge, "198.51.100.2", 0), w.listen(w.internet, internet4, 0)
	defer to.Close()
	defer from.Close()
	w.send(from, internet4, to.LocalAddr().(*net.UDPAddr).Port, 0)
	w.receive(to, "the last packet")
}

// What leaves a WAN for a private address is for the WAN's own servers, by the box itself, or in reach.
func TestPrivateDestinationsOnAWAN(t *testing.T) {
	t.Parallel()
	w := newRouterWorld(t, behindRouter())
	const drops, lease, lease6 = firewall.CounterPrivateWAN, "192.168.178.20", "2001:db8:f::2"
	onLink := func(network string) func() {
		return func() { w.edge.Run("ip", "route", "add", network, "dev", "wan0") }
	}
	for _, c := range []struct {
		name    string
		from    *netnstest.NS
		src     string
		dst     string
		dport   int
		counter string // "" passes
		before  func()
	}{
		{"a phone to the internet", w.phone, phone4, "203.0.113.9", 53, "", nil},
		{"a phone to a network that nobody has", w.phone, phone4, "10.9.9.9", 5060, drops, nil},
		{"a phone to RFC 1918's second", w.phone, phone4, "172.31.9.9", 5060, drops, nil},
		{"a phone to shared space", w.phone, phone4, "100.64.3.1", 5060, drops, nil},
		{"a phone to what is beyond shared space", w.phone, phone4, "100.128.3.1", 5060, "", nil},
		{"a PC to link-local", w.pc, pc4, "169.254.169.254", 80, drops, nil},
		{"a PC to the router", w.pc, pc4, "192.168.178.1", 80, drops, nil},
		{"a PC to the WAN's own network", w.pc, pc4, "192.168.178.9", 80, drops, nil},
		{"a PC to a modem in reach", w.pc, pc4, "192.168.100.1", 80, "", nil},
		{"a phone to unique-local", w.phone, phone6, "fd42::9", 5060, drops, nil},
		{"a phone to unique-local in reach", w.phone, phone6, "fd99::9", 5060, "", nil},
		{"a phone to an endpoint", w.phone, phone4, "10.66.1.1", 51820, drops, nil},
		{"the box to its router", w.edge, lease, "192.168.178.1", 123, "", nil},
		{"the box to its DNS server", w.edge, lease, "192.168.178.2", 53, "", nil},
		{"the box to its DNS server's web page", w.edge, lease, "192.168.178.2", 80, drops, nil},
		{"the box to its DNS server over IPv6", w.edge, "fd98::2", "fd98::53", 53, "", nil},
		{"the box to its lease server", w.edge, lease, "10.250.0.3", 67, "", nil},
		{"the box to its lease server's DNS", w.edge, lease, "10.250.0.3", 53, drops, nil},
		{"the box to a neighbour", w.edge, lease, "192.168.178.9", 53, drops, nil},
		{"the box to a neighbour over IPv6", w.edge, "fd98::2", "fd98::9", 53, drops, nil},
		{"the box to an endpoint", w.edge, lease, "10.66.1.1", 9, "", nil},
		{"the box to a modem in reach", w.edge, lease, "192.168.100.1", 80, "", nil},
		{"the box to a network that nobody has", w.edge, lease, "10.9.9.9", 53, drops, nil},
		{"the box to the internet", w.edge, lease6, "2001:db8:9::9", 53, "", nil},
		// A lease and an advertisement that lie inside our own networks, and reach, which holds them.
		{"a PC to a phone, by a lease's route", w.pc, pc4, "10.1.10.77", 5060, firewall.CounterOwnWAN, onLink("10.1.10.0/25")},
		{"a phone to a phone, by an advertised prefix", w.phone, phone6, "2001:db8:1:20::77", 5060,
			firewall.CounterOwnWAN, onLink("2001:db8:1:20::/65")},
		{"the box to a phone, by a lease's route", w.edge, lease, "10.1.10.78", 5060, firewall.CounterOwnWAN, nil},
		{"the box to a site, by a lease's route", w.edge, lease, "10.2.10.77", 5060, firewall.CounterLeakWAN, func() {
			for range 2 {
				w.edge.Run("ip", "rule", "del", "pref", "5210")
				w.edge.Run("ip", "rule", "del", "pref", "5220")
			}
		}},
	} {
		if c.before != nil {
			c.before()
		}
		had := w.counters()
		seen := w.watchWAN()
		w.send(w.listen(c.from, c.src, 0), c.dst, c.dport, 0)
		if c.counter != "" {
			w.assertCounter(c.counter, had[c.counter].Packets+1, c.name)
		}
		w.settled()
		arrived, _ := seen(c.dst)
		if c.counter == "" {
			assert.Equal(t, 1, arrived, "%s: %v", c.name, w.counters())
			continue
		}
		assert.Zero(t, arrived, c.name)
	}
}

// Ciphertext is not looked at, and the router may ping the box.
func TestWhatThePrivateFenceLeavesAlone(t *testing.T) {
	t.Parallel()
	w := newRouterWorld(t, behindRouter())
	_, err := w.internet.Try("ping", "-c1", "-W3", "-I", "192.168.178.9", "192.168.178.20")
	require.NoError(t, err, "%v", w.counters())

	peer := w.listen(w.edge, "192.168.178.20", 51820)
	raw, err := peer.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(qos.MarkOuterVoice))
	}))
	require.NoError(t, err)
	seen := w.watchWAN()
	w.send(peer, "10.9.9.9", 51820, 0)
	w.settled()
	arrived, _ := seen("10.9.9.9")
	assert.Equal(t, 1, arrived, "a peer at a private address that it was heard at")
	assert.Zero(t, w.counters()[firewall.CounterPrivateWAN].Packets)
}

// What NAT does not translate stays: a flow that began in a tunnel, and a network of ours that IPv6 has no NAT for.
func TestPrivateSourcesOnAWAN(t *testing.T) {
	t.Parallel()
	in := behindRouter()
	in.SiteVoiceNetworks = append(in.SiteVoiceNetworks, prefixes("203.0.113.0/24")...)
	in.Voice[0].Networks = append(in.Voice[0].Networks, prefixes("fd01::/64")...)
	w := newRouterWorld(t, in)
	for _, table := range []string{"5271", "5272"} {
		w.edge.Run("ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.2", "dev", "rw-voice", "table", table)
	}
	w.far.Run("ip", "addr", "add", "203.0.113.5/32", "dev", "lo")
	phone, far := w.listen(w.phone, phone4, 30000), w.listen(w.far, "203.0.113.5", 30000)
	w.send(phone, "203.0.113.5", 30000, 46<<2)
	w.receive(far, "through the tunnel")
	w.send(far, phone4, 30000, 46<<2)
	w.receive(phone, "the answer")

	// The site goes, and its flows go on.
	in.SiteVoiceNetworks = prefixes("10.2.10.0/24")
	applyIn(t, w.edge, firewall.Want(in))
	seen := w.watchWAN()
	had := w.counters()[firewall.CounterSourceWAN].Packets
	w.send(phone, "203.0.113.5", 30000, 46<<2)
	w.assertCounter(firewall.CounterSourceWAN, had+1, "a flow that began in a tunnel")
	w.settled()
	n, from := seen("203.0.113.5")
	assert.Zero(t, n, "from %s", from)

	seen = w.watchWAN()
	w.send(w.listen(w.phone, phone4, 0), "203.0.113.5", 30000, 46<<2)
	w.settled()
	n, from = seen("203.0.113.5")
	assert.Equal(t, 1, n, "a flow of its own")
	assert.Equal(t, "192.168.178.20", from, "translated to a private address of the WAN")

	w.phone.Run("ip", "addr", "add", "fd01::2/64", "dev", "eth0", "nodad")
	w.edge.Run("ip", "addr", "add", "fd01::1/64", "dev", "voice0", "nodad")
	had = w.counters()[firewall.CounterSourceWAN].Packets
	seen = w.watchWAN()
	w.send(w.listen(w.phone, "fd01::2", 0), "2001:db8:9::9", 53, 0)
	w.assertCounter(firewall.CounterSourceWAN, had+1, "a unique-local source to the internet")
	w.send(w.listen(w.phone, "fd01::2", 0), "fd99::9", 53, 0)
	w.settled()
	n, _ = seen("fd99::9")
	assert.Equal(t, 1, n, "a unique-local source to a network in reach")
}

// The network card under our VLANs is closed to whoever does not tag: its link-local and other addresses serve nobody.
func TestTheParentOfVLANsIsClosed(t *testing.T) {
	t.Parallel()
	in := branch()
	in.Parents = []string{"lan0"}
	w := newWorld(t, in)
	neighbour := netnstest.New(t)
	netnstest.Veth(t, w.edge, "lan0", neighbour, "eth0")
	w.edge.Run("ip", "addr", "add", "192.168.7.1/24", "dev", "lan0")
	neighbour.Run("ip", "addr", "add", "192.168.7.2/24", "dev", "eth0")
	_, err := w.edge.Try("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.lan0.rp_filter=0")
	require.NoError(t, err)
	mac := macOf(w.edge, "lan0")
	var local string
	polltest.Require(t, func() bool {
		for _, f := range strings.Fields(w.edge.Run("ip", "-6", "-o", "addr", "show", "dev", "lan0", "-tentative")) {
			if strings.HasPrefix(f, "fe80:") {
				local, _, _ = strings.Cut(f, "/")
			}
		}
		return local != "" && strings.Contains(neighbour.Run("ip", "-6", "-o", "addr", "show", "-tentative"), "fe80:")
	}, 5*time.Second, 10*time.Millisecond)
	neighbour.Run("ip", "neigh", "replace", local, "lladdr", mac, "dev", "eth0", "nud", "permanent")
	neighbour.Run("ip", "neigh", "replace", "192.168.7.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
	neighbour.Run("ip", "neigh", "replace", "10.1.10.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
	neighbour.Run("ip", "route", "add", "10.1.10.1/32", "dev", "eth0")

	var service net.Listener
	require.NoError(t, w.edge.Do(func() (err error) { service, err = net.Listen("tcp", "[::]:22"); return }))
	defer service.Close()
	try := func(to string) error {
		return neighbour.Do(func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(to, "22"), 300*time.Millisecond)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	for _, to := range []string{local + "%eth0", "192.168.7.1", "10.1.10.1"} {
		had := w.counters()[firewall.CounterParentLAN].Packets
		assert.Error(t, try(to), to)
		assert.Greater(t, w.counters()[firewall.CounterParentLAN].Packets, had, to)
	}
	// With an untagged network of its own the card is a LAN.
	in.Parents = nil
	applyIn(t, w.edge, firewall.Want(in))
	assert.NoError(t, try(local+"%eth0"), "the test reaches what is open")
}

// A flow that is established does not follow a route to a device that the config does not name.
func TestNothingLeavesByAnUnnamedDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	stranger := netnstest.New(t)
	netnstest.Veth(t, w.edge, "mgmt0", stranger, "eth0")
	w.edge.Run("ip", "addr", "add", "192.0.2.129/30", "dev", "mgmt0")
	stranger.Run("ip", "addr", "add", "192.0.2.130/30", "dev", "eth0")
	phone, pc := w.listen(w.phone, phone4, 5060), w.listen(w.pc, pc4, 5060)
	w.send(phone, pc4, 5060, 0)
	w.receive(pc, "before")
	w.send(pc, phone4, 5060, 0)
	w.receive(phone, "the answer")

	w.edge.Run("ip", "route", "add", pc4+"/32", "via", "192.0.2.130", "dev", "mgmt0")
	w.edge.Run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
	seen, err := capture.StartFrames(fmt.Sprintf("/proc/self/fd/%d", stranger.FD()), "eth0")
	require.NoError(t, err)
	had := w.counters()[firewall.CounterForwardDrop].Packets
	w.send(phone, pc4, 5060, 0)
	w.assertCounter(firewall.CounterForwardDrop, had+1, "an established flow")
	w.edge.Run("ping", "-n", "-c1", "-W3", "192.0.2.130") // the box itself may, and packets keep their order
	frames, err := seen.Stop()
	require.NoError(t, err)
	for _, f := range frames {
		assert.NotEqual(t, pc4, f.Destination.Addr().String())
	}
}
