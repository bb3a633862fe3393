package bench

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality"
	"ringway/test/bench/report"
)

// Re-keys and roams cost nothing, whoever begins them and whatever the far end is; a restart costs, and is
// over.
func TestRekeyLosesNothing(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := rekeyed(t, "--rekeys", "3", "--roams", "1", "--restarts", "1")

	assert.Equal(t, "ipv4", r.Settings.Family)
	assert.Len(t, r.Events, 2*3+2*1+2*1)
	lostNothing(t, r, report.Rekeyed, report.Roam, report.Restart)
}

// Stock wireguard-go gives up a session that we still send in when it is stalled between our initiation and our answer,
// so this holds on a quiet machine alone, and a machine that stalls gets three tries.
func TestTimedRekeyWithStockLosesNothing(t *testing.T) {
	t.Setenv("BENCH_AWAKE", "no")
	var r report.Rekey
	for range 3 {
		r = rekeyed(t, "--far", "wireguard-go", "--family", "ipv6", "--rekeys", "1", "--roams", "1", "--restarts", "0")
		if !slices.ContainsFunc(r.Summary, func(s report.RekeySummary) bool { return s.Lost > 0 }) {
			break
		}
		t.Logf("lost: %+v", r.Events)
	}

	assert.Equal(t, "ipv6", r.Settings.Family)
	assert.Len(t, r.Events, 2*1+2*1)
	lostNothing(t, r, report.Rekeyed, report.Roam)
}

// rekeyed runs bench rekey, which has to leave the machine as it was, and to account for every packet.
func rekeyed(t *testing.T, args ...string) (r report.Rekey) {
	t.Helper()
	before := machine(t)
	measured(t, &r, append([]string{"rekey", "--json", "--moves", "0", "--streams", "4"}, args...)...)

	assert.Equal(t, before, machine(t))
	assert.Zero(t, r.Unmatched)
	assert.Positive(t, r.Packets)
	assert.Positive(t, r.Quiet.Packets)
	return r
}

// lostNothing checks each end's summary of each kind of event: nothing is lost but in restarts.
func lostNothing(t *testing.T, r report.Rekey, kinds ...string) {
	t.Helper()
	require.Len(t, r.Summary, 2*len(kinds))

	for i, s := range r.Summary {
		assert.Equal(t, kinds[i/2], s.Kind)
		assert.Equal(t, []string{edgeA, edgeB}[i%2], s.End)
		assert.Positive(t, s.Packets)
		if s.Kind != report.Restart {
			assert.Zero(t, s.Lost, "%s of %s: %+v", s.Kind, s.End, r.Events)
		}
	}
}

func TestRekeyOptionsAreHeldToTheirRange(t *testing.T) {
	for want, change := range map[string]func(*RekeyOptions){
		"wrong usage: --rekeys: -1 (allowed: 0-40, of each end)": func(
			o *RekeyOptions) {
			o.Rekeys = -1
		},
		"wrong usage: --roams: 41 (allowed: 0-40, of each end)": func(
			o *RekeyOptions) {
			o.Roams = 41
		},
		`wrong usage: --far: "nebula" (allowed: ringway, ringway-wireguard-go, wireguard-go)`: func(
			o *RekeyOptions) {
			o.Far = "nebula"
		},
		"wrong usage: no event is requested (--rekeys, --restarts, --roams, --moves)": func(
			o *RekeyOptions) {
			*o = RekeyOptions{Family: o.Family}
		},
		`wrong usage: --family: "ipx" (allowed: ipv4, ipv6)`: func(
			o *RekeyOptions) {
			o.Family = "ipx"
		},
		"wrong usage: packets of 20 bytes (allowed: 36-1200)": func(
			o *RekeyOptions) {
			o.Size = 20
		},
	} {
		o := DefaultRekey()
		change(&o)
		_, err := MeasureRekey(t.Context(), o)
		require.ErrorIs(t, err, ErrUsage)
		assert.EqualError(t, err, want)
	}
}

// A packet belongs to every event within a second of its sending, and to the quiet when there is none.
func TestPacketsAreCountedWhereTheyBelong(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	packet := func(s float64, delay time.Duration) quality.Packet {
		return quality.Packet{Sent: stamp(at(s)), Received: stamp(at(s).Add(delay)), Lost: delay == 0}
	}
	packets := []quality.Packet{
		packet(0, time.Millisecond), packet(2, 0), // quiet, one lost
		packet(4.5, 3*time.Millisecond), packet(5, 0), packet(5.25, 0), // around the first
		packet(6.1, 9*time.Millisecond), // around both
		packet(7.5, 2*time.Millisecond), // the second
	}
	var r report.Rekey
	costs(&r, packets, []event{
		{kind: report.Rekeyed, end: 0, begin: at(5), over: at(5.2)},
		{kind: report.Roam, end: 1, begin: at(7), over: at(7)},
	})
	r.Summarize()
	assert.Equal(t, 7, r.Packets)
	assert.Equal(t, 3, r.Lost)
	assert.Equal(t, 2, r.Quiet.Packets)
	assert.Equal(t, 1, r.Quiet.Lost)
	assert.InDelta(t, 1000, r.Quiet.Max, 2)
	require.Len(t, r.Summary, 2)
	assert.Equal(
		t,
		report.RekeySummary{
			Kind:    report.Rekeyed,
			End:     edgeA,
			Events:  1,
			Packets: 4,
			Lost:    2,
			Worst:   9000,
			Median:  9000,
			Span:    250_000,
		},
		r.Summary[0],
	)
	assert.Equal(
		t,
		report.RekeySummary{Kind: report.Roam, End: edgeB, Events: 1, Packets: 2, Lost: 0, Worst: 9000, Median: 9000},
		r.Summary[1],
	)
}
