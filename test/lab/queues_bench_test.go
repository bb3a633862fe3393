package lab

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// What one reading of Ringway's pair costs in processor time: this process (which reads), both daemons, both
// data planes.
func BenchmarkQueueReading(b *testing.B) {
	l, err := New(b.Context(), Options{Binary: buildRingway(b), WAN: 20 * qos.Mbit, NoCalls: true})
	require.NoError(b, err)
	b.Cleanup(l.Close)
	w := newQueueWatch(l.pairs)
	clocks := func() (here, daemons, planes time.Duration) {
		var u unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		here = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		for _, side := range []string{"a", "b"} {
			e := l.Edge(side)
			st, err := e.Status(b.Context())
			require.NoError(b, err)
			daemons += onCPU(b, e.Host, st.PID)
			for _, t := range st.Tunnels {
				planes += onCPU(b, e.Host, t.PlanePID)
			}
		}
		return here, daemons, planes
	}
	here, daemons, planes := clocks()
	for b.Loop() {
		w.look(b.Context())
	}
	here2, daemons2, planes2 := clocks()
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }
	b.ReportMetric(per(here2-here), "µs-here/op")
	b.ReportMetric(per(daemons2-daemons), "µs-daemons/op")
	b.ReportMetric(per(planes2-planes), "µs-planes/op")
	require.Zero(b, w.ways[0].missed)
}

// onCPU is the processor time of all threads of a process of the lab.
func onCPU(b *testing.B, h *Host, pid int) (sum time.Duration) {
	b.Helper()
	text, err := h.Run(b.Context(), "sh", "-c", "cat /proc/"+strconv.Itoa(pid)+"/task/*/schedstat")
	require.NoError(b, err)
	for line := range strings.Lines(text) {
		n, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
		require.NoError(b, err)
		sum += time.Duration(n)
	}
	return sum
}
