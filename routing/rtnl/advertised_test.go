package rtnl_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// What the kernel took of advertisements before the first start goes if it is in our own or in a site's network, with
// its address. The rest stays until its time, since calls of an earlier build may use it.
func TestAdvertisedNetworksOfOursGo(t *testing.T) {
	box, provider := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, provider, "up0", box, "wan0")
	netnstest.Veth(t, provider, "far-voice0", box, "voice0")
	box.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; "+
		"cd /proc/sys/net/ipv6/conf/wan0 && echo 2 > accept_ra && echo 80 > accept_ra_rt_info_max_plen")
	provider.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/up0/accept_dad; ip link set up0 down; ip link set up0 up")

	prefix := func(p string, autonomous bool) ndp.Option {
		return &ndp.PrefixInformation{
			Prefix: netip.MustParseAddr(p), PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: autonomous,
			ValidLifetime: time.Hour, PreferredLifetime: time.Hour,
		}
	}
	show := func() string {
		return box.Run("ip", "-6", "route", "show", "dev", "wan0") + box.Run("ip", "-6", "address", "show", "dev", "wan0")
	}
	intruders := []string{"fd01:10::/64", "fd02:10::/64", "fd02:10::/72"}
	polltest.Require(t, func() bool {
		err := provider.Do(func() error {
			ifc, err := net.InterfaceByName("up0")
			if err != nil {
				return err
			}
			c, _, err := ndp.Listen(ifc, ndp.LinkLocal)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.WriteTo(&ndp.RouterAdvertisement{RouterLifetime: time.Hour, Options: []ndp.Option{
				prefix("2001:db8:a::", true), prefix("fd01:10::", true), prefix("fd02:10::", false),
				&ndp.RouteInformation{Prefix: netip.MustParseAddr("fd02:10::"), PrefixLength: 72, RouteLifetime: time.Hour},
			}}, nil, netip.IPv6LinkLocalAllNodes())
		})
		now := show()
		for _, p := range append(intruders, "2001:db8:a::/64", "inet6 2001:db8:a:", "inet6 fd01:10:") {
			if err != nil || !strings.Contains(now, p) {
				return false
			}
		}
		return true
	}, 20*time.Second, 100*time.Millisecond)

	in := branch()
	in.WANs = []routing.Upstream{{Interface: "wan0", DHCP: true}}
	in.LANs, in.Tunnels = in.LANs[:1], nil
	want := routing.Want(in)
	apply := func() (made []string) {
		require.NoError(t, box.Do(func() error {
			have, err := rtnl.Observe(want)
			if err != nil {
				return err
			}
			changes := routing.Diff(want, have)
			made = routing.Text(changes)
			return rtnl.Apply(changes)
		}))
		return made
	}
	apply()
	now := show()
	for _, p := range append(intruders, "inet6 fd01:10:") {
		assert.NotContains(t, now, p)
	}
	assert.Contains(t, now, "inet6 2001:db8:a:")
	assert.Contains(t, now, "default via fe80::")
	assert.Contains(t, box.Run("ip", "-6", "route", "get", "fd01:10::77"), "dev voice0")
	assert.Empty(t, apply(), "applied twice, the second finds nothing")
}
