package report

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality/figures"
)

// twoBuilds is a run of three pairs: delays of the new build are twice, half and once the old one's, its rate
// is half.
func twoBuilds() Builds {
	b := Builds{
		Programs: []figures.Program{
			{File: "/old/ringway", Version: "1.0", BuildID: "x"},
			{File: "/new/ringway", Version: "1.1", BuildID: "y"},
		},
		Settings: BuildsSettings{Command: "ringway bench jitter --ringway /old/ringway,/new/ringway --pairs 3"},
	}
	for pair, is := range []float64{200, 50, 100} {
		old := []Figure{
			{What: "delay", Unit: "us", Value: 100},
			{What: "rate", Unit: "packets/s", Higher: true, Value: 1000},
			{What: "lost", Unit: "packets"},
		}
		b.Add(pair+1, 0, old, "report")
		b.Add(
			pair+1,
			1,
			[]Figure{
				{What: "delay", Unit: "us", Value: is},
				{What: "rate", Higher: true, Value: 500},
				{What: "lost", Value: 3},
			},
			"report",
		)
	}
	b.Compare()
	return b
}

func TestARatioAboveOneIsAWorseBuild(t *testing.T) {
	b := twoBuilds()
	require.Len(t, b.Figures, 3)
	assert.Equal(t, []float64{2, 0.5, 1}, b.Figures[0].Ratios)
	assert.Equal(t, 1.0, *b.Figures[0].Ratio, "the median of the pairs' ratios")
	assert.Equal(t, []float64{2, 2, 2}, b.Figures[1].Ratios, "half the rate is worse")
	assert.Empty(t, b.Figures[2].Ratios, "nothing was lost before: there is no ratio")
	assert.Nil(t, b.Figures[2].Ratio)
	assert.Equal(t, [][]float64{{0, 0, 0}, {3, 3, 3}}, b.Figures[2].Values)
	assert.Len(t, b.Runs, 6)
}

func TestTableOfBuilds(t *testing.T) {
	var w strings.Builder
	require.NoError(t, twoBuilds().Table(&w))
	for _, line := range []string{
		"old: ringway 1.0, /old/ringway, build id x",
		"new: ringway 1.1, /new/ringway, build id y",
		"          old     new  median ratio          ratios",
		"delay  100 µs  100 µs         1.000  2.00 0.50 1.00",
		"rate     1000     500         2.000  2.00 2.00 2.00",
		"lost        0       3             -",
	} {
		assert.Contains(t, w.String(), line+"\n")
	}

	text, err := json.Marshal(twoBuilds())
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(text, &got))
	for _, field := range []string{"machine", "programs", "settings", "figures", "runs"} {
		assert.Contains(t, got, field)
	}
}

// Every figure that builds are compared by has a name of its own: two of one name would be one row.
func TestFiguresHaveNamesOfTheirOwn(t *testing.T) {
	link := Link{Rates: []LinkRate{{Rate: "2mbit", Loads: []LinkLoad{{}, {}}}}}
	for i, bulk := range []string{Alone, TCP} {
		load := &link.Rates[0].Loads[i]
		load.Scenario.Bulk = bulk
		for _, name := range []string{RingwayPath, "none"} {
			p := LinkPath{}
			if p.Name = name; bulk == TCP {
				p.Signalling, p.SecondFlow = &Echo{Max: 5}, &Echo{P99: 7}
			}
			load.Paths = append(load.Paths, p)
		}
	}
	throughput := Throughput{
		Sizes: []ThroughputSize{
			{Size: "200", Engines: []ThroughputEngine{{Name: "ringway"}, {Name: "wireguard-go"}}},
		},
	}
	for _, all := range [][]Figure{example().Figures(), link.Figures(), throughput.Figures()} {
		names := map[string]bool{}
		for _, f := range all {
			assert.False(t, names[f.What], f.What)
			names[f.What] = true
		}
		assert.GreaterOrEqual(t, len(names), 4)
	}
	assert.Contains(
		t,
		link.Figures(),
		Figure{What: "2mbit, load tcp, ringway: signalling, max", Unit: "us", Value: 5},
	)
}
