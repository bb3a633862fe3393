package e2e

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/tunnel"
)

// The second WAN of berlin, and what the provider has at the other end of it.
const (
	secondA  = "192.0.2.2"
	secondGW = "192.0.2.1"
)

// twoLines gives berlin a second WAN, lte0, beside wan0. The provider drops what does not come from an address of the
// line that it comes by (BCP 38), and counts it.
func twoLines(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	more := o.EdgeConfig
	o.EdgeConfig = func(site string, values map[string]string) {
		if site == "berlin" {
			values["wan[+]"] = "{interface: lte0, address: " + secondA + "/24, gateway: " + secondGW +
				", uplink: 20mbit, downlink: 20mbit}"
		}
		if more != nil {
			more(site, values)
		}
	}
	l := branches(t, o)
	edge, provider := l.Host(lab.EdgeA), l.Host(lab.Provider)
	require.NoError(t, edge.IP(t.Context(), provider,
		"link add lte0 type veth peer name lte-a netns /proc/self/fd/3"))
	require.NoError(t, provider.IP(t.Context(), nil, "addr add "+secondGW+"/24 dev lte-a", "link set lte-a up"))
	_, err := provider.RunInput(t.Context(), `table inet bcp38 {
	counter foreign {}
	chain forward {
		type filter hook forward priority 0;
		iifname "wan-a" ip saddr != 198.51.100.0/24 counter name foreign drop
		iifname "lte-a" ip saddr != 192.0.2.0/24 counter name foreign drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	require.True(t, polled(20*time.Second, func() bool {
		out, err := edge.Run(t.Context(), "ip", "-4", "route", "get", "192.0.2.99", "from", secondA)
		if err != nil || !strings.Contains(out, "dev lte0") {
			return false
		}
		out, err = edge.Run(t.Context(), "ip", "-4", "route", "get", edgeB, "from", secondA)
		return err == nil && strings.Contains(out, "via "+secondGW)
	}), "the second WAN is not taken up")
	return l
}

// The cable of the WAN that carries the calls is pulled, and plugged in again.
func TestLongALineThatIsCutIsLeftAtOnce(t *testing.T) {
	l := twoLines(t, lab.Options{WAN: twenty})
	provider := l.Host(lab.Provider)
	const internet = "203.0.113.1"
	pc, server := udpOn(t, l.Host(lab.PCA), "10.1.20.10:40000"), udpOn(t, provider, internet+":4000")
	assert.Contains(t, arrives(t, pc, server, internet+":4000", "by the first line"), edgeA+":")

	k := talking(t, l, 10, 6*time.Second)
	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a down"))
	require.True(t, polled(5*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "wan0 without a carrier")
	}))
	require.True(t, polled(5*time.Second, func() bool {
		out, err := l.Edge("b").Ringway(t.Context(), "status")
		return err == nil && strings.Contains(out, secondA)
	}), "munich has not heard berlin by its second line")
	goesBy(t, pc, server, internet+":4000", secondA)
	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a up"))

	h, result := k.heard()
	sent, lost := count(h)
	assert.Less(t, silence(h), 300*time.Millisecond)
	assert.Equal(t, 10, result.Completed, result.Why)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
	nothingForeign(t, provider)
}

// The line that carries the calls delivers nothing any more, and has its carrier still.
func TestTimedALineThatDeliversNothingIsLeftAtOnce(t *testing.T) {
	l := twoLines(t, lab.Options{WAN: twenty})
	provider := l.Host(lab.Provider)
	k := talking(t, l, 10, 8*time.Second)
	began := time.Now()
	deliversNothing(t, provider)
	reachedWithin(t, l, lab.PCB, "10.1.20.10", 5*time.Second-time.Since(began)) // data follows
	require.True(t, polled(5*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "wan0 silent since")
	}))
	out, err := l.Edge("a").Ringway(within(t, 5*time.Second), "paths", "munich")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^munich +voice +203\.0\.113\.2:51820 +wan0 +198\.51\.100\.2 +no +silent `, out)
	assert.Regexp(t, `(?m)^ +lte0 +192\.0\.2\.2 +yes +up `, out)
	assert.Contains(t, out, "from 198.51.100.2 to 192.0.2.2: nothing was received")
	const internet = "203.0.113.1"
	pc, server := udpOn(t, l.Host(lab.PCA), "10.1.20.10:40000"), udpOn(t, provider, internet+":4000")
	goesBy(t, pc, server, internet+":4000", secondA)

	h, result := k.heard()
	sent, lost := count(h)
	assert.Less(t, silence(h), 300*time.Millisecond)
	assert.Equal(t, 10, result.Completed, result.Why)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
	nothingForeign(t, provider)
}

// The line that carries the calls loses 8 % of what it is given, in both directions.
func TestLongALineThatLosesTooMuchIsLeft(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty})
	k := talking(t, l, 5, 14*time.Second)
	began := time.Now()
	_, err := l.Host(lab.Provider).RunInput(t.Context(), `table inet loss {
	chain forward {
		type filter hook forward priority 1;
		iifname "wan-a" numgen random mod 100 < 8 drop
		oifname "wan-a" numgen random mod 100 < 8 drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	require.True(t, polled(10*time.Second, func() bool {
		out, err := l.Edge("a").Ringway(within(t, 5*time.Second), "paths", "munich")
		require.NoError(t, err)
		return strings.Contains(out, "from 198.51.100.2 to 192.0.2.2: too much was lost")
	}))
	took := time.Since(began)
	h, _ := k.heard()
	sent, lost := count(h)
	t.Logf("left after %s; %d voice packets, %d lost, longest silence %s", took, sent, lost, silence(h))
}

// deliversNothing has the first line drop everything. Its carrier stays.
func deliversNothing(t *testing.T, provider *lab.Host) {
	t.Helper()
	_, err := provider.RunInput(t.Context(), `table inet hole {
	chain forward {
		type filter hook forward priority 1;
		iifname "wan-a" drop
		oifname "wan-a" drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
}

// The far end is stock wireguard-go, which does not know paths: it is asked by a handshake.
func TestLongALineThatDeliversNothingToAStockFarEnd(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, StockFarEnd: true, EdgeConfig: stockFarEnd})
	provider := l.Host(lab.Provider)
	require.True(t, polled(20*time.Second, func() bool { // there is one handshake in five seconds
		voice, _ := status(t, l.Edge("a")).Tunnel(tunnel.Voice)
		return len(voice.Peers) == 1 && time.Since(voice.Peers[0].LastHandshake) > 6*time.Second
	}))
	k := talking(t, l, 4, 10*time.Second)
	deliversNothing(t, provider)

	h, _ := k.heard()
	sent, lost := count(h)
	assert.Less(t, silence(h), 2*time.Second)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
	nothingForeign(t, provider)
}

// The far end calls berlin at the address of its second WAN. It is answered from there, by that WAN: the provider drops
// anything else, and a NAT before the far end lets nothing else in.
func TestWhoCallsTheSecondLineIsAnsweredByIt(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["sites[munich].endpoint"] = ""
		}
	}})
	provider := l.Host(lab.Provider)
	_, err := provider.RunInput(t.Context(), `table inet far {
	chain forward {
		type filter hook forward priority 1;
		oifname "wan-b" ip saddr != `+secondA+` drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	e := l.Edge("b")
	text, err := e.Config()
	require.NoError(t, err)
	require.NoError(t, e.WriteConfig([]byte(strings.ReplaceAll(string(text), edgeA, secondA))))
	_, err = e.Ringway(within(t, 10*time.Second), "reload")
	require.NoError(t, err)

	reachedWithin(t, l, lab.PhoneB, "10.1.10.10", 10*time.Second)
	reachedWithin(t, l, lab.PCB, "10.1.20.10", 10*time.Second)
	nothingForeign(t, provider)
}

// An idle branch gets another address. It says so: the far end, which knows the old one, reaches it at once.
func TestALineWithANewAddressIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "munich" {
			values["sites[berlin].endpoint"] = ""
		}
	}})
	e := l.Edge("a")
	text, err := e.Config()
	require.NoError(t, err)
	require.NoError(t, e.WriteConfig([]byte(strings.ReplaceAll(string(text), edgeA+"/24", "198.51.100.77/24"))))
	_, err = e.Ringway(within(t, 10*time.Second), "reload")
	require.NoError(t, err)

	reachedWithin(t, l, lab.PhoneB, "10.1.10.10", time.Second)
	reachedWithin(t, l, lab.PCB, "10.1.20.10", time.Second)
}

// Whatever address of its own the box sends from, what is meant for a site leaves by a tunnel or not at all.
func TestNoAddressOfALineLeadsToASiteInClear(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty})
	edge := l.Host(lab.EdgeA)
	for _, to := range []string{"10.2.10.10", "10.2.20.10"} {
		for _, from := range []string{edgeA, secondA} {
			out, err := edge.Run(t.Context(), "ip", "route", "get", to, "from", from)
			if err == nil {
				assert.Contains(t, out, "dev rw-", "from %s", from)
			}
		}
	}
	for _, from := range []string{edgeA, secondA} {
		out, err := edge.Run(t.Context(), "ip", "route", "get", edgeB, "from", from)
		require.NoError(t, err)
		device := map[string]string{edgeA: "dev wan0", secondA: "dev lte0"}[from]
		assert.Contains(t, out, device, "an answer from %s", from)
		out, err = edge.Run(t.Context(), "ip", "route", "get", "10.1.10.10", "from", from)
		require.NoError(t, err)
		assert.Contains(t, out, "dev voice0", "an answer from %s to a phone", from)
	}
}

// Sites return to the preferred line once it has been well for half a minute. No packet is lost by that.
func TestLongTheFirstLineIsTakenAgain(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty})
	provider := l.Host(lab.Provider)
	heardAt := func(address string) func() bool {
		return func() bool { return strings.Contains(statusText(t, l.Edge("b")), address) }
	}
	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a down"))
	require.True(t, polled(5*time.Second, heardAt(secondA)))
	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a up"))
	k := talking(t, l, 5, 45*time.Second)
	require.True(t, polled(40*time.Second, heardAt(edgeA)), "berlin stays on its second line")
	k.unharmed()
	nothingForeign(t, provider)
}

// goesBy demands that what a host sends to a server arrives from an address, the second time at the latest: with the
// first packet by another line the kernel ends what it had translated for the one before.
func goesBy(t *testing.T, sender, receiver net.PacketConn, to, from string) {
	t.Helper()
	got := make([]byte, 100)
	for range 2 {
		sendUDP(t, sender, to, "hello")
		require.NoError(t, receiver.SetReadDeadline(time.Now().Add(time.Second)))
		if _, at, err := receiver.ReadFrom(got); err == nil {
			assert.Contains(t, at.String(), from+":")
			return
		}
	}
	require.Fail(t, "nothing arrives")
}

// reachedWithin demands that a host is reached by another within a time.
func reachedWithin(t *testing.T, l *lab.Lab, from, to string, limit time.Duration) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		_, err := l.Host(from).Run(t.Context(), "ping", "-n", "-c", "1", "-W", "0.2", to)
		if err == nil {
			return
		}
		require.True(t, time.Now().Before(end), "%s does not reach %s within %s: %v", from, to, limit, err)
	}
}

func nothingForeign(t *testing.T, provider *lab.Host) {
	t.Helper()
	out, err := provider.Run(t.Context(), "nft", "list", "counters")
	require.NoError(t, err)
	assert.Contains(t, out, "packets 0 bytes 0", "packets came by a line that their address is not of")
}

func statusText(t *testing.T, e *lab.Edge) string {
	t.Helper()
	out, err := e.Ringway(within(t, 5*time.Second), "status")
	require.NoError(t, err)
	return out
}
