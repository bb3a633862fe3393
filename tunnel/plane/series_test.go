package plane

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// What is measured reaches the plane from its start on and in place, and all that it counted comes back.
func TestAPlaneCountsMedia(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, _ := b.supervise(cfg)
	_, _, err := s.Series(ctx)
	require.EqualError(t, err, "plane voice is not running")

	d := device(tunnel.Voice)
	d.Measured = tunnel.Measured{Media: 1 << 46, Series: 100}
	require.NoError(t, s.Configure(ctx, d))
	all, beyond, err := s.Series(ctx)
	require.NoError(t, err)
	require.Len(t, all, 3)
	assert.EqualValues(t, 9, beyond)
	assert.EqualValues(t, 100, all[0].Expected)
	assert.EqualValues(t, 2, all[2].Source)
	assert.Equal(t, key(7).Public(), all[0].Site)

	pid := s.PID()
	d.Measured.Series = 200
	require.NoError(t, s.Configure(ctx, d))
	all, _, err = s.Series(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 200, all[0].Expected)
	assert.Equal(t, pid, s.PID(), "no plane was replaced")

	d.Measured.Series = -1
	require.ErrorContains(t, s.Configure(ctx, d), "measure -1 series of media (allowed 0-8192)")
}

func TestAnotherEngineCountsNoMedia(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Data)))
	_, _, err := s.Series(context.Background())
	require.ErrorContains(t, err, "counts no media (only realtime does)")
}
