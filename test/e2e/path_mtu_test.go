package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/bulk"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// middleLink makes a link of mtu bytes of the way between the edges, in both directions. All interfaces take more.
func middleLink(t *testing.T, l *lab.Lab, mtu int) {
	t.Helper()
	for _, r := range []string{"198.51.100.2/32 dev wan-a", "203.0.113.2/32 dev wan-b", "2001:db8:a::2/128 dev wan-a",
		"2001:db8:b::2/128 dev wan-b"} {
		_, err := l.Host(lab.Provider).Run(t.Context(), "sh", "-c", fmt.Sprintf("ip route replace %s mtu %d", r, mtu))
		require.NoError(t, err)
	}
}

// silentProvider has all ICMP lost that says what a link takes.
func silentProvider(t *testing.T, l *lab.Lab) {
	t.Helper()
	_, err := l.Host(lab.Provider).RunInput(t.Context(), `table inet silent {
	chain out {
		type filter hook output priority 0
		icmp code frag-needed icmp type destination-unreachable drop
		icmpv6 type packet-too-big drop
	}
}
`, "nft", "-f", "-")
	require.NoError(t, err)
}

// pathTakes waits until the voice tunnel's engine has found how long packets to the far end may be.
func pathTakes(t *testing.T, e *lab.Edge, mtu int) {
	t.Helper()
	var found int
	require.True(t, polled(20*time.Second, func() bool {
		s, err := e.Status(t.Context())
		if err != nil {
			return false
		}
		d, _ := s.Tunnel(tunnel.Voice)
		found = 0
		for _, p := range d.Peers {
			found = p.PathMTU
		}
		return found == mtu
	}), "want %d, found %d", mtu, found)
}

// rateOf is the rate of TCP between two hosts, a second after it began.
func rateOf(t *testing.T, from, to *lab.Host, address string) qos.BitRate {
	t.Helper()
	b, err := bulk.Start(t.Context(), from, to, bulk.Options{To: address})
	require.NoError(t, err)
	require.True(t, polled(10*time.Second, func() bool { return time.Since(b.Started) > 4*time.Second }))
	got, err := b.Stop(t.Context(), b.Started.Add(time.Second), time.Now())
	require.NoError(t, err)
	return got
}

// A link in the middle becomes smaller than both WANs while TCP runs; ICMP about it is lost, and so are fragments.
// TCP stands still, until the engines have found out by themselves what passes: then it has nearly all of the line
// again, in both directions, and a daemon that is killed changes nothing. When the link takes more again a new plane
// finds that.
func TestLongThePathsMTUIsFound(t *testing.T) {
	for _, outside := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(string(outside), func(t *testing.T) {
			t.Parallel()
			pathMTUIsFound(t, outside)
		})
	}
}

func pathMTUIsFound(t *testing.T, outside lab.Family) {
	const rate, inner = 50 * qos.Mbit, (1400 - tunnel.OverheadIPv6) / 16 * 16
	l := branches(t, lab.Options{WAN: rate, Underlay: outside})
	a, b := l.Edge("a"), l.Edge("b")
	pcA, pcB := l.Host(lab.PCA), l.Host(lab.PCB)
	loseFragments(t, a.Host, "wan0")
	loseFragments(t, b.Host, "wan0")
	silentProvider(t, l)
	pathTakes(t, a, 1500)
	pathTakes(t, b, 1500)
	mtuSaid(t, a, 1420, "it is the default")

	running, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
	require.NoError(t, err)
	middleLink(t, l, 1400)
	at := time.Now()
	mtuSaid(t, a, inner, "the path takes 1392 bytes")
	took := time.Since(at)
	stalled, err := running.Stop(t.Context(), at.Add(500*time.Millisecond), time.Now())
	require.NoError(t, err)
	got := rateOf(t, pcA, pcB, "10.2.20.10")
	t.Logf("TCP %s while nothing long passed, %s of %s after that was found, in %s", stalled, got, rate, took)
	assert.Less(t, stalled, rate/10)
	assert.Greater(t, got, rate/10)
	tooBig(t, pcA, "10.2.20.10", 1420, inner)
	tooBig(t, pcA, "2001:db8:2:20::10", 1420, inner)
	tooBig(t, l.Host(lab.PhoneA), "10.2.10.10", 1420, inner, "-Q", signallingTOS)

	// The other end finds its own direction when it sends something long.
	_, err = pcB.Run(t.Context(), "sh", "-c", "ping -n -q -c 30 -i 0.1 -W 1 -M do -s 1372 10.1.20.10; true")
	require.NoError(t, err)
	mtuSaid(t, b, inner, "the path takes 1392 bytes")
	tooBig(t, pcB, "10.1.20.10", 1420, inner)
	assert.Greater(t, rateOf(t, pcB, pcA, "10.1.20.10"), rate/10)
	seen, err := a.Ringway(t.Context(), "paths", "--json")
	require.NoError(t, err)
	var paths []struct {
		Class string
		Paths []struct{ MTU int }
	}
	require.NoError(t, json.Unmarshal([]byte(seen), &paths))
	assert.Equal(t, 1392, paths[0].Paths[0].MTU, seen)

	routes := func() string {
		out, err := a.Run(t.Context(), "sh", "-c", "ip route show table 5272; ip -6 route show table 5272")
		require.NoError(t, err)
		return out
	}
	before := routes()
	require.Contains(t, before, fmt.Sprintf("mtu %d", inner))
	watch, err := a.Spawn("routes", a.Command("ip", "monitor", "route"))
	require.NoError(t, err)
	require.NoError(t, a.Kill(t.Context()))
	require.NoError(t, a.Start(t.Context()))
	require.NoError(t, a.WaitReady(t.Context()))
	mtuSaid(t, a, inner, "the path takes 1392 bytes")
	assert.Equal(t, before, routes())
	watch.Signal(unix.SIGTERM)
	_ = watch.Wait(t.Context()) // a signal ended it
	monitored, err := os.ReadFile(watch.Log)
	require.NoError(t, err)
	assert.NotContains(t, string(monitored), "rw-data", "no route to the site was touched")

	middleLink(t, l, 1500)
	s, err := a.Status(t.Context())
	require.NoError(t, err)
	voice, _ := s.Tunnel(tunnel.Voice)
	_, err = a.Run(t.Context(), "kill", "-KILL", strconv.Itoa(voice.PlanePID)) // a number of its namespace
	require.NoError(t, err)
	polltest.Require(t, func() bool {
		s, err := a.Status(t.Context())
		d, _ := s.Tunnel(tunnel.Voice)
		return err == nil && d.PlanePID != voice.PlanePID && d.PlanePID != 0
	}, 10*time.Second, 50*time.Millisecond)
	mtuSaid(t, a, 1420, "it is the default")
}
