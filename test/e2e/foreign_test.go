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
func TestLongWhatOthersChangeIsPutBack(t *testing.T) {
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

// problemSaid waits until the status has, or no longer has, a problem about a subject, and returns its text and action.
func problemSaid(t *testing.T, e *lab.Edge, component, subject string, there bool) (text string) {
	t.Helper()
	ok := polled(10*time.Second, func() bool {
		text = ""
		s, err := e.Status(t.Context())
		if err != nil {
			return false
		}
		for _, p := range s.Problems {
			if p.Component == component && p.Subject == subject {
				text = p.Text + "; " + p.Action
			}
		}
		return (text != "") == there
	})
	require.True(t, ok, "problem %s %s: want %v", component, subject, there)
	return text
}

// Routes and rules of others that take the packets of calls are named, with the command that removes them. What is
// Ringway's own is back at once, without the daemon being asked.
func TestRoutesAndRulesOfOthersAreNamed(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	must := func(command string) string {
		t.Helper()
		out, err := e.Run(t.Context(), "sh", "-c", command)
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	reaches := func() bool {
		_, err := l.Host(lab.PhoneA).Run(within(t, 5*time.Second), "ping", "-n", "-c", "1", "-W", "1", "10.2.10.10")
		return err == nil
	}
	for _, p := range status(t, e).Problems {
		assert.NotEqual(t, "routes", p.Component, "%s", p)
	}

	// Ciphertext now goes to a neighbour that is not there: calls are dead, and it is said why.
	must("ip route add default via 198.51.100.77 metric 0")
	text := problemSaid(t, e, "routes", "default wan0", true)
	assert.Contains(t, text, `"ip -4 route add default via 198.51.100.77 dev wan0 table 254 proto 3"`)
	assert.False(t, reaches(), "the route takes the tunnels' packets")
	out, err := e.Ringway(within(t, 20*time.Second), "plan", "/etc/ringway/ringway.yaml")
	require.NoError(t, err)
	assert.Contains(t, out, "# warning: another program's default route takes precedence over the WAN's")
	must(strings.Split(text, "`")[1])
	problemSaid(t, e, "routes", "default wan0", false)
	assert.True(t, polled(10*time.Second, reaches))

	// In a table of Ringway's it is removed.
	must("ip route add 10.2.10.0/25 dev wan0 table 5271")
	assert.True(t, polled(time.Second, func() bool {
		return !strings.Contains(must("ip route show table 5271"), "10.2.10.0/25")
	}))

	// All rules are flushed: Ringway's are back, and what is the kernel's is named.
	rules := must("ip -6 rule show | grep -c 52")
	must("ip -6 rule flush")
	assert.True(t, polled(time.Second, func() bool { return must("ip -6 rule show | grep -c 52; true") == rules }))
	text = problemSaid(t, e, "routes", "IPv6 rule 32766", true)
	must(strings.Split(text, "`")[1])
	problemSaid(t, e, "routes", "IPv6 rule 32766", false)
}

// A chain of another program drops what it does not accept: calls are dead, and status, plan and check name the chain.
func TestLongChainsOfOthersAreNamed(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	reaches := func() bool {
		_, err := l.Host(lab.PhoneA).Run(within(t, 5*time.Second), "ping", "-n", "-c", "1", "-W", "1", "10.2.10.10")
		return err == nil
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := e.Ringway(within(t, 20*time.Second), args...)
		require.NoError(t, err)
		return out
	}
	const config = "/etc/ringway/ringway.yaml"
	require.True(t, reaches())
	assert.NotContains(t, run("check", config)+run("plan", config), "nftables chain")

	for _, hook := range []string{"forward", "output", "input"} {
		subject := "table inet theirs chain " + hook
		_, err := e.RunInput(t.Context(), "table inet theirs {\n chain "+hook+" {\n type filter hook "+hook+
			" priority 0; policy drop;\n iifname lo accept\n oifname lo accept\n }\n}\n", "nft", "-f", "-")
		require.NoError(t, err)
		text := problemSaid(t, e, "firewall", subject, true)
		assert.Contains(t, text, "drops what it does not accept itself")
		assert.False(t, reaches(), hook)
		assert.Contains(t, run("plan", config), "# warning: "+subject)
		assert.Contains(t, run("check", config), "this machine: "+subject)

		_, err = e.Run(t.Context(), "nft", "delete", "table", "inet", "theirs")
		require.NoError(t, err)
		problemSaid(t, e, "firewall", subject, false)
		assert.True(t, polled(15*time.Second, reaches), hook)
	}
}
