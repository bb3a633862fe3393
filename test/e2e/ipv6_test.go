package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv6"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

var leafLine = regexp.MustCompile(`class htb ([0-9a-f]+:[0-9a-f]+) .*\n\s*Sent \d+ bytes (\d+) pkt`)

// leaves counts the packets of a device's classes, as tc(8) names them.
func leaves(t *testing.T, e *lab.Edge, device string) map[string]int {
	t.Helper()
	out, err := e.Run(t.Context(), "tc", "-s", "class", "show", "dev", device)
	require.NoError(t, err)
	counts := map[string]int{}
	for _, m := range leafLine.FindAllStringSubmatch(out, -1) {
		counts[m[1]], err = strconv.Atoi(m[2])
		require.NoError(t, err)
	}
	return counts
}

// sentTo counts what edge-a's queues sent, by site and class.
func sentTo(t *testing.T, e *lab.Edge) map[qos.Place]int {
	t.Helper()
	places, counts := qos.Places([]string{"munich"}), map[qos.Place]int{}
	for h, n := range leaves(t, e, "wan0") {
		var handle qos.Handle
		require.NoError(t, handle.UnmarshalText([]byte(h)))
		if p, ok := places[handle]; ok {
			counts[p] = n
		}
	}
	require.Len(t, counts, 2*len(qos.ClassNames))
	return counts
}

// reached pings with a code point until an answer comes.
func reached(t *testing.T, from *lab.Host, to, tos string) {
	t.Helper()
	require.NoError(t, from.WaitReach(within(t, 20*time.Second), to, tos))
}

// steered demands of calls and of a transfer beside them what a WAN of any family owes them: not a packet
// lost, WireGuard alone between the edges' addresses, each class marked as it is, and each in its site's own
// queue.
func steered(t *testing.T, l *lab.Lab, calls int) []capture.Frame {
	t.Helper()
	p, a := l.Pair(lab.Ringway), l.Edge("a")
	wan, before := watchWAN(t, l), sentTo(t, a)
	k := talking(t, l, calls, 2*time.Second)
	carried(t, l.Host(lab.PCA), l.Host(lab.PCB), p.Address(lab.PCB), 50_000)
	k.unharmed()
	frames := wan.stop(t)
	onlyTunnels(t, frames)
	marks := map[string]int{}
	for _, f := range frames {
		if f.Kind != capture.WireGuard {
			continue
		}
		assert.ElementsMatch(t, []string{p.WANAddress("a"), p.WANAddress("b")},
			[]string{f.Source.Addr().String(), f.Destination.Addr().String()})
		marks[fmt.Sprintf("%d %d", f.Source.Port(), f.DSCP)]++
	}
	assert.Len(t, marks, 3, "%v", marks)
	for _, mark := range []string{"51820 46", "51820 24", "51821 0"} {
		assert.Contains(t, marks, mark)
	}
	sent := sentTo(t, a)
	for place, n := range before {
		sent[place] -= n
	}
	at := func(site string, c qos.ClassName) int { return sent[qos.Place{Site: site, Class: c}] }
	assert.GreaterOrEqual(t, at("munich", qos.Media), calls*100, "a call's packets to munich")
	assert.GreaterOrEqual(t, at("munich", qos.Signalling), calls*3, "INVITE, ACK, BYE")
	assert.GreaterOrEqual(t, at("munich", qos.Data), 50_000/1460)
	for _, c := range []qos.ClassName{qos.Media, qos.Signalling, qos.Background} {
		assert.Zero(t, at(qos.Local, c), "%s that is no site's", c)
	}
	assert.Less(t, at(qos.Local, qos.Data), 10, "what links need for themselves")
	return frames
}

// Two branches without one address of IPv4, on a line of 1150 kbit/s. Less 3 % it is busy for 10 ms with 1394 bytes.
func TestIPv6Alone(t *testing.T) {
	t.Parallel()
	const most, inner = 1394, 1394 - 14 - 40 - 8 - 32
	l := branches(t, lab.Options{WAN: 1150 * qos.Kbit, Underlay: lab.IPv6, Overlay: lab.IPv6})
	p, a, b := l.Pair(lab.Ringway), l.Edge("a"), l.Edge("b")
	pcA, pcB, provider := l.Host(lab.PCA), l.Host(lab.PCB), l.Host(lab.Provider)
	for _, host := range []string{lab.PhoneA, lab.PCA, lab.EdgeA, lab.Provider} {
		out, err := l.Host(host).Run(t.Context(), "ip", "-4", "-o", "address", "show", "scope", "global")
		require.NoError(t, err)
		assert.Empty(t, out, host)
	}
	// TCP's segments fit from the first one on, for the SYN said so: nobody has learned anything on the way yet.
	assert.LessOrEqual(t, carried(t, pcA, pcB, p.Address(lab.PCB), 1000), inner-60)
	frames := steered(t, l, 2)
	assert.LessOrEqual(t, longest(frames, dataPort, p.WANAddress("a")), most)

	// Who sends more than fits is told so by the router, with ICMPv6, and makes fragments that fit: so does
	// pc-b, once told.
	wan := watchWAN(t, l)
	tooBig(t, pcA, p.Address(lab.PCB), 1500, inner)
	said, err := pcA.Run(within(t, 10*time.Second), "ping", "-n", "-c", "3", "-i", "0.3", "-W", "5", "-M",
		"dont", "-s", "3000", p.Address(lab.PCB))
	require.NoError(t, err, said)
	onWire := longest(wan.stop(t), dataPort, p.WANAddress("a"))
	assert.LessOrEqual(t, onWire, most)
	assert.Greater(t, onWire, most-32, "and nothing was cut that fits")

	// Local internet in clear: its TCP keeps to the bound too, and what comes in takes its queue on the LAN's card.
	const outside = "2001:db8:a::1"
	require.NoError(t, provider.IP(t.Context(), nil, "route add 2001:db8:1:20::/64 via "+p.WANAddress("a")))
	held := leaves(t, a, "data0")
	assert.LessOrEqual(t, carried(t, pcA, provider, outside, 30_000), most-14-60)
	now := leaves(t, a, "data0")
	assert.Greater(t, now["2:10"], held["2:10"])
	reached(t, pcA, p.Address(lab.PCB), "0")
	later := leaves(t, a, "data0")
	assert.Equal(t, now["2:10"], later["2:10"], "what comes out of a tunnel is not held")
	assert.Greater(t, later["2:f0"], now["2:f0"])

	// A site that moves to another address keeps its queues.
	const moved = "2001:db8:b::3"
	config, err := b.Config()
	require.NoError(t, err)
	require.NoError(t, b.WriteConfig([]byte(strings.ReplaceAll(string(config), p.WANAddress("b")+"/64", moved+"/64"))))
	_, err = b.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	reached(t, l.Host(lab.PhoneB), p.Address(lab.PhoneA), "0xb8")
	reached(t, pcB, p.Address(lab.PCA), "0")
	for class, port := range map[qos.ClassName]int{qos.Media: voicePort, qos.Data: dataPort} {
		polltest.Require(t, func() bool {
			out, err := a.Run(t.Context(), "nft", "list", "map", "inet", "ringway", fmt.Sprintf("prio_%s6", class))
			return err == nil && strings.Contains(out, fmt.Sprintf("%s . %d :", moved, port)) &&
				!strings.Contains(out, p.WANAddress("b")+" .")
		}, 20*time.Second, 50*time.Millisecond, "%s", class)
	}
	before := sentTo(t, a)
	reached(t, l.Host(lab.PhoneA), p.Address(lab.PhoneB), "0xb8")
	media := qos.Place{Site: "munich", Class: qos.Media}
	assert.Greater(t, sentTo(t, a)[media], before[media])
}

// The family of phones and PCs is no business of the WAN's, nor the other way round.
func TestLongFamiliesMix(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ under, over lab.Family }{{lab.IPv4, lab.IPv6}, {lab.IPv6, lab.IPv4}} {
		t.Run(fmt.Sprintf("%s over %s", c.over, c.under), func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, Underlay: c.under, Overlay: c.over})
			steered(t, l, 2)
			tooBig(t, l.Host(lab.PCA), l.Pair(lab.Ringway).Address(lab.PCB), 1500, 1420)
		})
	}
}

// advertise sends a router advertisement (RFC 4861, section 4.2) for the network of the provider's device.
func advertise(t *testing.T, provider *lab.Host, device string, network netip.Prefix) {
	t.Helper()
	require.NoError(t, provider.Do(func() error {
		c, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		defer c.Close()
		if err := ipv6.NewPacketConn(c).SetMulticastHopLimit(255); err != nil {
			return err
		}
		ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
		ra = append(ra, 3, 4, byte(network.Bits()), 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
		ra = append(ra, network.Addr().AsSlice()...)
		_, err = c.WriteTo(ra, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: device})
		return err
	}))
}

// A WAN with a lease, or without one yet, has the IPv6 that its provider's routers advertise.
func TestIPv6BesideALease(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Underlay: lab.IPv6, Overlay: lab.IPv6})
	p, a := l.Pair(lab.Ringway), l.Edge("a")
	config, err := a.Config()
	require.NoError(t, err)
	var text []string
	for _, line := range strings.Split(string(config), "\n") {
		switch {
		case strings.Contains(line, "gateway:"):
			continue
		case strings.Contains(line, "address: "+p.WANAddress("a")):
			line = "    address: dhcp"
		}
		text = append(text, line)
	}
	require.NoError(t, a.WriteConfig([]byte(strings.Join(text, "\n"))))
	_, err = a.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	advertise(t, l.Host(lab.Provider), "wan-a", netip.MustParsePrefix("2001:db8:a::/64"))
	reached(t, l.Host(lab.PhoneA), p.Address(lab.PhoneB), "0xb8")
	reached(t, l.Host(lab.PCA), p.Address(lab.PCB), "0")
	for _, d := range status(t, l.Edge("b")).Tunnels {
		require.Len(t, d.Peers, 1)
		at := d.Peers[0].Endpoint.Addr()
		assert.True(t, netip.MustParsePrefix("2001:db8:a::/64").Contains(at), "%s", at)
		assert.NotEqual(t, p.WANAddress("a"), at.String(), "that one is gone")
	}

	// When the WAN has a fixed address again, what was advertised is gone, and more is not taken.
	require.NoError(t, a.WriteConfig(config))
	_, err = a.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	advertise(t, l.Host(lab.Provider), "wan-a", netip.MustParsePrefix("2001:db8:c::/64"))
	reached(t, l.Host(lab.PhoneA), p.Address(lab.PhoneB), "0xb8")
	out, err := a.Run(t.Context(), "ip", "-6", "-o", "address", "show", "dev", "wan0", "scope", "global")
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(out, "inet6"), out)
	assert.Contains(t, out, p.WANAddress("a")+"/64")
}
