package rtnl_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing/rtnl"
)

func TestThroughIsWhatTheKernelRoutes(t *testing.T) {
	box := newBox(t)
	for _, d := range []string{"wan0", "data0"} {
		box.Run("ip", "link", "set", d, "up")
	}
	box.Run("ip", "addr", "add", "198.51.100.2/24", "dev", "wan0")
	box.Run("ip", "addr", "add", "192.0.2.2/24", "dev", "data0")
	box.Run("ip", "route", "add", "default", "via", "198.51.100.1", "metric", "10")
	box.Run("ip", "route", "add", "default", "via", "192.0.2.1", "metric", "20")
	box.Run("ip", "route", "add", "default", "via", "192.0.2.1", "table", "77")
	box.Run("ip", "rule", "add", "fwmark", "0x2000", "table", "77")
	through := func(mark uint32) (name string) {
		require.NoError(t, box.Do(func() (err error) {
			name, err = rtnl.Through(netip.MustParseAddr("203.0.113.2"), mark)
			return err
		}))
		return name
	}
	assert.Equal(t, "wan0", through(0))
	assert.Equal(t, "data0", through(0x2000))
	box.Run("ip", "link", "set", "wan0", "down")
	assert.Equal(t, "data0", through(0))
	box.Run("ip", "link", "set", "data0", "down")
	require.NoError(t, box.Do(func() error {
		_, err := rtnl.Through(netip.MustParseAddr("203.0.113.2"), 0)
		assert.ErrorContains(t, err, "look up the route to 203.0.113.2")
		return nil
	}))
}
