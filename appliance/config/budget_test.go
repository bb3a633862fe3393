package config

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

func slowBranch(uplink, extra string) string {
	return fmt.Sprintf(`site: berlin
wan: [{interface: wan0, address: 198.51.100.2/24, gateway: 198.51.100.1, uplink: %s%s}]
voice: [{interface: voice0, address: 10.1.10.1/24}]
sites:
  - {name: munich, public_key: EXAMPLE+munich+EXAMPLE+munich+EXAMPLE+muniA=, endpoint: 203.0.113.2, data_networks: [10.2.20.0/24]}
`, uplink, extra)
}

func TestAutoMTU(t *testing.T) {
	for _, c := range []struct {
		uplink, extra string
		data          int
	}{
		{"20mbit", "", 1420},
		{"1mbit", "", 1138}, // 970 kbit/s for 10 ms are 1212 bytes, less 14, 20, 8 and 32
		{"1mbit", ", serialization: 20ms", 1420},
		{"1mbit", ", serialization: 0s", 1420},
		{"1mbit", ", margin: 20", 926}, // 1000 less 74
		{"1mbit", ", overhead: 22", 1116},
		{"512kbit", "", 576}, // 620 less 74 are 546
	} {
		cfg, err := Parse("box.yaml", []byte(slowBranch(c.uplink, c.extra)), WithoutKeyFiles())
		require.NoError(t, err, c)
		assert.EqualValues(t, c.data, cfg.Tunnels[tunnel.Data].MTU, "%v", c)
		assert.EqualValues(t, 1420, cfg.Tunnels[tunnel.Voice].MTU, "%v", c)
	}
	// 64kbit cannot carry a call; a slow second WAN counts, since any may carry the tunnel.
	cfg, err := Parse(
		"box.yaml",
		[]byte(slowBranch("20mbit", "}, {interface: wan1, address: dhcp, uplink: 1mbit")),
		WithoutKeyFiles(),
	)
	require.NoError(t, err)
	assert.EqualValues(t, 1138, cfg.Tunnels[tunnel.Data].MTU)
}

// Whatever the line is like, a data packet keeps it busy for no longer than its bound, or is as short as
// packets may be.
func TestDataKeepsToTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		uplink := rapid.IntRange(700, 3000).Draw(t, "kbit")
		extra := fmt.Sprintf(
			", margin: %d, overhead: %d, serialization: %dms",
			rapid.IntRange(0, 30).Draw(t, "margin"),
			rapid.IntRange(-14, 64).Draw(t, "overhead"),
			rapid.IntRange(1, 30).Draw(t, "ms"),
		)
		cfg, err := Parse("box.yaml", []byte(slowBranch(fmt.Sprintf("%dkbit", uplink), extra)), WithoutKeyFiles())
		require.NoError(t, err)
		w, mtu := cfg.WANs[0], int(cfg.Tunnels[tunnel.Data].MTU)
		takes := func(inner qos.ByteCount) time.Duration {
			return w.Shaped().Serialization(w.Envelope(cfg.Tunnel(tunnel.Data), false).OnWire(inner))
		}
		require.GreaterOrEqual(t, mtu, minIPv4MTU)
		require.LessOrEqual(t, mtu, DefaultMTU)
		for n := 1; n <= mtu; n++ { // shorter ones are padded
			if mtu > minIPv4MTU {
				require.LessOrEqual(t, takes(qos.ByteCount(n)), w.Serialization)
			}
		}
		sent, _ := w.InternetMTUs()
		if sent > minIPv4MTU {
			require.LessOrEqual(t, w.Shaped().Serialization(w.Metered(qos.ByteCount(sent))), w.Serialization)
		}
	})
}

func TestMTUOfSites(t *testing.T) {
	cfg, err := Parse("box.yaml", []byte(slowBranch("20mbit", "")), WithoutKeyFiles())
	require.NoError(t, err)
	assert.Empty(t, cfg.SiteMTUs())
	cfg.Sites[0].Downlink = qos.Mbit
	assert.Equal(
		t,
		map[string]int{"munich": 1136},
		cfg.SiteMTUs(),
		"a multiple of 16: padding knows the tunnel's mtu only",
	)
	cfg.Sites[0].Downlink = 2 * qos.Mbit
	assert.Empty(t, cfg.SiteMTUs())
	cfg.Sites[0].Downlink = 0
	cfg.Sites[0].Tunnels = tunnel.CarriedVoice
	assert.Empty(t, cfg.SiteMTUs())
	cfg.WANs[0].Uplink = qos.Mbit
	assert.Equal(t, map[string]int{"munich": 1136}, cfg.SiteMTUs(), "the voice tunnel's mtu is not for data")
}

func TestOuterFamily(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("2001:db8::2/64")
	wan := func(a ...netip.Prefix) WAN { return WAN{Upstream: routing.Upstream{Addresses: a}} }
	for _, c := range []struct {
		w        WAN
		endpoint string
		six      bool
	}{
		{wan(v4), "203.0.113.2", false}, {wan(v4, v6), "203.0.113.2", false}, {wan(v4, v6), "2001:db8:1::1", true},
		{wan(v4), "munich.example.net", false}, {wan(v4), "", false}, {wan(v6), "", true},
		{wan(v4, v6), "", true}, {wan(v4, v6), "munich.example.net", true}, // it may be either
		{WAN{Upstream: routing.Upstream{DHCP: true}}, "munich.example.net", false}, // DHCPv4
	} {
		assert.Equal(
			t,
			c.six,
			c.w.OuterIPv6(Site{Site: tunnel.Site{Endpoint: c.endpoint}}),
			"%v to %q",
			c.w.Addresses,
			c.endpoint,
		)
	}
}
