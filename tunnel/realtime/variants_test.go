package realtime

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/enginetest"
)

// variant is a way to be real-time in Go. docs/jitter.md says what came of each.
type variant struct {
	name   string
	env    []string
	policy uint32 // of the forwarding threads
	whole  bool   // or of the whole process
	nice   bool
	cpu    bool // forwarding threads on the first processor alone
}

// envUnpinned has a process of its own forward with ordinary system calls.
const envUnpinned = "TEST_UNPINNED"

// envThreads says how many threads a direction has.
const envThreads = "TEST_THREADS"

var variants = []variant{
	{name: "pinned, FIFO", policy: unix.SCHED_FIFO},
	{name: "pinned, FIFO, one thread a direction", policy: unix.SCHED_FIFO, env: []string{envThreads + "=1"}},
	{name: "pinned, FIFO, one processor", policy: unix.SCHED_FIFO, cpu: true, env: []string{envThreads + "=1"}},
	{name: "pinned, nice -20", nice: true},
	{name: "ordinary calls, FIFO, 2 Ps", policy: unix.SCHED_FIFO,
		env: []string{envUnpinned + "=1", "GOMAXPROCS=2", "GOGC=off"}},
	{name: "ordinary calls, FIFO, 8 Ps", policy: unix.SCHED_FIFO,
		env: []string{envUnpinned + "=1", "GOMAXPROCS=8", "GOGC=off"}},
	{name: "ordinary calls, whole process RR, 8 Ps", policy: unix.SCHED_RR, whole: true,
		env: []string{envUnpinned + "=1", "GOMAXPROCS=8", "GOGC=off"}},
}

// BenchmarkVariants sends the same voice through each variant at the same time, beside a TCP flow through a
// stock tunnel that takes what the processors give. BENCH_ROUNDS repeats it.
func BenchmarkVariants(b *testing.B) {
	rounds, _ := strconv.Atoi(os.Getenv("BENCH_ROUNDS"))
	packets := 500
	if rounds > 0 {
		packets = 5000
	}
	type end struct{ a, b *enginetest.Box }
	ends := make([]end, len(variants))
	for i, v := range variants {
		x, y := wire(b)
		ends[i] = end{x, y}
		for _, box := range []*enginetest.Box{x, y} {
			box.Open(0, 0, wide)
		}
		v.apply(b, x.Spawn(wide, x.Peer(y, "192.0.2.2:51820"), v.env...))
		v.apply(b, y.Spawn(wide, y.Peer(x, "192.0.2.1:51820"), v.env...))
		require.NoError(b, x.Ping("10.66.0.2"))
	}
	bulkA, bulkB := wire(b)
	bulkA.Stock(bulkA.Conf(bulkB, "192.0.2.2:51820"))
	bulkB.Stock(bulkB.Conf(bulkA, "192.0.2.1:51820"))
	require.NoError(b, bulkA.Ping("10.66.0.2"))

	pdv := make([][]time.Duration, len(variants))
	for range max(rounds, 1) {
		var all sync.WaitGroup
		seconds := packets/500 + 2
		all.Go(func() { bulkA.Iperf(bulkB, seconds) })
		line := make([]string, len(variants))
		for i := range variants {
			all.Go(func() {
				got, d := ends[i].a.Call(ends[i].b, packets, 2*time.Millisecond)
				p999 := d[len(d)*999/1000]
				pdv[i] = append(pdv[i], p999-d[0])
				line[i] = fmt.Sprintf("%-40s p50 %8v p99 %8v p99.9 %8v max %8v lost %d", variants[i].name,
					d[len(d)/2].Round(time.Microsecond),
					d[len(d)*99/100].Round(time.Microsecond), p999.Round(time.Microsecond),
					d[len(d)-1].Round(time.Microsecond), packets-got)
			})
		}
		all.Wait()
		b.Logf("\n%s", strings.Join(line, "\n"))
	}
	for i, v := range variants {
		slices.Sort(pdv[i])
		b.ReportMetric(float64(pdv[i][len(pdv[i])/2].Microseconds()),
			strings.NewReplacer(" ", "-", ",", "").Replace(v.name)+"-us")
	}
	b.ReportMetric(0, "ns/op")
}

func (v variant) apply(b *testing.B, p *enginetest.Process) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Process.Pid))
	require.NoError(b, err)
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", p.Process.Pid, tid))
		if !v.whole && !strings.HasPrefix(string(comm), "rw-fwd-") {
			continue
		}
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: v.policy, Priority: 10}
		if v.nice {
			a = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20, Runtime: 100_000}
		}
		require.NoError(b, unix.SchedSetAttr(tid, &a, 0))
		if v.cpu {
			var first unix.CPUSet
			first.Set(0)
			require.NoError(b, unix.SchedSetaffinity(tid, &first))
		}
	}
}
