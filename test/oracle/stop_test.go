package oracle

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// snapshots is everything that Ringway touches, as the tools show it.
var snapshots = []string{
	"ip -4 rule", "ip -6 rule",
	"ip -4 route show table all", "ip -6 route show table all | grep -v ' proto " +
		"kernel\\|^local\\|^anycast\\|^multicast\\|fe80'",
	"ip -o -4 addr", "ip -o link show type tun",
	"for i in wan0 voice0 data0; do ip -o link show dev $i | grep -o 'mtu [0-9]*\\|qdisc [a-z0-9]*\\|qlen " +
		"[0-9]*\\|[<,]UP'; done",
	"nft list ruleset", "tc qdisc show", "tc class show dev wan0",
	"sysctl -a 2>/dev/null | grep '^net\\.' | grep -v 'rw-\\|nf_conntrack_count\\|random\\|" +
		"stable_secret\\|neigh\\|udp_mem\\|entropy'",
	"ls -A /run/ringway /run/wireguard 2>&1",
	"ps -e -o args= | grep 'ringway \\(run\\|plane\\)' | grep -v grep || true",
}

func snapshot(t *testing.T, h *lab.Host) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, line := range snapshots {
		out[line], _ = h.Run(t.Context(), "sh", "-c", line)
	}
	return out
}

// After `ringway stop` the machine is as the start found it, also where somebody had set up the same things
// otherwise.
func TestStopLeavesWhatStartFound(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	for _, c := range []struct{ name, setUp string }{
		{"an empty machine", "true"},
		{"a machine that is in use", strings.Join([]string{
			"ip link set wan0 up", "ip addr add 192.0.2.7/24 dev wan0", "ip route add 10.99.0.0/16 via 192.0.2.1",
			"ip rule add pref 1000 fwmark 0x7 lookup 77", "ip route add 10.98.0.0/16 via 192.0.2.1 table 77",
			"ip link set voice0 up", "ip addr add 10.1.10.1/24 dev voice0", // an address that the config wants, too
			"sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.conf.wan0.rp_filter=2 net.ipv4.conf.all.rp_filter=2 " +
				"net.ipv4.conf.voice0.accept_redirects=1",
			"nft add table inet theirs", "nft add chain inet theirs input '{ type filter hook input priority 5; }'",
			"nft add rule inet theirs input tcp dport 1 drop",
			"tc qdisc add dev wan0 root handle 7: tbf rate 50mbit burst 10000 limit 30000", "tc qdisc add dev " +
				"data0 root handle 8: pfifo limit 50",
			"sed -i 's/uplink: 20mbit/uplink: 20mbit\\n    take_over: true/' " + configFile,
		}, "\n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			sh(t, e.Host, ringway+" stop")
			sh(t, e.Host, c.setUp)
			before := snapshot(t, e.Host)
			require.NoError(t, e.Start(t.Context()))
			require.NoError(t, e.WaitReady(within(t, 2*patience)))
			reaches(t, l.Host(lab.PCA), "10.2.20.10")
			during := snapshot(t, e.Host)
			assert.NotEqual(t, before["ip -4 rule"], during["ip -4 rule"], "the snapshot sees nothing")
			assert.NotEqual(t, before["tc qdisc show"], during["tc qdisc show"], "the snapshot sees nothing")
			assert.NotEqual(t, before["nft list ruleset"], during["nft list ruleset"], "the snapshot sees nothing")
			sh(t, e.Host, ringway+" stop")
			after := snapshot(t, e.Host)
			for _, line := range snapshots {
				assert.Equal(t, before[line], after[line], "%s", line)
			}
		})
	}
}

// A queue that was there before is left alone and said to be in the way, until it is gone or may be taken
// over. One that somebody puts in the place of Ringway's own is a change by hand.
func TestSomebodysQueueIsRefused(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	sh(t, e.Host, ringway+" stop")
	sh(t, e.Host, "tc qdisc add dev wan0 root handle 7: tbf rate 50mbit burst 10000 limit 30000")
	const refused = "wan0 has a queue that is not Ringway's (tbf 7:), so nothing is shaped there: remove it " +
		"with `tc qdisc del dev wan0 root`, or set wan[wan0].take_over: true"
	out := sh(t, e.Host, ringway+" plan --only tc "+configFile)
	assert.Contains(t, out, "# "+refused)
	assert.NotRegexp(t, `(?m)^tc .* dev wan0 `, out)
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.WaitReady(within(t, 2*patience)))
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	assert.Contains(t, sh(t, e.Host, ringway+" status"), "PROBLEM: queues: "+refused)
	assert.Contains(t, sh(t, e.Host, "tc qdisc show dev wan0"), "qdisc tbf 7: root")
	assert.NotContains(t, sh(t, e.Host, "nft list ruleset"), "meta priority set 1:",
		"whose classes these would be is not known")

	shaped := func() bool { return strings.Contains(sh(t, e.Host, "tc qdisc show dev wan0"), "qdisc htb 1: root") }
	sh(t, e.Host, "tc qdisc del dev wan0 root")
	polltest.Require(t, shaped, patience, 20*time.Millisecond, "the way is free")
	polltest.Require(t, func() bool { return !strings.Contains(sh(t, e.Host, ringway+" status"), "PROBLEM") },
		patience, 50*time.Millisecond)

	sh(t, e.Host, "tc qdisc replace dev wan0 root handle 9: pfifo limit 20")
	polltest.Require(t, shaped, patience, 20*time.Millisecond, "repaired")
	sh(t, e.Host, ringway+" stop")
	assert.NotContains(t, sh(t, e.Host, "tc qdisc show dev wan0"), "htb")
}

// The same on a LAN: nothing is steered there, the WAN and the other LAN are as ever.
func TestSomebodysQueueOnALANIsRefused(t *testing.T) {
	t.Parallel()
	l := branches(t)
	e := l.Edge("a")
	sh(t, e.Host, ringway+" stop")
	sh(t, e.Host, "tc qdisc add dev data0 root handle 2: pfifo limit 50")
	const refused = "data0 has a queue that is not Ringway's (pfifo 2:), so traffic from WANs is not " +
		"shaped there: remove it with `tc qdisc del dev data0 root`, or set take_over: true"
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.WaitReady(within(t, 2*patience)))
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	assert.Contains(t, sh(t, e.Host, ringway+" status"), "PROBLEM: queues: "+refused)
	assert.Contains(t, sh(t, e.Host, "tc qdisc show dev data0"), "qdisc pfifo 2: root")
	assert.Contains(t, sh(t, e.Host, "tc class show dev voice0"), "class htb 2:10 ")
	assert.Contains(t, sh(t, e.Host, "tc qdisc show dev wan0"), "qdisc htb 1: root")
	assert.NotContains(t, sh(t, e.Host, "nft list set inet ringway shaped_lan"), "data0")

	shaped := func() bool { return strings.Contains(sh(t, e.Host, "tc class show dev data0"), "class htb 2:10 ") }
	sh(t, e.Host, "tc qdisc del dev data0 root")
	polltest.Require(t, shaped, patience, 20*time.Millisecond, "the way is free")
	polltest.Require(t, func() bool { return !strings.Contains(sh(t, e.Host, ringway+" status"), "PROBLEM") },
		patience, 50*time.Millisecond)
	assert.Contains(t, sh(t, e.Host, "nft list set inet ringway shaped_lan"), "data0")
	assert.Regexp(t, `data0 +downlink `, sh(t, e.Host, ringway+" status"))

	sh(t, e.Host, "tc class del dev data0 classid 2:10")
	polltest.Require(t, shaped, patience, 20*time.Millisecond, "repaired")
	sh(t, e.Host, ringway+" stop")
	assert.NotContains(t, sh(t, e.Host, "tc qdisc show"), "htb")
}
