package nft

import (
	"slices"
	"testing"
	"time"

	"ringway/firewall"

	"github.com/stretchr/testify/require"
)

// percentiles reports the 50th and the 99th of the times.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
}

// A call opens four holes: RTP and RTCP, both ways. 1,000 are open already.
func BenchmarkFourElements(b *testing.B) {
	for _, set := range []string{"media4", "media_net4"} {
		b.Run(set, func(b *testing.B) {
			_, r := withHoles(b, thisKernel(b))
			o := owner(b, r, set)
			open := min(1000, o.set.MaxElements-8)
			for i := range open {
				_, key := hole(i)
				require.NoError(b, o.Add(b.Context(), time.Minute, key))
			}
			var took []time.Duration
			b.ResetTimer()
			for i := range b.N {
				var keys []string
				for j := range 4 {
					_, key := hole(open + (4*i+j)%4096)
					keys = append(keys, key)
				}
				at := time.Now()
				require.NoError(b, o.Add(b.Context(), time.Minute, keys...))
				took = append(took, time.Since(at))
				require.NoError(b, o.Delete(b.Context(), keys...))
			}
			percentiles(b, took)
		})
	}
}

// The table is replaced, with 1,000 holes open.
func BenchmarkReplaceTable(b *testing.B) {
	ns, r := withHoles(b, thisKernel(b))
	o := owner(b, r, "media4")
	for i := range 1000 {
		_, key := hole(i)
		require.NoError(b, o.Add(b.Context(), time.Minute, key))
	}
	in := branch()
	in.Dynamic = r.Sets()
	for name, do := range map[string]func(){
		"with stand-in": func() { remake(b, ns, r, in) },
		"one transaction": func() { // which loses packets: see remake.go
			changes := append(
				[]firewall.Change{{Op: firewall.DeleteTable}},
				firewall.Diff(firewall.Want(in), firewall.State{})...,
			)
			require.NoError(b, ns.Do(func() error { return r.withElements(table(), changes) }))
		},
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for range b.N {
				at := time.Now()
				do()
				took = append(took, time.Since(at))
			}
			percentiles(b, took)
		})
	}
}
