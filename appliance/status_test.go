package appliance

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/configs"
	"ringway/firewall/nft"
	"ringway/tunnel"
)

func TestARollbackThatFailsIsAProblem(t *testing.T) {
	d := &Daemon{problems: problem.NewSet(time.Now)}
	var err error
	d.own, err = claimProblems(d.problems)
	require.NoError(t, err)
	d.reportRollback(&status.Confirmation{State: status.Undoing, Reason: "not confirmed: disk full"})
	require.Len(t, d.problems.List(), 1)
	assert.Equal(t, "commit: rollback to the previous config failed: not confirmed: disk full; "+
		"fix what the reason says; it is tried again every 30 s", d.problems.List()[0].String())

	d.reportRollback(&status.Confirmation{State: status.Undone})
	assert.Empty(t, d.problems.List())
}

func TestAGroupThatDoesNotExistIsAnError(t *testing.T) {
	id, err := groupID("")
	require.NoError(t, err)
	assert.Zero(t, id)
	_, err = groupID("rw-no-such-group")
	assert.EqualError(t, err, "control.group rw-no-such-group: group: unknown group rw-no-such-group")

	assert.Error(t, missingGroup("rw-no-such-group"))
	assert.NoError(t, missingGroup(config.DefaultGroup), "nobody has asked for it")
}

func TestTheStatusSaysThatCallsAreRefused(t *testing.T) {
	st := tunnel.DeviceStatus{Peers: []tunnel.PeerStatus{
		{Site: "munich", Media: &tunnel.MediaStatus{Budget: 1_164_000, Flows: 9, Refusing: true}},
		{Site: "hamburg", Media: &tunnel.MediaStatus{
			Budget: 600_000, LineBudget: 5_000_000, Flows: 2, Refusing: true, LineFull: true,
		}},
		{Site: "bremen", Media: &tunnel.MediaStatus{Budget: 600_000, Flows: 2}}, {Site: "kiel"}}}
	var said []string
	for _, p := range refusedCalls(st) {
		said = append(said, p.String())
	}
	assert.Equal(t, []string{
		"munich: new calls are refused: the voice budget, 1164 kbit/s, is used up " +
			"(9 media flows are admitted and stay); raise classes[media].share, or use a codec that needs less",
		"hamburg: new calls are refused: the voice budget of all sites together, 5000 kbit/s, is used up " +
			"(2 media flows are admitted and stay); raise classes[media].share, or use a codec that needs less",
	}, said)

	assert.Empty(t, unguarded(shipped(t, "branch-berlin.yaml", nil)))
	engine := map[string]string{"tunnels[voice].engine": "kernel"}
	assert.Contains(t, unguarded(shipped(t, "branch-berlin.yaml", engine)), "engine kernel does not see single packets")
	engine["classes[media].admission"] = "false"
	assert.Empty(t, unguarded(shipped(t, "branch-berlin.yaml", engine)))
}

// shipped loads a shipped config with values replaced.
func shipped(t *testing.T, name string, change map[string]string) *config.Config {
	t.Helper()
	data, err := configs.Variant(name, change)
	require.NoError(t, err)
	cfg, err := config.Parse(name, data, config.WithoutKeyFiles())
	require.NoError(t, err)
	return cfg
}

// The daemon's own problems and those of its components have a name each: a second owner of a name would resolve what
// the first one reports.
func TestNoTwoOwnersOfProblemsHaveOneName(t *testing.T) {
	d := &Daemon{log: slog.New(slog.DiscardHandler), problems: problem.NewSet(time.Now)}
	_, err := claimProblems(d.problems)
	require.NoError(t, err)
	d.media, err = d.newMedia()
	require.NoError(t, err)
	reports, err := d.newComponents().Own(d.problems)
	require.NoError(t, err)
	assert.NotEmpty(t, reports)
	for _, component := range []string{"calls", "admission", "network", "tunnel", "leases", "commit"} {
		_, err := d.problems.Own(component)
		assert.Error(t, err, component)
	}
}

// Each counter of the ruleset is in one place of the status. What was not seen is in JSON all the same, and without
// the counters, as with sip.mode: off, there is no such field.
func TestCountersAreSorted(t *testing.T) {
	var st status.Status
	sortCounters(&st, map[string]nft.Counter{
		"class_media": {Packets: 1, Bytes: 2}, "leak_wan": {Packets: 3, Bytes: 4}, "seen_sccp": {Packets: 5, Bytes: 6},
		"seen_h323": {},
	})
	assert.Equal(t, map[string]status.Count{"media": {Packets: 1, Bytes: 2}}, st.Classes)
	assert.Equal(t, map[string]status.Count{"leak_wan": {Packets: 3, Bytes: 4}}, st.Drops)
	assert.Equal(t, map[string]uint64{"sccp": 5, "h323": 0}, st.Unread)
	b, err := json.Marshal(st)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"unread_signalling":{"h323":0,"sccp":5}`)

	sortCounters(&st, map[string]nft.Counter{"leak_wan": {}})
	b, err = json.Marshal(st)
	require.NoError(t, err)
	assert.NotContains(t, string(b), "unread_signalling")
	assert.Contains(t, string(b), `"classes":{}`)
}
