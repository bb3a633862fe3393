package live

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"ringway/quality/figures"
)

// Report is one measurement between two live appliances (`ringway bench live`), under the lab's names of
// fields and their promise.
type Report struct {
	Machine    figures.Machine `json:"machine"` // this one
	Target     Target          `json:"target"`
	Probe      Probing         `json:"probe"`
	Clocks     Clocks          `json:"clocks"`
	Lost       Lost            `json:"lost"`
	RoundTrip  Measure         `json:"round_trip"`
	Directions []Direction     `json:"directions"` // a is here
	// packets by the code point that they arrived there with, where the far end says so
	DSCPThere map[string]int `json:"dscp_there,omitempty"`
	DSCPHere  map[string]int `json:"dscp_here,omitempty"` // and that the answers arrived here with
	Warnings  []string       `json:"warnings,omitempty"`

	Interrupted bool `json:"-"` // the figures are of what was sent until then
}

// Target is who was asked.
type Target struct {
	Site    string `json:"site,omitempty"`
	Address string `json:"address"`
	Source  string `json:"source"` // this end's address
	Class   string `json:"class"`
	DSCP    string `json:"dscp"`
}

// Probing is what was asked.
type Probing struct {
	Streams    int     `json:"streams"`
	IntervalUS float64 `json:"interval_us"`
	Size       int     `json:"size"`
	Seconds    float64 `json:"seconds"`
	TimeoutUS  float64 `json:"timeout_us"` // what is not back by then is lost
	LateUS     float64 `json:"sender_late_max_us"`
	FarTimeUS  float64 `json:"reflector_held_max_us"` // not in any delay
	Started    string  `json:"started"`               // RFC 3339
}

// Clocks is what the two clocks allow.
type Clocks struct {
	OneWay    bool     `json:"one_way"`             // directions have delay_us
	ErrorUS   float64  `json:"error_us,omitempty"`  // then: how far they may be off, together
	DriftPPM  *float64 `json:"drift_ppm,omitempty"` // else: taken out of the variation
	Statement string   `json:"statement"`
}

// Lost is where packets were lost.
type Lost struct {
	Sent      int  `json:"sent"`
	Lost      int  `json:"lost"`
	Forward   int  `json:"a_to_b"`
	Backward  int  `json:"b_to_a"`
	Unknown   int  `json:"unknown"`  // in either
	Stateful  bool `json:"stateful"` // the far end counts by itself
	Unsent    int  `json:"not_sent"`
	Strangers int  `json:"unmatched"`
}

// Measure is a Measure whose delay may be absent: it is, in a direction, where the clocks do not allow it. A
// round trip has no MOS.
type Measure struct {
	figures.Measure
	Delay *figures.Delay `json:"delay_us,omitempty"`
	MOS   *float64       `json:"mos,omitempty"`
	R     *float64       `json:"r,omitempty"`
	// Of a round trip they mean nothing.
	WorstMOS   *float64 `json:"worst_call_mos,omitempty"`
	WorstR     *float64 `json:"worst_call_r,omitempty"`
	MouthToEar *float64 `json:"mouth_to_ear_us,omitempty"`
	Buffer     *float64 `json:"jitter_buffer_us,omitempty"`
	Late       *float64 `json:"late,omitempty"`
}

// newMeasure shows the delay where delay is true, and what a listener would say where heard is.
func newMeasure(m figures.Measure, delay, heard bool) Measure {
	l := Measure{Measure: m}
	if delay {
		l.Delay = &l.Measure.Delay
	}
	if heard {
		l.MOS, l.R, l.WorstMOS, l.WorstR = &l.Measure.MOS, &l.Measure.R, &l.Measure.WorstMOS, &l.Measure.WorstR
		l.MouthToEar, l.Buffer, l.Late = &l.Measure.MouthToEar, &l.Measure.Buffer, &l.Measure.Late
	}
	return l
}

// Direction is one direction; a is this end.
type Direction struct {
	Name string `json:"name"`
	Measure
}

var rows = []struct {
	name string
	cell func(Measure) string
}{
	{"Delay, least", delayCell(func(d *figures.Delay) float64 { return d.Min })},
	{"       p50 (median)", delayCell(func(d *figures.Delay) float64 { return d.P50 })},
	{"       p99", delayCell(func(d *figures.Delay) float64 { return d.P99 })},
	{"       p99.9", delayCell(func(d *figures.Delay) float64 { return d.P999 })},
	{"       p99.99", delayCell(func(d *figures.Delay) float64 { return d.P9999 })},
	{"       worst packet", delayCell(func(d *figures.Delay) float64 { return d.Max })},
	{"Variation, p99.9 - least (RFC 8219)", func(m Measure) string { return figures.Duration(m.PDV) }},
	{"Jitter (RFC 3550)", func(m Measure) string { return figures.Duration(m.Jitter) }},
	{"IPDV, p99.9 (RFC 5481)", func(m Measure) string { return figures.Duration(m.IPDV) }},
	{"Lost", func(m Measure) string {
		return fmt.Sprintf(
			"%s of %s (%s)",
			figures.Thousands(m.Sent-m.Received),
			figures.Thousands(m.Sent),
			figures.Percent(m.Loss),
		)
	}},
	{"Reordered, duplicated", func(m Measure) string { return fmt.Sprintf("%d, %d", m.Reordered, m.Duplicates) }},
	{"MOS, R (ITU-T G.107)", func(m Measure) string {
		if m.MOS == nil {
			return "-"
		}
		return fmt.Sprintf("%.2f, %.0f: %s", *m.MOS, *m.R, figures.Satisfaction(*m.R))
	}},
}

func delayCell(of func(*figures.Delay) float64) func(Measure) string {
	return func(m Measure) string {
		if m.Delay == nil {
			return "-"
		}
		return figures.Duration(of(m.Delay))
	}
}

// Table prints the report as text, at most 100 columns wide but for the sentences.
func (l Report) Table(w io.Writer) error {
	var b strings.Builder
	target := l.Target.Address
	if l.Target.Site != "" {
		target = l.Target.Site + " (" + target + ")"
	}
	fmt.Fprintf(&b, "%s from %s, class %s (DSCP %s): %d streams of %d bytes every %s, %.3g s\n",
		target, l.Target.Source, l.Target.Class, l.Target.DSCP,
		l.Probe.Streams, l.Probe.Size, figures.Duration(l.Probe.IntervalUS), l.Probe.Seconds)
	fmt.Fprintf(&b, "%s\n\n", figures.MachineLine(l.Machine))

	l.grid(&b)

	fmt.Fprintf(&b, "\nClocks: %s\n", l.Clocks.Statement)
	if l.Lost.Lost > 0 {
		fmt.Fprintf(&b, "Loss: %s\n", l.Lost.words())
	}
	if len(l.DSCPThere) > 0 {
		fmt.Fprintf(
			&b,
			"Code points: %s on arrival there, %s on arrival here.\n",
			codePoints(l.DSCPThere),
			codePoints(l.DSCPHere),
		)
	}
	for _, warning := range l.Warnings {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// grid prints one row for each figure, one column for each direction and the round trip.
func (l Report) grid(b *strings.Builder) {
	columns := [][]string{{"there"}, {"back"}, {"round trip"}}
	all := []Measure{l.RoundTrip}
	if len(l.Directions) == 2 {
		all = []Measure{l.Directions[0].Measure, l.Directions[1].Measure, l.RoundTrip}
	} else {
		columns = columns[2:]
	}

	width := 0
	for _, r := range rows {
		width = max(width, len(r.name))
		for i := range columns {
			columns[i] = append(columns[i], r.cell(all[i]))
		}
	}

	rule := strings.Repeat("─", width)
	widths := make([]int, len(columns))
	for i, c := range columns {
		for _, cell := range c {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
		rule += "──" + strings.Repeat("─", widths[i])
	}

	line := func(name string, at int) {
		fmt.Fprintf(b, "%-*s", width, name)
		for i, c := range columns {
			fmt.Fprintf(b, "  %s%s", strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c[at])), c[at])
		}
		b.WriteByte('\n')
	}
	line("", 0)
	fmt.Fprintln(b, rule)
	for i, r := range rows {
		line(r.name, i+1)
	}
	fmt.Fprintln(b, rule)
}

func (l Lost) words() string {
	if !l.Stateful {
		return fmt.Sprintf(
			"%s of %s did not come back. The far end keeps no count, so the direction of the loss is unknown: each "+
				"column counts them all.",
			figures.Thousands(l.Lost),
			figures.Thousands(l.Sent),
		)
	}
	s := fmt.Sprintf(
		"%s on the way there, %s on the way back, as counted by the far end",
		figures.Thousands(l.Forward),
		figures.Thousands(l.Backward),
	)
	if l.Unknown > 0 {
		s += fmt.Sprintf(
			"; %s after the last answer, direction unknown: each column counts them",
			figures.Thousands(l.Unknown),
		)
	}
	return s + "."
}

func codePoints(c map[string]int) string {
	if len(c) == 1 {
		return slices.Collect(maps.Keys(c))[0]
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		out = append(out, fmt.Sprintf("%s (%s)", k, figures.Thousands(c[k])))
	}
	return strings.Join(out, ", ")
}
