package report

import (
	"bytes"
	"encoding/json"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality"
	"ringway/quality/figures"
)

// example is a run with ten calls: Ringway steady, the baseline behind a full buffer that also loses.
func example() (Report, []Series) {
	dice := rand.New(rand.NewPCG(1, 2))
	r := Report{
		Machine: figures.Machine{
			CPU:        "Example CPU",
			Cores:      2,
			Kernel:     "6.18.0",
			Preemption: "dynamic",
			Virtual:    true,
		},
		Scenario: Scenario{
			WAN:         "20mbit",
			WANBits:     20e6,
			BufferBytes: 300000,
			Bulk:        "udp",
			Calls:       10,
			Codec:       quality.G711.Name,
			Seconds:     20,
		},
	}
	var series []Series
	for _, path := range []string{"ringway", "baseline"} {
		var directions []figures.Direction
		for _, name := range []string{figures.AToB, figures.BToA} {
			var streams []quality.Stream[int]
			for call := range 10 {
				st := quality.Stream[int]{Key: call}
				for i := range 1000 {
					sent := quality.Timestamp(1e18 + int64(i)*20e6 + int64(call)*2e6)
					var delay time.Duration
					p := quality.Packet{Seq: int64(i), Sent: sent}
					if path == "ringway" {
						delay = 180*time.Microsecond + time.Duration(dice.ExpFloat64()*float64(250*time.Microsecond))
						if name == figures.BToA {
							delay = delay * 11 / 10
						}
					} else {
						fill := min(1, float64(i)/150)
						delay = time.Duration(float64(118*time.Millisecond)*fill*(0.95+0.05*dice.Float64())) + 300*time.Microsecond
						p.Lost = fill == 1 && dice.Float64() < 0.08
					}
					p.Received = sent.Add(delay)
					st.Packets = append(st.Packets, p)
				}
				streams = append(streams, st)
			}
			directions = append(
				directions,
				figures.NewDirection(name, quality.Summarize(streams, quality.G711), figures.Found{}),
			)
			series = append(series, NewSeries(path, name, 1e18, streams))
		}
		r.Paths = append(
			r.Paths,
			Path{
				Name:  path,
				Voice: NewVoice(directions...),
				Calls: Calls{Placed: 10, Completed: 10},
				Bulk:  Bulk{MbitPerS: 17.2},
			},
		)
	}
	return r, series
}

// The names and places that were promised; more may be added.
func TestJSONKeepsItsPromise(t *testing.T) {
	r, _ := example()
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(b, &got))
	promised := `{"machine":{},"scenario":{},"paths":[{"name":"ringway","voice":{"sent":0,"received":0,"loss":0.0,"delay_us":{"min":0,"p50":0,
		"p99":0,"p99_9":0,"max":0},"pdv_us":0,"jitter_rfc3550_us":0,"mos":0.0,"r":0.0},"calls":{"placed":0,"completed":0},"bulk":{"mbit_per_s":0.0}}]}`
	var want map[string]any
	require.NoError(t, json.Unmarshal([]byte(promised), &want))
	var contains func(path string, want, have any)
	contains = func(path string, want, have any) {
		switch w := want.(type) {
		case map[string]any:
			h, ok := have.(map[string]any)
			require.True(t, ok, path)
			for k, v := range w {
				require.Contains(t, h, k, path)
				contains(path+"."+k, v, h[k])
			}
		case []any:
			h, ok := have.([]any)
			require.True(t, ok, path)
			contains(path+"[0]", w[0], h[0])
		default:
			assert.IsType(t, want, have, path)
		}
	}
	contains("", want, got)
	voice := got["paths"].([]any)[0].(map[string]any)["voice"].(map[string]any)
	directions := voice["directions"].([]any)
	require.Len(t, directions, 2)
	assert.Equal(t, "a_to_b", directions[0].(map[string]any)["name"])
	assert.Equal(t, "b_to_a", directions[1].(map[string]any)["name"])
	assert.Contains(t, directions[0], "delay_us")
}

func TestNoFieldLooksBetterThanTheWorseDirection(t *testing.T) {
	a := figures.Direction{
		Name: figures.AToB,
		Measure: figures.Measure{
			Sent:     100,
			Received: 90,
			Loss:     0.1,
			Delay:    figures.Delay{P99: 5},
			PDV:      3,
			MOS:      4,
			R:        80,
			WorstMOS: 2,
		},
	}
	b := figures.Direction{
		Name: figures.BToA,
		Measure: figures.Measure{
			Sent:     200,
			Received: 200,
			Delay:    figures.Delay{P99: 7},
			PDV:      2,
			MOS:      4.4,
			R:        93,
			WorstMOS: 4.4,
		},
	}
	for _, v := range []Voice{NewVoice(a, b), NewVoice(b, a)} {
		assert.Equal(t, 100, v.Sent)
		assert.Equal(t, 90, v.Received)
		assert.Equal(t, 0.1, v.Loss)
		assert.Equal(t, 7.0, v.Delay.P99)
		assert.Equal(t, 3.0, v.PDV)
		assert.Equal(t, 4.0, v.MOS)
		assert.Equal(t, 80.0, v.R)
		assert.Equal(t, 2.0, v.WorstMOS)
	}
}

func TestTableSaysInWordsHowTheCallsWere(t *testing.T) {
	r, _ := example()
	var b bytes.Buffer
	require.NoError(t, Table(&b, r))
	t.Log("\n" + b.String())
	assert.Contains(t, b.String(), "Ringway: all 10 calls clear, not one voice packet lost (MOS 4.4).")
	assert.Regexp(t, `Baseline: voice is \w+ \(MOS [123]\.\d\): \d\.\d % of voice lost`, b.String())
	for line := range strings.Lines(b.String()) {
		assert.LessOrEqual(t, utf8.RuneCountInString(line), 100, line)
	}

	r.Paths[1].Voice = NewVoice(
		figures.NewDirection(
			figures.AToB,
			quality.Summarize([]quality.Stream[int]{}, quality.G711),
			figures.Found{CaptureLost: 3},
		),
		figures.NewDirection(figures.BToA, quality.Summarize([]quality.Stream[int]{}, quality.G711), figures.Found{}),
	)
	r.Paths[1].Calls = Calls{Placed: 10}
	b.Reset()
	require.NoError(t, Table(&b, r))
	assert.Contains(t, b.String(), "Baseline: none of 10 calls got through.")
	assert.Contains(t, b.String(), "Warning: Baseline: the capture itself missed 3 packets")
	assert.NotContains(t, b.String(), "NaN")
}

func TestPlotsAreWrittenAndBounded(t *testing.T) {
	r, series := example()
	dir := t.TempDir()
	if keep := os.Getenv("TEST_PLOTS"); keep != "" { // for people who want to look at them
		dir = keep
	}
	few := slices.Clone(series) // a PNG's every point costs time under the race detector
	for i := range few {
		if os.Getenv("TEST_PLOTS") == "" {
			few[i].Points = few[i].Points[:300]
		}
	}
	require.NoError(t, Plot(filepath.Join(dir, "lab.png"), r, few))
	f, err := os.Open(filepath.Join(dir, "lab.png"))
	require.NoError(t, err)
	defer f.Close()
	img, err := png.Decode(f)
	require.NoError(t, err)
	assert.Equal(t, int(math.Round(27/2.54*plotDPI)), img.Bounds().Dx())

	require.NoError(t, Plot(filepath.Join(dir, "lab.svg"), r, series))
	svg, err := os.ReadFile(filepath.Join(dir, "lab.svg"))
	require.NoError(t, err)
	assert.Contains(t, string(svg), "Ringway, A to B")
	assert.Less(t, len(svg), 4<<20, "a long run's SVG stays small enough to open")

	assert.ErrorIs(t, Plot(filepath.Join(dir, "lab.gif"), r, series), ErrPlotFormat)
	assert.NoError(t, Plot(filepath.Join(dir, "empty.png"), Report{}, nil))
	assert.NoError(
		t,
		Plot(filepath.Join(dir, "lost.png"), r, []Series{{Path: "ringway", Points: []Point{{Lost: true}}}}),
	)
}
