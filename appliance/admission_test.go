package appliance

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
	assert.Equal(t, qos.RTCPShare, tunnel.RTCPShare)
	admission := func(change map[string]string, f facts) tunnel.Admission {
		f.queues = qos.AssumedFeatures()
		return device(t, want(shipped(t, "branch-berlin.yaml", change), f), tunnel.Voice).Admission
	}
	cfg := shipped(t, "branch-berlin.yaml", nil)
	w := cfg.WANs[0]
	a := admission(nil, facts{})
	require.Len(t, a.Sites, len(cfg.Sites))
	assert.NoError(t, a.Check())
	assert.Equal(t, uint64(1)<<46, a.Media, "EF, and no code point of signalling")
	assert.Equal(t, []tunnel.AdmissionLine{{Overhead: 14}}, a.Lines, "the budget fits the line, and the kernel counts as it does")
	b, ok := cfg.SiteBudget(w, cfg.Sites[0], false)
	require.True(t, ok)
	assert.Equal(t, tunnel.AdmissionSite{Key: cfg.Sites[0].PublicKey, Rate: uint64(b.Rate)}, a.Sites[0])

	atm := admission(map[string]string{"wan[wan0].link": "pppoa-vcmux"}, facts{}).Lines[0]
	assert.Equal(t, tunnel.AdmissionLine{Overhead: 10, ATM: true}, atm)
	ethernet := admission(map[string]string{"wan[wan0].link": "ethernet"}, facts{}).Lines[0]
	assert.Equal(t, tunnel.AdmissionLine{Overhead: 38, MPU: 84}, ethernet)

	for name, change := range map[string]map[string]string{
		"switched off": {"classes[media].admission": "false"}, "no uplink": {"wan[wan0].uplink": "", "wan[wan0].downlink": ""},
		"another engine": {"tunnels[voice].engine": "wireguard-go"}, "one tunnel, for data": {"sites[munich].tunnels": "data"},
	} {
		assert.Equal(t, tunnel.Admission{}, admission(change, facts{}), name)
	}
	assert.Empty(t, admission(nil, facts{refused: map[string]string{"wan0": "cake 1:"}}).Sites, "nothing is shaped there")
}

// The budget is that of the WAN that leads to a site; where sites' budgets are more than the line, all of them share its own.
func TestTheBudgetIsThatOfTheWANInUse(t *testing.T) {
	cfg := shipped(t, "branch-berlin.yaml", nil)
	lte := cfg.WANs[0]
	lte.Interface, lte.Uplink = "lte0", 2*qos.Mbit
	cfg.WANs = append(cfg.WANs, lte)
	far := cfg.Sites[0]
	far.Name, far.PublicKey[0], far.Downlink = "hamburg", far.PublicKey[0]+1, 0
	cfg.Sites = append(cfg.Sites, far)
	f := facts{queues: qos.AssumedFeatures(), through: func(_ tunnel.Class, s tunnel.Site) string {
		return map[string]string{"hamburg": "lte0"}[s.Name]
	}}
	a := admission(cfg, f)
	require.Len(t, a.Sites, 2)
	rates := map[tunnel.PublicKey]tunnel.AdmissionSite{}
	for _, s := range a.Sites {
		rates[s.Key] = s
	}
	budget := func(w config.WAN, i int) uint64 {
		b, _ := cfg.SiteBudget(w, cfg.Sites[i], false)
		return uint64(b.Rate)
	}
	assert.Equal(t, tunnel.AdmissionSite{Key: cfg.Sites[0].PublicKey, Rate: budget(cfg.WANs[0], 0), Line: 0}, rates[cfg.Sites[0].PublicKey], "where it is not known, the first")
	assert.Equal(t, tunnel.AdmissionSite{Key: far.PublicKey, Rate: budget(lte, 1), Line: 1}, rates[far.PublicKey])
	pool := qos.VoiceBudgets(cfg.WANs[1].Queue(0), cfg.QueueSites(), cfg.Classes)
	require.False(t, pool.Reserved)
	assert.EqualValues(t, pool.Pool, a.Lines[1].Rate)
}

func TestTheStatusSaysThatCallsAreRefused(t *testing.T) {
	st := tunnel.DeviceStatus{Peers: []tunnel.PeerStatus{
		{Site: "munich", Media: &tunnel.MediaStatus{Budget: 1_164_000, Flows: 9, Refusing: true}},
		{Site: "hamburg", Media: &tunnel.MediaStatus{Budget: 600_000, LineBudget: 5_000_000, Flows: 2, Refusing: true, LineFull: true}},
		{Site: "bremen", Media: &tunnel.MediaStatus{Budget: 600_000, Flows: 2}}, {Site: "kiel"}}}
	const more = " flows of media are admitted and stay; more room: classes[media].share, or a codec that takes less)"
	assert.Equal(t, []string{
		"calls to site munich are refused: the voice budget, 1164 kbit/s, is full (9" + more,
		"calls to site hamburg are refused: the voice budget of all sites together, 5000 kbit/s, is full (2" + more,
	}, refusedCalls(st))

	st.Peers[2].Media.Taken, st.Peers[1].Media.Taken = 226_000, 225_600
	assert.Equal(t, []string{"Calls to bremen: 2 flows of media take 226 of 600 kbit/s", "Calls to hamburg: 2 flows of media take 225 of 600 kbit/s; others are refused",
		"Calls to munich: 9 flows of media take 0 of 1164 kbit/s; others are refused"}, callsNow([]tunnel.DeviceStatus{st}))

	assert.Empty(t, unguarded(shipped(t, "branch-berlin.yaml", nil)))
	engine := map[string]string{"tunnels[voice].engine": "kernel"}
	assert.Contains(t, unguarded(shipped(t, "branch-berlin.yaml", engine)), "engine kernel does not see single packets")
	engine["classes[media].admission"] = "false"
	assert.Empty(t, unguarded(shipped(t, "branch-berlin.yaml", engine)))
}
