package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"ringway/quality/figures"
)

// Builds is a benchmark of two builds of ringway in turn (--ringway OLD,NEW), or of one. Field names are a
// promise as in Jitter.
type Builds struct {
	Machine  figures.Machine   `json:"machine"`
	Programs []figures.Program `json:"programs"` // in the order of --ringway
	Settings BuildsSettings    `json:"settings"`
	Figures  []BuildsFigure    `json:"figures"`
	Runs     []BuildsRun       `json:"runs"`
}

// BuildsSettings are the options of the run.
type BuildsSettings struct {
	Benchmark string `json:"benchmark"`
	Pairs     int    `json:"pairs"`
	Started   string `json:"started"` // RFC 3339
	Command   string `json:"command"` // that repeats the run
}

// BuildsRun is one run of one build.
type BuildsRun struct {
	Pair   int `json:"pair"`
	Build  int `json:"build"`  // index of Programs
	Report any `json:"report"` // of the benchmark
}

// Figure is one number of a report that builds are compared by.
type Figure struct {
	What   string  `json:"what"`
	Unit   string  `json:"unit"` // us, us/packet, packets, packets/s, share, KiB
	Higher bool    `json:"higher_is_better"`
	Value  float64 `json:"value"`
}

// BuildsFigure is a figure of all runs.
type BuildsFigure struct {
	What   string      `json:"what"`
	Unit   string      `json:"unit"`
	Higher bool        `json:"higher_is_better"`
	Values [][]float64 `json:"values"` // by build, then by pair

	// Ratios are new over old of each pair, or old over new where higher is better: above 1 the new build is
	// worse. A pair in which one of them is 0 has none.
	Ratios []float64 `json:"ratios"`
	Ratio  *float64  `json:"median_ratio,omitempty"`
}

// Add enters the figures of one run. The pairs have the same figures in the same order.
func (b *Builds) Add(pair, build int, fs []Figure, report any) {
	b.Runs = append(b.Runs, BuildsRun{Pair: pair, Build: build, Report: report})
	for _, f := range fs {
		i := slices.IndexFunc(b.Figures, func(g BuildsFigure) bool { return g.What == f.What })
		if i < 0 {
			i = len(b.Figures)
			b.Figures = append(
				b.Figures,
				BuildsFigure{
					What:   f.What,
					Unit:   f.Unit,
					Higher: f.Higher,
					Values: make([][]float64, len(b.Programs)),
				},
			)
		}
		b.Figures[i].Values[build] = append(b.Figures[i].Values[build], f.Value)
	}
}

// Compare fills in the ratios, once all runs are entered.
func (b *Builds) Compare() {
	if len(b.Programs) != 2 {
		return
	}
	for i := range b.Figures {
		f := &b.Figures[i]
		f.Ratios = []float64{}
		for pair := range min(len(f.Values[0]), len(f.Values[1])) {
			was, is := f.Values[0][pair], f.Values[1][pair]
			if f.Higher {
				was, is = is, was
			}
			if was > 0 && is > 0 {
				f.Ratios = append(f.Ratios, is/was)
			}
		}
		if len(f.Ratios) > 0 {
			m := median(f.Ratios)
			f.Ratio = &m
		}
	}
}

// JSON writes the report as JSON; its fields are stable.
func (b Builds) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(b)
}

// Table prints the comparison as text.
func (b Builds) Table(w io.Writer) error {
	var t strings.Builder
	fmt.Fprintf(&t, "%s\n%s\n", b.Settings.Command, figures.MachineLine(b.Machine))
	if len(b.Programs) == 2 {
		fmt.Fprintf(&t, "old: %s\nnew: %s\n\n", b.Programs[0].Line(), b.Programs[1].Line())
		grid(&t, b.pairRows())
		t.WriteString("\n" + buildsLegend + "\n")
	} else {
		fmt.Fprintf(&t, "%s\n\n", b.Programs[0].Line())
		grid(&t, b.rows())
	}
	_, err := io.WriteString(w, t.String())
	return err
}

const buildsLegend = `old, new: medians of all pairs. ratio: new over old within each pair, or old over new where a higher figure is better: above 1
the new build is worse. A pair in which one of the figures is 0 has no ratio.`

func (b Builds) pairRows() [][]string {
	rows := [][]string{{"", "old", "new", "median ratio", "ratios"}}
	for _, f := range b.Figures {
		middle := "-"
		if f.Ratio != nil {
			middle = fmt.Sprintf("%.3f", *f.Ratio)
		}
		var all []string
		for _, r := range f.Ratios {
			all = append(all, fmt.Sprintf("%.2f", r))
		}
		rows = append(
			rows,
			[]string{
				f.What,
				f.text(median(f.Values[0])),
				f.text(median(f.Values[1])),
				middle,
				strings.Join(all, " "),
			},
		)
	}
	return rows
}

func (b Builds) rows() [][]string {
	rows := [][]string{{"", "median", "all"}}
	for _, f := range b.Figures {
		var all []string
		for _, v := range f.Values[0] {
			all = append(all, f.text(v))
		}
		rows = append(rows, []string{f.What, f.text(median(f.Values[0])), strings.Join(all, ", ")})
	}
	return rows
}

// text prints a value in the figure's unit.
func (f BuildsFigure) text(v float64) string {
	switch f.Unit {
	case "us":
		return signed(v)
	case "share":
		return fmt.Sprintf("%.1f %%", 100*v)
	case "KiB":
		return fmt.Sprintf("%.1f MiB", v/1024)
	case "us/packet":
		return fmt.Sprintf("%.2f µs", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// Figures are what builds are compared by: each path's delays under each load. The paths that are not
// Ringway's show how far the machine itself changed between the runs.
func (j Jitter) Figures() (out []Figure) {
	for _, l := range j.Loads {
		for _, p := range l.Paths {
			name := fmt.Sprintf("load %d %%, %s: ", l.LoadPercent, p.Name)
			v := p.Voice
			out = append(out,
				Figure{What: name + "delay p50", Unit: "us", Value: v.Delay.P50},
				Figure{What: name + "delay p99", Unit: "us", Value: v.Delay.P99},
				Figure{What: name + "delay p99.9", Unit: "us", Value: v.Delay.P999},
				Figure{What: name + "PDV", Unit: "us", Value: v.PDV},
				Figure{What: name + "lost", Unit: "packets", Value: float64(v.Sent - v.Received)},
			)
		}
	}
	return out
}

// Figures are each engine's rate, and its processor time for a packet.
func (t Throughput) Figures() (out []Figure) {
	for _, s := range t.Sizes {
		for _, e := range s.Engines {
			name := fmt.Sprintf("%s bytes, %s: ", s.Size, e.Name)
			out = append(out,
				Figure{What: name + "packets a second", Unit: "packets/s", Higher: true, Value: e.PacketsPerS},
				Figure{What: name + "CPU a packet, out", Unit: "us/packet", Value: e.CPU.SenderEdge},
			)
		}
	}
	return out
}

// Figures are what calls and data got of each link on Ringway's path, and the other paths' delay variation.
func (l Link) Figures() (out []Figure) {
	for _, r := range l.Rates {
		for _, load := range r.Loads {
			for _, p := range load.Paths {
				name := fmt.Sprintf("%s, load %s, %s: ", r.Rate, load.Scenario.Bulk, p.Name)
				out = append(out, Figure{What: name + "PDV", Unit: "us", Value: p.Voice.PDV})
				if p.Name == RingwayPath {
					out = append(out, p.figures(name)...)
				}
			}
		}
	}
	return out
}

func (p LinkPath) figures(name string) []Figure {
	out := []Figure{
		{What: name + "delay p50", Unit: "us", Value: p.Voice.Delay.P50},
		{What: name + "delay p99.9", Unit: "us", Value: p.Voice.Delay.P999},
		{What: name + "lost", Unit: "packets", Value: float64(p.Voice.Sent - p.Voice.Received)},
	}
	if p.Signalling == nil || p.SecondFlow == nil { // voice alone
		return out
	}
	return append(out,
		Figure{What: name + "data's share", Unit: "share", Higher: true, Value: p.Share},
		Figure{What: name + "signalling, max", Unit: "us", Value: p.Signalling.Max},
		Figure{What: name + "second flow, p99", Unit: "us", Value: p.SecondFlow.P99},
	)
}
