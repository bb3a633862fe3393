package bench

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/report"
)

// A run as a user starts it. What it holds is what no machine can be better than, and what none may be worse than:
// where there is one line, all is lost after the cut; where there are two, not; and who sends all of it twice sends
// twice as much.
func TestLongPathsOfACutLine(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), programs.Ringway, "bench", "paths", "--events", "cut", "--rounds", "1",
		"--calls", "2", "--json")
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	var p report.Paths
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&p))
	require.Len(t, p.Events, 1)
	rows := map[string]report.PathsCosts{}
	for _, c := range p.Events[0].Rows {
		rows[c.Path] = c
		require.Len(t, c.Rounds, 1, c.Path)
		require.Len(t, c.Rounds[0].Events, 1, c.Path)
		assert.Equal(t, "wan0 is cut", c.Rounds[0].Events[0].What)
		assert.InDelta(t, 5, c.Rounds[0].Gap.At, 1, "s")
		assert.InDelta(t, 2*2*9*50, c.Packets, 2*2*50, c.Path) // two calls, both directions, nine seconds
	}
	require.Len(t, rows, 4)
	single, ringway, twice := rows["single"], rows["ringway"], rows["duplicate-all"]
	assert.Greater(t, single.Loss, 0.3)
	assert.Greater(t, single.Gap, 2000.0, "ms: nothing is heard until the calls are over")
	assert.Less(t, ringway.Gap, single.Gap/2)
	assert.Less(t, twice.Gap, single.Gap/2)
	assert.Equal(t, 2, ringway.Rounds[0].Packets/(2*9*50), "both calls are in it")
	assert.Zero(t, ringway.Failed)
	assert.Len(t, single.Rounds[0].Lines, 1)
	for _, name := range []string{"ringway", "metric", "duplicate-all"} {
		lines := rows[name].Rounds[0].Lines
		require.Len(t, lines, 2, name)
		assert.Positive(t, lines[0].Sent, name)
		assert.Greater(t, lines[1].Sent, lines[0].Sent/10, "%s: by the second line after the cut", name)
	}
	sent := twice.Rounds[0].Lines
	assert.Greater(t, sent[1].Sent, sent[0].Sent, "by the second line all the time, by the first until the cut")
	assert.Less(t, ringway.Bytes, twice.Bytes)
	var table bytes.Buffer
	require.NoError(t, report.PathsTable(&table, p))
	assert.Contains(t, table.String(), "cut    ringway ")
}
