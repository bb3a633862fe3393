package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/tunnel"
)

// stockFarEnd tells berlin that munich has one tunnel.
func stockFarEnd(site string, values map[string]string) {
	if site == "berlin" {
		values["sites[munich].tunnels"] = "voice"
	}
}

// Stock wireguard-go at the far end, with the one tunnel that any WireGuard has: phones and PCs reach each
// other both ways.
func TestStockFarEnd(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{StockFarEnd: true, EdgeConfig: stockFarEnd})
	for _, c := range []struct{ from, to string }{
		{lab.PhoneA, "10.2.10.10"}, {lab.PhoneB, "10.1.10.10"}, {lab.PCA, "10.2.20.10"}, {lab.PCB, "10.1.20.10"},
		{lab.PCA, "2001:db8:2:20::10"}, {lab.PhoneB, "2001:db8:1:10::10"},
	} {
		_, err := l.Host(c.from).Run(t.Context(), "ping", "-n", "-c", "2", "-i", "0.1", "-W", "2", c.to)
		assert.NoError(t, err)
	}
	talking(t, l, 4, 4*time.Second).unharmed()
	s := status(t, l.Edge("a"))
	voice, _ := s.Tunnel(tunnel.Voice)
	require.Len(t, voice.Peers, 1)
	data, _ := s.Tunnel(tunnel.Data)
	assert.Empty(t, data.Peers)
	// wg(8) shows a plane as it shows any device.
	out, err := l.Edge("a").Run(t.Context(), "wg", "show", "rw-voice", "latest-handshakes")
	require.NoError(t, err)
	key, seconds, ok := strings.Cut(strings.TrimSpace(out), "\t")
	require.True(t, ok, out)
	assert.Equal(t, voice.Peers[0].PublicKey.String(), key)
	assert.Equal(t, strconv.FormatInt(voice.Peers[0].LastHandshake.Unix(), 10), seconds)
}

// A call that outlives two keys, with WireGuard's real timers (a session of 120 s, section 6.2 of its paper),
// whoever began it.
func TestRekeyWithStockFarEnd(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_REKEY") == "" {
		t.Skip("takes over four minutes: make test-rekey")
	}
	l := branches(t, lab.Options{StockFarEnd: true, EdgeConfig: stockFarEnd})
	shakes := func() time.Time {
		voice, _ := status(t, l.Edge("a")).Tunnel(tunnel.Voice)
		require.Len(t, voice.Peers, 1)
		return voice.Peers[0].LastHandshake
	}
	first := shakes()
	k := talking(t, l, 2, 250*time.Second)
	k.unharmed()
	last := shakes()
	assert.Greater(t, last.Sub(first), 235*time.Second, "two re-keys")
	_, err := l.Host(lab.PCB).Run(t.Context(), "ping", "-n", "-c", "2", "-i", "0.1", "10.1.20.10")
	assert.NoError(t, err)
}

// The same between two Ringways.
func TestRekeyBetweenRingways(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_REKEY") == "" {
		t.Skip("takes over two minutes: make test-rekey")
	}
	l := branches(t, lab.Options{WAN: twenty})
	k := talking(t, l, 2, 130*time.Second)
	k.unharmed()
	voice, _ := status(t, l.Edge("a")).Tunnel(tunnel.Voice)
	assert.Less(t, time.Since(voice.Peers[0].LastHandshake), 30*time.Second)
}
