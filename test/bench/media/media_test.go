package media

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/suite"
	"ringway/test/lab/host"
)

// The test program is its own helper on the hosts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" && os.Args[2] == "holder" {
		if err := host.Hold(os.Args[3:], os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOptions(t *testing.T) {
	good := Default()
	require.NoError(t, good.check())
	for name, change := range map[string]func(*Options){
		"rival":       func(o *Options) { o.Against = []Path{"asterisk"} },
		"rival twice": func(o *Options) { o.Against = []Path{RTPEngine, RTPEngine} },
		"case":        func(o *Options) { o.Cases = []Case{"srtp-rtp"} },
		"no case":     func(o *Options) { o.Cases = nil },
		"suite":       func(o *Options) { o.Suites = []suite.Suite{suite.AEADAES256GCM} },
		"rate":        func(o *Options) { o.Rates = []int{50_000, 50_000} },
		"high rate":   func(o *Options) { o.Rates = []int{maxRate + 1} },
		"packets":     func(o *Options) { o.Rates, o.Duration = []int{maxRate}, 10*time.Second },
		"duration":    func(o *Options) { o.Duration = time.Millisecond },
		"rounds":      func(o *Options) { o.Rounds = 0 },
		"calls":       func(o *Options) { o.Calls = 1 },
		"builds":      func(o *Options) { o.Builds = []string{"a", "b", "c"} },
	} {
		o := Default()
		change(&o)
		assert.ErrorIs(t, o.check(), ErrUsage, name)
	}
	assert.Equal(t, "ringway bench media --vs 'rtpengine' --cases rtp-srtp,srtp-srtp --suites "+
		"AES_CM_128_HMAC_SHA1_80,AEAD_AES_128_GCM --rates 50000 --calls 500 --duration 5s --rounds 5", good.command())
}

// What is sealed opens, and is placed where it was; what is not of the batch has no place.
func TestABatchKnowsItsPackets(t *testing.T) {
	var flows []*flow
	for i := range 4 {
		f := &flow{ssrc: uint32(firstSSRC + i), next: 1}
		x := newSecret(suite.AEADAES128GCM)
		if i > 1 {
			require.NoError(t, f.keys(x, x))
		}
		flows = append(flows, f)
	}
	for range 2 {
		b, err := newBatch(flows, 3)
		require.NoError(t, err)
		require.Equal(t, 12, b.len())
		for i := range b.len() {
			p := bytes.Clone(b.at(i))
			require.Equal(t, i, b.place(p))
			f := flows[i%4]
			require.NoError(t, f.same(p, b.first[i%4]+uint16(i/4)))
			p[len(p)-1]++
			require.Error(t, f.same(p, b.first[i%4]+uint16(i/4)))
		}
		early, strange := bytes.Clone(b.at(0)), bytes.Clone(b.at(0))
		early[3]--
		strange[11] += 4
		assert.Equal(t, -1, b.place(early))
		assert.Equal(t, -1, b.place(strange))
		assert.Equal(t, -1, b.place(early[:11]))
	}
	flows[0].next = maxNumber - 1
	_, err := newBatch(flows, 3)
	assert.Error(t, err, "a number would wrap, which rtpengine and Ringway count differently")
}

// A path without loss and with p99 below 5 ms passes; one with either does not. Ratios are of pairs.
func TestSummary(t *testing.T) {
	trial := func(core, p999 float64) Trial {
		return Trial{Sent: 100, CoreNS: core, Delay: Quantiles{50, 100, p999}}
	}
	rate := func(all ...Trial) []RateReport { return []RateReport{{PPS: 50_000, Rounds: all}} }
	r := Report{Cases: []CaseReport{{Case: Encrypt, Suite: "AEAD_AES_128_GCM", Paths: []PathReport{
		{Name: Ringway, BestRatePPS: 300, MemoryPerCall: 1000, Rates: rate(trial(500, 300), trial(600, 500), trial(100, 400))},
		{Name: RTPEngine, BestRatePPS: 100, MemoryPerCall: 4000, Rates: rate(trial(1000, 900), trial(1000, 900), trial(100, 900))},
		{Name: Kernel, Rates: rate(trial(50, 200), trial(50, 300), trial(50, 100))},
	}}}}
	r.summarize()
	p := r.Cases[0].Paths[0]
	assert.Equal(t, []float64{0.5, 0.6, 1}, p.Rates[0].CPURatios)
	assert.InDelta(t, 0.6, p.CPURatio, 1e-9)
	assert.InDelta(t, 500, p.CPUPerPacketNS, 1e-9)
	assert.InDelta(t, 200, p.DelayAdded.P999, 1e-9, "of 100, 200 and 300")
	assert.InDelta(t, 200.0/700, p.DelayRatio, 1e-9)
	assert.InDelta(t, 3, p.BestRatio, 1e-9)
	assert.InDelta(t, 0.25, p.MemoryRatio, 1e-9)
	var out bytes.Buffer
	require.NoError(t, r.JSON(&out))
	var read struct {
		Machine any
		Cases   []struct {
			Case, Suite string
			Paths       []struct {
				Name  string
				CPU   float64 `json:"cpu_ns_per_packet"`
				Best  float64 `json:"best_rate_pps"`
				Added struct {
					P50  float64 `json:"p50"`
					P999 float64 `json:"p99_9"`
				} `json:"delay_added_us"`
				Memory *float64 `json:"memory_mib"`
			}
		}
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &read))
	assert.Equal(t, "rtp-srtp", read.Cases[0].Case)
	assert.InDelta(t, 500, read.Cases[0].Paths[0].CPU, 1e-9)
	assert.NotNil(t, read.Cases[0].Paths[0].Memory)
	require.NoError(t, r.Table(&out))
	assert.True(t, Trial{Delay: Quantiles{P99: 4999}}.passable())
	assert.False(t, Trial{Delay: Quantiles{P99: 5000}}.passable())
	assert.False(t, Trial{Lost: 1}.passable())
}
