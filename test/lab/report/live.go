package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Live is one measurement between two live appliances (`ringway bench live`), under the lab's names of fields and their promise.
type Live struct {
	Machine    Machine         `json:"machine"` // this one
	Target     LiveTarget      `json:"target"`
	Probe      LiveProbe       `json:"probe"`
	Clocks     LiveClocks      `json:"clocks"`
	Lost       LiveLost        `json:"lost"`
	RoundTrip  LiveMeasure     `json:"round_trip"`
	Directions []LiveDirection `json:"directions"`           // a is here
	DSCPThere  map[string]int  `json:"dscp_there,omitempty"` // packets by the code point that they arrived there with, where the far end says so
	DSCPHere   map[string]int  `json:"dscp_here,omitempty"`  // and that the answers arrived here with
	Warnings   []string        `json:"warnings,omitempty"`
}

// LiveTarget is who was asked.
type LiveTarget struct {
	Site    string `json:"site,omitempty"`
	Address string `json:"address"`
	Source  string `json:"source"` // this end's address
	Class   string `json:"class"`
	DSCP    string `json:"dscp"`
}

// LiveProbe is what was asked.
type LiveProbe struct {
	Streams    int     `json:"streams"`
	IntervalUS float64 `json:"interval_us"`
	Size       int     `json:"size"`
	Seconds    float64 `json:"seconds"`
	TimeoutUS  float64 `json:"timeout_us"` // what is not back by then is lost
	LateUS     float64 `json:"sender_late_max_us"`
	FarTimeUS  float64 `json:"reflector_held_max_us"` // not in any delay
	Started    string  `json:"started"`               // RFC 3339
}

// LiveClocks is what the two clocks allow.
type LiveClocks struct {
	OneWay    bool     `json:"one_way"`             // directions have delay_us
	ErrorUS   float64  `json:"error_us,omitempty"`  // then: how far they may be off, together
	DriftPPM  *float64 `json:"drift_ppm,omitempty"` // else: taken out of the variation
	Statement string   `json:"statement"`
}

// LiveLost is where packets were lost.
type LiveLost struct {
	Sent      int  `json:"sent"`
	Lost      int  `json:"lost"`
	Forward   int  `json:"a_to_b"`
	Backward  int  `json:"b_to_a"`
	Unknown   int  `json:"unknown"`  // in either
	Stateful  bool `json:"stateful"` // the far end counts by itself
	Unsent    int  `json:"not_sent"`
	Strangers int  `json:"unmatched"`
}

// LiveMeasure is a Measure whose delay may be absent: it is, in a direction, where the clocks do not allow it. A
// round trip has no MOS.
type LiveMeasure struct {
	Measure
	Delay *Delay   `json:"delay_us,omitempty"`
	MOS   *float64 `json:"mos,omitempty"`
	R     *float64 `json:"r,omitempty"`
	// Of a round trip they mean nothing.
	WorstMOS   *float64 `json:"worst_call_mos,omitempty"`
	WorstR     *float64 `json:"worst_call_r,omitempty"`
	MouthToEar *float64 `json:"mouth_to_ear_us,omitempty"`
	Buffer     *float64 `json:"jitter_buffer_us,omitempty"`
	Late       *float64 `json:"late,omitempty"`
}

// NewLiveMeasure shows the delay where delay is true, and what a listener would say where heard is.
func NewLiveMeasure(m Measure, delay, heard bool) LiveMeasure {
	l := LiveMeasure{Measure: m}
	if delay {
		l.Delay = &l.Measure.Delay
	}
	if heard {
		l.MOS, l.R, l.WorstMOS, l.WorstR = &l.Measure.MOS, &l.Measure.R, &l.Measure.WorstMOS, &l.Measure.WorstR
		l.MouthToEar, l.Buffer, l.Late = &l.Measure.MouthToEar, &l.Measure.Buffer, &l.Measure.Late
	}
	return l
}

// LiveDirection is one direction; a is this end.
type LiveDirection struct {
	Name string `json:"name"`
	LiveMeasure
}

var liveRows = []struct {
	name string
	cell func(LiveMeasure) string
}{
	{"Delay, least", delayCell(func(d *Delay) float64 { return d.Min })},
	{"       p50 (median)", delayCell(func(d *Delay) float64 { return d.P50 })},
	{"       p99", delayCell(func(d *Delay) float64 { return d.P99 })},
	{"       p99.9", delayCell(func(d *Delay) float64 { return d.P999 })},
	{"       p99.99", delayCell(func(d *Delay) float64 { return d.P9999 })},
	{"       worst packet", delayCell(func(d *Delay) float64 { return d.Max })},
	{"Variation, p99.9 - least (RFC 8219)", func(m LiveMeasure) string { return Duration(m.PDV) }},
	{"Jitter (RFC 3550)", func(m LiveMeasure) string { return Duration(m.Jitter) }},
	{"IPDV, p99.9 (RFC 5481)", func(m LiveMeasure) string { return Duration(m.IPDV) }},
	{"Lost", func(m LiveMeasure) string {
		return fmt.Sprintf("%s of %s (%s)", thousands(m.Sent-m.Received), thousands(m.Sent), percent(m.Loss))
	}},
	{"Reordered, duplicated", func(m LiveMeasure) string { return fmt.Sprintf("%d, %d", m.Reordered, m.Duplicates) }},
	{"MOS, R (ITU-T G.107)", func(m LiveMeasure) string {
		if m.MOS == nil {
			return "-"
		}
		return fmt.Sprintf("%.2f, %.0f: %s", *m.MOS, *m.R, satisfaction(*m.R))
	}},
}

func delayCell(of func(*Delay) float64) func(LiveMeasure) string {
	return func(m LiveMeasure) string {
		if m.Delay == nil {
			return "-"
		}
		return Duration(of(m.Delay))
	}
}

// LiveTable prints it for people, at most 100 columns wide but for the sentences.
func LiveTable(w io.Writer, l Live) error {
	var b strings.Builder
	who := l.Target.Address
	if l.Target.Site != "" {
		who = l.Target.Site + " (" + who + ")"
	}
	fmt.Fprintf(&b, "%s from %s, class %s (DSCP %s): %d streams of %d bytes every %s, %.3g s\n", who, l.Target.Source, l.Target.Class, l.Target.DSCP,
		l.Probe.Streams, l.Probe.Size, Duration(l.Probe.IntervalUS), l.Probe.Seconds)
	fmt.Fprintf(&b, "%s\n\n", MachineLine(l.Machine))

	columns := [][]string{{"there"}, {"back"}, {"round trip"}}
	all := []LiveMeasure{l.RoundTrip}
	if len(l.Directions) == 2 {
		all = []LiveMeasure{l.Directions[0].LiveMeasure, l.Directions[1].LiveMeasure, l.RoundTrip}
	} else {
		columns = columns[2:]
	}
	width := 0
	for _, r := range liveRows {
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
		fmt.Fprintf(&b, "%-*s", width, name)
		for i, c := range columns {
			fmt.Fprintf(&b, "  %s%s", strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c[at])), c[at])
		}
		b.WriteByte('\n')
	}
	line("", 0)
	fmt.Fprintln(&b, rule)
	for i, r := range liveRows {
		line(r.name, i+1)
	}
	fmt.Fprintf(&b, "%s\n\n", rule)
	fmt.Fprintf(&b, "Clocks: %s\n", l.Clocks.Statement)
	if l.Lost.Lost > 0 {
		fmt.Fprintf(&b, "Loss: %s\n", l.Lost.words())
	}
	if len(l.DSCPThere) > 0 {
		fmt.Fprintf(&b, "Code points: %s when they arrived there, %s when they came back.\n", codePoints(l.DSCPThere), codePoints(l.DSCPHere))
	}
	for _, warning := range l.Warnings {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (l LiveLost) words() string {
	if !l.Stateful {
		return fmt.Sprintf("%s of %s did not come back. The far end keeps no count of its own, so nobody knows in which direction: each column has them all.",
			thousands(l.Lost), thousands(l.Sent))
	}
	s := fmt.Sprintf("%s on the way there, %s on the way back, by the far end's own count", thousands(l.Forward), thousands(l.Backward))
	if l.Unknown > 0 {
		s += fmt.Sprintf("; %s after the last answer, in a direction that nobody knows: each column has them", thousands(l.Unknown))
	}
	return s + "."
}

func codePoints(c map[string]int) string {
	if len(c) == 1 {
		return slices.Collect(maps.Keys(c))[0]
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		out = append(out, fmt.Sprintf("%s (%s)", k, thousands(c[k])))
	}
	return strings.Join(out, ", ")
}
