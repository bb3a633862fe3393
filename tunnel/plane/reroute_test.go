package plane

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// A plane is told to leave addresses, also by the daemon that has taken it over; one of an older release is not, and
// neither is one that does not run.
func TestAPlaneLeavesAddresses(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	r := tunnel.Reroute{From: []netip.Addr{netip.MustParseAddr("198.51.100.2")}}
	cfg := b.config(tunnel.Data)
	s, release := b.supervise(cfg)
	require.NoError(t, s.Reroute(ctx, r))
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	require.NoError(t, s.Reroute(ctx, r))
	assert.EqualValues(t, 1, status(t, s).Drops["rerouted"])

	release()
	s, _ = b.supervise(cfg)
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	require.NoError(t, s.Reroute(ctx, r))
	assert.EqualValues(t, 2, status(t, s).Drops["rerouted"])
	s.current().Hello.Minor = minorReroute - 1
	require.NoError(t, s.Reroute(ctx, r))
	assert.EqualValues(t, 2, status(t, s).Drops["rerouted"])
}
