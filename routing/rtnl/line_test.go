package rtnl_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/routing"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// The mark of a connection's line leads to the WAN of that line, except for a site and for our own LANs, and except
// where the line has no carrier or is silent: there the default route decides.
func TestTheMarkOfALine(t *testing.T) {
	in := branch()
	in.WANs = []routing.Upstream{
		{Interface: "wan0", Addresses: pfx("198.51.100.2/24"), Gateways: addr("198.51.100.1")},
		{Interface: "lte0", Addresses: pfx("192.0.2.2/24"), Gateways: addr("192.0.2.1")},
	}
	in.Marks.Lines, in.Marks.LineMask = map[string]uint32{"wan0": 0x60, "lte0": 0x160}, 0x1e0
	box, far := newBox(t), netnstest.New(t)
	netnstest.Veth(t, box, "lte0", far, "eth0")
	set := func() {
		want := routing.Want(in)
		apply(t, box, routing.Diff(want, observe(t, box, want)))
		assert.Empty(t, texts(routing.Diff(want, observe(t, box, want))), "applied twice")
	}
	set()
	box.Run("ip", "link", "set", "rw-voice", "up")
	route := func(to, mark string) string {
		out, err := box.Try("ip", "route", "get", to, "from", "10.1.10.2", "iif", "voice0", "mark", mark)
		if err != nil {
			return err.Error()
		}
		return out
	}
	const host = "203.0.113.9"
	assert.Contains(t, route(host, "0x600"), "dev wan0")
	assert.Contains(t, route(host, "0x660"), "dev wan0")
	assert.Contains(t, route(host, "0x760"), "dev lte0")
	assert.Contains(t, route("10.1.10.3", "0x760"), "dev voice0", "a LAN of ours")
	for _, mark := range []string{"0x160", "0x60"} { // without the class, as where the firewall is gone
		assert.NotContains(t, route("10.2.10.9", mark), "lte0", "a site")
		assert.NotContains(t, route("10.2.10.9", mark), "wan0", "a site")
	}

	far.Run("ip", "link", "set", "eth0", "down")
	polltest.Require(t, func() bool {
		return strings.Contains(route(host, "0x760"), "dev wan0")
	}, 5*time.Second, 10*time.Millisecond, "without a carrier the default route decides")
	far.Run("ip", "link", "set", "eth0", "up")
	in.Silent = []string{"lte0"}
	set()
	assert.Contains(t, route(host, "0x760"), "dev wan0", "silent")
}
