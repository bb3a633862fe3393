package live

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/status"
	"ringway/stamp"
)

func TestLikelyBoxes(t *testing.T) {
	var networks []netip.Prefix
	for _, n := range []string{"2001:db8:2:10::/64", "10.2.10.0/24", "10.2.10.0/24", "10.3.0.0/16",
		"10.4.0.7/32", "10.5.0.6/31", "10.6.0.8/30"} {
		networks = append(networks, netip.MustParsePrefix(n))
	}
	var got [2][]string
	for i, hosts := range likelyBoxes(networks) {
		for _, a := range hosts {
			assert.Equal(t, uint16(862), a.Port())
			got[i] = append(got[i], a.Addr().String())
		}
	}
	assert.Equal(t, [2][]string{{"10.2.10.1", "10.3.0.1", "10.4.0.7", "10.5.0.6", "10.6.0.9", "2001:db8:2:10::1"},
		{"10.2.10.254", "10.3.255.254", "10.6.0.10"}}, got)

	networks = nil
	for i := range 100 {
		networks = append(networks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24))
	}
	for _, hosts := range likelyBoxes(networks) {
		assert.Len(t, hosts, maxBoxes)
	}
}

// Probing must not do to calls what it is there to find.
func TestProbesFitTheVoiceBudget(t *testing.T) {
	var st status.Status
	require.NoError(
		t,
		json.Unmarshal(
			[]byte(
				`{"queues":[{"wan":"wan0","site":"munich","class":"data"},{"wan":"wan0","site":"munich","class":"media"},
		{"wan":"wan0","site":"local","class":"media"}]}`,
			),
			&st,
		),
	)
	require.Len(t, st.Queues, 3)
	st.Queues[0].Ceil, st.Queues[1].Ceil, st.Queues[2].Ceil = 1000, 5_820_000, 1000
	p := stamp.Probe{Streams: 51, Interval: 20 * time.Millisecond, Size: 172, DSCP: 46}
	assert.NoError(t, fitsBudget(p, st, "munich"))
	p.Streams = 52
	assert.EqualError(
		t,
		fitsBudget(p, st, "munich"),
		"52 streams of 172 bytes every 20ms take 5.9 Mbit/s, more than the voice budget of wan0 to munich, "+
			"5820kbit: calls would be lost (allowed: up to 51 streams)",
	)
	p.DSCP = 0
	assert.NoError(t, fitsBudget(p, st, "munich"), "data waits its turn")
}

func TestTargets(t *testing.T) {
	for in, want := range map[string]string{"10.2.10.1": "10.2.10.1:862", "10.2.10.1:9000": "10.2.10.1:9000",
		"2001:db8::1": "[2001:db8::1]:862", "[2001:db8::1]:9000": "[2001:db8::1]:9000"} {
		got, ok := parseTarget(in)
		assert.True(t, ok, in)
		assert.Equal(t, want, got.String())
	}
	for _, site := range []string{"munich", "10", "10.2.10.1:0"} {
		_, ok := parseTarget(site)
		assert.False(t, ok, site)
	}
}

// What is not known is absent from the JSON, not zero: a delay between clocks that disagree, a MOS of a round
// trip.
func TestLiveJSONSaysOnlyWhatIsKnown(t *testing.T) {
	var r stamp.Reflector
	l, err := r.Listen(stamp.Listen{Device: "lo"})
	require.NoError(t, err)
	defer l.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Addrs()[0].Port())
	res, err := stamp.Measure(
		t.Context(),
		stamp.Probe{To: to, Streams: 2, Interval: time.Millisecond, Count: 20, Size: 172, DSCP: 46},
	)
	require.NoError(t, err)
	for _, oneWay := range []bool{false, true} {
		g := res.Figures()
		g.Clocks.OneWay = oneWay
		b, err := json.Marshal(newReport(Target{Site: "munich"}, res, g))
		require.NoError(t, err)
		var got struct {
			RoundTrip  map[string]any   `json:"round_trip"`
			Directions []map[string]any `json:"directions"`
			There      map[string]int   `json:"dscp_there"`
		}
		require.NoError(t, json.Unmarshal(b, &got))
		for _, field := range []string{"sent", "received", "loss", "delay_us", "pdv_us", "jitter_rfc3550_us",
			"ipdv_p99_9_us", "reordered", "duplicates"} {
			assert.Contains(t, got.RoundTrip, field)
		}
		for _, field := range []string{"mos", "r", "mouth_to_ear_us", "late"} {
			assert.NotContains(t, got.RoundTrip, field)
		}
		require.Len(t, got.Directions, 2)
		for i, name := range []string{"a_to_b", "b_to_a"} {
			d := got.Directions[i]
			assert.Equal(t, name, d["name"])
			assert.Contains(t, d, "mos")
			assert.Equal(t, 0.0, d["dscp_other_than_ef"])
			_, delay := d["delay_us"]
			assert.Equal(t, oneWay, delay)
		}
		assert.Equal(t, map[string]int{"EF": 40}, got.There)
	}
}
