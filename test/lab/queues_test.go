package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/quality/figures"
	"ringway/test/lab/report"
)

// program builds ringway: the edges run it.
func buildRingway(t testing.TB) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "ringway")
	cmd := exec.Command("go", "build", "-o", p, "ringway/cmd/ringway")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return p
}

// sent is what tc -s says that a device's root queue, or its HTB class with that handle, has sent. (Of
// classes tc has no figures in JSON.)
func sent(t *testing.T, h *Host, device, class string) uint64 {
	t.Helper()
	what, begin := []string{"qdisc", "show", "dev", device, "root"}, "qdisc "
	if class != "" {
		what, begin = []string{"class", "show", "dev", device}, "class htb "+class+" "
	}
	text, err := h.Run(t.Context(), "tc", append([]string{"-s"}, what...)...)
	require.NoError(t, err)
	_, text, found := strings.Cut(text, begin)
	require.True(t, found, "%s: tc shows no %s on %s", h.Name, begin, device)
	_, text, _ = strings.Cut(text, "Sent ")
	number, _, _ := strings.Cut(text, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	require.NoError(t, err)
	return n
}

//	phone, pc --- edge-a --- FIFO of 120 ms, 20 Mbit/s --- edge-b --- phone, pc
//
// Ringway, and stock wireguard-go, under a flood.
//
// What is read is between what tc -s shows before and after it. In the report the flood queues at home with
// Ringway, before its tunnel, while calls wait nowhere and the provider's FIFO is empty; with the baseline
// that is full.
func TestTimedQueuesWhereTheFloodStands(t *testing.T) {
	l, err := New(
		t.Context(),
		Options{
			Binary:      buildRingway(t),
			WireGuardGo: wireguardGo(t),
			Paths:       []PathName{Ringway, Baseline},
			WAN:         20 * qos.Mbit,
			Bulk:        BulkUDP,
			Calls:       4,
			Duration:    3 * time.Second,
		},
	)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, r.JSON(&b))
	var read report.Report
	require.NoError(t, json.Unmarshal(b.Bytes(), &read))
	require.Len(t, read.Paths, 2)
	for _, p := range read.Paths {
		q := p.Queues
		require.NotNil(t, q, p.Name)
		assert.Empty(t, q.Why, p.Name)
		require.NotEmpty(t, q.Seconds, p.Name)
		assert.Negative(t, q.Seconds[0], "from before the calls")
		assert.IsIncreasing(t, q.Seconds)
		var phases []string
		for _, f := range q.Phases {
			phases = append(phases, f.Name)
		}
		assert.Equal(t, []string{"UDP bulk", "calls", "calls over"}, phases)
		for _, s := range q.Series {
			for _, v := range [][]float64{s.Backlog, s.Wait, s.Drops} {
				assert.Len(t, v, len(q.Seconds), "%s %+v", p.Name, s)
			}
		}
	}
	ours, stock := read.Paths[0].Queues, read.Paths[1].Queues
	full := func(q *report.Queues, place, class string) *report.QueueSeries {
		s := q.Find(figures.AToB, place, class)
		require.NotNil(t, s, "%s %s", place, class)
		return s
	}
	media := full(ours, report.AtEdge, string(qos.Media))
	assert.Zero(t, middle(media.Wait), "calls wait nowhere")
	assert.LessOrEqual(t, slices.Max(media.Backlog), float64(media.Limit))
	assert.Zero(t, total(media.Drops))
	assert.Positive(t, total(media.Bits))
	data, flows := full(ours, report.AtEdge, string(qos.Data)), full(ours, report.AtFlows, string(qos.Data))
	assert.Positive(t, middle(data.Backlog))
	assert.Empty(t, flows.Bits)
	assert.Greater(t, slices.Max(flows.Wait), 100.0, "ms: the flood waits here, up to 200 ms of the line")
	assert.LessOrEqual(t, slices.Max(flows.Wait), 220.0)
	assert.Positive(t, total(flows.Drops), "and here it is dropped, where flows can be told apart")
	assert.Zero(t, total(data.Drops))
	empty, fifo := full(ours, report.AtProvider, ""), full(stock, report.AtProvider, "")
	assert.Less(t, middle(empty.Wait), 2.0, "ms")
	assert.Zero(t, total(empty.Drops))
	assert.EqualValues(t, DefaultBuffer, fifo.Limit)
	assert.Greater(t, middle(fifo.Wait), 100.0, "ms: full")
	assert.LessOrEqual(t, slices.Max(fifo.Wait), 121.0)
	assert.Positive(t, total(fifo.Drops))
	assert.Nil(t, stock.Find(figures.AToB, report.AtEdge, ""), "the baseline has no queue of its own")

	file, err := r.PlotQueues(filepath.Join(t.TempDir(), "new", "lab.svg"))
	require.NoError(t, err)
	assert.Equal(t, "lab-queues.svg", filepath.Base(file))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(text), "the provider")

	t.Run("as tc shows", func(t *testing.T) { queuesAreTCs(t, l) })
}

// queuesAreTCs reads once while a flood runs, and holds it to what tc shows before and after.
func queuesAreTCs(t *testing.T, l *Lab) {
	media, data := classHandle(t, "munich", qos.Media), classHandle(t, "munich", qos.Data)
	show := func() (out []uint64) {
		p := l.Pair(Ringway)
		edge := p.Host(EdgeA)
		return append(
			out,
			sent(t, edge, "wan0", media),
			sent(t, edge, "wan0", data),
			sent(t, p.Host(Provider), "wan-b", ""),
			sent(t, l.Pair(Baseline).Host(Provider), "wan-b", ""),
		)
	}
	floods := make([]*RunningBulk, len(l.pairs))
	require.NoError(t, l.each(t.Context(), func(ctx context.Context, i int, p *Pair) (err error) {
		floods[i], err = p.StartBulk(ctx, BulkUDP)
		return err
	}))
	for _, f := range floods {
		defer f.Kill()
	}
	w := newQueueWatch(l.pairs)
	w.cancel = func() {}
	close(w.done)
	before := show()
	w.look(t.Context())
	after := show()
	var got []uint64
	for _, way := range w.ways {
		require.NoError(t, way.why)
		for _, r := range way.readers {
			if r.direction != figures.AToB {
				continue
			}
			for _, s := range r.last.stats {
				switch {
				case r.place == report.AtProvider,
					s.Site == "munich" && (s.Class == qos.Media || s.Class == qos.Data):
					got = append(got, uint64(s.Sent))
				}
			}
		}
	}
	require.Len(t, got, len(before))
	for i := range got {
		assert.Positive(t, got[i])
		assert.GreaterOrEqual(t, got[i], before[i], "%d", i)
		assert.LessOrEqual(t, got[i], after[i], "%d", i)
	}
	assert.Equal(t, []*report.Queues{nil, nil}, w.found(), "one reading has no rates")
}

func classHandle(t *testing.T, site string, class qos.ClassName) string {
	t.Helper()
	for h, p := range qos.Places([]string{site}) {
		if p.Site == site && p.Class == class {
			return h.String()
		}
	}
	t.Fatalf("no class %s of %s", class, site)
	return ""
}

func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func total(v []float64) (n float64) {
	for _, x := range v {
		n += x
	}
	return n
}

// A host that cannot be read costs a reading, not the run, and the next rate counts from the last whole
// reading.
func TestAReadingThatFailsIsLeftOut(t *testing.T) {
	var fail error
	var bytes qos.ByteCount
	way := &queuePath{
		readers: []*queueReader{
			{direction: figures.AToB, place: report.AtProvider, read: func(context.Context) (queueReading, error) {
				bytes += 1000
				return queueReading{stats: []qos.QueueStats{{Rate: qos.Mbit, Sent: bytes, Backlog: 125}}}, fail
			}},
		},
	}
	w := &QueueWatch{ways: []*queuePath{way}, zero: time.Now()}
	w.look(t.Context())
	fail = os.ErrDeadlineExceeded
	w.look(t.Context())
	fail = nil
	w.look(t.Context())
	q := w.found()[0]
	require.Len(t, q.Seconds, 1)
	assert.Equal(t, 1, q.Missed)
	assert.Equal(t, os.ErrDeadlineExceeded.Error(), q.Why)
	require.Len(t, q.Series, 1)
	assert.Equal(t, []float64{1}, q.Series[0].Wait, "125 bytes at 1 Mbit/s")
	assert.Positive(t, q.Series[0].Bits[0])
}
