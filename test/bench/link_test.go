package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/quality/figures"
	"ringway/test/bench/report"
	lab "ringway/test/lab/report"
)

//	phone, pc --- edge --- a wire of 2 Mbit/s --- edge --- phone, pc
//
// Ringway, and one stock tunnel on a wire of its own.
//
// A run as a user starts it, at the length of a test. It holds the run to its books and to what no machine
// can be quicker than; how quick it was, it does not say.
func TestLinkOfOneRate(t *testing.T) {
	t.Parallel()
	plots := t.TempDir()
	cmd := exec.CommandContext(
		t.Context(),
		programs.Ringway,
		"bench",
		"link",
		"--rates",
		"2mbit",
		"--duration",
		"2s",
		"--rounds",
		"1",
		"--json",
		"--plot",
		plots,
	)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	var l report.Link
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&l))
	assert.FileExists(t, filepath.Join(plots, "link.html"))
	assert.FileExists(t, filepath.Join(plots, "link-2mbit-udp.png"))
	assert.FileExists(t, filepath.Join(plots, "link-2mbit-queues.png"))
	page, err := os.ReadFile(filepath.Join(plots, "link.html"))
	require.NoError(t, err)
	assert.Contains(t, string(page), "Where packets wait on 2mbit")
	require.Len(t, l.Rates, 1)
	r := l.Rates[0]
	assert.True(t, r.Wire)
	assert.EqualValues(
		t,
		282,
		r.VoicePacket.WireBytes,
		"G.711 through the tunnel: 200 padded to 208, 32 of WireGuard, 28 of UDP and IPv4, 14 of Ethernet",
	)
	assert.InDelta(t, 1128, r.VoicePacket.TimeUS, 0.1)
	assert.InDelta(t, r.DataPacket.TimeUS+1000, r.BudgetUS, 0.1)
	require.Len(t, r.Loads, 3)
	for i, kind := range []string{report.Alone, report.TCP, report.UDP} {
		load := r.Loads[i]
		require.Equal(t, kind, load.Scenario.Bulk)
		require.Len(t, load.Rounds, 1)
		require.Len(t, load.Paths, 2)
		assert.Equal(t, []string{"ringway", "none"}, []string{load.Paths[0].Name, load.Paths[1].Name})
		for _, p := range load.Paths {
			what := kind + " " + p.Name
			for _, d := range p.Voice.Directions {
				assert.InDelta(t, 100, d.Sent, 1, what)
				assert.Zero(t, d.Unmatched, what)
				if d.Received > 0 {
					assert.GreaterOrEqual(
						t,
						d.Delay.Min,
						r.VoicePacket.TimeUS,
						"%s: no packet is there before its last bit",
						what,
					)
				}
			}
			require.Len(t, p.Wire, 2)
			for _, w := range p.Wire {
				assert.Positive(t, w.Total, what)
				assert.LessOrEqual(
					t,
					w.Total,
					1.05*float64(r.Bits),
					"%s: the wire carries what it can; a test's clocks are a little off",
					what,
				)
			}
			if kind == report.Alone {
				assert.Nil(t, p.Added, what)
				assert.Nil(t, p.Signalling, what)
				continue
			}
			require.NotNil(t, p.Added, what)
			assert.Positive(t, p.Share, what)
			assert.Positive(t, p.Bulk.MbitPerS, what)
			for _, e := range []*report.Echo{p.Signalling, p.SecondFlow} {
				require.NotNil(t, e, what)
				assert.Equal(t, 20, e.Sent, what)
			}
		}
		assert.Contains(t, load.Paths[0].ClassDrops, "media", "Ringway's queues say what they dropped")
	}
	for _, direction := range []string{figures.AToB, figures.BToA} {
		most := func(path int) float64 {
			q := r.Loads[2].Rounds[0].Paths[path].Queues.Find(direction, lab.AtProvider, "")
			require.NotNil(t, q)
			return slices.Max(q.Wait)
		}
		assert.Less(t, most(0), most(1)/2, "ms: the provider's FIFO is full, but not Ringway's")
		assert.InDelta(t, 194, most(1), 5)
		require.NotNil(t, r.Loads[2].Rounds[0].Paths[0].Queues.Find(direction, lab.AtFlows, "data"))
	}
	assert.Nil(t, r.Loads[2].Paths[0].Queues, "rounds have them")
	flooded := r.Loads[2].Paths
	assert.Greater(
		t,
		flooded[1].Voice.Delay.P50,
		50_000.0,
		"µs: a shared tunnel's voice waits in the provider's FIFO of 194 ms",
	)
	assert.Len(t, l.Verdicts, 1+5+5)
	assert.Contains(t, progress.String(), "2mbit, load udp, round 1 of 1")
}

func TestLinkOptionsAreHeldToTheirRange(t *testing.T) {
	for want, change := range map[string]func(*LinkOptions){
		"wrong usage: --rates: none is given (allowed: 1mbit-1gbit)": func(
			o *LinkOptions) {
			o.Rates = nil
		},
		"wrong usage: --rates: 64kbit (allowed: 1mbit-1gbit, each once)": func(
			o *LinkOptions) {
			o.Rates = []qos.BitRate{64 * qos.Kbit}
		},
		"wrong usage: --rates: 2mbit (allowed: 1mbit-1gbit, each once)": func(
			o *LinkOptions) {
			o.Rates = []qos.BitRate{2 * qos.Mbit, 2 * qos.Mbit}
		},
		"wrong usage: --vs: \"ipsec\" (allowed: none, fq_codel, cake, kernel, each once)": func(
			o *LinkOptions) {
			o.Against = []string{"ipsec"}
		},
		"wrong usage: --family: \"ipx\" (allowed: ipv4, ipv6)": func(
			o *LinkOptions) {
			o.Family = "ipx"
		},
		"wrong usage: --duration: a load of 1ms (allowed: 1s-10m0s)": func(
			o *LinkOptions) {
			o.Duration = time.Millisecond
		},
		"wrong usage: --rounds: 0 (allowed: 1-100)": func(
			o *LinkOptions) {
			o.Rounds = 0
		},
		"wrong usage: --calls: 501 (allowed: 1-500)": func(
			o *LinkOptions) {
			o.Calls = 501
		},
	} {
		o := DefaultLink()
		change(&o)
		_, err := MeasureLink(t.Context(), o)
		require.ErrorIs(t, err, ErrUsage)
		assert.EqualError(t, err, want)
	}
}

func TestEchoesAreRead(t *testing.T) {
	e := readEcho(`PING 10.2.20.11 (10.2.20.11) from 10.1.20.11 : 100(128) bytes of data.
108 bytes from 10.2.20.11: icmp_seq=1 ttl=62 time=0.500 ms
108 bytes from 10.2.20.11: icmp_seq=3 ttl=62 time=12.5 ms
108 bytes from 10.2.20.11: icmp_seq=4 ttl=62 time=1250 ms

--- 10.2.20.11 ping statistics ---
4 packets transmitted, 3 received, 25% packet loss, time 303ms
`, 4)
	assert.Equal(t, []int{4, 3}, []int{e.Sent, e.Received})
	assert.InEpsilon(t, 500, e.Min, 0.01)
	assert.InEpsilon(t, 12_500, e.P50, 0.01)
	assert.InEpsilon(t, 1_250_000, e.Max, 0.01)
	assert.Zero(t, readEcho("", 3).Max)
}

// A flood that was over before voice was measured is no load: its figures are refused, not reported as good
// ones.
func TestFloodHasToLast(t *testing.T) {
	f := &flood{ended: make(chan struct{})}
	l := &linkLoad{floods: [][2]*flood{{}, {nil, f}}}
	require.NoError(t, l.lasted(0), "no flood")
	require.NoError(t, l.lasted(1))
	close(f.ended)
	require.NoError(t, l.lasted(0))
	assert.ErrorContains(t, l.lasted(1), "the flood ended before the voice streams")
}

// Over IPv6 the goals follow from its longer headers, and from the MTU that it does not go below.
func TestLongLinkOverIPv6(t *testing.T) {
	cmd := exec.CommandContext(
		t.Context(),
		programs.Ringway,
		"bench",
		"link",
		"--family",
		"ipv6",
		"--rates",
		"1mbit",
		"--vs",
		"",
		"--duration",
		"1s",
		"--rounds",
		"1",
		"--json",
	)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	var l report.Link
	require.NoError(t, json.Unmarshal(out.Bytes(), &l))
	assert.Equal(t, "ipv6", l.Settings.Family)
	assert.Contains(t, l.Settings.Command, " --family ipv6 ")
	assert.Equal(t, 148, l.Settings.EchoBytes)
	require.Len(t, l.Rates, 1)
	r := l.Rates[0]
	assert.EqualValues(
		t,
		318,
		r.VoicePacket.WireBytes,
		"G.711 through the tunnel: 220 padded to 224, 32 of WireGuard, 48 of UDP and IPv6, 14 of Ethernet",
	)
	assert.EqualValues(t, 1280+32+48+14, r.DataPacket.WireBytes)
	assert.InDelta(t, 10_992+1000, r.BudgetUS, 0.1)
	for _, load := range r.Loads {
		require.Len(t, load.Paths, 1)
		p := load.Paths[0]
		for _, d := range p.Voice.Directions {
			assert.InDelta(t, 50, d.Received, 1, load.Scenario.Bulk)
			assert.GreaterOrEqual(t, d.Delay.Min, r.VoicePacket.TimeUS)
		}
		if load.Scenario.Bulk == report.Alone {
			continue
		}
		assert.InDelta(t, 1, p.Share, 0.1, "%s: what the meter counted is what headers say", load.Scenario.Bulk)
		assert.Equal(t, 10, p.SecondFlow.Sent)
	}
}
