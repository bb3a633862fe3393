package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

// twice has both boxes send voice twice.
func twice(site string, values map[string]string) {
	far := map[string]string{"berlin": "munich", "munich": "berlin"}[site]
	values["sites["+far+"].copies"] = "always"
}

// copying waits until both boxes send voice twice.
func copying(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, e := range []string{"a", "b"} {
		require.True(t, polled(10*time.Second, func() bool {
			return strings.Contains(pathsText(t, l.Edge(e)), "voice is sent twice")
		}), "%s: %s", e, pathsText(t, l.Edge(e)))
	}
}

func pathsText(t *testing.T, e *lab.Edge) string {
	t.Helper()
	out, err := e.Ringway(within(t, 5*time.Second), "paths")
	require.NoError(t, err)
	return out
}

// Voice goes by two lines. The one that carries the calls delivers nothing any more: no packet is lost, in neither
// direction. Nor when it delivers again.
func TestLongCopiesBridgeALineThatDeliversNothing(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: twice})
	provider := l.Host(lab.Provider)
	k := talking(t, l, 10, 8*time.Second)
	copying(t, l)
	deliversNothing(t, provider)
	require.True(t, polled(5*time.Second, func() bool { // either end may find it first; the other one follows
		return strings.Contains(pathsText(t, l.Edge("a")), "ago from 198.51.100.2 to 192.0.2.2: ")
	}), pathsText(t, l.Edge("a"))+pathsText(t, l.Edge("b")))
	out := pathsText(t, l.Edge("b"))
	assert.Contains(t, out, secondA+":", "the far end has followed")
	k.unharmed()
	metrics := pathsText(t, l.Edge("a"))
	assert.Regexp(t, `copies sent: [1-9][0-9]*, not sent: 0, received and removed: [1-9]`, metrics)
	nothingForeign(t, provider)
}

// Both lines lose 5 %, in both directions. With copies at most 0.4 % remain; one line is cut, and what is lost then is
// at most what the other one loses.
func TestLongCopiesOfTwoLinesThatLose(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: twice})
	provider := l.Host(lab.Provider)
	k := talking(t, l, 10, 13*time.Second)
	copying(t, l)
	_, err := provider.RunInput(t.Context(), `table inet loss {
	chain forward {
		type filter hook forward priority 1;
		iifname { "wan-a", "lte-a" } numgen random mod 100 < 5 drop
		oifname { "wan-a", "lte-a" } numgen random mod 100 < 5 drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	h, _ := k.heard()
	sent, lost := count(h)
	t.Logf("two lines of 5 %%: %d voice packets, %d lost, %.2f %%, longest silence %s", sent, lost,
		100*float64(lost)/float64(sent), silence(h))
	assert.GreaterOrEqual(t, sent, 10_000, "more than 30,000: tunnel/path")
	assert.LessOrEqual(t, float64(lost), 0.004*float64(sent))

	k = talking(t, l, 10, 5*time.Second)
	copying(t, l)
	deliversNothing(t, provider)
	h, _ = k.heard()
	sent, lost = count(h)
	t.Logf("one of them is cut: %d voice packets, %d lost, %.2f %%, longest silence %s", sent, lost,
		100*float64(lost)/float64(sent), silence(h))
	assert.LessOrEqual(t, float64(lost), 0.05*float64(sent))
}

// One line that loses 5 %: a copy by the same line, a moment later, saves nearly all.
func TestLongCopiesByTheSameLine(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: twice})
	k := talking(t, l, 5, 6*time.Second)
	copying(t, l)
	assert.Contains(t, pathsText(t, l.Edge("a")), "the second time 20 ms later by the same line")
	_, err := l.Host(lab.Provider).RunInput(t.Context(), `table inet loss {
	chain forward {
		type filter hook forward priority 1;
		iifname "wan-a" numgen random mod 100 < 5 drop
		oifname "wan-a" numgen random mod 100 < 5 drop
	}
}`, "nft", "-f", "-")
	require.NoError(t, err)
	h, _ := k.heard()
	sent, lost := count(h)
	t.Logf("one line of 5 %%: %d voice packets, %d lost, %.2f %%, longest silence %s", sent, lost,
		100*float64(lost)/float64(sent), silence(h))
	assert.LessOrEqual(t, float64(lost), 0.008*float64(sent))
}

// The far end is stock wireguard-go: it removes what it has, and answers to whichever copy came first. The line that
// carries the calls delivers nothing any more: without copies it is left after a second.
func TestLongCopiesToAStockFarEnd(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, StockFarEnd: true, EdgeConfig: func(site string, values map[string]string) {
		stockFarEnd(site, values)
		if site == "berlin" {
			values["sites[munich].copies"] = "always"
		}
	}})
	k := talking(t, l, 4, 6*time.Second)
	require.True(t, polled(10*time.Second, func() bool {
		return strings.Contains(pathsText(t, l.Edge("a")), "voice is sent twice")
	}))
	deliversNothing(t, l.Host(lab.Provider))
	h, _ := k.heard()
	sent, lost := count(h)
	assert.Less(t, lost, 20, "of %d; without copies it is a second of each call", sent)
	t.Logf("%d voice packets, %d lost, longest silence %s", sent, lost, silence(h))
}
