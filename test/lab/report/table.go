package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"ringway/quality/figures"
)

// row is one line of the table.
type row struct {
	name string
	cell func(Path) string
}

var rows = []row{
	{"One-way delay, p50 (median)", func(p Path) string { return figures.Duration(p.Voice.Delay.P50) }},
	{"               p99", func(p Path) string { return figures.Duration(p.Voice.Delay.P99) }},
	{"               p99.9", func(p Path) string { return figures.Duration(p.Voice.Delay.P999) }},
	{"               worst packet", func(p Path) string { return figures.Duration(p.Voice.Delay.Max) }},
	{"Delay variation (RFC 8219)", func(p Path) string { return figures.Duration(p.Voice.PDV) }},
	{"Jitter (RFC 3550)", func(p Path) string { return figures.Duration(p.Voice.Jitter) }},
	{"Voice packets lost", func(p Path) string {
		return fmt.Sprintf(
			"%s of %s (%s)",
			figures.Thousands(p.Voice.Sent-p.Voice.Received),
			figures.Thousands(p.Voice.Sent),
			figures.Percent(p.Voice.Loss),
		)
	}},
	{"Mouth to ear", func(p Path) string { return figures.Duration(p.Voice.MouthToEar) }},
	{"MOS, R (ITU-T G.107)", func(p Path) string {
		return fmt.Sprintf("%.2f, %.0f: %s", p.Voice.MOS, p.Voice.R, figures.Satisfaction(p.Voice.R))
	}},
	{"Worst call's MOS", func(p Path) string { return fmt.Sprintf("%.2f", p.Voice.WorstMOS) }},
	{"Calls completed", func(p Path) string { return completed(p.Calls) }},
	{"Bulk beside them", func(p Path) string {
		if p.Bulk.MbitPerS == 0 {
			return "none"
		}
		return fmt.Sprintf("%.1f Mbit/s", p.Bulk.MbitPerS)
	}},
}

// Table prints the report as text, at most 100 columns wide: what was run and where, one column for each
// path, and a verdict in a sentence. Figures are the worse direction's.
func Table(w io.Writer, r Report) error {
	var b strings.Builder
	s, m := r.Scenario, r.Machine
	fmt.Fprintf(&b, "%s\n", scenarioLine(s))
	fmt.Fprintf(&b, "%s\n", figures.MachineLine(m))
	if r.Ringway != nil {
		fmt.Fprintf(&b, "%s\n", r.Ringway.Line())
	}
	b.WriteByte('\n')

	width := 0
	for _, x := range rows {
		width = max(width, len(x.name))
	}
	columns := make([][]string, len(r.Paths))
	widths := make([]int, len(r.Paths))
	for i, p := range r.Paths {
		columns[i] = append(columns[i], title(p.Name))
		for _, x := range rows {
			cell := x.cell(p)
			if p.Voice.Received == 0 && x.name != "Calls completed" && x.name != "Bulk beside them" &&
				x.name != "Voice packets lost" {
				cell = "-"
			}
			columns[i] = append(columns[i], cell)
		}
		for _, c := range columns[i] {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	rule := strings.Repeat("─", width)
	for _, n := range widths {
		rule += "──" + strings.Repeat("─", n)
	}
	line := func(name string, at int) {
		fmt.Fprintf(&b, "%-*s", width, name)
		for i := range columns {
			c := columns[i][at]
			fmt.Fprintf(&b, "  %s%s", strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)), c)
		}
		b.WriteByte('\n')
	}
	line("Voice, the worse direction", 0)
	fmt.Fprintln(&b, rule)
	for i, x := range rows {
		line(x.name, i+1)
	}
	fmt.Fprintln(&b, rule)
	b.WriteByte('\n')
	writeEvents(&b, r)
	for _, p := range r.Paths {
		fmt.Fprintf(&b, "%s: %s\n", title(p.Name), verdict(p))
	}
	for _, warning := range warnings(r) {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func scenarioLine(s Scenario) string {
	calls := fmt.Sprintf("%d calls", s.Calls)
	if s.Calls == 1 {
		calls = "1 call"
	}
	bulk := "no bulk traffic"
	if s.Bulk != "" && s.Bulk != "none" {
		bulk = strings.ToUpper(s.Bulk) + " bulk"
	}
	wan := "an unlimited WAN"
	switch {
	case s.Lines > 0 && s.WANBits > 0:
		wan = fmt.Sprintf("%s of %s", lines(s.Lines), s.WAN)
	case s.Lines > 0:
		wan = lines(s.Lines)
	case s.WANBits > 0:
		wan = fmt.Sprintf("a %s WAN (provider's buffer %s bytes)", s.WAN, figures.Thousands(s.BufferBytes))
	}
	line := fmt.Sprintf("%s (%s) and %s over %s", calls, s.Codec, bulk, wan)
	if names := map[string]string{"ipv4": "IPv4", "ipv6": "IPv6"}; s.Overlay == "ipv6" || s.Underlay == "ipv6" {
		line += ", " + names[s.Overlay] + " in " + names[s.Underlay]
	}
	if s.DelayUS > 0 {
		line += ", +" + figures.Duration(s.DelayUS)
	}
	if s.Loss > 0 {
		line += ", " + figures.Percent(s.Loss) + " loss"
	}
	if s.Seconds > 0 {
		line += fmt.Sprintf(", %.0f s", s.Seconds)
	}
	return line
}

// completed says how many calls went on to their end, and how many were refused.
func completed(c Calls) string {
	if c.Refused > 0 {
		return fmt.Sprintf("%d of %d (%d refused)", c.Completed, c.Placed, c.Refused)
	}
	return fmt.Sprintf("%d of %d", c.Completed, c.Placed)
}

// verdict describes the calls in a sentence.
func verdict(p Path) string {
	v, c := p.Voice, p.Calls
	if c.Placed == 0 {
		return "no call was placed."
	}
	if c.Completed == 0 && v.Received == 0 {
		return fmt.Sprintf("none of %s got through.", countCalls(c.Placed))
	}
	var ends string
	if c.Refused > 0 {
		ends = fmt.Sprintf("%d of %s refused for want of room; ", c.Refused, countCalls(c.Placed))
	}
	if missing := c.Placed - c.Completed - c.Refused; missing > 0 {
		ends += fmt.Sprintf("%d of %s did not complete; ", missing, countCalls(c.Placed))
	}
	lost := v.Sent - v.Received
	switch {
	case v.WorstR >= 80 && lost == 0:
		return ends + fmt.Sprintf("%s clear, not one voice packet lost (MOS %.1f).", allCalls(c.Completed), v.MOS)
	case v.WorstR >= 80:
		return ends + fmt.Sprintf(
			"%s clear (MOS %.1f), %s of voice lost.",
			allCalls(c.Completed),
			v.MOS,
			figures.Percent(v.Loss),
		)
	case v.R >= 80:
		return ends + fmt.Sprintf(
			"most calls clear (MOS %.1f), the worst was %s (MOS %.1f).",
			v.MOS,
			figures.Satisfaction(v.WorstR),
			v.WorstMOS,
		)
	}
	var why []string
	if v.Loss >= 0.001 {
		why = append(why, figures.Percent(v.Loss)+" of voice lost")
	}
	if v.Late >= 0.001 {
		why = append(why, figures.Percent(v.Late)+" too late to be played")
	}
	if v.MouthToEar >= 150e3 {
		why = append(why, figures.Duration(v.MouthToEar)+" from mouth to ear")
	}
	if len(why) == 0 {
		why = append(why, "delay varies by "+figures.Duration(v.PDV))
	}
	return ends + fmt.Sprintf(
		"voice is %s (MOS %.1f): %s.",
		figures.Satisfaction(v.R),
		v.MOS,
		strings.Join(why, ", "),
	)
}

// warnings name what makes the figures less reliable than they look.
func warnings(r Report) []string {
	var out []string
	for _, p := range r.Paths {
		v := p.Voice
		if v.CaptureLost > 0 {
			out = append(
				out,
				fmt.Sprintf(
					"%s: the capture itself missed %d packets: its loss figures are invalid.",
					title(p.Name),
					v.CaptureLost,
				),
			)
		}
		if v.Unmatched > 0 {
			out = append(
				out,
				fmt.Sprintf(
					"%s: %d packets arrived that were not captured when they were sent.",
					title(p.Name),
					v.Unmatched,
				),
			)
		}
		if v.Negative > 0 {
			out = append(
				out,
				fmt.Sprintf(
					"%s: %d packets arrived before they were sent: the clock was set during the run.",
					title(p.Name),
					v.Negative,
				),
			)
		}
		if v.Sent > 0 && v.Sent < 1000 {
			out = append(
				out,
				fmt.Sprintf("%s: with %d packets a direction, p99.9 is the worst packet.", title(p.Name), v.Sent),
			)
		}
	}
	return out
}

func title(name string) string {
	if name == "" {
		return ""
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

func countCalls(n int) string {
	if n == 1 {
		return "1 call"
	}
	return fmt.Sprintf("%d calls", n)
}

func allCalls(n int) string {
	switch n {
	case 1:
		return "the call was"
	case 2:
		return "both calls"
	}
	return fmt.Sprintf("all %d calls", n)
}
