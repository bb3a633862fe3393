package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/problem"
	"ringway/test/dhcptest"
	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// secondWAN joins edge-a and the provider by a second line, which the edge takes for a WAN with a lease:
//
//	edge-a lte0 --- lte-a provider
func secondWAN(t *testing.T, l *lab.Lab) {
	t.Helper()
	a, provider := l.Edge("a"), l.Host(lab.Provider)
	require.NoError(t, a.IP(t.Context(), provider,
		"link add lte0 type veth peer name lte-a netns /proc/self/fd/3", "link set lte0 up"))
	// Advertisements need a link-local address, which is there at once without the check for another one.
	_, err := provider.Run(t.Context(), "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/lte-a/accept_dad")
	require.NoError(t, err)
	require.NoError(t, provider.IP(t.Context(), nil, "link set lte-a up"))
	changeConfig(t, a, "\nvoice:\n", "\n  - interface: lte0\n    address: dhcp\n\nvoice:\n")
}

// changeConfig replaces a part of an edge's config, which the edge takes up.
func changeConfig(t *testing.T, e *lab.Edge, old, by string) {
	t.Helper()
	config, err := e.Config()
	require.NoError(t, err)
	text := strings.Replace(string(config), old, by, 1)
	require.NotEqual(t, string(config), text)
	require.NoError(t, e.WriteConfig([]byte(text)))
	_, err = e.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
}

// serveDHCP answers clients on a device of a host until the test ends.
func serveDHCP(t *testing.T, h *lab.Host, device string, answers func(*dhcpv4.DHCPv4) []dhcptest.Answer) {
	t.Helper()
	var conn net.PacketConn
	require.NoError(t, h.Do(func() (err error) { conn, err = dhcptest.Listen(device); return err }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		dhcptest.Serve(conn, answers)
	}()
	t.Cleanup(func() { conn.Close(); <-done })
}

// problemWith waits for a problem whose text holds all the words.
func problemWith(t *testing.T, e *lab.Edge, words ...string) {
	t.Helper()
	found := polled(30*time.Second, func() bool {
		s, err := e.Status(t.Context())
		if err != nil {
			return false
		}
		for _, p := range s.Problems {
			missing := false
			for _, w := range words {
				missing = missing || !strings.Contains(p.String(), w)
			}
			if !missing {
				return true
			}
		}
		return false
	})
	require.True(t, found, "no problem says %q: %v", words, status(t, e).Problems)
}

// delivered sends datagrams to a port in another network of the same box, and counts those that arrive.
func delivered(t *testing.T, from, to *lab.Host, address string, port, packets int) (arrived int) {
	t.Helper()
	var in net.PacketConn
	require.NoError(t, to.Do(func() (err error) {
		in, err = net.ListenPacket("udp", net.JoinHostPort(address, fmt.Sprint(port)))
		return err
	}))
	defer in.Close()
	require.NoError(t, from.Do(func() error {
		out, err := net.Dial("udp", net.JoinHostPort(address, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer out.Close()
		for range packets {
			if _, err := out.Write([]byte("OPTIONS sip:phone SIP/2.0\r\n\r\n")); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, in.SetReadDeadline(time.Now().Add(3*time.Second)))
	b := make([]byte, 1500)
	for arrived < packets {
		if _, _, err := in.ReadFrom(b); err != nil {
			break
		}
		arrived++
	}
	return arrived
}

// onLine watches one device of the provider.
func onLine(t *testing.T, l *lab.Lab, device string) (stop func() []capture.Frame) {
	t.Helper()
	f, err := capture.StartFrames(l.Host(lab.Provider).NetPath(), device)
	require.NoError(t, err)
	return func() []capture.Frame {
		frames, err := f.Stop()
		require.NoError(t, err)
		return frames
	}
}

// ownOnly demands that nothing of an own network, or of the far site's, is on a line: what is left is what links and
// leases need.
func ownOnly(t *testing.T, frames []capture.Frame) {
	t.Helper()
	networks := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"),
		netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::/48")}
	for _, f := range frames {
		for _, n := range networks {
			if n.Contains(f.Destination.Addr()) || n.Contains(f.Source.Addr()) && f.Source.Port() != 67 {
				t.Errorf("in clear on the WAN: %s, protocol %d, %s > %s", f.Kind, f.Protocol, f.Source, f.Destination)
				return
			}
		}
	}
}

// Beside a line that carries calls, a second one's network grants leases in our own networks and in the far site's,
// and advertises our own voice network. Nothing of it is taken, and each is said; calls and local signalling go on; and
// nothing of them is on that line. Then the same network behaves, and the line is up.
func TestANetworkThatClaimsOurAddresses(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a, provider := l.Edge("a"), l.Host(lab.Provider)
	// A phone that is in no call: the ports of the others are in use.
	require.NoError(t, l.Host(lab.PhoneA).IP(t.Context(), nil, "address add 10.1.10.11/24 dev eth0",
		"address add 2001:db8:1:10::11/64 dev eth0 nodad"))
	calls := talking(t, l, 4, 15*time.Second)
	secondWAN(t, l)
	stop := onLine(t, l, "lte-a")

	var grant atomic.Pointer[func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4]
	serveDHCP(t, provider, "lte-a", func(r *dhcpv4.DHCPv4) []dhcptest.Answer {
		if f := grant.Load(); f != nil {
			return []dhcptest.Answer{{Message: (*f)(r)}}
		}
		return nil
	})
	offer := func(address, server string, mods ...dhcpv4.Modifier) {
		f := func(r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			return dhcptest.Reply(r, dhcptest.KindOf(r), address, server, mods...)
		}
		grant.Store(&f)
		// The client asks at once when there is a carrier again.
		require.NoError(t, a.IP(t.Context(), nil, "link set lte0 down", "link set lte0 up"))
	}
	untouched := func() {
		t.Helper()
		out, err := a.Run(t.Context(), "ip", "-o", "address", "show", "dev", "lte0", "scope", "global")
		require.NoError(t, err)
		assert.Empty(t, out)
		for _, family := range []string{"-4", "-6"} {
			out, err = a.Run(t.Context(), "ip", family, "route", "show", "table", "all", "dev", "lte0")
			require.NoError(t, err)
			for _, ours := range []string{"10.1.", "10.2.", "2001:db8:1:"} {
				assert.NotContains(t, out, ours)
			}
		}
		assert.Equal(t, 100, delivered(t, l.Host(lab.PCA), l.Host(lab.PhoneA), "10.1.10.11", 5060, 100))
		assert.Equal(t, 100, delivered(t, l.Host(lab.PCA), l.Host(lab.PhoneA), "2001:db8:1:10::11", 5060, 100))
	}

	offer("10.1.10.5", "10.1.10.126", dhcpv4.WithNetmask(net.CIDRMask(25, 32)))
	problemWith(t, a, "leases lte0", "no DHCP lease: refused 10.1.10.5 by server 10.1.10.126: its network 10.1.10.0/25 "+
		"overlaps 10.1.10.0/24 of voice0")
	untouched()
	offer("10.1.20.77", "10.1.20.2")
	problemWith(t, a, "leases lte0", "its network 10.1.20.0/24 overlaps 10.1.20.0/24 of data0")
	offer("192.0.2.7", "192.0.2.1", dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
		&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: dhcptest.IP("192.0.2.1")},
		&dhcpv4.Route{
			Dest:   &net.IPNet{IP: dhcptest.IP("10.2.10.0"), Mask: net.CIDRMask(24, 32)},
			Router: dhcptest.IP("192.0.2.1"),
		})))
	problemWith(t, a, "leases lte0", "its route 10.2.10.0/24 overlaps 10.2.10.0/24 of site munich")

	advertiseAs(t, provider, "lte-a", &ndp.RouterAdvertisement{RouterLifetime: time.Hour, Options: []ndp.Option{
		&ndp.PrefixInformation{
			Prefix: netip.MustParseAddr("2001:db8:1:10::"), PrefixLength: 64, OnLink: true,
			AutonomousAddressConfiguration: true, ValidLifetime: time.Hour, PreferredLifetime: time.Hour,
		},
		&ndp.RouteInformation{
			Prefix: netip.MustParseAddr("2001:db8:1:10::"), PrefixLength: 80, RouteLifetime: time.Hour,
			Preference: ndp.High,
		},
	}})
	problemWith(t, a, "leases lte0", "refused the", "advertises", "overlaps 2001:db8:1:10::/64 of voice0")
	untouched()
	said, err := a.Ringway(t.Context(), "status")
	require.NoError(t, err)
	assert.Regexp(t, `DHCP leases: lte0 no lease \(refused 192\.0\.2\.7 .*site munich\)`, said)
	ownOnly(t, stop())

	// The network's own addresses are taken at once.
	offer("192.0.2.7", "192.0.2.1")
	require.True(t, polled(30*time.Second, func() bool {
		out, err := a.Run(t.Context(), "ip", "-4", "route", "show", "default")
		return err == nil && strings.Contains(out, "via 192.0.2.1 dev lte0")
	}))
	calls.unharmed()
	text, err := os.ReadFile(a.Log())
	require.NoError(t, err)
	assert.Contains(t, string(text), "level=WARN msg=DHCP interface=lte0 problem=\"refused 10.1.10.5")

	// Two WANs may be in one network.
	offer("198.51.100.77", "198.51.100.1")
	require.True(t, polled(30*time.Second, func() bool {
		out, err := a.Run(t.Context(), "ip", "-4", "-o", "address", "show", "dev", "lte0")
		return err == nil && strings.Contains(out, "198.51.100.77/24")
	}))
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")
	for _, p := range status(t, a).Problems {
		assert.False(t, p.Component == "leases" && p.Severity == problem.Critical, "%s", p)
	}
	offer("192.0.2.7", "192.0.2.1")
	require.True(t, polled(30*time.Second, func() bool {
		out, err := a.Run(t.Context(), "ip", "-4", "-o", "address", "show", "dev", "lte0")
		return err == nil && strings.Contains(out, "192.0.2.7/24")
	}))

	// A config that makes the lease's network ours is refused, and what runs goes on.
	config, err := a.Config()
	require.NoError(t, err)
	clash := strings.Replace(string(config), "10.1.20.1/24", "192.0.2.200/25", 1)
	require.NoError(t, a.WriteConfig([]byte(clash)))
	_, err = a.Ringway(within(t, 20*time.Second), "reload")
	assert.ErrorContains(t, err,
		"lte0 has the lease 192.0.2.7/24: its network 192.0.2.0/24 overlaps 192.0.2.128/25 of data0")
	_, err = a.Ringway(within(t, 20*time.Second), "plan")
	assert.ErrorContains(t, err, "lte0 has the lease 192.0.2.7/24", "what a reload would say")
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")
}

// advertiseAs sends a router advertisement from a device's link-local address.
func advertiseAs(t *testing.T, h *lab.Host, device string, ra *ndp.RouterAdvertisement) {
	t.Helper()
	require.NoError(t, h.Do(func() error {
		ifc, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		c, _, err := ndp.Listen(ifc, ndp.LinkLocal)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.WriteTo(ra, nil, netip.IPv6LinkLocalAllNodes())
	}))
}

// A provider whose name server has an address that is a phone's at munich: munich's name is looked up there, over the
// WAN, and nothing else goes there. The lease is dnsmasq's.
func TestANameServerWithASitesAddress(t *testing.T) {
	t.Parallel()
	const name, server = "munich.example", "10.2.10.53"
	l := branches(t, lab.Options{WAN: twenty})
	a, provider := l.Edge("a"), l.Host(lab.Provider)
	_, err := a.Ringway(within(t, 20*time.Second), "stop")
	require.NoError(t, err)
	require.NoError(t, os.Remove(a.Path("/var/lib/ringway/endpoints.json")), "what is known of munich")

	require.NoError(t, provider.IP(t.Context(), nil, "address add "+server+"/32 dev lo"))
	dnsmasq, err := provider.Spawn("dnsmasq", provider.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null",
		"--user=root", "--pid-file=", "--no-resolv", "--no-hosts", "--no-ping", "--dhcp-authoritative",
		"--dhcp-leasefile="+lab.MachineDir+"/leases", "--interface=wan-a", "--listen-address="+server, "--bind-interfaces",
		"--dhcp-range=198.51.100.50,198.51.100.60,255.255.255.0,1h", "--dhcp-option=option:router,198.51.100.1",
		"--dhcp-option=option:dns-server,"+server, "--address=/"+name+"/203.0.113.2"))
	require.NoError(t, err)
	defer func() {
		if t.Failed() {
			t.Logf("dnsmasq said:\n%s", dnsmasq.LastWords())
		}
	}()

	config, err := a.Config()
	require.NoError(t, err)
	text := strings.NewReplacer("address: 198.51.100.2/24", "address: dhcp", "    gateway: 198.51.100.1\n", "",
		"endpoint: 203.0.113.2", "endpoint: "+name).Replace(string(config))
	require.NoError(t, a.WriteConfig([]byte(text)))
	stop := onLine(t, l, "wan-a")
	require.NoError(t, a.Start(t.Context()))
	reached(t, l.Host(lab.PhoneA), "10.2.10.10", "0xb8")
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")

	questions, others := 0, 0
	site := netip.MustParsePrefix("10.2.0.0/16")
	for _, f := range stop() {
		switch to := f.Destination; {
		case to.String() == server+":53" && strings.HasPrefix(f.Source.String(), "198.51.100."):
			questions++
		case site.Contains(to.Addr()):
			others++
			t.Errorf("in clear on the WAN: %s, %s > %s", f.Kind, f.Source, to)
		}
	}
	assert.Positive(t, questions)
	assert.Zero(t, others)
	for _, p := range status(t, a).Problems {
		assert.NotContains(t, []string{"endpoint", "leases"}, p.Component, "%s", p)
	}
}

// A provider that knows its modem by options 60, 61, 77 and 90, grants single addresses with a gateway outside, and
// replaces its server: the new one refuses a renewal by broadcast and has another address. Packets pass with the first
// lease and soon after the second, long before T2.
func TestLongAProviderThatWantsOptionsAndReplacesItsServer(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a, provider := l.Edge("a"), l.Host(lab.Provider)
	require.NoError(t, provider.IP(t.Context(), nil, "route add 192.0.2.0/24 dev wan-a"))
	wanted := map[uint8]string{60: "modem", 61: "\x01\xa4\xff", 77: "\x05modem", 90: "\x00\x00password"}
	var replaced atomic.Bool
	var strangers, renewals atomic.Int32
	serveDHCP(t, provider, "wan-a", func(r *dhcpv4.DHCPv4) []dhcptest.Answer {
		for code, value := range wanted {
			if string(r.Options.Get(dhcpv4.GenericOptionCode(code))) != value {
				strangers.Add(1)
				return nil
			}
		}
		address, server := "192.0.2.7", "198.51.100.1"
		if replaced.Load() {
			address, server = "192.0.2.8", "198.51.100.9"
		}
		kind, mods := dhcptest.KindOf(r), []dhcpv4.Modifier{
			dhcpv4.WithNetmask(net.CIDRMask(32, 32)), dhcpv4.WithLeaseTime(20),
			dhcpv4.WithOption(dhcpv4.OptRouter(dhcptest.IP("198.51.100.1"))),
		}
		if r.ClientIPAddr.Equal(dhcptest.IP("192.0.2.7")) {
			renewals.Add(1)
			if replaced.Load() {
				kind = dhcpv4.MessageTypeNak
			}
		}
		return []dhcptest.Answer{{Message: dhcptest.Reply(r, kind, address, server, mods...)}}
	})

	config, err := a.Config()
	require.NoError(t, err)
	text := strings.NewReplacer("address: 198.51.100.2/24", "address: dhcp\n"+
		"    dhcp_options: [60=modem, \"61=hex:01:a4:ff\", \"77=hex:056d6f64656d\", \"90=hex:000070617373776f7264\"]",
		"    gateway: 198.51.100.1\n", "").Replace(string(config))
	require.NoError(t, a.WriteConfig([]byte(text)))
	_, err = a.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	address := func() string {
		out, _ := a.Run(t.Context(), "ip", "-4", "-o", "address", "show", "dev", "wan0")
		return out
	}
	require.True(t, polled(20*time.Second, func() bool { return strings.Contains(address(), "192.0.2.7/32") }))
	reached(t, l.Host(lab.PhoneA), "10.2.10.10", "0xb8")
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")

	replaced.Store(true)
	began := time.Now()
	require.True(t, polled(16*time.Second, func() bool { return strings.Contains(address(), "192.0.2.8/32") }),
		"T1 after 10 s: %s", address())
	assert.NotContains(t, address(), "192.0.2.7")
	reached(t, l.Host(lab.PhoneA), "10.2.10.10", "0xb8")
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")
	t.Logf("both tunnels carry packets %s after the server was replaced", time.Since(began).Round(time.Millisecond))
	assert.Equal(t, int32(1), renewals.Load())
	assert.Zero(t, strangers.Load(), "messages without the options")

	// The same with a fixed address.
	text = strings.NewReplacer("198.51.100.2/24", "192.0.2.9/32").Replace(string(config))
	require.NoError(t, a.WriteConfig([]byte(text)))
	_, err = a.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	reached(t, l.Host(lab.PhoneA), "10.2.10.10", "0xb8")
	reached(t, l.Host(lab.PCA), "10.2.20.10", "0")
}
