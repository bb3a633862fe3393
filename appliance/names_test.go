package appliance

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/routing"
)

func TestNamesResolveToAFamilyThatTheWANHas(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")
	answer := func(addrs ...netip.Addr) func(context.Context, string, string) ([]netip.Addr, error) {
		return func(context.Context, string, string) ([]netip.Addr, error) { return addrs, nil }
	}
	for _, c := range []struct {
		name       string
		r          resolver
		want       netip.Addr
		wantsError string
	}{
		{"both, IPv4 is shorter", resolver{answer(v6, v4), true, true, false}, v4, ""},
		{"IPv6 alone on the WAN", resolver{answer(v4, v6), false, true, false}, v6, ""},
		{"mapped is IPv4", resolver{answer(netip.MustParseAddr("::ffff:203.0.113.2")), true, false, false}, v4, ""},
		{"nothing that can be reached", resolver{answer(v6), true, false, false}, netip.Addr{}, "no address of a family that the WAN has"},
		{"a lease, and IPv6 that may be there besides", resolver{answer(v6), true, false, true}, v6, ""},
		{"a lease, and a name with both", resolver{answer(v6, v4), true, false, true}, v4, ""},
		{"no answer", resolver{func(context.Context, string, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }, true, true, false}, netip.Addr{}, "no such host"},
	} {
		got, err := c.r.resolve(t.Context(), "munich.example.net", netip.Addr{}, false)
		if c.wantsError != "" {
			assert.ErrorContains(t, err, c.wantsError, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		assert.Equal(t, c.want, got, c.name)
	}
	got, err := resolver{}.resolve(t.Context(), "2001:db8::2", netip.Addr{}, false)
	require.NoError(t, err, "an address is itself, whatever the WAN")
	assert.Equal(t, v6, got)
}

// Round-robin DNS gives the addresses of a hub with two lines in another order each time.
func TestTheAddressInUseStaysAmongSeveral(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.19")
	for _, answer := range [][]netip.Addr{{one, two}, {two, one}} {
		r := resolver{func(context.Context, string, string) ([]netip.Addr, error) { return answer, nil }, true, true, false}
		for _, inUse := range answer {
			got, err := r.resolve(t.Context(), "hub.example.net", inUse, false)
			require.NoError(t, err)
			assert.Equal(t, inUse, got)
		}
		got, err := r.resolve(t.Context(), "hub.example.net", one, true)
		require.NoError(t, err)
		assert.Equal(t, two, got, "the peer is silent there: try the other")
		got, err = r.resolve(t.Context(), "hub.example.net", two, true)
		require.NoError(t, err)
		assert.Equal(t, one, got)
	}
}

// On a WAN with a lease IPv6 is a guess: a peer that is silent at its address of IPv4 is not looked for there.
func TestASilentPeerIsNotLookedForWhereIPv6MayBe(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")
	r := resolver{func(context.Context, string, string) ([]netip.Addr, error) { return []netip.Addr{v4, v6}, nil }, true, false, true}
	got, err := r.resolve(t.Context(), "hub.example.net", v4, true)
	require.NoError(t, err)
	assert.Equal(t, v4, got)
	lease := &config.Config{WANs: []config.WAN{{WAN: routing.WAN{Interface: "wan0", DHCP: true}}}}
	for want, cfg := range map[[3]bool]*config.Config{{true, false, true}: lease, {false, true, false}: {WANs: []config.WAN{{WAN: routing.WAN{Addresses: []netip.Prefix{netip.PrefixFrom(v6, 64)}}}}}} {
		four, six, may := families(cfg)
		assert.Equal(t, want, [3]bool{four, six, may})
	}
}
