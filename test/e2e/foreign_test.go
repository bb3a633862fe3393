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

// Others change what Ringway needs, in a call: forwarding and reverse path filters, which the kernel reports, a sysctl
// that it does not report, a peer of a tunnel. Each is put back, and the call goes on.
func TestWhatOthersChangeIsPutBack(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	must := func(command string) string {
		t.Helper()
		out, err := e.Run(t.Context(), "sh", "-c", command)
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	s := status(t, e)
	voice, _ := s.Tunnel(tunnel.Voice)
	require.Len(t, voice.Peers, 1)
	key := voice.Peers[0].PublicKey.String()

	calls := talking(t, l, 2, 25*time.Second)
	for _, c := range []struct {
		name, change, look, want string
		within                   time.Duration
	}{
		{"marks in reverse path look-ups", "sysctl -q -w net.ipv4.conf.rw-voice.src_valid_mark=0",
			"sysctl -n net.ipv4.conf.rw-voice.src_valid_mark", "1", 4 * time.Second},
		{"forwarding", "sysctl -q -w net.ipv4.ip_forward=0", "sysctl -n net.ipv4.ip_forward", "1", time.Second},
		{"forwarding of IPv6", "sysctl -q -w net.ipv6.conf.all.forwarding=0", "sysctl -n net.ipv6.conf.all.forwarding", "1",
			time.Second},
		{"reverse path filter", "sysctl -q -w net.ipv4.conf.wan0.rp_filter=0", "sysctl -n net.ipv4.conf.wan0.rp_filter", "1",
			time.Second},
		{"a peer", "wg set rw-voice peer " + key + " remove", "wg show rw-voice peers", key, 3 * time.Second},
		{"a peer's networks", "wg set rw-voice peer " + key + " allowed-ips 10.9.9.0/24",
			"wg show rw-voice allowed-ips | grep -c 10.2.10.0/24; true", "1", 3 * time.Second},
	} {
		must(c.change)
		began := time.Now()
		assert.True(t, polled(c.within, func() bool { return must(c.look) == c.want }), "%s after %s: %q", c.name, c.within,
			must(c.look))
		t.Logf("%s: back after %s", c.name, time.Since(began).Round(time.Millisecond))
	}
	h, result := calls.heard()
	assert.Equal(t, 2, result.Completed, result.Why)
	// The longest is the sysctl that is looked at every three seconds, or the handshake with a peer that was new.
	t.Logf("voice stopped for %s at most", stopped(h))
	assert.Less(t, stopped(h), 4*time.Second)
}
