package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// live is what `ringway bench live --json` promises, read by a stranger: by field name, not by our types.
type live struct {
	Target struct{ Site, Address, Class, DSCP string }
	Clocks struct {
		OneWay    bool `json:"one_way"`
		Statement string
	}
	Lost struct {
		Sent, Lost int
		Stateful   bool
	}
	RoundTrip struct {
		Sent, Received int
		DelayUS        map[string]float64 `json:"delay_us"`
		PDV            float64            `json:"pdv_us"`
		MOS            *float64
	} `json:"round_trip"`
	Directions []struct {
		Name           string
		Sent, Received int
		DelayUS        map[string]float64 `json:"delay_us"`
		PDV            float64            `json:"pdv_us"`
		Jitter         float64            `json:"jitter_rfc3550_us"`
		IPDV           float64            `json:"ipdv_p99_9_us"`
		MOS            float64
	}
	There map[string]int `json:"dscp_there"`
	Here  map[string]int `json:"dscp_here"`
}

// A probe between two branches needs no tool at the far end, goes through the tunnel of its class both ways,
// and nobody but the sites is answered.
func TestBenchLive(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a, b := l.Edge("a"), l.Edge("b")
	for _, c := range []struct {
		class string
		dscp  string
		port  uint16
		other uint16
		outer uint8
	}{{"voice", "EF", voicePort, dataPort, expedited}, {"data", "DF", dataPort, voicePort, byDefault}} {
		t.Run(c.class, func(t *testing.T) {
			var r live
			var frames []capture.Frame
			for range 3 { // a pause of a busy machine is longer than its buffers: the first good run decides
				wan := watchWAN(t, l)
				out, err := a.Ringway(t.Context(), "bench", "live", "munich", "--class", c.class, "--duration", "2s", "--json")
				frames = wan.stop(t)
				require.NoError(t, err)
				r = live{}
				require.NoError(t, json.Unmarshal([]byte(out), &r))
				if r.Lost.Lost == 0 {
					break
				}
				t.Log(out)
			}
			assert.Equal(t, "munich", r.Target.Site)
			assert.Contains(t, []string{"10.2.10.1", "10.2.20.1"}, r.Target.Address)
			assert.Equal(t, 1000, r.Lost.Sent)
			assert.Zero(t, r.Lost.Lost)
			assert.True(t, r.Lost.Stateful)
			assert.Equal(t, 1000, r.RoundTrip.Received)
			assert.Greater(t, r.RoundTrip.DelayUS["p99_99"], r.RoundTrip.DelayUS["min"])
			assert.Nil(t, r.RoundTrip.MOS, "nobody listens to a round trip")
			require.Len(t, r.Directions, 2)
			for _, d := range r.Directions {
				assert.Equal(t, 1000, d.Received, d.Name)
				assert.Positive(t, d.PDV)
				assert.Positive(t, d.Jitter)
				assert.Positive(t, d.IPDV)
				assert.Greater(t, d.MOS, 4.0, d.Name)
				assert.Equal(t, r.Clocks.OneWay, d.DelayUS != nil, "one-way delay where the clocks allow it, and nowhere else")
			}
			assert.Contains(t, r.Clocks.Statement, "synchronized")
			assert.Equal(t, map[string]int{c.dscp: 1000}, r.There)
			assert.Equal(t, map[string]int{c.dscp: 1000}, r.Here)

			// Each passes two devices of the provider's, there and back. What else the tunnels say to each other is a
			// few packets.
			through := map[uint16]int{}
			for _, f := range frames {
				if between(f) && f.Source.Port() == f.Destination.Port() {
					through[f.Source.Port()]++
					if f.Source.Port() == c.port {
						assert.Equal(t, c.outer, f.DSCP)
					}
				}
			}
			assert.GreaterOrEqual(t, through[c.port], 4000)
			assert.Less(t, through[c.other], 100)
			onlyTunnels(t, frames)
		})
	}

	far, err := b.Ringway(t.Context(), "status")
	require.NoError(t, err)
	assert.Regexp(
		t, `Probes from sites: answered on rw-data, rw-voice, UDP port 862; \d{4} answers, \d+ active sessions; drops 0\n`, far)
	table, err := a.Ringway(t.Context(), "bench", "live", "2001:db8:2:10::1", "--streams", "2", "--duration", "500ms")
	require.NoError(t, err)
	assert.Contains(t, table, "Lost")
	t.Log("\n" + table)

	// From the WAN and from LANs the port is dead, at any address.
	var dead sync.WaitGroup
	for _, from := range []string{lab.Provider, lab.PhoneB, lab.PCB} {
		for _, to := range []string{edgeB, "10.2.10.1", "10.2.20.1"} {
			dead.Go(func() {
				_, err := l.Host(from).Run(t.Context(), ringway, "bench", "live", to, "--duration", "200ms")
				assert.ErrorContains(t, err, to+":862 answers no probe", "from %s", from)
			})
		}
	}
	dead.Wait()
	after, err := b.Ringway(t.Context(), "status", "--json")
	require.NoError(t, err)
	var st struct {
		Drops     map[string]struct{ Packets int }
		Reflector struct {
			Answered int
			Devices  []string
			Drops    map[string]int
		}
	}
	require.NoError(t, json.Unmarshal([]byte(after), &st))
	assert.GreaterOrEqual(t, st.Drops["input_wan_drop"].Packets, 5)
	assert.GreaterOrEqual(t, st.Drops["input_lan_drop"].Packets, 10)
	assert.Empty(t, st.Reflector.Drops)

	// Switched off, it answers nobody, and the question says what to look at.
	config, err := b.Config()
	require.NoError(t, err)
	require.NoError(t, b.WriteConfig(append(config, "control:\n  reflector: false\n"...)))
	_, err = b.Ringway(t.Context(), "reload")
	require.NoError(t, err)
	polltest.Require(t, func() bool {
		out, err := b.Ringway(t.Context(), "status")
		return err == nil && strings.Contains(out, "Probes from sites: not answered")
	}, 10*time.Second, 50*time.Millisecond)
	_, err = a.Ringway(t.Context(), "bench", "live", "munich", "--duration", "200ms")
	assert.ErrorContains(
		t, err, "munich: none of 10.2.10.1, 10.2.20.1, 2001:db8:2:10::1, 2001:db8:2:20::1, 10.2.10.254, "+
			"10.2.20.254 answers probes")
}
