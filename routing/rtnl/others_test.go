package rtnl_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing"
)

// What others add beside Ringway's is named if it takes packets of ours, in the words of the tool that undoes it; what
// does not is left out.
func TestOthersThatTakePackets(t *testing.T) {
	box := newBox(t)
	in := branch()
	in.Endpoints = []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:9::2")}
	want := routing.Want(in)
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	box.IP("link add mgmt0 type veth peer name mgmt1", "link set mgmt0 up", "link set mgmt1 up",
		"addr add 192.168.77.1/24 dev mgmt0", "addr add fd77::1/64 dev mgmt0 nodad")
	say := func() (said []string) {
		for _, i := range routing.Intrusions(want, observe(t, box, want)) {
			how := "warning"
			if i.Severe {
				how = "critical"
			}
			said = append(said, fmt.Sprintf("%s: %s", how, i.Subject))
			assert.NotEmpty(t, i.Action)
		}
		return said
	}
	require.Empty(t, say())

	for _, c := range []struct{ add, said string }{
		{"route add default via 192.168.77.2 metric 0", "critical: default mgmt0"},
		{"route add default via 192.168.77.2 metric 100", ""},
		{"route add default via 198.51.100.1 dev wan0 metric 5", ""}, // it leads where ours does
		{"-6 route add default via fd77::2 metric 1", "critical: default (IPv6) mgmt0"},
		{"-6 route add default via fd77::2 metric 2048", ""},
		{"route add 0.0.0.0/1 via 192.168.77.2", "critical: 0.0.0.0/1 mgmt0"},
		{"-6 route add 2000::/3 via fd77::2", "critical: 2000::/3 mgmt0"},
		{"route add blackhole 128.0.0.0/1", "critical: 128.0.0.0/1"},
		{"route add 203.0.113.0/24 via 192.168.77.2", "warning: 203.0.113.0/24 mgmt0"},
		{"-6 route add 2001:db8:9::/48 via fd77::2", "warning: 2001:db8:9::/48 mgmt0"},
		{"route add 203.0.114.0/24 via 192.168.77.2", ""},
		{"route add 10.0.0.0/8 via 192.168.77.2", ""},
		{"route add 10.1.10.128/25 via 192.168.77.2", "critical: 10.1.10.128/25 mgmt0"},
		{"route add 10.1.10.128/25 via 10.1.10.9", ""}, // a router in that network
		{"-6 route add fd01:10::/64 via fd77::2 metric 1", "critical: fd01:10::/64 mgmt0"},
		{"route add 10.2.10.8/30 via 192.168.77.2", "warning: 10.2.10.8/30 mgmt0"},
		{"rule add pref 100 lookup 100", "critical: IPv4 rule 100"},
		{"-6 rule add pref 100 lookup 100", "critical: IPv6 rule 100"},
		{"rule add pref 100 from 10.1.10.0/24 lookup 100", "warning: IPv4 rule 100"},
		{"rule add pref 100 from 192.168.77.1 lookup 100", ""},
		{"rule add pref 100 to 10.2.10.5 lookup 100", "warning: IPv4 rule 100"},
		{"rule add pref 100 to 203.0.113.2 lookup 100", "warning: IPv4 rule 100"},
		{"rule add pref 100 to 192.0.2.0/24 lookup 100", ""},
		{"rule add pref 100 iif mgmt0 lookup 100", ""},
		{"rule add pref 100 iif voice0 lookup 100", "warning: IPv4 rule 100"},
		{"rule add pref 100 fwmark 0x10000 lookup 100", ""},
		{"rule add pref 100 fwmark 0x1200/0x1200 lookup 100", "warning: IPv4 rule 100"},
		{"rule add pref 30000 lookup 100", ""}, // behind ours
	} {
		box.Run("ip", strings.Fields(c.add)...)
		assert.Equal(t, c.said, strings.Join(say(), "; "), c.add)
		box.Run("ip", strings.Fields(strings.Replace(c.add, " add ", " del ", 1))...)
	}
	assert.Empty(t, say())

	// The text names the route, and what to do is a command that does it.
	box.Run("ip", "route", "add", "default", "via", "192.168.77.2", "metric", "3")
	found := routing.Intrusions(want, observe(t, box, want))
	require.Len(t, found, 1)
	assert.Contains(t, found[0].Text, `"ip -4 route add default via 192.168.77.2 dev mgmt0 table 254 proto 3 metric 3"`)
	command := strings.Split(found[0].Action, "`")[1]
	box.Run("sh", "-c", command)
	assert.Empty(t, say(), command)

	// All rules flushed: ours come back, and the kernel's are named.
	box.Run("ip", "-6", "rule", "flush")
	assert.Equal(t, "critical: IPv6 rule 32766", strings.Join(say(), "; "))
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	found = routing.Intrusions(want, observe(t, box, want))
	require.Len(t, found, 1)
	assert.Equal(t, "add it with `ip -6 rule add pref 32766 lookup main`", found[0].Action)
	box.Run("sh", "-c", strings.Split(found[0].Action, "`")[1])
	assert.Empty(t, say())
}
