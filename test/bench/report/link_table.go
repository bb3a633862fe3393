package report

import (
	"fmt"
	"io"
	"strings"

	"ringway/quality/figures"
)

func (v Verdict) figure(x float64) string {
	switch v.Unit {
	case "us":
		return signed(x)
	case "share":
		return fmt.Sprintf("%.1f %%", 100*x)
	case "ratio":
		return ratio(x) + "×"
	}
	return fmt.Sprintf("%.0f", x)
}

// signed prints a difference of durations, which may be less than nothing.
func signed(x float64) string {
	if x < 0 {
		return "-" + figures.Duration(-x)
	}
	return figures.Duration(x)
}

func (v Verdict) row() []string {
	word, goal := "met", "-"
	switch {
	case v.Goal == nil:
		word = "reported"
	case !v.Met:
		word = "not met"
	}
	if v.Goal != nil {
		goal = map[bool]string{true: "≥ ", false: "≤ "}[v.Unit == "share"] + v.figure(*v.Goal)
	}
	var rounds []string
	for _, x := range v.Rounds {
		rounds = append(rounds, v.figure(x))
	}
	return []string{word, v.Rate, v.Load, v.What, v.figure(v.Value), goal, strings.Join(rounds, ", "), v.Note}
}

// LinkTable prints the run as text.
func LinkTable(w io.Writer, l Link) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", linkLine(l.Settings), figures.MachineLine(l.Machine), l.Ringway.Line())
	for _, r := range l.Rates {
		fmt.Fprintf(&b, "\n%s\n", r.line())
		grid(&b, r.rows())
	}
	b.WriteString("\nGoals, all rounds\n")
	rows := [][]string{{"", "link", "load", "what", "median", "goal", "rounds", ""}}
	for _, v := range l.Verdicts {
		rows = append(rows, v.row())
	}
	grid(&b, rows)
	b.WriteString("\n" + linkLegend(l.Settings) + "\n")
	if len(l.Rates) > 0 && len(l.Rates[0].Loads) > 0 {
		for _, p := range l.Rates[len(l.Rates)-1].Loads[0].Paths {
			fmt.Fprintf(&b, "%s: %s\n", p.Name, p.Program)
		}
	}
	for _, warning := range LinkWarnings(l) {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func linkLegend(s LinkSettings) string {
	return fmt.Sprintf(linkWords, s.EchoBytes)
}

const linkWords = `One-way delay of voice, the worse direction. PDV: p99.9 less the minimum (RFC 8219); added: less the same round's of voice alone;
×kernel: relative to forwarding without a tunnel. budget: one data packet on the wire, 1 ms, and a voice packet for each further call.
share: data's share of the bytes at the bottleneck that voice, signalling and the path's own margin leave; the lower direction.
signal: round trip of %d bytes marked CS3 between the phones. second: ping between two other hosts, as data. lost: of pings.`

func linkLine(s LinkSettings) string {
	rounds := ""
	if s.Rounds > 1 {
		rounds = fmt.Sprintf(", %d rounds", s.Rounds)
	}
	calls := "one call"
	if s.Calls > 1 {
		calls = fmt.Sprintf("%d calls", s.Calls)
	}
	if s.Family == "ipv6" {
		calls += " over IPv6"
	}
	return fmt.Sprintf(
		"%s both ways on each path, %d bytes every %s, %.0f s a load%s; loads both ways at once: TCP, %d flows, "+
			"UDP, %g times the link",
		calls,
		s.Size,
		figures.Duration(s.IntervalUS),
		s.Seconds,
		rounds,
		s.Flows,
		s.Flood,
	)
}

func (r LinkRate) line() string {
	what := "a meter"
	if r.Wire {
		what = "a wire"
	}
	turn := ""
	if r.InTurn {
		turn = "; one path after the other, for together they would fill the processor first"
	}
	return fmt.Sprintf(
		"%s both ways, %s behind a FIFO of %d bytes; longest packet of data %d bytes on the wire, %s; of voice "+
			"%d, %s; budget of added PDV %s%s",
		r.Rate,
		what,
		r.BufferBytes,
		r.DataPacket.WireBytes,
		figures.Duration(r.DataPacket.TimeUS),
		r.VoicePacket.WireBytes,
		figures.Duration(r.VoicePacket.TimeUS),
		figures.Duration(r.BudgetUS),
		turn,
	)
}

func (r LinkRate) rows() [][]string {
	rows := [][]string{
		{
			"load",
			"path",
			"lost",
			"of",
			"min",
			"p50",
			"p99",
			"p99.9",
			"max",
			"PDV",
			"added",
			"×kernel",
			"share",
			"Mbit/s",
			"signal p99",
			"max",
			"lost",
			"second p50",
			"p99",
			"lost",
		},
	}
	for _, l := range r.Loads {
		for _, p := range l.Paths {
			v := p.Voice
			row := []string{l.Scenario.Bulk, p.Name, fmt.Sprint(v.Sent - v.Received), fmt.Sprint(v.Sent)}
			for _, d := range []float64{v.Delay.Min, v.Delay.P50, v.Delay.P99, v.Delay.P999, v.Delay.Max, v.PDV} {
				if v.Received == 0 {
					row = append(row, "-")
				} else {
					row = append(row, figures.Duration(d))
				}
			}
			added := "-"
			if p.Added != nil {
				added = signed(*p.Added)
			}
			row = append(row, added, times(p.OverKernel))
			if l.Scenario.Bulk == Alone {
				row = append(row, "-", "-")
			} else {
				row = append(row, fmt.Sprintf("%.1f %%", 100*p.Share), fmt.Sprintf("%.2f", p.Bulk.MbitPerS))
			}
			row = append(row, p.Signalling.cells(func(e Echo) []float64 { return []float64{e.P99, e.Max} })...)
			row = append(row, p.SecondFlow.cells(func(e Echo) []float64 { return []float64{e.P50, e.P99} })...)
			rows = append(rows, row)
		}
	}
	return rows
}

func (e *Echo) cells(of func(Echo) []float64) []string {
	if e == nil {
		return []string{"-", "-", "-"}
	}
	lost := fmt.Sprint(e.Sent - e.Received)
	if e.Received == 0 {
		return []string{"-", "-", lost}
	}
	v := of(*e)
	return []string{figures.Duration(v[0]), figures.Duration(v[1]), lost}
}

// LinkWarnings name what makes the figures less reliable than they look.
func LinkWarnings(l Link) (out []string) {
	for _, d := range l.Denied {
		out = append(out, "this machine denies "+d)
	}
	for _, o := range l.LeftOut {
		out = append(out, "left out: "+o)
	}
	if l.Machine.Load1 > float64(l.Machine.Cores)/2 {
		out = append(
			out,
			fmt.Sprintf(
				"the machine's load was %.1f when the run began: other programs ran beside it.",
				l.Machine.Load1,
			),
		)
	}
	for _, r := range l.Rates {
		for _, load := range r.Loads {
			at := fmt.Sprintf("%s, load %s", r.Rate, load.Scenario.Bulk)
			for _, round := range load.Rounds {
				out = append(
					out,
					roundWarnings(
						fmt.Sprintf("%s, round %d", at, round.Round),
						round.CPU,
						round.Unsent,
						round.UnsentWhy,
					)...)
			}
			if load.Late.P999 > lateIsMuch {
				out = append(
					out,
					fmt.Sprintf(
						"%s: the sender itself was late by %s (p99.9).",
						at,
						figures.Duration(load.Late.P999),
					),
				)
			}
			for _, p := range load.Paths {
				out = append(out, voiceWarnings(at+", "+p.Name, p.Voice)...)
			}
		}
	}
	if s := l.Settings; s.IntervalUS > 0 {
		if n := s.Calls * int(s.Seconds*1e6/s.IntervalUS); n < 1000 {
			out = append(
				out,
				fmt.Sprintf(
					"with %d packets a direction and round, p99.9 is the worst packet (--duration takes longer).",
					n,
				),
			)
		}
	}
	return out
}
