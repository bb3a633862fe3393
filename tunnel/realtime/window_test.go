package realtime

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/replay"
)

// The window decides as wireguard-go's does, however counters jump, and of each counter takes one more message.
func TestWindowAgainstWireGuardGo(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		var w window
		var oracle replay.Filter
		seconds := [2]map[uint64]bool{{}, {}}
		at := uint64(0)
		for range 20_000 {
			switch r.IntN(10) {
			case 0:
				at += r.Uint64N(3 * windowSize)
			case 1:
				at -= min(at, r.Uint64N(2*windowSize))
			case 2, 3, 4:
				at -= min(at, r.Uint64N(100))
			default:
				at += r.Uint64N(4)
			}
			had := w.has(at)
			require.Equal(t, oracle.ValidateCounter(at, rejectAfterMessages), !had, "counter %d of %d", at, w.last)
			require.Equal(t, !had, w.take(at))
			if !had {
				continue
			}
			known := w.last-at <= windowSize
			where := r.IntN(2)
			require.Equal(t, known && !seconds[where][at], w.takeAgain(at, where == 1), "a second one of %d", at)
			seconds[where][at] = seconds[where][at] || known
			require.False(t, w.takeAgain(at, where == 1), "a third one")
		}
	}
	var w window
	require.False(t, w.takeAgain(0, true), "nothing was taken yet")
	require.True(t, w.take(0))
	require.True(t, w.takeAgain(0, true))
	require.True(t, w.takeAgain(0, false))
	require.False(t, w.takeAgain(0, false))
}
