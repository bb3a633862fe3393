package plane

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

var voiceOuter = tunnel.Outer{
	TOS: 46 << 2, Marks: []tunnel.OuterMark{{Inner: 24, Outer: 24}, {Inner: 46, Outer: 46}}, PadTo: 256,
}

func TestAPlaneIsToldHowPacketsLookFromOutside(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, release := b.supervise(cfg)
	d := device(tunnel.Voice)
	d.Outer = voiceOuter
	require.NoError(t, s.Configure(ctx, d))
	first := status(t, s)
	assert.Contains(t, first.Drops, d.Outer.Words(), "from its start on")
	require.NoError(t, s.Configure(ctx, d))

	d.Outer = tunnel.Outer{TOS: 40 << 2, Marks: []tunnel.OuterMark{{Inner: 46, Outer: 40}}, PadTo: 320}
	require.NoError(t, s.Configure(ctx, d))
	now := status(t, s)
	assert.Contains(t, now.Drops, d.Outer.Words())
	assert.Equal(t, first.PlanePID, now.PlanePID, "in place")
	_, _, tos := socketParameters(s.res)
	assert.EqualValues(t, 40<<2, tos, "also what is in no mark")

	wrong := d
	wrong.Outer.PadTo = refusedPadding
	assert.ErrorContains(t, s.Configure(ctx, wrong), `plane-voice refused "settings": outer: refused as asked`)
	require.NoError(t, s.Configure(ctx, d))

	// The next daemon finds it so, and has nothing to say.
	release()
	s, _ = b.supervise(cfg)
	require.NoError(t, s.Configure(ctx, d))
	assert.True(t, status(t, s).Adopted)
	assert.Contains(t, status(t, s).Drops, d.Outer.Words())

	// A successor begins with it.
	kill9(t, s)
	assert.Contains(t, status(t, s).Drops, d.Outer.Words())
}

func TestAnEngineThatMarksNoPacketIsLeftAlone(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, _ := b.supervise(b.config(tunnel.Voice))
	d := device(tunnel.Voice)
	require.NoError(t, s.Configure(ctx, d))
	pid := status(t, s).PlanePID
	d.Outer = voiceOuter
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, pid, status(t, s).PlanePID)
}
