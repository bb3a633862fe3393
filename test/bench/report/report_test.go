package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality/figures"
	"ringway/test/bench/probe"
	lab "ringway/test/lab/report"
)

var update = flag.Bool("update", false, "write the golden files again")

// measure is a direction that took about base microseconds.
func measure(base float64, sent, lost int) figures.Measure {
	return figures.Measure{
		Sent: sent, Received: sent - lost, Loss: float64(lost) / float64(sent), Streams: 10,
		Delay: figures.Delay{
			Min:   base / 2,
			P50:   base,
			P90:   base * 2,
			P99:   base * 4,
			P999:  base * 8.5,
			P9999: base * 9,
			Max:   base * 10,
			Mean:  base * 1.1,
		},
		PDV: base * 8, Jitter: base / 5, JitterMax: base * 3, IPDV: base * 7, MOS: 4.38, R: 91.9, WorstMOS: 4.38,
		WorstR:     91.9,
		MouthToEar: 43750 + base/2, Buffer: 20000, BurstRatio: 1,
	}
}

func path(name, program string, base float64, sent, lost int) Path {
	p := Path{Program: program}
	p.Name = name
	p.Voice = lab.NewVoice(
		figures.Direction{Name: figures.AToB, Measure: measure(base, sent, lost)},
		figures.Direction{Name: figures.BToA, Measure: measure(base*0.9, sent, 0)},
	)
	return p
}

// example is a run of three rounds, the second of which was disturbed.
func example() Jitter {
	ninety := 90
	j := Jitter{
		Machine: Machine{
			Machine: figures.Machine{
				CPU:        "Example CPU",
				Cores:      2,
				MemoryMB:   4096,
				Kernel:     "6.12.0",
				Arch:       "amd64",
				Preemption: "full",
				Virtual:    true,
				Go:         "go1.26",
			},
			NetdevBudget: 300,
			Denied:       []string{"real-time scheduling (SCHED_FIFO): operation not permitted"},
			Wakeup: []Wakeup{
				{Wake: probe.Wake{Policy: "other", Samples: 2000, P50: 60, P99: 120, P999: 900, Max: 1500}},
				{Wake: probe.Wake{Policy: "fifo", Denied: "operation not permitted"}},
				{
					LoadPercent: &ninety,
					Round:       1,
					Wake: probe.Wake{
						Policy:  "other",
						Samples: 2000,
						P50:     61,
						P99:     1200,
						P999:    4000,
						Max:     5000,
					},
				},
				{
					LoadPercent: &ninety,
					Round:       2,
					Wake: probe.Wake{
						Policy:  "other",
						Samples: 2000,
						P50:     81,
						P99:     1400,
						P999:    5000,
						Max:     9000,
					},
				},
				{
					LoadPercent: &ninety,
					Round:       3,
					Wake: probe.Wake{
						Policy:  "other",
						Samples: 2000,
						P50:     71,
						P99:     1300,
						P999:    4500,
						Max:     6000,
					},
				},
			},
		},
		Ringway: figures.Program{File: "/usr/bin/ringway", Version: "1.0.0", BuildID: "a/b/c/d"},
		Settings: Settings{
			Build:    "1.0.0",
			Family:   "ipv4",
			Engine:   "realtime",
			Streams:  10,
			Interval: 20000,
			Size:     172,
			Seconds:  20,
			Rounds:   3,
			Capacity: 1650,
			Started:  "2026-11-25T10:00:00Z",
			Command:  "ringway bench jitter --loads 90 --rounds 3",
		},
		Loads: []Load{{LoadPercent: 90}},
	}
	for i, disturbed := range []float64{1, 40, 1.2} {
		paths := []Path{
			path("ringway", "ringway plane", 100*disturbed, 10000, 0),
			path("wireguard-go-shared", "wireguard-go 1", 4000*disturbed, 10000, 7*i),
			path("kernel", "Linux forwarding, no tunnel", 4, 10000, 0),
		}
		paths[1].Bulk.MbitPerS = 1480
		Compare(paths)
		r := Round{
			Round: i + 1,
			Bulk:  Bulk{Asked: 1485, MbitPerS: 1480},
			CPU:   CPU{SoftIRQ: 0.05},
			Late:  Late{P50: 20, P999: 300, Max: 900},
			Paths: paths,
		}
		if i == 1 {
			r.CPU.Stolen, r.CPU.Others, r.Unsent, r.UnsentWhy = 0.12, 0.25, 3, "no buffer space available"
		}
		j.Loads[0].Rounds = append(j.Loads[0].Rounds, r)
	}
	j.Loads[0].Summarize()
	return j
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "go test -update makes it")
	assert.Equal(t, string(want), got)
}

func TestTableIsAsAlways(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Table(&b, example()))
	golden(t, "table.txt", b.String())
	for line := range strings.Lines(b.String()) {
		assert.LessOrEqual(t, len([]rune(strings.TrimSpace(line))), 170, "%s", line)
	}
}

func TestJSONIsAsAlways(t *testing.T) {
	b, err := json.MarshalIndent(example(), "", "  ")
	require.NoError(t, err)
	golden(t, "run.json", string(b)+"\n")
}

// One disturbed round of three moves no median, but no loss and no worst packet hides in one.
func TestRoundsAreSummarizedHonestly(t *testing.T) {
	l := example().Loads[0]
	shared := l.Paths[1]
	assert.InDelta(t, 4800, shared.Voice.Delay.P50, 1e-6)
	assert.InDelta(t, 4800, shared.Voice.Directions[0].Delay.P50, 1e-6)
	assert.InDelta(t, 4000*40*10, shared.Voice.Delay.Max, 1e-6)
	assert.Equal(t, 30000, shared.Voice.Sent)
	assert.Equal(t, 30000-21, shared.Voice.Received)
	assert.InDelta(t, 21.0/30000, shared.Voice.Loss, 1e-9)
	require.NotNil(t, shared.Against)
	assert.InDelta(t, 40, shared.Against.PDV, 1e-9)
	assert.InDelta(t, 1, l.Paths[0].Against.P50, 1e-9)
}

func TestNobodyIsComparedWithNothing(t *testing.T) {
	paths := []Path{path("kernel", "", 4, 100, 0)}
	Compare(paths)
	assert.Nil(t, paths[0].Against, "ringway is not there")
	paths = []Path{path("ringway", "", 100, 100, 0), {}}
	Compare(paths)
	assert.Nil(t, paths[1].Against, "nothing arrived")
}

// The page refers to nothing outside itself, and holds everything.
func TestPageStandsAlone(t *testing.T) {
	dir := t.TempDir()
	j := example()
	var delays []Delays
	for _, p := range j.Loads[0].Paths {
		for _, d := range []string{figures.AToB, figures.BToA} {
			one := Delays{LoadPercent: 90, Path: p.Name, Direction: d}
			for i := range 2000 {
				one.Delays = append(one.Delays, time.Duration(p.Voice.Delay.P50*float64(1000+i*i/1000)))
			}
			delays = append(delays, one)
		}
	}
	page, err := Save(dir, j, delays)
	require.NoError(t, err)
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	html := string(text)
	assert.Equal(t, 2, strings.Count(html, "<svg"))
	for _, want := range []string{"wireguard-go-shared", "Example CPU",
		"ringway bench jitter --loads 90 --rounds 3", "Round 2", "programs outside the benchmark took 25.0 %"} {
		assert.Contains(t, html, want)
	}
	for _, outside := range []string{"src=", "href=", "<?xml", "<script", "@import"} {
		assert.NotContains(t, html, outside)
	}
	for _, f := range []string{"load-90-percentiles.png", "load-90-percentiles.svg", "load-90-cdf.png",
		"load-90-cdf.svg"} {
		st, err := os.Stat(filepath.Join(dir, f))
		require.NoError(t, err)
		assert.Greater(t, st.Size(), int64(2000), f)
	}
}

func TestRunOfWhichNothingArrivedIsStillAReport(t *testing.T) {
	j := example()
	for r := range j.Loads[0].Rounds {
		for i, p := range j.Loads[0].Rounds[r].Paths {
			j.Loads[0].Rounds[r].Paths[i].Voice = lab.NewVoice(
				figures.Direction{Name: figures.AToB, Measure: figures.Measure{Sent: 10, Loss: 1}},
			)
			j.Loads[0].Rounds[r].Paths[i].Name = p.Name
		}
	}
	j.Loads[0].Summarize()
	require.NoError(t, Table(&bytes.Buffer{}, j))
	_, err := Save(t.TempDir(), j, nil)
	require.NoError(t, err)
}
