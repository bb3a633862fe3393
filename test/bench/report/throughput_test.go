package report

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func round(n int, rate, cpu float64) ThroughputRound {
	return ThroughputRound{Round: n, PacketsPerS: rate, BitsPerS: 1600 * rate, LimitedBy: ByLoss,
		Trial: Trial{Offered: rate, CPU: PacketCPU{SenderEdge: cpu, ReceiverEdge: 2 * cpu, Machine: 9}}}
}

// Ratios are those of the same round, their median; figures are medians of their own.
func TestThroughputRatiosAreTakenRoundByRound(t *testing.T) {
	r := Throughput{
		Settings: ThroughputSettings{TrialSeconds: 2, Resolution: 0.02, Rounds: 3, OneCore: true},
		Denied:   []string{"sleep"},
		Sizes: []ThroughputSize{{Size: "200", IPBytes: 200, Engines: []ThroughputEngine{
			{
				Name:    "ringway",
				Program: "a plane",
				Rounds:  []ThroughputRound{round(1, 300_000, 2), round(2, 200_000, 2), round(3, 400_000, 4)},
			},
			{
				Name:    "wireguard-go",
				Program: "stock",
				Rounds:  []ThroughputRound{round(1, 100_000, 10), round(2, 50_000, 8), round(3, 200_000, 10)},
			},
			{
				Name:   "kernel",
				Rounds: []ThroughputRound{round(1, 900_000, 0), round(2, 900_000, 0), round(3, 900_000, 0)},
			},
		}}},
	}
	r.Summarize("wireguard-go")
	e := r.Sizes[0].Engines
	assert.InDelta(t, 300_000, e[0].PacketsPerS, 0)
	assert.InDelta(t, 500_000, e[0].PerCPUSecond, 1)
	require.NotNil(t, e[0].AgainstStock)
	assert.InDelta(t, 3, *e[0].AgainstStock, 1e-9)
	assert.InDelta(t, 4, *e[0].CPUAgainstStock, 1e-9)
	assert.InDelta(t, 1, *e[1].AgainstStock, 1e-9)
	assert.Nil(t, e[2].CPUAgainstStock)

	r.Sizes[0].Engines[1].Rounds[0].Trials = []Trial{
		{Overflow: 3, Refused: 2, Late: 5000},
		{Late: 1e6, Verdict: Unsent},
	}
	var b strings.Builder
	require.NoError(t, ThroughputTable(&b, r))
	for _, want := range []string{
		"Highest rate without loss (RFC 2544, section 26.1): trials of 2 s, to 2 %, median of 3 rounds\n",
		"The sending edge's engine has one core of its own.", "\n200 bytes\n",
		"ringway          300000   480.0    3.00        2.00   4.00     9.00         500000    4.00     -  " +
			"300000 200000 400000      loss\n",
		"kernel           900000  1440.0    9.00           -      -     9.00              -       -     -  " +
			"900000 900000 900000      loss\n",
		"wireguard-go: stock\n", "Warning: this machine denies sleep\n",
		"wireguard-go at 200: 3 packets overflowed the tester's own buffer", "refused 2 packets",
		"in 1 trials the tester was late by more than 2.00 ms",
	} {
		assert.Contains(t, b.String(), want)
	}
	r.Settings.Loss = 0.005
	b.Reset()
	require.NoError(t, ThroughputTable(&b, r))
	assert.Contains(t, b.String(), "Highest rate at which no more than 0.5 % are lost")
}

func TestRekeyTable(t *testing.T) {
	r := Rekey{
		Settings: RekeySettings{
			Near:          "a plane",
			Far:           "stock",
			Streams:       10,
			Size:          172,
			Interval:      20_000,
			AroundSeconds: 1,
		},
		Quiet:     Quiet{Packets: 900, Lost: 1, P999: 150, Max: 300},
		Overflow:  1,
		Unmatched: 2,
		Unsent:    3,
		Denied:    []string{"sleep"},
		Events: []RekeyEvent{
			{Kind: Rekeyed, End: "edge-a", Packets: 100, Worst: 100},
			{Kind: Rekeyed, End: "edge-b", Packets: 100, Worst: 120},
			{Kind: Rekeyed, End: "edge-a", Packets: 100, Lost: 2, Worst: 400, Span: 20_000},
		},
	}
	r.Summarize()
	var b strings.Builder
	require.NoError(t, RekeyTable(&b, r))
	for _, want := range []string{
		"10 voice streams each way, 172 bytes every 20.0 ms, edge-a: a plane, edge-b: stock\n",
		"re-key    edge-a       2      200     2  400 µs           250 µs  20.0 ms\n",
		"re-key    edge-b       1      100     0  120 µs           120 µs        -\n",
		"no event                      900     1  300 µs     p99.9 150 µs\n",
		"Warning: this machine denies sleep\n", "Warning: 1 packets were lost away from every event",
		"buffer full: they count as lost", "2 packets arrived that were never sent", "3 packets were refused",
	} {
		assert.Contains(t, b.String(), want)
	}
}
