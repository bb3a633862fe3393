package report

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality/figures"
)

// exampleQueues are those of three seconds: a flood stands before Ringway's tunnel, and in the provider's
// FIFO beside it.
func exampleQueues() (ours, stock *Queues) {
	of := func(place, class string, rate uint64, wait float64, dropped float64, q *Queues) {
		s := QueueSeries{Direction: figures.AToB, Place: place, Class: class, Rate: rate}
		for range q.Seconds {
			s.Backlog, s.Wait, s.Drops = append(s.Backlog, wait*2500), append(s.Wait, wait), append(s.Drops, dropped)
			if place != AtFlows {
				s.Bits = append(s.Bits, 1e6)
			}
		}
		q.Series = append(q.Series, s)
	}
	for _, q := range []**Queues{&ours, &stock} {
		*q = &Queues{Interval: 0.2, Phases: []Phase{{"UDP bulk", -1}, {"calls", 0}}}
		for i := range 15 {
			(*q).Seconds = append((*q).Seconds, -1+0.2*float64(i))
		}
	}
	of(AtEdge, "media", 6e6, 0, 0, ours)
	of(AtEdge, "data", 2e6, 30, 0, ours)
	of(AtFlows, "data", 0, 160, 70, ours)
	of(AtProvider, "", 20e6, 0, 0, ours)
	of(AtProvider, "", 20e6, 119, 1000, stock)
	return ours, stock
}

func TestQueuePicture(t *testing.T) {
	r, _ := example()
	_, ok := NewQueuePicture(r)
	assert.False(t, ok, "no path has queues")
	r.Paths[0].Queues, r.Paths[1].Queues = exampleQueues()
	q, ok := NewQueuePicture(r)
	require.True(t, ok)
	var b bytes.Buffer
	require.NoError(t, q.Write(&b, "svg"))
	svg := b.String()
	for _, want := range []string{"Where packets wait", "Ringway", "Baseline", "sent, Mbit/s", "waiting, ms",
		"time, s", "UDP bulk", "calls", "the link", "media", "data, before its tunnel",
		"the provider", "160 ms", "119 ms", "packets dropped",
		"10,000"} { // of ten readings from second 0 on
		assert.Contains(t, svg, want)
	}
	assert.NotContains(t, svg, "NaN")
	assert.Less(t, len(svg), 100_000)

	dir := t.TempDir()
	require.NoError(t, q.Save(filepath.Join(dir, "q.png")))
	f, err := os.Open(filepath.Join(dir, "q.png"))
	require.NoError(t, err)
	defer f.Close()
	_, err = png.Decode(f)
	require.NoError(t, err)
	assert.ErrorIs(t, q.Save(filepath.Join(dir, "q.gif")), ErrPlotFormat)
}

// Runs are drawn side by side, each under its name; what was measured without a load is in no figure below;
// nothing breaks a picture of nothing.
func TestQueuePictureOfSeveralRuns(t *testing.T) {
	ours, stock := exampleQueues()
	q := QueuePicture{Direction: figures.AToB, Paths: []QueuePath{
		{
			Name: "ringway",
			Parts: []QueuePart{
				{Name: "voice alone", Quiet: true, Queues: stock},
				{Name: "TCP", Queues: ours},
				{Name: "gone"},
			},
		},
		{Name: "none"}, {Name: "kernel", Parts: []QueuePart{{Name: "TCP", Queues: &Queues{}}}}, {Name: "cake"},
	}}
	c := q.columns()[0]
	assert.Equal(t, []Phase{{"voice alone", 0}, {"TCP", 3}}, c.marks)
	assert.InDelta(t, 5.8, c.high, 1e-9)
	last := c.rows[len(c.rows)-1]
	assert.Equal(t, "the provider's FIFO", last.name)
	assert.Zero(t, last.dropped, "the quiet run's are not counted")
	assert.Len(t, last.waits, 2)
	var b bytes.Buffer
	require.NoError(t, q.Write(&b, "svg"))
	assert.Contains(t, b.String(), "No queues at the edge")
	require.NoError(t, QueuePicture{}.Write(&b, "svg"))
}

// Scripts read these names; a list of numbers takes one line and reads as before.
func TestJSONOfQueues(t *testing.T) {
	r, _ := example()
	r.Paths[0].Queues, _ = exampleQueues()
	var b bytes.Buffer
	require.NoError(t, WriteJSON(&b, r))
	plain, err := json.Marshal(r)
	require.NoError(t, err)
	assert.JSONEq(t, string(plain), b.String())
	assert.Contains(t, b.String(), `"backlog_ms": [30,30,`)
	for _, name := range []string{"interval_s", "took_us", "missed", "phases", "from_s", "seconds", "series",
		"direction", "place", "class", "rate_bits_per_s", "ceiling_bits_per_s",
		"bits_per_s", "backlog_bytes", "backlog_ms", "drops_since_reading_before"} {
		assert.Contains(t, b.String(), `"`+name+`"`)
	}
	assert.Equal(t, 1, strings.Count(b.String(), `"queues"`), "absent where nothing was read")
	for _, odd := range []string{`[]`, `["1, 2", "[ 3 ]"]`, `{"a":"[\n 1\n]"}`} {
		var v any
		require.NoError(t, json.Unmarshal([]byte(odd), &v))
		b.Reset()
		require.NoError(t, WriteJSON(&b, v))
		assert.JSONEq(t, odd, b.String())
	}
}
