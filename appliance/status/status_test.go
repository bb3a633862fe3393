package status

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/problem"
	"ringway/qos"
	"ringway/tunnel"
)

// A component's status is a field of the status in JSON, and comes back as the component's own type.
func TestSectionsAreFieldsOfTheStatus(t *testing.T) {
	type reflector struct {
		Port int `json:"port"`
	}
	st := Status{Site: "berlin", Sections: Sections{"reflector": reflector{862}, "metrics": []string{"127.0.0.1:9586"}}}
	text, err := json.Marshal(st)
	require.NoError(t, err)

	var fields map[string]any
	require.NoError(t, json.Unmarshal(text, &fields))
	assert.Equal(t, map[string]any{"port": 862.0}, fields["reflector"])
	assert.Equal(t, []any{"127.0.0.1:9586"}, fields["metrics"])
	assert.Equal(t, []any{}, fields["problems"], "a list, also when it is empty")

	var read Status
	require.NoError(t, json.Unmarshal(text, &read))
	assert.Equal(t, "berlin", read.Site)
	assert.Len(t, read.Sections, 2)
	for _, s := range []Status{st, read} {
		section, ok := Section[reflector](s, "reflector")
		assert.True(t, ok)
		assert.Equal(t, 862, section.Port)
	}
	_, ok := Section[reflector](read, "leases")
	assert.False(t, ok)

	st.Sections["queues"] = 1
	_, err = json.Marshal(st)
	assert.ErrorContains(t, err, "component queues: the status has a field of that name")
}

func TestPrint(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	st := Status{
		Site: "berlin", Build: "1.2.3", Config: "/etc/ringway/ringway.yaml", PID: 7, Since: now.Add(-time.Hour),
		Ready: true,
		Problems: []problem.Problem{
			{Component: "leases", Subject: "wan0", Severity: problem.Critical, Text: "no lease", Since: now.Add(-90 * time.Second), Action: "check the cable"},
			{Text: "of an earlier release", Severity: problem.Critical},
		},
		Confirmation: &Confirmation{State: Waiting, LeftS: 90},
		Tunnels: []tunnel.DeviceStatus{
			{Class: tunnel.Voice, Interface: "rw-voice", Engine: "realtime", Drops: map[string]uint64{"replay": 2},
				Peers: []tunnel.PeerStatus{{Site: "munich", LastHandshake: now.Add(-time.Minute), RxBytes: 2048, RxPackets: 10}}},
			{Class: tunnel.Data, Interface: "rw-data", Engine: "kernel", Queue: &tunnel.FlowStatus{Packets: 3, Flows: 2, Marked: 1}},
		},
		Drops:      map[string]Count{"input_wan_drop": {Packets: 5}, "spoofed": {}},
		Unread:     map[string]uint64{"sccp": 3, "mgcp": 0, "h323": 1},
		Components: []Component{{Name: "reflector", Text: "Probes from sites: not answered"}, {Name: "quiet"}},
		Missing:    []Missing{{Name: "fq_codel", Cost: "data waits longer"}},
	}
	var b strings.Builder
	require.NoError(t, st.Print(&b, now))
	assert.Equal(t, `site berlin: up for 1h0m (ringway 1.2.3, pid 7, /etc/ringway/ringway.yaml)
NOT CONFIRMED: rollback to the previous config in 1m30s unless `+"`ringway confirm`"+` is given
PROBLEM: leases wan0: no lease
         (critical for 1m30s; what to do: check the cable)
PROBLEM: of an earlier release
         (critical)

TUNNEL                      SITE    ENDPOINT  HANDSHAKE  RECEIVED (PACKETS)  SENT (PACKETS)  DROPS
voice (rw-voice, realtime)  munich  none yet  1m0s ago   2 KiB (10)          0 B             replay 2
data (rw-data, kernel)      -                                                                0
Flow queues (data): queued packets 3, active flows 2, ECN-marked packets since start 1

Dropped by policy: input_wan_drop 5

Signalling of phones that is not read, by new connections: h323 1, sccp 3

Probes from sites: not answered

This machine lacks:
  fq_codel: data waits longer
`, b.String())
}

func TestDurationsAreShort(t *testing.T) {
	for text, d := range map[string]time.Duration{
		"0s":     -time.Second,
		"59s":    59*time.Second + 400*time.Millisecond,
		"1m0s":   time.Minute,
		"59m59s": time.Hour - time.Second,
		"1h30m":  90*time.Minute + 20*time.Second,
		"3d4h":   76*time.Hour + 12*time.Second,
		"400d0h": 400 * 24 * time.Hour,
	} {
		assert.Equal(t, text, duration(d))
	}
}

func TestCallsAreListedBySite(t *testing.T) {
	st := tunnel.DeviceStatus{Peers: []tunnel.PeerStatus{
		{Site: "munich", Media: &tunnel.MediaStatus{Budget: 1_164_000, Flows: 9, Refusing: true}},
		{Site: "hamburg", Media: &tunnel.MediaStatus{Budget: 600_000, Taken: 225_600, Flows: 2, Refusing: true}},
		{Site: "bremen", Media: &tunnel.MediaStatus{Budget: 600_000, Taken: 226_000, Flows: 2}}, {Site: "kiel"}}}
	assert.Equal(t, []string{
		"Calls to bremen: 2 media flows use 226 of 600 kbit/s",
		"Calls to hamburg: 2 media flows use 225 of 600 kbit/s; new calls are refused",
		"Calls to munich: 9 media flows use 0 of 1164 kbit/s; new calls are refused",
	}, calls([]tunnel.DeviceStatus{st}, false))

	st.Peers = st.Peers[2:]
	st.Peers[0].Media.Reserved = 1
	assert.Equal(t, []string{"Calls to bremen: 2 media flows use 226 of 600 kbit/s, 1 of them guessed by their DSCP"},
		calls([]tunnel.DeviceStatus{st}, true))
	st.Peers[0].Media.Reserved = 2
	assert.Equal(t, []string{"Calls to bremen: 2 media flows use 226 of 600 kbit/s"},
		calls([]tunnel.DeviceStatus{st}, true))
	assert.True(t, Status{Sections: Sections{"calls": json.RawMessage(`{"mode": "enforce", "reading": true}`)}}.
		readsSignalling())
	assert.False(t, Status{}.readsSignalling())
}

func TestQueuesAreSummedUpWithSitesBeneath(t *testing.T) {
	var queues []qos.QueueStats
	for i := range 12 {
		for j, c := range qos.ClassNames {
			queues = append(queues, qos.QueueStats{
				WAN: "wan0", Site: fmt.Sprintf("branch-%d", i), Class: c, Rate: qos.Mbit, Ceil: 2 * qos.Mbit,
				Sent: qos.ByteCount(1000 * i), SentPackets: uint64(i), Drops: uint64(j),
			})
		}
	}
	rows := queueRows(queues)
	require.Len(t, rows, 4*(1+maxSites))
	assert.Equal(t, "media", rows[0].name)
	assert.EqualValues(t, 66, rows[0].SentPackets)
	assert.Equal(t, 12*qos.Mbit, rows[0].Rate)
	assert.Equal(t, 2*qos.Mbit, rows[0].Ceil)
	assert.Equal(t, "  branch-11", rows[1].name)
	assert.EqualValues(t, 12*3, rows[3*(1+maxSites)].Drops)
	assert.Len(t, queueRows(queues[:4]), 4, "one site alone says no more")
}

func TestStatusShowsWhatComesIn(t *testing.T) {
	q := qos.QueueStats{WAN: "data0", Site: "wan0", Class: qos.ClassDownlink, Rate: qos.Mbit}
	rows := queueRows([]qos.QueueStats{{WAN: "wan0", Site: qos.Local, Class: qos.Data}, q})
	require.Len(t, rows, 2)
	assert.Equal(t, "data0 downlink", rows[1].WAN+" "+rows[1].name)
	other := q
	other.Site = "lte0"
	rows = queueRows([]qos.QueueStats{q, other})
	require.Len(t, rows, 3, "with each WAN's part beneath")
	assert.Equal(t, "  wan0", rows[1].name)
}
