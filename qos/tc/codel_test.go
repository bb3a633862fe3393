package tc

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/netnstest"
)

// Where the kernel has fq_codel or cake, data waits there: nothing above one wire packet leaves, the rate
// holds, what is dropped is counted, and a queue made for a kernel without them becomes one with them, and
// back.
func TestCoDelInALeaf(t *testing.T) {
	netnstest.Root(t)
	f, err := Probe()
	require.NoError(t, err)
	kinds := map[string]qos.Features{}
	if f.FQCoDel {
		kinds["fq_codel"] = f
	}
	if f.Cake {
		cake := f
		cake.FQCoDel = false
		kinds["cake"] = cake
	}
	if len(kinds) == 0 {
		t.Skip("this kernel has neither; `make test-kernel` has a kernel that does")
	}
	for kind, features := range kinds {
		t.Run(kind, func(t *testing.T) {
			w := newWAN(t, 2*qos.Mbit)
			plain := readBack(t, w.a)
			w.in.Features = features
			reconcile(t, w.a, qos.Want(w.in))
			assert.Contains(t, readBack(t, w.a), "qdisc "+kind)
			assert.Empty(t, reconcile(t, w.a, qos.Want(w.in)), "applied twice")

			var wg sync.WaitGroup
			var end atomic.Bool
			stop := w.capture()
			flood(w.dial(qos.Data, 9002, superPackets), &wg, &end)
			pace(2 * time.Second)
			end.Store(true)
			wg.Wait()
			frames := settled(t, stop())
			assertWirePackets(t, frames)
			assert.InDelta(
				t, float64(w.in.WANs[0].Shaped()), w.throughput(frames), 0.1*float64(w.in.WANs[0].Shaped()),
			)
			var stats []qos.QueueStats
			require.NoError(
				t, w.a.Do(func() (err error) { stats, err = Stats([]string{"wan0"}, nil); return err }),
			)
			assert.Positive(t, stats[2].Drops)
			if kind == "fq_codel" {
				assert.NotNil(t, stats[2].Marks, "it counts what it marks")
				assert.Nil(t, stats[0].Marks, "a FIFO marks nothing")
			}
			assert.Positive(
				t, strings.Count(w.a.Run("tc", "-s", "qdisc", "show", "dev", "wan0"), "qdisc "+kind),
			)

			w.in.Features = qos.AssumedFeatures()
			reconcile(t, w.a, qos.Want(w.in))
			assert.Equal(t, plain, readBack(t, w.a))
			stop = w.capture() // and it sends
			_, err := w.dial(qos.Data, 9003, nil).Write(make([]byte, 100))
			require.NoError(t, err)
			pace(2 * time.Second)
			assert.NotEmpty(t, stop())
		})
	}
}
