package interop

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/test/lab"
)

// What queues behind bulk in class data waits no longer than the queues on its way are long, all together:
// TUN queue, engine, the socket's send buffer in the WAN's leaf (qos.PathBounds). The provider's bottleneck
// is 20 Mbit/s, its FIFO 120 ms.
//
//	pc-a: iperf3, ping === edge-a (ringway) --- provider: 20 Mbit/s --- edge-b (ringway) === pc-b
func TestTimedPingBehindBulkStaysUnderTheStatedBound(t *testing.T) {
	const (
		wan   = 20 * qos.Mbit
		pings = 250
	)
	for _, bulk := range []lab.Bulk{lab.BulkTCP, lab.BulkUDP} {
		t.Run(string(bulk), func(t *testing.T) {
			l := branches(t, lab.Options{WAN: wan, Bulk: bulk})
			b, err := l.Pair(lab.Ringway).StartBulk(within(t, 30*time.Second), bulk)
			require.NoError(t, err)
			bound := dataPath(t, l)
			// What the queues hold, they hold whenever bulk fills them; a machine that is busy with other things only
			// adds to it. So the first of a few looks that is under the bound decides.
			var p99, allowed time.Duration
			for range 3 {
				from := time.Now()
				// The voice class on the same way at the same time tells what the machine itself adds: it waits behind no bulk.
				voice := make(chan []time.Duration, 1)
				go func() {
					rtt, _, err := roundTrips(t, l.Host(lab.PhoneA), "10.2.10.10", pings)
					assert.NoError(t, err)
					voice <- rtt
				}()
				busy, lost, err := roundTrips(t, l.Host(lab.PCA), "10.2.20.10", pings)
				clear := <-voice
				require.NoError(t, err)
				require.NotEmpty(t, clear)
				// Behind our queues: one packet on the provider's wire, and what the machine adds.
				p99, allowed = percentile(busy, 99), bound.Total+wan.Serialization(qos.WireFrame(wanMTU))+percentile(clear, 99)
				t.Logf(
					"%s: %d pings every 20 ms for %s, %d lost: p50 %s, p99 %s, max %s; in class voice meanwhile p99 %s; "+
						"bound alone %s, in all %s",
					bulk, pings, time.Since(from).Round(time.Millisecond), lost, percentile(busy, 50), p99, percentile(busy,
						100), percentile(clear, 99), bound.Alone, bound.Total)
				if p99 < allowed {
					break
				}
			}
			until := time.Now()
			rate, err := b.Stop(within(t, 30*time.Second), until.Add(-3*time.Second), until)
			require.NoError(t, err)
			assert.Less(t, p99, allowed)
			assert.Greater(t, rate, 10*qos.Mbit, "nothing stood in the queue")
		})
	}
}

// wanMTU is that of the lab's wan0.
const wanMTU = 1500

// dataPath is the bound that edge-a's config comes to for its data tunnel.
func dataPath(t *testing.T, l *lab.Lab) qos.Path {
	t.Helper()
	text, err := l.Edge("a").Config()
	require.NoError(t, err)
	cfg, err := config.Parse(configFile, text, config.WithoutKeyFiles())
	require.NoError(t, err)
	i := slices.IndexFunc(cfg.Classes, func(c qos.Class) bool { return c.Name == qos.Data })
	return qos.PathBounds(cfg.WANs[0].Shaped(), cfg.Classes[i], wanMTU)
}

// roundTrips pings 50 times a second, marked EF from a phone; ordered by length.
func roundTrips(t *testing.T, h *lab.Host, to string, n int) (rtt []time.Duration, lost int, err error) {
	tos := "0"
	if h.Name == lab.PhoneA {
		tos = "0xb8"
	}
	// fails when one is lost
	out, failed := h.Run(within(t, 60*time.Second), "ping", "-n", "-i", "0.02", "-Q", tos, "-c", strconv.Itoa(n),
		"-W", "2", to)
	for _, line := range strings.Split(out, "\n") {
		if _, after, ok := strings.Cut(line, "time="); ok {
			ms, err := strconv.ParseFloat(strings.TrimSuffix(after, " ms"), 64)
			if err != nil {
				return nil, 0, err
			}
			rtt = append(rtt, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	if len(rtt) == 0 {
		return nil, n, fmt.Errorf("no answer to any ping from %s to %s: %w: %s", h.Name, to, failed, out)
	}
	slices.Sort(rtt)
	return rtt, n - len(rtt), nil
}

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}
