package vm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// linkLocal waits for the link-local address of a device.
func linkLocal(t *testing.T, try func(args ...string) (string, error), device string) (address string) {
	t.Helper()
	polltest.Require(t, func() bool {
		out, _ := try("ip", "-6", "-o", "addr", "show", "dev", device, "-tentative")
		for _, f := range strings.Fields(out) {
			if strings.HasPrefix(f, "fe80:") {
				address, _, _ = strings.Cut(f, "/")
			}
		}
		return address != ""
	}, 20*time.Second, 50*time.Millisecond, "%s has no link-local address", device)
	return address
}

// Both LANs are VLANs of one network card: who does not tag reaches nothing there, neither by IP nor by ARP.
//
//	neighbour eth0, eth0.20 10.1.10.9 -- lan0, lan0.20 10.1.10.1 berlin
func TestTheCardUnderVLANsIsClosed(t *testing.T) {
	inGuest(t)
	e, neighbour := newEdge(t, "berlin"), netnstest.New(t)
	wan := netnstest.New(t)
	netnstest.Veth(t, e.NS, "wan0", wan, "eth0")
	netnstest.Veth(t, e.NS, "lan0", neighbour, "eth0")
	neighbour.IP(
		"link add link eth0 name eth0.20 type vlan id 20", "link set eth0.20 up", "addr add 10.1.10.9/24 dev eth0.20",
		"addr add 192.168.7.2/24 dev eth0", "route add 10.1.20.1/32 dev eth0",
	)
	e.run("ip", "addr", "add", "192.168.7.1/24", "dev", "lan0")
	pings := func(to string) bool {
		_, err := neighbour.Try("ping", "-n", "-q", "-c", "1", "-W", "2", to)
		return err == nil
	}
	require.True(t, pings("192.168.7.1"), "the wire is not there")
	neighbour.Run("ip", "neigh", "flush", "dev", "eth0")

	e.write("ringway.yaml", variant(t, "branch-berlin.yaml", nil, map[string]string{
		"voice[0].interface": "lan0", "voice[0].vlan": "20",
		"data[0].interface": "lan0", "data[0].vlan": "30",
		"sites[munich].public_key": otherKey(t),
	}))
	e.start()
	polltest.Require(t, func() bool { return pings("10.1.10.1") }, 20*time.Second, 100*time.Millisecond, "tagged")
	neighbour.Run("ip", "neigh", "replace", "192.168.7.1", "lladdr", mac(t, e), "dev", "eth0", "nud", "permanent")
	untagged := linkLocal(t, e.try, "lan0")
	linkLocal(t, func(args ...string) (string, error) { return neighbour.Try(args[0], args[1:]...) }, "eth0")
	neighbour.Run("ip", "neigh", "replace", untagged, "lladdr", mac(t, e), "dev", "eth0", "nud", "permanent")
	for _, to := range []string{untagged + "%eth0", "192.168.7.1"} {
		assert.False(t, pings(to), "untagged to %s", to)
	}
	assert.Positive(t, e.status().Drops["parent_lan"].Packets)
	assert.True(t, pings("10.1.10.1"))

	assert.False(t, pings("10.1.20.1"))
	assert.NotContains(t, neighbour.Run("ip", "neigh", "show", "10.1.20.1", "dev", "eth0"), "lladdr", "ARP is answered")
}

func mac(t *testing.T, e *edge) string {
	t.Helper()
	_, rest, ok := strings.Cut(e.run("ip", "-o", "link", "show", "dev", "lan0"), "link/ether ")
	require.True(t, ok)
	address, _, _ := strings.Cut(rest, " ")
	return address
}

// otherKey is the public key of a site that is not there.
func otherKey(t *testing.T) string {
	t.Helper()
	k, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	return k.Public().String()
}
