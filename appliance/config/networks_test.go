package config

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// TestOverlapsAgainstPairs compares the one pass over sorted networks with looking at every pair.
func TestOverlapsAgainstPairs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set networkSet
		n := rapid.IntRange(0, 12).Draw(t, "n")
		for i := range n {
			// Few bits, so that many overlap.
			var a netip.Addr
			if rapid.Bool().Draw(t, "v6") {
				a = netip.AddrFrom16([16]byte{0x20, rapid.Byte().Draw(t, "b")})
			} else {
				a = netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "b"), 0, 0})
			}
			p, err := a.Prefix(rapid.IntRange(9, 16).Draw(t, "bits"))
			require.NoError(t, err)
			set.nets = append(set.nets, placedNet{at: at{i + 1, fmt.Sprintf("n%d", i)}, prefix: p})
		}
		nets := append([]placedNet(nil), set.nets...)
		c := &checker{}
		set.overlaps(c)

		// Every network with another one around it, or a twin before it, is in exactly one report.
		reports := 0
		for i, a := range nets {
			inner := false
			for j, b := range nets {
				if i != j && b.prefix.Overlaps(a.prefix) &&
					(b.prefix.Bits() < a.prefix.Bits() || b.prefix == a.prefix && j < i) {
					inner = true
				}
			}
			if inner {
				reports++
			}
			if got, ok := set.holding(a.prefix.Addr()); !ok || !got.prefix.Contains(a.prefix.Addr()) {
				t.Fatalf("no network holds %s", a.prefix.Addr())
			}
		}
		assert.Len(t, c.problems, reports)
		for _, p := range c.problems {
			assert.Positive(t, p.Line)
		}
	})
}

// TestCallRate holds the arithmetic of one G.711 packet on the wire to numbers worked out by hand.
func TestCallRate(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("2001:db8::1/64")
	wan := func(a netip.Prefix, overhead int) WAN {
		return WAN{
			Upstream: routing.Upstream{Addresses: []netip.Prefix{a}},
			Line:     qos.Line{Uplink: 20 * qos.Mbit, Margin: 3, LinkLayer: qos.LinkLayer{Overhead: overhead}},
		}
	}
	voice := func(a netip.Prefix) *Config {
		return &Config{Voice: []routing.LAN{{Addresses: []netip.Prefix{a}}}, Classes: DefaultClasses()}
	}
	assert.Equal(t, qos.BitRate((208+60+14)*8*50), voice(v4).Budget(wan(v4, 0)).Call(qos.G711))
	assert.Equal(t, qos.BitRate((208+80+14+22)*8*50), voice(v4).Budget(wan(v6, 22)).Call(qos.G711))
	assert.Equal(t, qos.BitRate((224+60)*8*50), voice(v6).Budget(wan(v4, -14)).Call(qos.G711))
	padded := voice(v4)
	padded.Tunnels = map[tunnel.Class]tunnel.Settings{tunnel.Voice: {MTU: 1420, PadTo: 500}}
	assert.Equal(t, qos.BitRate((512+60+14)*8*50), padded.Budget(wan(v4, 0)).Call(qos.G711))
	padded.Tunnels[tunnel.Voice] = tunnel.Settings{MTU: 500, PadTo: 500} // WireGuard pads no further than the MTU
	assert.Equal(t, qos.BitRate((500+60+14)*8*50), padded.Budget(wan(v4, 0)).Call(qos.G711))
	padded.Tunnels[tunnel.Voice] = tunnel.Settings{MTU: 1420, PadTo: 100} // it is longer by itself
	assert.Equal(t, qos.BitRate((208+60+14)*8*50), padded.Budget(wan(v4, 0)).Call(qos.G711))
	assert.Equal(t, 49, voice(v4).Calls(wan(v4, 0)))
	assert.Equal(t, 0, voice(v4).Calls(WAN{}))
}

func TestCRLFAndByteOrderMark(t *testing.T) {
	text := "\ufeffsite: berlin\r\nwan: [{interface: wan0, address: dhcp, uplink: 20mbit}]\r\nvoice: " +
		"[{interface: lan0, address: 10.1.10.1/24}]\r\nsites: []\r\n"
	cfg, err := Parse("box.yaml", []byte(text), WithoutKeyFiles())
	require.NoError(t, err)
	assert.Equal(t, "berlin", cfg.Site)
}
