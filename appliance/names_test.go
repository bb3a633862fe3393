package appliance

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
		{"both, IPv4 is shorter", resolver{answer(v6, v4), true, true}, v4, ""},
		{"IPv6 alone on the WAN", resolver{answer(v4, v6), false, true}, v6, ""},
		{"mapped is IPv4", resolver{answer(netip.MustParseAddr("::ffff:203.0.113.2")), true, false}, v4, ""},
		{"nothing that can be reached", resolver{answer(v6), true, false}, netip.Addr{}, "no address of a family that the WAN has"},
		{"no answer", resolver{func(context.Context, string, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }, true, true}, netip.Addr{}, "no such host"},
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
		r := resolver{func(context.Context, string, string) ([]netip.Addr, error) { return answer, nil }, true, true}
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
