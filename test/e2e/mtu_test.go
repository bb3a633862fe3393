package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/tunnel"
)

// signallingTOS is CS3 as ping(8) takes it: packets of a phone without a mark are data.
const signallingTOS = "0x60"

// made is how many packets a host has sent in fragments, in both families.
func made(t *testing.T, h *lab.Host) (packets int) {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-c", "cat /proc/self/net/snmp /proc/self/net/snmp6")
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Ip6FragOKs":
			n, err := strconv.Atoi(f[1])
			require.NoError(t, err)
			packets += n
		case len(f) == 0 || f[0] != "Ip:":
		case names == nil:
			names = f
		default:
			for i, name := range names {
				if name == "FragOKs" {
					n, err := strconv.Atoi(f[i])
					require.NoError(t, err)
					packets += n
				}
			}
		}
	}
	require.NotNil(t, names)
	return packets
}

// loseFragments has fragments of IPv4 and IPv6 lost before a host, as some providers do.
func loseFragments(t *testing.T, h *lab.Host, device string) {
	t.Helper()
	_, err := h.RunInput(t.Context(), `table inet provider {
	chain fragments {
		type filter hook prerouting priority -450
		iifname "`+device+`" ip frag-off & 0x3fff != 0 drop
		iifname "`+device+`" exthdr frag exists drop
	}
}
`, "nft", "-f", "-")
	require.NoError(t, err)
}

// mtuSaid waits until status says how long packets in the tunnels to munich are, and why.
func mtuSaid(t *testing.T, e *lab.Edge, mtu int, why string) {
	t.Helper()
	var said string
	require.True(t, polled(20*time.Second, func() bool {
		said = ""
		s, err := e.Status(t.Context())
		if err != nil {
			return false
		}
		for _, c := range tunnel.Classes {
			d, _ := s.Tunnel(c)
			for _, p := range d.Peers {
				said += fmt.Sprintf("%s %d %s\n", c, p.MTU, p.MTUSource)
			}
		}
		return said == fmt.Sprintf("voice %d %s\ndata %d %s\n", mtu, why, mtu, why)
	}), "want %d, as %s; status says:\n%s", mtu, why, said)
}

func linkMTU(t *testing.T, l *lab.Lab, edge *lab.Edge, device, far string, mtu int) {
	t.Helper()
	for h, name := range map[*lab.Host]string{edge.Host: device, l.Host(lab.Provider): far} {
		_, err := h.Run(t.Context(), "ip", "link", "set", name, "mtu", strconv.Itoa(mtu))
		require.NoError(t, err)
	}
}

// A WAN takes 1400 bytes, as LTE does, and the provider loses fragments. No packet of a tunnel leaves in fragments,
// whatever family is outside: TCP has nearly all of the line, in both directions and families; other hosts are told
// what fits, in both classes.
func TestLongFullPacketsLeaveWhole(t *testing.T) {
	for _, outside := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(string(outside), func(t *testing.T) { fullPacketsLeaveWhole(t, outside) })
	}
}

func fullPacketsLeaveWhole(t *testing.T, outside lab.Family) {
	const rate, inner = 50 * qos.Mbit, (1400 - tunnel.OverheadIPv6) / 16 * 16
	l := branches(t, lab.Options{WAN: rate, Underlay: outside})
	a, b := l.Edge("a"), l.Edge("b")
	loseFragments(t, a.Host, "wan0")
	loseFragments(t, b.Host, "wan0")
	linkMTU(t, l, a, "wan0", "wan-a", 1400)
	mtuSaid(t, a, inner, "wan0 takes 1400 bytes")
	mtuSaid(t, b, 1420, "it is the default")

	before := made(t, a.Host) + made(t, b.Host)
	pcA, pcB := l.Host(lab.PCA), l.Host(lab.PCB)
	for _, addr := range [][2]string{{"10.1.20.10", "10.2.20.10"}, {"2001:db8:1:20::10", "2001:db8:2:20::10"}} {
		carried(t, pcA, pcB, addr[1], 500_000)
		carried(t, pcB, pcA, addr[0], 500_000)
		tooBig(t, pcA, addr[1], 1420, inner)
	}
	tooBig(t, l.Host(lab.PhoneA), "10.2.10.10", 1420, inner, "-Q", signallingTOS)
	bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
	require.NoError(t, err)
	require.True(t, polled(10*time.Second, func() bool { return time.Since(bulk.Started) > 4*time.Second }))
	got, err := bulk.Stop(t.Context(), bulk.Started.Add(time.Second), time.Now())
	require.NoError(t, err)
	t.Logf("TCP %s of %s", got, rate)
	assert.Greater(t, got, rate*8/10)
	assert.Equal(t, before, made(t, a.Host)+made(t, b.Host), "packets that left in fragments")

	// And back, when the line takes more again.
	linkMTU(t, l, a, "wan0", "wan-a", 1500)
	mtuSaid(t, a, 1420, "it is the default")
	_, err = pcA.Run(t.Context(), "ip", "route", "flush", "cache") // it remembers for ten minutes what it was told
	require.NoError(t, err)
	tooBig(t, pcA, "10.2.20.10", 1500, 1420)
}

// Beside a WAN of 1500 bytes is one of 1400, which may have to carry the tunnels at any time. Packets fit both, and the
// devices keep what fits the larger.
func TestPacketsFitEveryWAN(t *testing.T) {
	t.Parallel()
	const inner = (1400 - tunnel.OverheadIPv6) / 16 * 16
	l := branches(t, lab.Options{WAN: twenty})
	a := l.Edge("a")
	require.NoError(t, l.Host(lab.Provider).IP(t.Context(), a.Host,
		"link add lte-a mtu 1400 type veth peer name lte0 mtu 1400 netns /proc/self/fd/3",
		"link set lte-a up", "addr add 192.0.2.1/24 dev lte-a"))
	text, err := a.Config()
	require.NoError(t, err)
	second := strings.Replace(string(text), "\nvoice:\n",
		"\n  - {interface: lte0, address: 192.0.2.2/24, gateway: 192.0.2.1, uplink: 20mbit}\nvoice:\n", 1)
	require.NotEqual(t, string(text), second)
	p := &planner{t, a}
	require.NoError(t, a.WriteConfig([]byte(second)))
	planned := p.plan()
	assert.Contains(t, planned, "# site munich: packets inside have at most 1312 bytes, as lte0 takes 1400 bytes")
	p.agree(second)
	mtuSaid(t, a, inner, "lte0 takes 1400 bytes")

	wan := watchWAN(t, l)
	for _, to := range []string{"10.2.20.10", "2001:db8:2:20::10"} {
		tooBig(t, l.Host(lab.PCA), to, 1420, inner)
		assert.LessOrEqual(t, carried(t, l.Host(lab.PCA), l.Host(lab.PCB), to, 1000), inner-40, "the SYN says it")
	}
	tooBig(t, l.Host(lab.PhoneA), "10.2.10.10", 1420, inner, "-Q", signallingTOS)
	frames := wan.stop(t)
	for _, port := range []uint16{voicePort, dataPort} {
		onWire := longest(frames, port, edgeA)
		assert.LessOrEqual(t, onWire, 14+1400)
		assert.Greater(t, onWire, 14+1400-20-16, "and no shorter than padding and IPv6's longer header make it")
	}
	out, err := a.Run(t.Context(), "ip", "-o", "link", "show", "rw-data")
	require.NoError(t, err)
	assert.Contains(t, out, "mtu 1420")

	// A router may advertise less for IPv6 than the link takes: the kernel keeps that beside the link's.
	_, err = a.Run(t.Context(), "sysctl", "-q", "-w", "net.ipv6.conf.wan0.mtu=1380")
	require.NoError(t, err)
	mtuSaid(t, a, (1380-tunnel.OverheadIPv6)/16*16, "wan0 takes 1380 bytes")
}
