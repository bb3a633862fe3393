package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

// column is one column of the table.
type column struct {
	name string
	cell func(Path) string
}

var columns = []column{
	{"min", func(p Path) string { return figures.Duration(p.Voice.Delay.Min) }},
	{"p50", func(p Path) string { return figures.Duration(p.Voice.Delay.P50) }},
	{"p99", func(p Path) string { return figures.Duration(p.Voice.Delay.P99) }},
	{"p99.9", func(p Path) string { return figures.Duration(p.Voice.Delay.P999) }},
	{"p99.99", func(p Path) string { return figures.Duration(p.Voice.Delay.P9999) }},
	{"max", func(p Path) string { return figures.Duration(p.Voice.Delay.Max) }},
	{"PDV", func(p Path) string { return figures.Duration(p.Voice.PDV) }},
	{"×PDV", func(p Path) string { return against(p, func(r Ratio) float64 { return r.PDV }) }},
	{"×p50", func(p Path) string { return against(p, func(r Ratio) float64 { return r.P50 }) }},
	{"jitter", func(p Path) string { return figures.Duration(p.Voice.Jitter) }},
	{"IPDV", func(p Path) string { return figures.Duration(p.Voice.IPDV) }},
	{"lost", lost},
	{"reord", func(p Path) string { return fmt.Sprint(p.Voice.Reordered) }},
	{"MOS", func(p Path) string { return fmt.Sprintf("%.2f", p.Voice.MOS) }},
}

func lost(p Path) string { return fmt.Sprint(p.Voice.Sent - p.Voice.Received) }

func against(p Path, of func(Ratio) float64) string {
	if p.Against == nil {
		return "-"
	}
	return ratio(of(*p.Against))
}

func ratio(r float64) string {
	switch {
	case r >= 99.5:
		return fmt.Sprintf("%.0f", r)
	case r >= 9.95:
		return fmt.Sprintf("%.1f", r)
	case r >= 0.1:
		return fmt.Sprintf("%.2f", r)
	case r >= 0.001:
		return fmt.Sprintf("%.3f", r)
	}
	return "<0.001"
}

// Table prints the run as text: what was run and where, how the machine itself is, one block a load, and what
// makes the figures less reliable than they look.
func Table(w io.Writer, j Jitter) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n\n", settingsLine(j.Settings), machineLine(j.Machine), j.Ringway.Line())
	b.WriteString(
		"This machine alone: how late it wakes a thread that slept to a point in time (cyclictest's measure)\n",
	)
	grid(&b, wakeRows(j))
	for _, l := range j.Loads {
		fmt.Fprintf(&b, "\n%s\n", loadLine(j, l))
		rows := [][]string{{""}}
		for _, c := range columns {
			rows[0] = append(rows[0], c.name)
		}
		for _, p := range l.Paths {
			row := []string{p.Name}
			for _, c := range columns {
				cell := "-"
				if p.Voice.Received > 0 || c.name == "lost" {
					cell = c.cell(p)
				}
				row = append(row, cell)
			}
			rows = append(rows, row)
		}
		grid(&b, rows)
	}
	b.WriteString("\n" + legend + "\n")
	for _, t := range programs(j) {
		fmt.Fprintf(&b, "%s\n", t)
	}
	for _, warning := range Warnings(j) {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const legend = `One-way delay of voice, the worse direction. PDV: p99.9 less the minimum (RFC 8219). ×PDV, ×p50: relative to ringway's in
the same round. jitter: RFC 3550, mean. IPDV: change from packet to packet (RFC 5481), p99.9. MOS: ITU-T G.107, fixed jitter buffer.`

// grid prints rows, the first column to the left, the others to the right.
func grid(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i == 0 {
				line.WriteString(c + pad)
			} else {
				line.WriteString("  " + pad + c)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

func settingsLine(s Settings) string {
	rounds := ""
	if s.Rounds > 1 {
		rounds = fmt.Sprintf(", %d rounds", s.Rounds)
	}
	return fmt.Sprintf(
		"%d voice streams each way on each path, %d bytes every %s, %.0f s a load%s; TCP bulk beside them, "+
			"capacity %.0f Mbit/s",
		s.Streams,
		s.Size,
		figures.Duration(s.Interval),
		s.Seconds,
		rounds,
		s.Capacity,
	)
}

// machineLine is the machine, and the setting that decides about tails where the kernel is not preemptible.
func machineLine(m Machine) string {
	line := figures.MachineLine(m.Machine)
	if m.NetdevBudget > 0 {
		line += fmt.Sprintf(", net.core.netdev_budget %d", m.NetdevBudget)
	}
	return line
}

func loadLine(j Jitter, l Load) string {
	var what string
	switch {
	case l.LoadPercent == 0:
		what = "Load 0 %: no bulk"
	case l.Bulk.Asked == 0:
		what = fmt.Sprintf(
			"Load %d %%: TCP as fast as it goes, %.0f Mbit/s through wireguard-go-shared",
			l.LoadPercent,
			l.Bulk.MbitPerS,
		)
	default:
		what = fmt.Sprintf(
			"Load %d %%: TCP held to %.0f Mbit/s, %.0f through wireguard-go-shared",
			l.LoadPercent,
			l.Bulk.Asked,
			l.Bulk.MbitPerS,
		)
	}
	what += fmt.Sprintf(
		"; other programs took %.1f %% of the processor, the hypervisor %.1f %%",
		100*l.CPU.Others,
		100*l.CPU.Stolen,
	)
	if n := len(l.Rounds); n > 1 {
		what += fmt.Sprintf("; median of %d rounds", n)
	}
	return what
}

// wakeRows has a row a load and policy: of several rounds the median, and the highest maximum.
func wakeRows(j Jitter) [][]string {
	rows := [][]string{{"", "policy", "p50", "p99", "p99.9", "max"}}
	type key struct {
		load   int
		policy string
	}
	var order []key
	groups := map[key][]Wakeup{}
	for _, w := range j.Machine.Wakeup {
		k := key{-1, w.Policy}
		if w.LoadPercent != nil {
			k.load = *w.LoadPercent
		}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], w)
	}
	for _, k := range order {
		name := fmt.Sprintf("load %d %%", k.load)
		if k.load < 0 {
			name = "idle"
		}
		group := groups[k]
		policy := "default (SCHED_OTHER)"
		if k.policy == "fifo" {
			policy = "real-time (SCHED_FIFO)"
		}
		if d := group[0].Denied; d != "" {
			rows = append(rows, []string{name, policy, "denied"})
			continue
		}
		of := func(f func(Wakeup) float64) (all []float64) {
			for _, w := range group {
				all = append(all, f(w))
			}
			return all
		}
		highest := 0.0
		for _, v := range of(func(w Wakeup) float64 { return w.Max }) {
			highest = max(highest, v)
		}
		rows = append(rows, []string{name, policy,
			figures.Duration(
				median(of(func(w Wakeup) float64 { return w.P50 })),
			), figures.Duration(median(of(func(w Wakeup) float64 { return w.P99 }))),
			figures.Duration(median(of(func(w Wakeup) float64 { return w.P999 }))), figures.Duration(highest)})
	}
	return rows
}

func programs(j Jitter) []string {
	if len(j.Loads) == 0 {
		return nil
	}
	var out []string
	for _, p := range j.Loads[0].Paths {
		out = append(out, fmt.Sprintf("%s: %s", p.Name, p.Program))
	}
	return out
}

// Bounds beyond which the machine is named as part of the figures.
const (
	stolenIsMuch = 0.01 // share of the processor
	othersIsMuch = 0.03 // same
	lateIsMuch   = 2000 // µs at the sender's p99.9
)

// Warnings name what makes the figures less reliable than they look.
func Warnings(j Jitter) []string {
	var out []string
	for _, d := range j.Machine.Denied {
		out = append(out, "this machine denies "+d)
	}
	for _, l := range j.Loads {
		at := fmt.Sprintf("load %d %%", l.LoadPercent)
		for _, r := range l.Rounds {
			out = append(
				out,
				roundWarnings(fmt.Sprintf("%s, round %d", at, r.Round), r.CPU, r.Unsent, r.UnsentWhy)...)
		}
		if l.Late.P999 > lateIsMuch {
			out = append(
				out,
				fmt.Sprintf(
					"%s: the sender itself was late by %s (p99.9): voice came in bursts.",
					at,
					figures.Duration(l.Late.P999),
				),
			)
		}
		for _, p := range l.Paths {
			out = append(out, voiceWarnings(at+", "+p.Name, p.Voice)...)
		}
	}
	if len(j.Loads) > 0 && len(j.Loads[0].Paths) > 0 {
		if n := j.Settings.Streams * int(j.Settings.Seconds*1e6/j.Settings.Interval); n < 10_000 {
			out = append(
				out,
				fmt.Sprintf(
					"with %d packets a direction and round, p99.99 is the worst packet (--duration takes longer).",
					n,
				),
			)
		}
	}
	return out
}

// voiceWarnings name what is wrong with one path's books; at says which path.
func voiceWarnings(at string, v lab.Voice) (out []string) {
	if v.CaptureLost > 0 {
		out = append(
			out,
			fmt.Sprintf(
				"%s: %d packets arrived and found the benchmark's own buffer full: they are not the path's loss.",
				at,
				v.CaptureLost,
			),
		)
	}
	if v.Unmatched > 0 {
		out = append(out, fmt.Sprintf("%s: %d packets arrived that were never sent.", at, v.Unmatched))
	}
	if v.Negative > 0 {
		out = append(
			out,
			fmt.Sprintf(
				"%s: %d packets arrived before they were sent: the clock was set during the run.",
				at,
				v.Negative,
			),
		)
	}
	return out
}

// roundWarnings name what disturbed one round; at says which.
func roundWarnings(at string, cpu CPU, unsent int, why string) (out []string) {
	if cpu.Stolen > stolenIsMuch {
		out = append(
			out,
			fmt.Sprintf(
				"%s: the hypervisor took %.1f %% of the processor away; take a quieter machine.",
				at,
				100*cpu.Stolen,
			),
		)
	}
	if unsent > 0 {
		out = append(
			out,
			fmt.Sprintf("%s: the phones could not send %d packets (%s): they are in no figure.", at, unsent, why),
		)
	}
	if cpu.Others > othersIsMuch {
		out = append(
			out,
			fmt.Sprintf(
				"%s: programs outside the benchmark took %.1f %% of the processor; end them and measure again.",
				at,
				100*cpu.Others,
			),
		)
	}
	return out
}
