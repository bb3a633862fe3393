package kernel

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"ringway/test/netnstest"
	"ringway/tunnel"
)

var (
	pubA = tunnel.PublicKey{1}
	pubB = tunnel.PublicKey{2}
	net1 = netip.MustParsePrefix("10.2.0.0/16")
	net6 = netip.MustParsePrefix("2001:db8:2::/48")
	ep1  = netip.MustParseAddrPort("203.0.113.2:51820")
	ep2  = netip.MustParseAddrPort("203.0.113.9:40000")
)

func wanted() tunnel.Device {
	return tunnel.Device{
		Class: tunnel.Data, FwMark: 0x4000, PrivateKey: tunnel.PrivateKey{9},
		Settings: tunnel.Settings{Interface: "rw-data", ListenPort: 51821, MTU: 1420},
		Peers: []tunnel.Peer{{
			Site: "munich", PublicKey: pubA, Endpoint: ep1,
			AllowedIPs: []netip.Prefix{net1, net6}, Keepalive: 25 * time.Second,
		}},
	}
}

func observed(endpoint netip.AddrPort) *wgtypes.Device {
	return &wgtypes.Device{
		PrivateKey: wgtypes.Key(tunnel.PrivateKey{9}), ListenPort: 51821, FirewallMark: 0x4000,
		Peers: []wgtypes.Peer{{
			PublicKey: wgtypes.Key(pubA), Endpoint: net.UDPAddrFromAddrPort(endpoint),
			PersistentKeepaliveInterval: 25 * time.Second,
			AllowedIPs: []net.IPNet{
				{IP: net6.Addr().AsSlice(), Mask: net.CIDRMask(48, 128)},
				{IP: net1.Addr().AsSlice(), Mask: net.CIDRMask(16, 32)},
			},
		}},
	}
}

func TestAppliedTwiceChangesNothing(t *testing.T) {
	_, changed := difference(wanted(), observed(ep1), before(ep1, 1))
	assert.False(t, changed)
}

// before is what was wanted before: one peer.
func before(endpoint netip.AddrPort, news int) []tunnel.Peer {
	return []tunnel.Peer{{PublicKey: pubA, Endpoint: endpoint, EndpointRevision: news}}
}

func TestARoamedPeerKeepsItsEndpoint(t *testing.T) {
	_, changed := difference(wanted(), observed(ep2), before(ep1, 1))
	assert.False(t, changed, "a reload must not send a roamed peer back to where it was")
	_, changed = difference(wanted(), observed(ep2), nil)
	assert.False(t, changed, "nor must a daemon that has just started")
	w := wanted()
	w.Peers[0].Endpoint = netip.MustParseAddrPort("203.0.113.77:51820")
	cfg, changed := difference(w, observed(ep2), before(ep1, 1))
	require.True(t, changed)
	assert.Equal(t, "203.0.113.77:51820", cfg.Peers[0].Endpoint.String(), "a new address in the config does")
}

func TestANewMeaningOfAnAddressIsToldAfterARestart(t *testing.T) {
	w := wanted()
	w.Peers[0].Endpoint, w.Peers[0].EndpointRevision = netip.MustParseAddrPort("203.0.113.77:51820"), 1
	cfg, changed := difference(w, observed(ep2), nil)
	require.True(t, changed)
	require.Len(t, cfg.Peers, 1)
	assert.Equal(t, "203.0.113.77:51820", cfg.Peers[0].Endpoint.String())
	_, changed = difference(w, observed(w.Peers[0].Endpoint), nil)
	assert.False(t, changed, "it is there already")
	_, changed = difference(w, observed(ep2), before(w.Peers[0].Endpoint, 1))
	assert.False(t, changed, "it was told, and the peer roamed since")
	w.Peers[0].EndpointRevision = 2
	_, changed = difference(w, observed(ep2), before(w.Peers[0].Endpoint, 1))
	assert.True(t, changed, "it is silent there: told once more")
}

func TestOnlyWhatDiffersIsSent(t *testing.T) {
	w := wanted()
	w.Peers[0].PublicKey = pubB
	cfg, changed := difference(w, observed(ep1), nil)
	require.True(t, changed)
	assert.Nil(t, cfg.PrivateKey, "setting the key again would end every session")
	assert.Nil(t, cfg.ListenPort)
	require.Len(t, cfg.Peers, 2)
	assert.False(t, cfg.Peers[0].Remove)
	assert.True(t, cfg.Peers[1].Remove)
	assert.Equal(t, wgtypes.Key(pubA), cfg.Peers[1].PublicKey)
}

// Whether or not the kernel has WireGuard, the probe says so without an error and leaves no device.
func TestProbeLeavesNothing(t *testing.T) {
	ns := netnstest.New(t)
	before := ns.Run("ip", "-br", "link")
	require.NoError(t, ns.Do(func() error { _, err := Supported(); return err }))
	assert.Equal(t, before, ns.Run("ip", "-br", "link"))
}

// Each endpoint is told again, which clears the address that the kernel sends from, and each peer that knows us hears
// something: an interval that begins sends a keepalive. The intervals are at last what they were.
func TestReroute(t *testing.T) {
	have := observed(ep1)
	idle, stranger, elsewhere, unknown := have.Peers[0], have.Peers[0], have.Peers[0], have.Peers[0]
	idle.PublicKey, idle.PersistentKeepaliveInterval, idle.LastHandshakeTime = wgtypes.Key(pubB), 0, time.Now()
	stranger.PublicKey, stranger.PersistentKeepaliveInterval = wgtypes.Key{3}, 0
	elsewhere.PublicKey = wgtypes.Key{4}
	unknown.PublicKey, unknown.Endpoint = wgtypes.Key{5}, nil
	have.Peers = append(have.Peers, idle, stranger, elsewhere, unknown)

	told := map[wgtypes.Key][]string{}
	for _, step := range reroute(have, tunnel.Reroute{Keys: []tunnel.PublicKey{pubA, pubB, {3}, {5}}}) {
		for _, p := range step.Peers {
			assert.True(t, p.UpdateOnly)
			said := p.PersistentKeepaliveInterval.String()
			if p.Endpoint != nil {
				said += " at " + p.Endpoint.String()
			}
			told[p.PublicKey] = append(told[p.PublicKey], said)
		}
	}
	assert.Equal(t, map[wgtypes.Key][]string{
		wgtypes.Key(pubA): {"0s at " + ep1.String(), "25s"},
		wgtypes.Key(pubB): {"0s at " + ep1.String(), "1s", "0s"},
		{3}:               {"0s at " + ep1.String()},
	}, told)
}
