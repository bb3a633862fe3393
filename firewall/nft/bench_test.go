package nft

import (
	"net/netip"
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
	_, r := withHoles(b, thisKernel(b))
	o := owner(b, r, "media4")
	for i := range 1000 {
		require.NoError(b, o.Add(b.Context(), time.Minute, hole(i)))
	}
	source := netip.MustParsePrefix("10.2.20.2/32")
	var took []time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		var keys []Key
		for j := range 4 {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 2, 2}), uint16(10000+(4*i+j)%4096))
			keys = append(keys, HoleKey(source, to))
		}
		at := time.Now()
		require.NoError(b, o.AddKeys(b.Context(), time.Minute, keys))
		took = append(took, time.Since(at))
		o.DropKeys(keys)
	}
	percentiles(b, took)
}

// The table is replaced, with 1,000 holes open.
func BenchmarkReplaceTable(b *testing.B) {
	ns, r := withHoles(b, thisKernel(b))
	o := owner(b, r, "media4")
	for i := range 1000 {
		require.NoError(b, o.Add(b.Context(), time.Minute, hole(i)))
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
