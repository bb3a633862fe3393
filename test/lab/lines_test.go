package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/polltest"
)

// What each event does to a line is what the kernel then says; and of all of it nothing stays. The edge without a
// carrier gives its addresses up, and sends by the other line.
func TestEventsChangeALine(t *testing.T) {
	t.Parallel()
	l := baseline(t, Options{Lines: 2, WAN: 20 * qos.Mbit, Delay: time.Millisecond, NoCalls: true})
	p, edge := l.pairs[0], l.Host(EdgeA)
	run := func(h *Host, name string, args ...string) string {
		t.Helper()
		out, err := h.Run(t.Context(), name, args...)
		require.NoError(t, err)
		return out
	}
	change := func(f func(*lineState)) { require.NoError(t, p.change(t.Context(), "wan0", f)) }
	leavesBy := func(device string) func() bool {
		return func() bool {
			out, err := edge.Run(t.Context(), "ip", "route", "get", "203.0.113.2")
			return err == nil && strings.Contains(out, "dev "+device)
		}
	}
	delivers := func(device string) bool {
		_, err := edge.Run(t.Context(), "ping", "-n", "-c", "1", "-W", "0.5", "-I", device, "203.0.113.2")
		return err == nil
	}
	const patience, often = 10 * time.Second, 20 * time.Millisecond
	rules := run(p.Line("wan0"), "nft", "list", "ruleset")
	assert.True(t, leavesBy("wan0")())

	change(func(s *lineState) { s.cut = true })
	polltest.Require(t, leavesBy("wan1"), patience, often, "the edge has not left the line that is cut")
	assert.NotContains(t, run(edge, "ip", "address", "show", "dev", "wan0"), "198.51.100.2")
	change(func(s *lineState) { s.cut = false })
	polltest.Require(t, leavesBy("wan0"), patience, often, "the edge has not taken the line again")

	change(func(s *lineState) { s.hole = true })
	assert.False(t, delivers("wan0"), "a hole")
	assert.True(t, delivers("wan1"), "the other line")
	assert.True(t, leavesBy("wan0")(), "the carrier is still there")
	change(func(s *lineState) { s.hole = false })
	polltest.Require(t, func() bool { return delivers("wan0") }, patience, often, "the line delivers again")

	change(func(s *lineState) { s.loss = 0.99 })
	out, _ := edge.Run(t.Context(), "ping", "-n", "-q", "-f", "-c", "100", "-w", "2", "-I", "wan0", "203.0.113.2")
	assert.Regexp(t, ` (9[0-9]|100)(\.\d+)?% packet loss`, out)
	change(func(s *lineState) { s.loss = 0 })

	change(func(s *lineState) { s.rate = 5 * qos.Mbit })
	for _, device := range []string{lineNear, lineFar} {
		assert.Contains(t, run(p.Line("wan0"), "tc", "qdisc", "show", "dev", device), "rate 5Mbit")
	}
	assert.Contains(t, run(p.Line("wan1"), "tc", "qdisc", "show", "dev", lineNear), "rate 20Mbit", "the other line")

	counted := func(s string) string { return strings.Join(strings.Fields(s)[:10], " ") } // before the counters
	assert.Equal(t, counted(rules), counted(run(p.Line("wan0"), "nft", "list", "ruleset")))
	before, err := p.carried()
	require.NoError(t, err)
	assert.True(t, delivers("wan1"))
	after, err := p.carried()
	require.NoError(t, err)
	assert.Positive(t, since(before, after)[1].Sent)
	assert.Zero(t, after[0].Sent)
}

// A packet with an address that is not the line's is dropped there (BCP 38), and counted.
func TestALineDropsForeignAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		family           Family
		foreign, to, own string
	}{
		{IPv4, "192.0.2.2", "203.0.113.2", `198\.51\.100\.0/24`},
		{IPv6, "2001:db8:c::2", "2001:db8:b::2", "2001:db8:a::/64"},
	} {
		l := baseline(t, Options{Underlay: c.family, Overlay: c.family, Lines: 2, NoCalls: true})
		_, err := l.Host(EdgeA).Run(t.Context(), "ping", "-n", "-c", "1", "-W", "0.5", "-I", c.foreign, c.to)
		require.Error(t, err, "by the first line, with the second one's address")
		out, err := l.pairs[0].Line("wan0").Run(t.Context(), "nft", "list", "ruleset")
		require.NoError(t, err)
		assert.Regexp(t, `saddr != `+c.own+` counter packets [1-9]`, out)
	}
}

func TestLinksAreReadFromIPsMonitor(t *testing.T) {
	for line, want := range map[string][3]any{
		`2: wan0@if3: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue state LOWERLAYERDOWN group default \    link/ether …`: {"wan0", false, true},
		`2: wan0@if3: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP group default`:                                 {"wan0", true, true},
		`Deleted 2: wan0@if3: <BROADCAST,MULTICAST> mtu 1500`:                                                                          {"", false, false},
		``: {"", false, false},
	} {
		device, carrier, ok := parseLink(line)
		assert.Equal(t, want, [3]any{device, carrier, ok}, line)
	}
}
