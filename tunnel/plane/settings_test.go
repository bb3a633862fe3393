package plane

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/process"
	"ringway/tunnel"
	"ringway/units"
)

func TestAPlaneIsToldWhatItKnowsAndHasOtherwise(t *testing.T) {
	d := device(tunnel.Voice)
	d.Admission = budgets(600_000)
	want := settingsOf(d)
	assert.True(t, want.changes(want).empty())

	have := settingsOf(device(tunnel.Voice))
	assert.Equal(t, Settings{Admission: want.Admission}, want.changes(have))
	mtu := 1300
	have.MTU, have.Admission = &mtu, nil
	change := want.changes(have)
	assert.Equal(t, Settings{MTU: want.MTU}, change, "what it does not know is left out")
	held := have.with(change)
	assert.Equal(t, want.MTU, held.MTU)
	assert.Nil(t, held.Admission, "and stays unknown")
	assert.True(t, want.changes(held).empty(), "so that nothing is told twice")
}

// The hello of a plane of an older protocol holds what it knows, too.
func TestWhatAnOlderPlaneHolds(t *testing.T) {
	hello := `{"major":1,"minor":2,"class":"voice","running":true,"mtu":1420,"bounds":{"TxQueueLen":100},` +
		`"outer":{"TOS":184,"Marks":[{"Inner":46,"Outer":46}],"PadTo":256},"admission":{"Media":70368744177664}}`
	var a about
	require.NoError(t, json.Unmarshal([]byte(hello), &a))
	assert.Equal(t, 1420, a.mtu())
	assert.Equal(t, tunnel.Bounds{TxQueueLen: 100}, a.bounds())
	assert.Equal(t, tunnel.Outer{TOS: 184, Marks: []tunnel.OuterMark{{Inner: 46, Outer: 46}}, PadTo: 256}, *a.Outer)
	assert.Equal(t, tunnel.Admission{Media: 1 << 46}, *a.Admission)

	var first about // of protocol 1.0
	require.NoError(t, json.Unmarshal([]byte(`{"class":"voice","running":true,"mtu":1420,"bounds":{}}`), &first))
	assert.NotNil(t, first.Bounds)
	assert.Nil(t, first.Outer)
	assert.Nil(t, first.Admission)
}

// copiesAlways is media to a peer sent twice.
var copiesAlways = tunnel.Copies{
	Media: 1 << 46,
	Lines: []tunnel.CopyLine{{
		AdmissionLine: tunnel.AdmissionLine{Overhead: 14}, Sources: []netip.Addr{netip.MustParseAddr("198.51.100.2")},
	}},
	Sites: []tunnel.CopySite{{
		Key: key(7).Public(), When: tunnel.CopiesAlways, Rates: []units.BitRate{600_000},
	}},
}

// Planes of other builds read what is sent: the form of each setting is frozen.
func TestTheFormOfSettings(t *testing.T) {
	d := device(tunnel.Voice)
	d.Outer, d.Admission = voiceOuter, budgets(600_000)
	d.Measured = tunnel.Measured{Media: 1 << 46, Series: 500}
	d.Sources = []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::2")}
	d.ProbeMTU = 1500
	d.Paths = tunnel.Paths{
		Lines: []tunnel.PathLine{{Source: d.Sources[0], Rate: 20_000_000, Metered: true}},
		Peers: []tunnel.PeerPaths{{Key: key(7).Public(), Rate: 5_000_000, Remotes: []netip.AddrPort{
			netip.MustParseAddrPort("203.0.113.2:51820"), netip.MustParseAddrPort("198.18.0.2:51820"),
		}}},
	}
	d.Copies = copiesAlways
	text, err := json.MarshalIndent(settingsOf(d), "", " ")
	require.NoError(t, err)
	assert.JSONEq(t, `{
		"mtu": 1420,
		"bounds": {"Rate": 0, "TxQueueLen": 100, "InFlight": 128, "FlowPackets": 0, "SendBuffer": 65536,
			"ReceiveBuffer": 262144, "DeviceGSO": 0, "SuperPacket": 0},
		"outer": {"TOS": 184, "Marks": [{"Inner": 24, "Outer": 24}, {"Inner": 46, "Outer": 46}], "PadTo": 256},
		"admission": {"Media": 70368744177664, "Lines": [{"Rate": 0, "Overhead": 14, "MPU": 0, "ATM": false}],
			"Sites": [{"Key": "`+key(7).Public().String()+`", "Rate": 600000, "Line": 0}]},
		"measured": {"Media": 70368744177664, "Series": 500},
		"sources": ["198.51.100.2", "2001:db8::2"],
		"probe_mtu": 1500,
		"paths": {"lines": [{"source": "198.51.100.2", "rate": 20000000, "metered": true}],
			"peers": [{"key": "`+key(7).Public().String()+`", "rate": 5000000,
				"remotes": ["203.0.113.2:51820", "198.18.0.2:51820"]}]},
		"copies": {"Media": 70368744177664, "Lines": [{"Rate": 0, "Overhead": 14, "MPU": 0, "ATM": false,
			"Sources": ["198.51.100.2"]}],
			"Sites": [{"Key": "`+key(7).Public().String()+`", "When": "always", "Line": 0, "Rates": [600000]}]}
	}`, string(text))
}

// A plane answers the requests of protocol 1.2, as a daemon that was downgraded sends them.
func TestAPlaneTakesTheRequestsOfAnOlderDaemon(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, _ := b.supervise(cfg)
	d := device(tunnel.Voice)
	require.NoError(t, s.Configure(ctx, d))
	pid := status(t, s).PlanePID

	s.current().Hello.Minor = minorSettings - 1
	d.Settings.MTU, d.Outer, d.Admission = 1300, voiceOuter, budgets(600_000)
	d.Bounds.InFlight++
	require.NoError(t, s.Configure(ctx, d))
	now := status(t, s)
	assert.Equal(t, pid, now.PlanePID)
	assert.EqualValues(t, 1300, now.Drops["mtu"])
	assert.Contains(t, now.Drops, d.Outer.Words())
	assert.Contains(t, now.Drops, admitted(d.Admission))
}

// A plane that refuses one setting holds those before it, and its hello says so.
func TestARefusedSettingChangesNothingBehindIt(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, _ := b.supervise(cfg)
	d := device(tunnel.Voice)
	require.NoError(t, s.Configure(ctx, d))
	mtu := 1300
	change := Settings{MTU: &mtu, Outer: &tunnel.Outer{PadTo: refusedPadding}, Admission: &tunnel.Admission{Media: 1}}
	r := s.current()
	require.ErrorContains(t, r.Ask(ctx, process.Request{Type: typeSettings, Body: change}, nil), "outer: refused")
	require.NoError(t, s.procs.Refresh(ctx, r.Instance))
	var held about
	require.NoError(t, r.DecodeHello(&held))
	assert.Equal(t, 1300, held.mtu())
	assert.Equal(t, d.Outer, *held.Outer)
	assert.Zero(t, held.Admission.Media)
}
