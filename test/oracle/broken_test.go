package oracle

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// What somebody else changes in the kernel is changed back, as soon as the kernel tells of it.
func TestWhatIsBrokenIsRepaired(t *testing.T) {
	t.Parallel()
	l := branches(t)
	edge := l.Host(lab.EdgeA)
	has := func(line, want string) func() bool {
		return func() bool {
			out, err := edge.Run(t.Context(), "sh", "-c", line)
			return err == nil && strings.Contains(out, want)
		}
	}
	for _, c := range []struct{ name, breakIt, look, want string }{
		{"a route of the voice tunnel", "ip route del 10.2.10.0/24 table 5271", "ip route show table 5271", "10.2.10.0/24 dev rw-voice"},
		{"the last resort of a table", "ip -6 route del unreachable default table 5272", "ip -6 route show table 5272", "unreachable default"},
		{"a whole table", "ip route flush table 5272", "ip route show table 5272", "10.2.20.0/24 dev rw-data"},
		{"the guard", "ip route flush table 5273", "ip route show table 5273", "unreachable 10.2.10.0/24"},
		{"a rule", "ip rule del pref 5230", "ip rule", "5230:"},
		{"all rules, the machine's own too", "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default", "ip rule", "5210:	from all fwmark 0x1200/0x1e00 lookup 5271"},
		{"the default route", "ip route del default", "ip route", "default via 198.51.100.1 dev wan0"},
		{"an address", "ip addr del 10.1.10.1/24 dev voice0", "ip addr show dev voice0", "10.1.10.1/24"},
		{"a tunnel taken down", "ip link set rw-voice down", "ip -o link show dev rw-voice", ",UP"},
		{"a tunnel's MTU", "ip link set rw-voice mtu 1300", "ip -o link show dev rw-voice", "mtu 1420"},
		{"a rule of the ruleset", "nft flush chain inet ringway egress_wan", "nft list chain inet ringway egress_wan", "leak_wan"},
		{"an element of a set", "nft delete element inet ringway sites4 '{ 10.2.10.0/24 }'", "nft list set inet ringway sites4", "10.2.10.0/24"},
		{"the table", "nft delete table inet ringway", "nft list chain inet ringway egress_wan", "leak_wan"},
		{"the whole ruleset", "nft flush ruleset", "nft list chain inet ringway egress_wan", "leak_wan"},
		{"the queues", "tc qdisc del dev wan0 root", "tc qdisc show dev wan0", "qdisc tbf 40: parent 1:40"},
		{"a class's rate", "tc class change dev wan0 parent 1:2 classid 1:30 htb rate 1mbit ceil 2mbit", "tc class show dev wan0", "class htb 1:30 parent 1:2 leaf 30: prio 2 "},
		{"a tunnel's device", "ip link del rw-data", "ip -o link show dev rw-data", ",UP"},
	} {
		sh(t, edge, c.breakIt)
		broken := time.Now()
		polltest.Require(t, has(c.look, c.want), patience, 10*time.Millisecond, "%s is not repaired", c.name)
		t.Logf("%s: repaired within %s", c.name, time.Since(broken).Round(time.Millisecond))
	}
	reaches(t, l.Host(lab.PhoneA), "10.2.10.10")
	reaches(t, l.Host(lab.PCA), "10.2.20.10")

	out := sh(t, edge, ringway+" plan "+configFile)
	assert.Equal(t, 4, strings.Count(out, "# nothing to change"), "%s", out)
}

// clearText watches a WAN for what belongs in a tunnel.
type clearText struct {
	t      *testing.T
	on     *lab.Host
	device string
	sent   atomic.Int64
	sites  []netip.Prefix
}

// keepSending sends from every kind of sender, the edge itself too, to the other site, until the test ends.
func keepSending(t *testing.T, l *lab.Lab) *clearText {
	t.Helper()
	c := &clearText{t: t, on: l.Host(lab.EdgeA), device: "wan0", sites: []netip.Prefix{netip.MustParsePrefix(
		"10.2.0.0/16"), netip.MustParsePrefix("2001:db8:2::/48")}}
	type flow struct {
		conn *net.UDPConn
		to   netip.AddrPort
	}
	var flows []flow
	for _, f := range []struct{ from, to string }{
		{lab.PCA, "10.2.20.10:9000"}, {lab.PCA, "[2001:db8:2:20::10]:9000"}, {lab.PhoneA, "10.2.10.10:9000"},
		{lab.PhoneA, "[2001:db8:2:10::10]:9000"}, {lab.EdgeA, "10.2.20.10:9000"}, {lab.EdgeA, "10.2.10.99:9000"},
	} {
		flows = append(flows, flow{socket(t, l.Host(f.from), 0), netip.MustParseAddrPort(f.to)})
		mark(t, flows[len(flows)-1].conn, flows[len(flows)-1].to.Addr().Is6(), dscp["EF"]<<2)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(done); <-ended })
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, f := range flows {
				_, _ = f.conn.WriteToUDPAddrPort([]byte("this belongs in a tunnel"), f.to) // refused, at times: that is the point
			}
			c.sent.Add(1)
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return c
}

// while breaks something and counts what leaves in clear until a hundred more packets of every sender were sent.
func (c *clearText) while(breakIt func()) (clear int) {
	c.t.Helper()
	wan, err := capture.StartFrames(netPath(c.on), c.device)
	require.NoError(c.t, err)
	breakIt()
	from := c.sent.Load()
	polltest.Require(c.t, func() bool { return c.sent.Load() >= from+100 }, patience, 5*time.Millisecond)
	frames, err := wan.Stop()
	require.NoError(c.t, err)
	for _, f := range frames {
		switch f.Kind {
		case capture.WireGuard, capture.ARP, capture.ND:
		default:
			for _, s := range c.sites {
				if s.Contains(f.Destination.Addr()) || s.Contains(f.Source.Addr()) {
					clear++
				}
			}
		}
	}
	return clear
}

// A site that leaves the config while its flows run, and a stop under them: they end here. Neither what conntrack knows
// nor the policy for the internet, which the site's public IPv6 prefix is a part of from now on, lets them out.
func TestWhatFallsAwayIsClosed(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	c := keepSending(t, l)
	c.on, c.device = l.Host(lab.Provider), "wan-a" // a stop takes the edge's device down
	sh(t, e.Host, strings.Join([]string{           // a way out for IPv6, whoever answers there
		"ip -6 addr add 2001:db8:f::2/64 dev wan0 nodad", "ip -6 route add default via 2001:db8:f::1",
		"ip neigh replace 2001:db8:f::1 lladdr 02:00:00:00:00:99 dev wan0 nud permanent",
	}, " && "))
	reaches(t, l.Host(lab.PhoneA), "10.2.10.10")
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	whole, err := e.Config()
	require.NoError(t, err)
	reload := func(text []byte) {
		t.Helper()
		require.NoError(t, e.WriteConfig(text))
		sh(t, e.Host, ringway+" reload")
	}

	alone, _, ok := strings.Cut(string(whole), "\nsites:")
	require.True(t, ok)
	assert.Zero(t, c.while(func() { reload([]byte(alone + "\nsites: []\n")) }), "packets in clear after the site went")
	said := sh(t, e.Host, ringway+" status")
	assert.Contains(t, said, "Closed: 10.2.10.0/24 left the config and is reached again in ")
	assert.Contains(t, said, "Closed: 2001:db8:2:20::/64 left the config and is reached again in ")
	assert.NotContains(t, sh(t, e.Host, "cat /proc/net/nf_conntrack"), "dst=10.2.")
	assert.Zero(t, c.while(func() {
		require.NoError(t, e.Kill(within(t, patience)))
		require.NoError(t, e.Start(t.Context()))
		polltest.Require(t, func() bool {
			s, err := e.Status(t.Context())
			return err == nil && s.Ready
		}, patience, 20*time.Millisecond)
	}), "packets in clear with another daemon")
	assert.Contains(t, sh(t, e.Host, ringway+" status"), "Closed: 10.2.10.0/24 left the config")

	// The site comes back, smaller.
	reload([]byte(strings.ReplaceAll(string(whole), "10.2.20.0/24", "10.2.20.0/28")))
	polltest.Require(t, func() bool {
		_, err := l.Host(lab.PhoneA).Run(t.Context(), "ping", "-n", "-c", "1", "-W", "1", "10.2.10.10")
		return err == nil
	}, patience, 50*time.Millisecond)
	assert.NotContains(t, sh(t, e.Host, ringway+" status"), "Closed: 10.2.10.0/24")
	assert.Contains(t, sh(t, e.Host, ringway+" status"), "Closed: 10.2.20.0/24")
	reaches(t, l.Host(lab.PCA), "10.2.20.10")

	assert.Zero(t, c.while(func() { sh(t, e.Host, ringway+" stop") }), "packets in clear after the stop")
	assert.NotContains(t, sh(t, e.Host, "cat /proc/net/nf_conntrack"), "dst=10.2.")
}

// What a shell takes away.
const (
	noRules         = "for f in 4 6; do ip -$f rule flush; ip -$f rule add pref 32766 lookup main; done"
	rulesAndRuleset = "nft flush ruleset; " + noRules
	noEnds          = "for f in 4 6; do ip -$f route flush table main type unreachable; done"
)

// Whatever goes, up to two of the three at once, nothing for the other site leaves the WAN in clear: the marks choose a
// table that ends in `unreachable`, and without the marks the guard's table refuses the sites; the ruleset drops on the
// WAN; table main ends the sites' prefixes.
func TestNothingLeavesInClear(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	c := keepSending(t, l)
	plane := func(class tunnel.Class) int {
		s, err := e.Status(t.Context())
		require.NoError(t, err)
		d, _ := s.Tunnel(class)
		require.Positive(t, d.PlanePID)
		return d.PlanePID
	}
	signal := func(pid int, name string) { sh(t, e.Host, "kill -"+name+" "+strconv.Itoa(pid)) }
	nothing := func(name string, breakIt func()) {
		t.Helper()
		assert.Zero(t, c.while(breakIt), "%s: packets in clear", name)
	}
	whole := func() {
		t.Helper()
		require.NoError(t, e.WaitReady(within(t, 2*patience)))
		reaches(t, l.Host(lab.PhoneA), "10.2.10.10")
		reaches(t, l.Host(lab.PCA), "10.2.20.10")
	}

	whole()
	nothing("all is well", func() {})
	nothing("the ruleset is flushed", func() { sh(t, e.Host, "nft flush ruleset") })
	whole()
	nothing("the tunnels' devices are deleted", func() { sh(t, e.Host, "ip link del rw-data; ip link del rw-voice") })
	whole()
	pids := []int{plane(tunnel.Voice), plane(tunnel.Data)}
	nothing("the planes hang", func() { signal(pids[0], "STOP"); signal(pids[1], "STOP") })
	signal(pids[0], "CONT")
	signal(pids[1], "CONT")
	whole()
	pids = []int{plane(tunnel.Voice), plane(tunnel.Data)}
	nothing("the planes are killed", func() { signal(pids[0], "KILL"); signal(pids[1], "KILL") })
	whole()

	// From here on nobody repairs.
	restart := func() {
		t.Helper()
		require.NoError(t, e.Start(t.Context()))
		whole()
	}
	kill := func() { require.NoError(t, e.Kill(within(t, patience))) }
	for _, b := range []struct{ name, breakIt string }{
		{"the daemon is gone", "true"},
		{"the ruleset is flushed, and no daemon", "nft flush ruleset"},
		{"the rules are flushed, and no daemon", "for f in 4 6; do ip -$f rule flush; ip -$f rule add pref 32766 lookup main; done"},
		{"the tunnels' tables are flushed, and no daemon", "for f in 4 6; do for t in 5271 5272 5274; do ip -$f route flush table $t; done; done"},
		{"all tables are flushed, and no daemon", "for f in 4 6; do for t in 5271 5272 5273 5274; do ip -$f route flush table $t; done; done"},
		{"the tunnels' devices are deleted, and no daemon", "ip link del rw-data; ip link del rw-voice"},
		{"ruleset and rules are gone at once, and no daemon", rulesAndRuleset},
		{"the ends in table main and the rules are gone, and no daemon", noRules + "; " + noEnds},
		{"the ends in table main and the ruleset are gone, and no daemon", "nft flush ruleset; " + noEnds},
	} {
		nothing(b.name, func() { kill(); sh(t, e.Host, b.breakIt) })
		restart()
	}
	pids = []int{plane(tunnel.Voice), plane(tunnel.Data)}
	nothing("planes and daemon are gone", func() { kill(); signal(pids[0], "KILL"); signal(pids[1], "KILL") })
	restart()

	// Two services that restart together, as often as it takes to fall into the repair.
	nothing("ruleset and rules are gone at once, again and again", func() {
		for range 8 {
			sh(t, e.Host, rulesAndRuleset)
			polltest.Require(t, func() bool {
				out, err := e.Run(t.Context(), "sh", "-c", "ip rule; nft list chain inet ringway egress_wan")
				return err == nil && strings.Contains(out, "5230:") && strings.Contains(out, "leak_wan")
			}, patience, 5*time.Millisecond)
		}
	})
	whole()

	// The watch is not blind: with all three gone, and nobody to repair, packets leave in clear.
	kill()
	assert.Positive(t, c.while(func() { sh(t, e.Host, rulesAndRuleset+"; "+noEnds) }))
	restart()
	nothing("all is well again", func() {})
}
