package plane

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/polltest"
	"ringway/tunnel"
)

// index is the number of a device, which no later device of the same name has; empty where there is none.
func (b *bench) index(device string) string {
	out, err := b.ns.Try("ip", "-o", "link", "show", device)
	if err != nil {
		return ""
	}
	n, _, _ := strings.Cut(out, ":")
	return n
}

func TestADeletedDeviceIsMadeAgain(t *testing.T) {
	ctx := context.Background()
	remade := func(t *testing.T, b *bench, s *Supervisor, cure func()) {
		t.Helper()
		for range 2 { // also the one that was made again
			pid, before := status(t, s).PlanePID, b.index("rw-data")
			require.NotEmpty(t, before)
			b.ns.Run("ip", "link", "del", "rw-data")
			cure()
			polltest.Require(t, func() bool {
				st, err := s.Status(ctx)
				return err == nil && st.PlanePID != pid && len(st.Peers) == 2
			}, patience, time.Millisecond)
			after := b.index("rw-data")
			assert.NotEmpty(t, after)
			assert.NotEqual(t, before, after)
			require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
			assert.Equal(t, after, b.index("rw-data"), "what is there stays")
		}
		assert.Contains(t, b.log.String(), "the tunnel device was deleted and is made again")
	}
	t.Run("by itself, when the engine ends with it", func(t *testing.T) {
		b := newBench(t)
		cfg := b.config(tunnel.Data)
		cfg.Engine = tunnel.EngineWireGuardGo
		s, _ := b.supervise(cfg)
		require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
		remade(t, b, s, func() {})
	})
	t.Run("by a reload, when the engine has not noticed", func(t *testing.T) {
		b := newBench(t)
		s, _ := b.supervise(b.config(tunnel.Data))
		require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
		remade(t, b, s, func() { require.NoError(t, s.Configure(ctx, device(tunnel.Data))) })
	})
	t.Run("by the next daemon", func(t *testing.T) {
		b := newBench(t)
		s, release := b.supervise(b.config(tunnel.Data))
		require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
		release()
		b.ns.Run("ip", "link", "del", "rw-data")
		s, _ = b.supervise(b.config(tunnel.Data))
		require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
		assert.NotEmpty(t, b.index("rw-data"))
		assert.Len(t, status(t, s).Peers, 2)
	})
}
