package wireguardgo

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// iperf runs one TCP flow from b to far for some seconds and returns Mbit/s.
func (b *box) iperf(far *box, seconds int, args ...string) float64 {
	b.t.Helper()
	server := far.ns.Command("iperf3", "-s", "-1", "-B", fmt.Sprintf("10.66.0.%d", far.n))
	require.NoError(b.t, server.Start())
	defer func() { server.Process.Kill(); server.Wait() }()
	require.Eventually(b.t, func() bool {
		out, _ := far.ns.Try("ss", "-Hltn", "sport", "=", ":5201")
		return out != ""
	}, 5*time.Second, 20*time.Millisecond)
	out, err := b.ns.Try("timeout", append([]string{"20", "iperf3", "-J", "-c", fmt.Sprintf("10.66.0.%d", far.n), "-t", strconv.Itoa(seconds)}, args...)...)
	require.NoError(b.t, err, out)
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	require.NoError(b.t, json.Unmarshal([]byte(out), &result))
	return result.End.Received.Rate / 1e6
}

// BenchmarkAgainstStock fills a tunnel of ours and one of stock wireguard-go with a TCP flow, in
// turns, and reports the throughput of both and the median of the ratios. Both cores are
// saturated; every engine is a process of its own.
// RINGWAY_BENCH_SECONDS sets the length of a run, RINGWAY_BENCH_PAIRS the number of pairs.
func BenchmarkAgainstStock(b *testing.B) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	seconds, pairs := number("RINGWAY_BENCH_SECONDS", 3), number("RINGWAY_BENCH_PAIRS", 3)
	bounds := wide
	bounds.InFlight = number("RINGWAY_BENCH_INFLIGHT", wide.InFlight)
	bounds.SuperPacket = number("RINGWAY_BENCH_SUPER", wide.SuperPacket)
	bounds.ReceiveBuffer, bounds.SendBuffer = 7<<20, 7<<20 // as stock

	oursA, oursB := wire(b)
	for _, x := range []*box{oursA, oursB} {
		x.open(0, 0, bounds)
	}
	oursA.spawn(bounds, oursA.peer(oursB, "192.0.2.2:51820"))
	oursB.spawn(bounds, oursB.peer(oursA, "192.0.2.1:51820"))
	stockA, stockB := wire(b)
	stockA.stock(stockA.wgConf(stockB, "192.0.2.2:51820"))
	stockB.stock(stockB.wgConf(stockA, "192.0.2.1:51820"))
	require.NoError(b, oursA.ping("10.66.0.2"))
	require.NoError(b, stockA.ping("10.66.0.2"))

	var ratios, ours, theirs []float64
	b.ResetTimer()
	for range b.N {
		for i := range pairs {
			var o, s float64
			if i%2 == 0 {
				o, s = oursA.iperf(oursB, seconds), stockA.iperf(stockB, seconds)
			} else {
				s, o = stockA.iperf(stockB, seconds), oursA.iperf(oursB, seconds)
			}
			b.Logf("ours %.0f Mbit/s, stock %.0f Mbit/s, ratio %.3f", o, s, o/s)
			ours, theirs, ratios = append(ours, o), append(theirs, s), append(ratios, o/s)
		}
	}
	median := func(v []float64) float64 { v = slices.Sorted(slices.Values(v)); return v[len(v)/2] }
	b.ReportMetric(median(ours), "ours-Mbit/s")
	b.ReportMetric(median(theirs), "stock-Mbit/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op")
}
