package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/tunnel"
)

// The second WAN of munich.
const (
	secondB   = "198.18.0.2"
	secondGWB = "198.18.0.1"
)

// hubAndBranch is berlin, a hub with two lines, which munich dials at both. berlin has no address of munich.
func hubAndBranch(t *testing.T, branchHasTwo bool) *lab.Lab {
	t.Helper()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["sites[munich].endpoint"] = ""
			return
		}
		values["sites[berlin].endpoint"] = "[" + edgeA + ", " + secondA + "]"
		if branchHasTwo {
			values["wan[+]"] = "{interface: lte0, address: " + secondB + "/24, gateway: " + secondGWB +
				", uplink: 20mbit, downlink: 20mbit}"
		}
	}})
	if branchHasTwo {
		secondLineOfMunich(t, l)
		require.True(t, polled(20*time.Second, func() bool {
			out, err := l.Host(lab.EdgeB).Run(t.Context(), "ip", "-4", "route", "get", edgeA, "from", secondB)
			return err == nil && strings.Contains(out, "via "+secondGWB)
		}), "the second WAN is not taken up")
	}
	return l
}

func secondLineOfMunich(t *testing.T, l *lab.Lab) {
	t.Helper()
	edge, provider := l.Host(lab.EdgeB), l.Host(lab.Provider)
	require.NoError(t, edge.IP(t.Context(), provider, "link add lte0 type veth peer name lte-b netns /proc/self/fd/3"))
	require.NoError(t, provider.IP(t.Context(), nil, "addr add "+secondGWB+"/24 dev lte-b", "link set lte-b up"))
}

// swallows has a line of the provider drop everything. Its carrier stays.
func swallows(t *testing.T, provider *lab.Host, line string) (heal func()) {
	t.Helper()
	_, err := provider.RunInput(t.Context(), `table inet swallow {
	chain forward {
		type filter hook forward priority 1;
		iifname "`+line+`" drop
		oifname "`+line+`" drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	return func() {
		t.Helper()
		_, err := provider.Run(t.Context(), "nft", "delete", "table", "inet", "swallow")
		require.NoError(t, err)
	}
}

// The hub's first line delivers nothing: calls are heard by its second one, and so is data. A NAT before the branch
// lets in what the branch has called alone. The line is well again: calls return to it, and lose nothing.
func TestLongTheHubsSecondLineIsFound(t *testing.T) {
	t.Parallel()
	l := hubAndBranch(t, false)
	provider := l.Host(lab.Provider)
	_, err := provider.RunInput(t.Context(), `table inet nat-of-munich {
	chain forward {
		type filter hook forward priority 2;
		oifname "wan-b" ct state established,related accept
		oifname "wan-b" drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	k := talking(t, l, 10, 8*time.Second)
	began := time.Now()
	heal := swallows(t, provider, "wan-a")
	reachedWithin(t, l, lab.PCB, "10.1.20.10", 8*time.Second-time.Since(began)) // data follows
	out, err := l.Edge("b").Ringway(within(t, 5*time.Second), "paths", "berlin")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^berlin +voice +192\.0\.2\.2:51820 +wan0 +203\.0\.113\.2 +198\.51\.100\.2 +no `, out)
	assert.Regexp(t, `(?m)^ +wan0 +203\.0\.113\.2 +192\.0\.2\.2 +yes +up `, out)
	assert.Regexp(t, `(?m)^berlin +data +192\.0\.2\.2:51821 `, out)
	// Either end may find it first; the other one follows.
	assert.Regexp(t, `(?m)^berlin voice: .* from \S+ - 198\.51\.100\.2 to \S+ - 192\.0\.2\.2: .*(received|heard)`, out)
	h, result := k.heard()
	sent, lost := count(h)
	assert.Less(t, silence(h), 300*time.Millisecond)
	assert.Equal(t, 10, result.Completed, result.Why)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))

	k = talking(t, l, 5, 42*time.Second)
	heal()
	require.True(t, polled(40*time.Second, func() bool {
		voice, _ := status(t, l.Edge("b")).Tunnel(tunnel.Voice)
		return len(voice.Peers) == 1 && voice.Peers[0].Endpoint.Addr().String() == edgeA
	}), "munich stays at berlin's second line")
	k.unharmed()
	nothingForeign(t, provider)
}

// Both ends have two lines, and one of each delivers nothing, the branch's first and then the hub's first.
func TestLongBothEndsLoseALine(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"wan-a", "wan-b"} {
		t.Run(line, func(t *testing.T) {
			l := hubAndBranch(t, true)
			k := talking(t, l, 10, 6*time.Second)
			swallows(t, l.Host(lab.Provider), line)
			h, result := k.heard()
			sent, lost := count(h)
			assert.Less(t, silence(h), 300*time.Millisecond)
			assert.Equal(t, 10, result.Completed, result.Why)
			t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
			if t.Failed() {
				for _, e := range []string{"a", "b"} {
					out, _ := l.Edge(e).Ringway(within(t, 5*time.Second), "paths")
					t.Log(out)
				}
			}
		})
	}
}

// The hub's first cable is pulled.
func TestLongTheHubsCableIsPulled(t *testing.T) {
	t.Parallel()
	l := hubAndBranch(t, false)
	k := talking(t, l, 10, 6*time.Second)
	require.NoError(t, l.Host(lab.Provider).IP(t.Context(), nil, "link set wan-a down"))
	h, result := k.heard()
	sent, lost := count(h)
	assert.Less(t, silence(h), 300*time.Millisecond)
	assert.Equal(t, 10, result.Completed, result.Why)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
}
