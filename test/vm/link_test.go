package vm

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/report"
)

//	phone, pc --- edge --- a wire of 2 Mbit/s --- edge --- phone, pc      three times: Ringway; one stock tunnel behind fq_codel; behind cake
//
// The short form of `make bench-link-vm`: what somebody on the phone would notice, within bounds that a noisy machine keeps. Emulation
// makes all paths slower alike, and they are measured at the same time.
func TestCallsOnAFullLinkBesideFQCoDelAndCake(t *testing.T) {
	inGuest(t)
	cmd := exec.CommandContext(t.Context(), "ringway", "bench", "link", "--rates", "2mbit", "--vs", "fq_codel,cake", "--duration", "2s", "--rounds", "1", "--json")
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	var l report.Link
	require.NoError(t, json.Unmarshal(out.Bytes(), &l))
	assert.Empty(t, l.LeftOut, "this kernel has both queues")
	require.Len(t, l.Rates, 1)
	for _, load := range l.Rates[0].Loads {
		kind := load.Scenario.Bulk
		require.Len(t, load.Paths, 3)
		ringway, fqCoDel, cake := load.Paths[0], load.Paths[1], load.Paths[2]
		require.Equal(t, []string{"ringway", "fq_codel", "cake"}, []string{ringway.Name, fqCoDel.Name, cake.Name})
		for _, p := range load.Paths {
			t.Logf("%s, %s: voice lost %.1f %%, p50 %.1f ms, p99.9 %.1f ms, PDV %.1f ms, share %.2f", kind, p.Name,
				100*p.Voice.Loss, p.Voice.Delay.P50/1000, p.Voice.Delay.P999/1000, p.Voice.PDV/1000, p.Share)
		}
		assert.Zero(t, ringway.Voice.Loss, "%s: Ringway's calls lose nothing", kind)
		if kind == report.Alone {
			assert.Zero(t, fqCoDel.Voice.Loss+cake.Voice.Loss, "an empty link loses nothing")
			continue
		}
		for _, p := range load.Paths {
			assert.Greater(t, p.Share, 0.5, "%s: %s's link is full", kind, p.Name)
		}
		assert.Less(t, ringway.Voice.PDV, fqCoDel.Voice.Delay.P999, "%s: a call varies by less than it waits behind fq_codel", kind)
		assert.Less(t, ringway.Voice.Delay.P999, fqCoDel.Voice.Delay.P999, "%s", kind)
		assert.Less(t, ringway.Voice.Delay.P50, cake.Voice.Delay.P50, "%s", kind)
		assert.Greater(t, ringway.Voice.MOS, max(fqCoDel.Voice.MOS, cake.Voice.MOS), "%s", kind)
	}
}
