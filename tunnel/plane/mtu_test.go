package plane

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// A plane is told up to which length to probe, and where to confirm that long packets pass; one of an older release,
// or one that does not run, is not.
func TestAPlaneConfirmsWhatPathsTake(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, release := b.supervise(cfg)
	site := key(7).Public()
	require.NoError(t, s.ConfirmMTU(ctx, site))
	d := device(tunnel.Voice)
	d.ProbeMTU = 1492
	require.NoError(t, s.Configure(ctx, d))
	require.NoError(t, s.ConfirmMTU(ctx, site))
	assert.EqualValues(t, 1492, status(t, s).Drops["probed"])
	assert.EqualValues(t, 1, status(t, s).Drops["confirmed"])
	d.ProbeMTU = 0
	require.NoError(t, s.Configure(ctx, d))
	assert.Zero(t, status(t, s).Drops["probed"])
	d.ProbeMTU = 99
	require.ErrorContains(t, s.Configure(ctx, d), "probe_mtu: ")

	release()
	s, _ = b.supervise(cfg)
	d.ProbeMTU = 1500
	require.NoError(t, s.Configure(ctx, d))
	assert.EqualValues(t, 1500, status(t, s).Drops["probed"])
	s.current().Hello.Minor = minorConfirmMTU - 1
	require.NoError(t, s.ConfirmMTU(ctx, site))
	assert.EqualValues(t, 1, status(t, s).Drops["confirmed"])
}
