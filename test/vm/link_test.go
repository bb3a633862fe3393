package vm

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/report"
)

//	phone, pc --- edge --- a wire --- edge --- phone, pc
//
// three times: Ringway; one stock tunnel behind fq_codel; one behind cake
//
// What somebody on the phone would notice, of the run that `make bench-link-vm` has just made: there the
// guest's clock counts instructions, so that what else the machine does is in no figure. Paths of one run are
// compared, and no absolute time is asserted.
func TestCallsOnAFullLinkBesideFQCoDelAndCake(t *testing.T) {
	name := os.Getenv("TEST_VM_LINK")
	if name == "" {
		t.Skip("reads what `ringway bench link` found in the virtual machine of `make bench-link-vm`")
	}
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var l report.Link
	require.NoError(t, json.Unmarshal(text, &l))
	assert.Empty(t, l.LeftOut, "the kernel there has both queues")
	assert.Contains(t, l.Settings.Command, " --in-turn", "the report says how to repeat it")
	require.NotEmpty(t, l.Rates)
	for _, rate := range l.Rates {
		require.Len(t, rate.Loads, 3)
		assert.True(t, rate.InTurn, "one processor carries one pair's flood, not four")
		for _, load := range rate.Loads {
			kind := rate.Rate + ", " + load.Scenario.Bulk
			paths := map[string]report.LinkPath{}
			for _, p := range load.Paths {
				paths[p.Name] = p
				t.Logf("%s, %s: voice lost %.1f %%, p50 %.1f ms, p99.9 %.1f ms, PDV %.2f ms, MOS %.1f, share %.2f", kind, p.Name,
					100*p.Voice.Loss, p.Voice.Delay.P50/1000, p.Voice.Delay.P999/1000, p.Voice.PDV/1000, p.Voice.MOS, p.Share)
			}
			ringway, fqCoDel, cake := paths["ringway"], paths["fq_codel"], paths["cake"]
			for _, p := range []report.LinkPath{ringway, fqCoDel, cake} {
				require.NotZero(t, p.Voice.Sent, kind)
			}
			assert.Zero(t, ringway.Voice.Loss, "%s: Ringway's calls lose nothing", kind)
			if load.Scenario.Bulk == report.Alone {
				assert.Zero(t, fqCoDel.Voice.Loss+cake.Voice.Loss, "%s: an empty link loses nothing", kind)
				continue
			}
			for _, p := range []report.LinkPath{ringway, fqCoDel, cake} {
				assert.Greater(t, p.Share, 0.5, "%s: the link of %s is full", kind, p.Name)
			}
			assert.Less(t, ringway.Voice.PDV, fqCoDel.Voice.Delay.P999,
				"%s: a call varies by less than it waits behind fq_codel", kind)
			assert.Less(t, ringway.Voice.Delay.P999, fqCoDel.Voice.Delay.P999, kind)
			assert.Less(t, ringway.Voice.Delay.P50, cake.Voice.Delay.P50, kind)
			assert.Greater(t, ringway.Voice.MOS, max(fqCoDel.Voice.MOS, cake.Voice.MOS), kind)
		}
	}
}
