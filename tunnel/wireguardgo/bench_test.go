package wireguardgo

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"ringway/test/enginetest"
	"ringway/tunnel"
	"ringway/units"
)

// BenchmarkAgainstStock fills a tunnel of ours and one of stock wireguard-go with a TCP flow, in turns, and
// reports the throughput of both and the median of the ratios. Both cores are saturated; every engine is a
// process of its own. BENCH_FLOWS puts flow queues of so many packets before ours, BENCH_RATE
// tells it of a WAN of so many bit/s, which nothing holds it to, BENCH_SITES of so many sites more,
// which are silent: then accounts are kept for each. BENCH_SECONDS sets the length of a run,
// BENCH_PAIRS the number of pairs.
func BenchmarkAgainstStock(b *testing.B) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	seconds, pairs := number("BENCH_SECONDS", 3), number("BENCH_PAIRS", 3)
	bounds := wide
	bounds.InFlight = number("BENCH_INFLIGHT", wide.InFlight)
	bounds.SuperPacket = number("BENCH_SUPER", wide.SuperPacket)
	bounds.FlowPackets, bounds.Rate = number("BENCH_FLOWS", 0), units.BitRate(number("BENCH_RATE", 0))
	bounds.ReceiveBuffer, bounds.SendBuffer = 7<<20, 7<<20 // as stock

	oursA, oursB := wire(b)
	for _, x := range []*enginetest.Box{oursA, oursB} {
		x.Open(0, 0, bounds)
	}
	set := oursA.Peer(oursB, "192.0.2.2:51820")
	for i := range number("BENCH_SITES", 0) {
		k, err := tunnel.NewPrivateKey()
		require.NoError(b, err)
		set += fmt.Sprintf("public_key=%s\nallowed_ip=10.67.%d.0/24\n", k.Public().Hex(), i)
	}
	oursA.Spawn(bounds, set)
	oursB.Spawn(bounds, oursB.Peer(oursA, "192.0.2.1:51820"))
	stockA, stockB := wire(b)
	stockA.Stock(stockA.Conf(stockB, "192.0.2.2:51820"))
	stockB.Stock(stockB.Conf(stockA, "192.0.2.1:51820"))
	require.NoError(b, oursA.Ping("10.66.0.2"))
	require.NoError(b, stockA.Ping("10.66.0.2"))

	var ratios, ours, theirs []float64
	b.ResetTimer()
	for range b.N {
		for i := range pairs {
			var o, s float64
			if i%2 == 0 {
				o, s = oursA.Iperf(oursB, seconds), stockA.Iperf(stockB, seconds)
			} else {
				s, o = stockA.Iperf(stockB, seconds), oursA.Iperf(oursB, seconds)
			}
			b.Logf("ours %.0f Mbit/s, stock %.0f Mbit/s, ratio %.3f", o, s, o/s)
			ours, theirs, ratios = append(ours, o), append(theirs, s), append(ratios, o/s)
		}
	}
	b.ReportMetric(median(ours), "ours-Mbit/s")
	b.ReportMetric(median(theirs), "stock-Mbit/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op")
}

func median(v []float64) float64 { v = slices.Sorted(slices.Values(v)); return v[len(v)/2] }
