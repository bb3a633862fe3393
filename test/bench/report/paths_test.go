package report

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lab "ringway/test/lab/report"
)

func pathsRound(lost int, gap float64, sent uint64) PathsRound {
	return PathsRound{Packets: 1000, Lost: lost, Gap: lab.Gap{Longest: gap, Lost: lost, LostUntil: gap},
		Lines: []lab.LineBytes{{Line: "wan0", Sent: sent, Received: sent}, {Line: "wan1", Sent: sent}}}
}

func TestPathsAreMediansOfRounds(t *testing.T) {
	c := NewPathsCosts("ringway", []PathsRound{
		pathsRound(3, 100, 1000), pathsRound(0, 20, 1000), pathsRound(9, 200, 4000),
	})
	assert.Equal(t, []any{3000, 12, 0.004}, []any{c.Packets, c.Lost, c.Loss})
	assert.Equal(t, []float64{100, 200, 100, 3}, []float64{c.Gap, c.GapMax, c.LostUntil, c.Bytes})
}

// Where Ringway is worse, the report says so, and in which row; less than a packet is no difference.
func TestPathsSayWhereRingwayIsWorse(t *testing.T) {
	event := func(name string, ringway, metric PathsRound) PathsEvent {
		return PathsEvent{Event: name, What: "something happens", Rows: []PathsCosts{
			NewPathsCosts("ringway", []PathsRound{ringway}), NewPathsCosts("metric", []PathsRound{metric}),
		}}
	}
	p := Paths{Events: []PathsEvent{
		event("cut", pathsRound(3, 100, 1), pathsRound(50, 1000, 1)),
		event("loss", pathsRound(51, 120, 1), pathsRound(50, 100, 1)),
	}}
	p.Compare()
	assert.Empty(t, p.Worse)
	var table bytes.Buffer
	require.NoError(t, PathsTable(&table, p))
	assert.Contains(t, table.String(), "In no row is Ringway worse than metric.\n")

	p.Events = append(p.Events, event("swing", pathsRound(60, 130, 1), pathsRound(50, 100, 1)))
	p.Compare()
	assert.Equal(t, []string{"swing: 60 packets lost, metric 50", "swing: a gap of 130 ms, metric 100 ms"}, p.Worse)
	table.Reset()
	require.NoError(t, PathsTable(&table, p))
	assert.Contains(t, table.String(), "Ringway is worse: swing: 60 packets lost, metric 50\n")
	assert.NotContains(t, table.String(), "In no row")
}
