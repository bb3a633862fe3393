package plane

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
	"ringway/units"
)

// admitted is how a fake shows what it was told.
func admitted(a tunnel.Admission) string { return fmt.Sprintf("admitted: %+v", a) }

func budgets(rate units.BitRate) tunnel.Admission {
	return tunnel.Admission{
		Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: key(7).Public(), Rate: rate}},
	}
}

func TestAPlaneIsToldTheVoiceBudgets(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, release := b.supervise(cfg)
	d := device(tunnel.Voice)
	d.Admission = budgets(600_000)
	require.NoError(t, s.Configure(ctx, d))
	first := status(t, s)
	assert.Contains(t, first.Drops, admitted(d.Admission), "from its start on")

	d.Admission = budgets(300_000)
	require.NoError(t, s.Configure(ctx, d))
	now := status(t, s)
	assert.Contains(t, now.Drops, admitted(d.Admission))
	assert.Equal(t, first.PlanePID, now.PlanePID, "in place")

	wrong := d
	wrong.Admission.Sites = []tunnel.AdmissionSite{{Line: 1}}
	assert.ErrorContains(t, s.Configure(ctx, wrong), `plane-voice refused "settings": admission: admit calls with`)

	// The next daemon finds it so; its own is told, and so is a successor.
	release()
	s, _ = b.supervise(cfg)
	require.NoError(t, s.Configure(ctx, d))
	assert.True(t, status(t, s).Adopted)
	assert.Contains(t, status(t, s).Drops, admitted(d.Admission))
	d.Admission = tunnel.Admission{}
	require.NoError(t, s.Configure(ctx, d))
	assert.Contains(t, status(t, s).Drops, admitted(d.Admission), "no bound any more")
	d.Admission = budgets(600_000)
	require.NoError(t, s.Configure(ctx, d))
	kill9(t, s)
	assert.Contains(t, status(t, s).Drops, admitted(d.Admission))
}
