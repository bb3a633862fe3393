package wanted

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

// What the engine admits is what the queues let through: the same budgets, counted the same way.
func TestTheVoiceBudgetsReachTheEngine(t *testing.T) {
	admission := func(change map[string]string, f Facts) tunnel.Admission {
		f.Queues = qos.AssumedFeatures()
		return device(t, From(shipped(t, "branch-berlin.yaml", change), f), tunnel.Voice).Admission
	}
	cfg := shipped(t, "branch-berlin.yaml", nil)
	w := cfg.WANs[0]
	a := admission(nil, Facts{})
	require.Len(t, a.Sites, len(cfg.Sites))
	assert.NoError(t, a.Check())
	assert.Equal(t, uint64(1)<<46, a.Media, "EF, and no code point of signalling")
	assert.Equal(
		t,
		[]tunnel.AdmissionLine{{Overhead: 14}},
		a.Lines,
		"the budget fits the line, and the kernel counts as it does",
	)
	b, ok := cfg.SiteBudget(w, cfg.Sites[0], false)
	require.True(t, ok)
	assert.Equal(t, tunnel.AdmissionSite{Key: cfg.Sites[0].PublicKey, Rate: b.Rate}, a.Sites[0])

	atm := admission(map[string]string{"wan[wan0].link": "pppoa-vcmux"}, Facts{}).Lines[0]
	assert.Equal(t, tunnel.AdmissionLine{Overhead: 10, ATM: true}, atm)
	ethernet := admission(map[string]string{"wan[wan0].link": "ethernet"}, Facts{}).Lines[0]
	assert.Equal(t, tunnel.AdmissionLine{Overhead: 38, MPU: 84}, ethernet)

	for name, change := range map[string]map[string]string{
		"switched off":         {"classes[media].admission": "false"},
		"no uplink":            {"wan[wan0].uplink": "", "wan[wan0].downlink": ""},
		"another engine":       {"tunnels[voice].engine": "wireguard-go"},
		"one tunnel, for data": {"sites[munich].tunnels": "data"},
	} {
		assert.Equal(t, tunnel.Admission{}, admission(change, Facts{}), name)
	}
	assert.Empty(
		t,
		admission(nil, Facts{Refused: map[string]string{"wan0": "cake 1:"}}).Sites,
		"nothing is shaped there",
	)
}

// The budget is that of the WAN that leads to a site; where sites' budgets are more than the line, all of
// them share its own.
func TestTheBudgetIsThatOfTheWANInUse(t *testing.T) {
	cfg := shipped(t, "branch-berlin.yaml", nil)
	lte := cfg.WANs[0]
	lte.Interface, lte.Uplink = "lte0", 2*qos.Mbit
	cfg.WANs = append(cfg.WANs, lte)
	far := cfg.Sites[0]
	far.Name, far.PublicKey[0], far.Downlink = "hamburg", far.PublicKey[0]+1, 0
	cfg.Sites = append(cfg.Sites, far)
	f := Facts{Queues: qos.AssumedFeatures(), Through: func(_ tunnel.Class, s tunnel.Site) string {
		return map[string]string{"hamburg": "lte0"}[s.Name]
	}}
	a := engineAdmission(cfg, f, queueInput(cfg, f))
	require.Len(t, a.Sites, 2)
	rates := map[tunnel.PublicKey]tunnel.AdmissionSite{}
	for _, s := range a.Sites {
		rates[s.Key] = s
	}
	budget := func(w config.WAN, i int) qos.BitRate {
		b, _ := cfg.SiteBudget(w, cfg.Sites[i], false)
		return b.Rate
	}
	assert.Equal(
		t,
		tunnel.AdmissionSite{Key: cfg.Sites[0].PublicKey, Rate: budget(cfg.WANs[0], 0), Line: 0},
		rates[cfg.Sites[0].PublicKey],
		"where it is not known, the first",
	)
	assert.Equal(t, tunnel.AdmissionSite{Key: far.PublicKey, Rate: budget(lte, 1), Line: 1}, rates[far.PublicKey])
	pool := qos.VoiceBudgets(cfg.WANs[1].Line, cfg.QueueSites(), cfg.Classes)
	require.False(t, pool.Reserved)
	assert.EqualValues(t, pool.Pool, a.Lines[1].Rate)
}
