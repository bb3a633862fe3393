package wanted

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/admission"
)

// Calls are admitted by the arithmetic of the queues: what signalling may give to a site is what the queues let
// through, also after the plan went from the daemon to the process that reads signalling.
func TestCallsAreAdmittedAsTheQueuesCarryThem(t *testing.T) {
	cfg := shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": "4mbit", "wan[wan0].downlink": ""})
	b, err := json.Marshal(CallBudgets(cfg, Facts{}))
	require.NoError(t, err)
	var p admission.Plan
	require.NoError(t, json.Unmarshal(b, &p))
	assert.Equal(t, CallBudgets(cfg, Facts{}), p)

	w := p.World()
	require.Len(t, w.Sites, 1)
	require.Len(t, w.Lines, 1)
	assert.True(t, w.Sites[0].Ringway)
	budget, ok := cfg.SiteBudget(cfg.WANs[0], cfg.Sites[0], false)
	require.True(t, ok)
	assert.Equal(t, budget.Calls(qos.G711), w.Sites[0].Out.Calls(qos.G711))
	assert.Equal(t, budget.Rate, w.Sites[0].Out.Rate)
}
