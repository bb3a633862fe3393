package rtnl_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/routing"
	"ringway/test/enginetest"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
)

// A default route that is locked does not follow a forged ICMP message about the path's MTU, even for a socket that
// believes such messages, as the kernel's WireGuard does. One that is not locked follows it.
func TestALockedRouteIgnoresForgedICMP(t *testing.T) {
	box, stranger := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, box, "wan0", stranger, "eth0")
	stranger.Run("ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
	in := routing.Input{
		WANs:  []routing.Upstream{{Interface: "wan0", Addresses: pfx("198.51.100.2/24"), Gateways: addr("198.51.100.1")}},
		Marks: marks,
	}
	require.NoError(t, box.Do(func() error {
		udp4, udp6, err := descriptor.OpenUDP(51820, 0, 0, tunnel.Bounds{})
		if err != nil {
			return err
		}
		t.Cleanup(func() { udp4.Close(); udp6.Close() })
		c, err := udp4.SyscallConn()
		if err != nil {
			return err
		}
		var optErr error
		if err := c.Control(func(fd uintptr) {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT)
		}); err != nil {
			return err
		}
		return optErr
	}))
	end := netip.MustParseAddrPort("203.0.113.2:51820")
	forge := func() {
		t.Helper()
		require.NoError(t, stranger.Do(func() error {
			return enginetest.SendTooBig(netip.MustParseAddr("198.51.100.2"), end, 600)
		}))
	}
	route := func() string { return box.Run("ip", "route", "get", end.Addr().String()) }

	for _, locked := range []bool{true, false} {
		in.LockedMTUs = nil
		if locked {
			in.LockedMTUs = map[string]int{"wan0": 1400}
		}
		want := routing.Want(in)
		apply(t, box, routing.Diff(want, observe(t, box, want)))
		require.Empty(t, texts(routing.Diff(want, observe(t, box, want))), "the lock reads back")
		heard := box.Run("nstat", "-asz", "IcmpInDestUnreachs")
		forge()
		polltest.Require(t, func() bool { return box.Run("nstat", "-asz", "IcmpInDestUnreachs") != heard },
			5*time.Second, time.Millisecond)
		if locked {
			assert.Contains(t, box.Run("ip", "route", "show", "default"), "mtu lock 1400")
			assert.NotContains(t, route(), "mtu 600")
			continue
		}
		polltest.Require(t, func() bool { return strings.Contains(route(), "mtu 600") }, 5*time.Second,
			time.Millisecond, "the forgery is a good one")
	}
}
