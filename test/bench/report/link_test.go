package report

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

// linkPath is a path with these PDVs by direction, of 1000 packets each.
func linkPath(name string, lost int, pdv ...float64) LinkPath {
	p := LinkPath{Program: "a program"}
	p.Name = name
	var directions []figures.Direction
	for _, v := range pdv {
		directions = append(
			directions,
			figures.Direction{
				Name:    figures.AToB,
				Measure: figures.Measure{Sent: 1000, Received: 1000 - lost, PDV: v, Delay: figures.Delay{Max: v}},
			},
		)
	}
	p.Voice = lab.NewVoice(directions...)
	return p
}

// loaded is a round of a path under a load beside the round of voice alone.
func loaded(p LinkPath, alone LinkPath, share, signalling, second float64) LinkRound {
	p.Share = share
	p.Signalling = &Echo{Sent: 100, Received: 100, P99: signalling, Max: signalling}
	p.SecondFlow = &Echo{Sent: 100, Received: 99, P50: second / 2, P99: second, Max: 2 * second}
	r := LinkRound{Paths: []LinkPath{p, linkPath(KernelPath, 0, 100, 100)}}
	r.Compare(&LinkRound{Paths: []LinkPath{alone, linkPath(KernelPath, 0, 50, 50)}})
	return r
}

func TestLinkIsJudgedByMediansAndByEveryLoss(t *testing.T) {
	alone := linkPath(RingwayPath, 0, 300, 400)
	rate := LinkRate{
		Rate:     "2mbit",
		Bits:     2e6,
		BudgetUS: 7000,
		Wire:     true,
		Loads: []LinkLoad{{Scenario: lab.Scenario{Bulk: TCP}, Rounds: []LinkRound{
			loaded(
				linkPath(RingwayPath, 0, 5300, 9000),
				alone,
				0.96,
				20_000,
				25_000,
			), // added 8600: the second direction's
			loaded(linkPath(RingwayPath, 0, 5300, 5000), alone, 0.94, 60_000, 31_000), // 5000
			loaded(linkPath(RingwayPath, 1, 5300, 4000), alone, 0.97, 30_000, 28_000), // 5000
		}}},
	}
	rate.Loads[0].Summarize()
	l := Link{
		Settings: LinkSettings{Calls: 1, Rounds: 3, Seconds: 20, IntervalUS: 20_000, Flows: 8, Flood: 2},
		LeftOut:  []string{"cake: this kernel has none"},
		Rates:    []LinkRate{rate},
	}
	l.Judge()
	by := map[string]Verdict{}
	for _, v := range l.Verdicts {
		by[v.What] = v
	}
	require.Len(t, by, 5)
	added := by["voice PDV added"]
	assert.Equal(t, []float64{8600, 5000, 5000}, added.Rounds)
	assert.True(t, added.Met, "the median")
	lost := by["voice lost"]
	assert.False(t, lost.Met, "one packet in one round is one too many")
	assert.InDelta(t, 1, lost.Value, 0)
	assert.True(t, by["data's share of the wire"].Met)
	assert.True(t, by["signalling round trip, max"].Met)
	assert.True(t, by["second flow's ping, p99"].Met, "one of a hundred may be lost")
	assert.Equal(t, 1, l.Unmet())
	p := l.Rates[0].Loads[0].Paths[0]
	assert.InDelta(t, 5000, *p.Added, 0)
	assert.InDelta(t, 53, *p.OverKernel, 0.001, "5300 over 100, the median of 90, 53, 53")
	assert.Equal(t, 3000, p.Voice.Sent)
	assert.InDelta(t, 60_000, p.Signalling.Max, 0, "the highest of all")

	l.Rates[0].Loads[0].Rounds[0].Paths[0].SecondFlow.Received = 90
	l.Rates[0].Loads[0].Summarize()
	l.Judge()
	assert.Equal(t, 2, l.Unmet(), "with a tenth lost its p99 has no end, whatever the others took")

	var b strings.Builder
	require.NoError(t, LinkTable(&b, l))
	for _, want := range []string{"one call both ways on each path", "2mbit both ways, a wire behind a FIFO",
		"not met  2mbit   tcp", "≤ 7.00 ms  8.60 ms, 5.00 ms, 5.00 ms",
		"96.0 %, 94.0 %, 97.0 %", "Warning: left out: cake: this kernel has none\n", "ringway: a program\n"} {
		assert.Contains(t, b.String(), want)
	}
}

// Above 10 Mbit/s the ratio to the kernel is reported and no goal; below 2 Mbit/s a second flow has none.
func TestLinkGoalsDependOnTheRate(t *testing.T) {
	round := loaded(linkPath(RingwayPath, 0, 500, 500), linkPath(RingwayPath, 0, 300, 400), 0.96, 20_000, 90_000)
	judged := func(bits uint64) (out []string, unmet int) {
		l := Link{
			Rates: []LinkRate{
				{Bits: bits, Loads: []LinkLoad{{Scenario: lab.Scenario{Bulk: UDP}, Rounds: []LinkRound{round}}}},
			},
		}
		l.Rates[0].Loads[0].Summarize()
		l.Judge()
		for _, v := range l.Verdicts {
			out = append(out, v.What)
		}
		return out, l.Unmet()
	}
	what, unmet := judged(100e6)
	assert.Contains(t, what, "voice PDV over the kernel's")
	assert.NotContains(t, what, "voice PDV added")
	assert.Equal(t, 1, unmet, "the second flow")
	what, _ = judged(1e6)
	assert.Contains(t, what, "voice PDV added")
	assert.NotContains(t, what, "second flow's ping, p99")
}

// Paths that were measured one after the other make one round, which says the worst of the machine.
func TestTurnsMakeARound(t *testing.T) {
	var r LinkRound
	r.Join(
		LinkRound{
			Unsent:    1,
			UnsentWhy: "no buffer space",
			CPU:       CPU{Others: 0.2},
			Late:      Late{Max: 7},
			Paths:     []LinkPath{{Margin: 0.03}},
		},
	)
	r.Join(LinkRound{Unsent: 2, CPU: CPU{Others: 0.1, Stolen: 0.3}, Late: Late{Max: 9}, Paths: []LinkPath{{}}})
	assert.Equal(
		t,
		LinkRound{Unsent: 3, UnsentWhy: "no buffer space", CPU: CPU{Others: 0.2, Stolen: 0.3}, Late: Late{Max: 9},
			Paths: []LinkPath{{Margin: 0.03}, {}}},
		r,
	)
	assert.Contains(t, LinkRate{InTurn: true}.line(), "one path after the other")
	assert.NotContains(t, LinkRate{}.line(), "after the other")
}
