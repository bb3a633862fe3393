package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	lab "ringway/test/lab/report"
)

// Link is one run of `ringway bench link`. Field names are a promise to whoever reads the JSON: fields may be added, none renamed or
// removed. Durations are microseconds, shares 0 to 1. What stands for one load at one rate has the shape of the lab's report.
type Link struct {
	Machine  lab.Machine  `json:"machine"`
	Settings LinkSettings `json:"settings"`
	Denied   []string     `json:"denied"` // what the machine did not allow the probes
	LeftOut  []string     `json:"left_out"`
	Rates    []LinkRate   `json:"rates"`
	Verdicts []Verdict    `json:"verdicts"`
}

// LinkSettings are what was asked for.
type LinkSettings struct {
	Build      string  `json:"build"`
	Family     string  `json:"family"` // ipv4 or ipv6: of the links and of what phones and PCs speak
	Calls      int     `json:"calls"`
	Size       int     `json:"payload_bytes"` // of UDP, in a packet of voice
	IntervalUS float64 `json:"interval_us"`
	Seconds    float64 `json:"seconds"` // of a load and round
	Rounds     int     `json:"rounds"`
	Flows      int     `json:"tcp_flows"`         // each way
	Flood      float64 `json:"flood_times_link"`  // UDP, each way
	EchoUS     float64 `json:"echo_interval_us"`  // of the signalling and of the second flow
	EchoBytes  int     `json:"echo_packet_bytes"` // IP packets
	Started    string  `json:"started"`           // RFC 3339
	Command    string  `json:"command"`           // that repeats the run
}

// LinkRate is a link of one rate, the same both ways.
type LinkRate struct {
	Rate        string     `json:"rate"`
	Bits        uint64     `json:"rate_bits_per_s"`
	BufferBytes int        `json:"buffer_bytes"`  // the provider's FIFO
	Wire        bool       `json:"wire"`          // the provider is busy with one packet at a time; otherwise it is a meter with a bucket (TBF)
	InTurn      bool       `json:"paths_in_turn"` // each path alone, one after the other; otherwise all at the same time
	DataPacket  LinkPacket `json:"data_packet"`   // the longest of Ringway's data, by its plan
	VoicePacket LinkPacket `json:"voice_packet"`  // a call's, by its plan
	BudgetUS    float64    `json:"pdv_budget_us"`
	Loads       []LinkLoad `json:"loads"`
}

// LinkPacket is a packet on the provider's meter.
type LinkPacket struct {
	IPBytes   int     `json:"ip_bytes"` // inside the tunnel
	WireBytes int     `json:"wire_bytes"`
	TimeUS    float64 `json:"serialization_us"` // at the link's rate
}

// The loads, in their order.
const (
	Alone = "none" // voice alone
	TCP   = "tcp"
	UDP   = "udp"
)

// LinkLoad is one load. Its own figures are those of all rounds together, as in Load.
type LinkLoad struct {
	Scenario lab.Scenario `json:"scenario"`
	CPU      CPU          `json:"cpu"`
	Late     Late         `json:"sender_late_us"`
	Paths    []LinkPath   `json:"paths"`
	Rounds   []LinkRound  `json:"rounds"`
}

// LinkRound is one run under one load.
type LinkRound struct {
	Round     int        `json:"round"`
	Unsent    int        `json:"unsent"` // refused by the phones' own kernel; in no figure
	UnsentWhy string     `json:"unsent_why,omitempty"`
	CPU       CPU        `json:"cpu"`
	Late      Late       `json:"sender_late_us"`
	Paths     []LinkPath `json:"paths"`
}

// LinkPath is a path in the lab's shape, and what matters on a link. Bulk is what reached the PCs as frames, both
// ways together.
type LinkPath struct {
	lab.Path
	Program    string            `json:"program"`
	Margin     float64           `json:"margin"` // of the link, that the path leaves free by its own statement
	Added      *float64          `json:"pdv_added_us,omitempty"`
	OverKernel *float64          `json:"pdv_over_kernel,omitempty"` // pdv_us over the path kernel's, same round
	Wire       []LinkWire        `json:"wire"`                      // at the provider's bottleneck
	Share      float64           `json:"data_share"`                // the lower of the directions'; 0 without a load
	Signalling *Echo             `json:"signalling,omitempty"`
	SecondFlow *Echo             `json:"second_flow,omitempty"`
	ClassDrops map[string]uint64 `json:"class_drops,omitempty"` // packets that Ringway's own queues dropped, both edges; all rounds
}

// LinkWire is what went through the bottleneck in one direction, bits a second.
type LinkWire struct {
	Direction string  `json:"direction"`
	Total     float64 `json:"total"`
	Voice     float64 `json:"voice"`
	Signals   float64 `json:"signalling"`
	Left      float64 `json:"left_for_data"` // rate less margin, voice and signalling
	Data      float64 `json:"data"`
	Share     float64 `json:"data_share"` // data over left_for_data
}

// Echo is a round trip of small packets.
type Echo struct {
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Min      float64 `json:"min_us"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
}

// Verdict is one goal at one rate under one load. A median of the rounds is judged; lost packets are those of all rounds.
type Verdict struct {
	Rate   string    `json:"rate"`
	Load   string    `json:"load"`
	What   string    `json:"what"`
	Unit   string    `json:"unit"` // packets, us, share, ratio
	Goal   *float64  `json:"goal"` // null: there is none, the figure is reported
	Value  float64   `json:"value"`
	Rounds []float64 `json:"rounds"`
	Met    bool      `json:"met"`
	Note   string    `json:"note,omitempty"`
}

// Goals of the links' issue.
const (
	LeastShare      = 0.95
	MostSignalling  = 50_000.0   // µs
	MostSecond      = 30_000.0   // µs, p99
	SecondFrom      = 2_000_000  // bit/s
	AddedUpTo       = 10_000_000 // bit/s; above, the ratio to the kernel's PDV is reported
	MostLost        = 0.01       // of the second flow's pings: with more, its p99 would be without end
	KernelPath      = "kernel"
	AddedBeyondWire = 1000.0 // µs, beside the packets on the wire
)

// Compare fills in what a load adds to the same round's voice alone, and how it compares with the kernel's.
func (r *LinkRound) Compare(alone *LinkRound) {
	k := slices.IndexFunc(r.Paths, func(p LinkPath) bool { return p.Name == KernelPath })
	for i := range r.Paths {
		p := &r.Paths[i]
		if k >= 0 && r.Paths[k].Voice.PDV > 0 && p.Voice.Received > 0 {
			v := p.Voice.PDV / r.Paths[k].Voice.PDV
			p.OverKernel = &v
		}
		if alone == nil || p.Voice.Received == 0 {
			continue
		}
		worst := 0.0
		for d, dir := range p.Voice.Directions {
			if added := dir.PDV - alone.Paths[i].Voice.Directions[d].PDV; d == 0 || added > worst {
				worst = added
			}
		}
		p.Added = &worst
	}
}

// Summarize makes a load's own figures from its rounds.
func (l *LinkLoad) Summarize() {
	if len(l.Rounds) == 0 {
		return
	}
	of := func(f func(LinkRound) float64) float64 { return median(valuesOf(l.Rounds, f)) }
	l.CPU = CPU{SoftIRQ: of(func(r LinkRound) float64 { return r.CPU.SoftIRQ }), Stolen: of(func(r LinkRound) float64 { return r.CPU.Stolen }),
		Others: of(func(r LinkRound) float64 { return r.CPU.Others })}
	l.Late = Late{P50: of(func(r LinkRound) float64 { return r.Late.P50 }), P999: of(func(r LinkRound) float64 { return r.Late.P999 })}
	for _, r := range l.Rounds {
		l.Late.Max = max(l.Late.Max, r.Late.Max)
	}
	l.Paths = nil
	for i, first := range l.Rounds[0].Paths {
		p := LinkPath{Program: first.Program, Margin: first.Margin}
		var voices []lab.Voice
		for _, r := range l.Rounds {
			q := r.Paths[i]
			voices = append(voices, q.Voice)
			for class, n := range q.ClassDrops {
				if p.ClassDrops == nil {
					p.ClassDrops = map[string]uint64{}
				}
				p.ClassDrops[class] += n
			}
		}
		p.Name, p.Voice = first.Name, together(voices)
		p.Calls, p.Bulk.MbitPerS = first.Calls, of(func(r LinkRound) float64 { return r.Paths[i].Bulk.MbitPerS })
		p.Share = of(func(r LinkRound) float64 { return r.Paths[i].Share })
		p.Added = medianOf(l.Rounds, func(r LinkRound) *float64 { return r.Paths[i].Added })
		p.OverKernel = medianOf(l.Rounds, func(r LinkRound) *float64 { return r.Paths[i].OverKernel })
		p.Signalling = echoes(l.Rounds, func(r LinkRound) *Echo { return r.Paths[i].Signalling })
		p.SecondFlow = echoes(l.Rounds, func(r LinkRound) *Echo { return r.Paths[i].SecondFlow })
		for d, w := range first.Wire {
			at := func(f func(LinkWire) float64) float64 {
				return of(func(r LinkRound) float64 { return f(r.Paths[i].Wire[d]) })
			}
			p.Wire = append(p.Wire, LinkWire{Direction: w.Direction, Total: at(func(w LinkWire) float64 { return w.Total }), Voice: at(func(w LinkWire) float64 { return w.Voice }),
				Signals: at(func(w LinkWire) float64 { return w.Signals }), Left: at(func(w LinkWire) float64 { return w.Left }),
				Data: at(func(w LinkWire) float64 { return w.Data }), Share: at(func(w LinkWire) float64 { return w.Share })})
		}
		l.Paths = append(l.Paths, p)
	}
}

func valuesOf(rounds []LinkRound, f func(LinkRound) float64) (out []float64) {
	for _, r := range rounds {
		out = append(out, f(r))
	}
	return out
}

// medianOf is nil where no round has the figure.
func medianOf(rounds []LinkRound, f func(LinkRound) *float64) *float64 {
	var all []float64
	for _, r := range rounds {
		if v := f(r); v != nil {
			all = append(all, *v)
		}
	}
	if len(all) == 0 {
		return nil
	}
	v := median(all)
	return &v
}

// echoes joins the rounds: medians, but counts are summed up and the highest is that of all.
func echoes(rounds []LinkRound, f func(LinkRound) *Echo) *Echo {
	var sum Echo
	var least, p50, p99 []float64
	for _, r := range rounds {
		e := f(r)
		if e == nil {
			return nil
		}
		sum.Sent, sum.Received, sum.Max = sum.Sent+e.Sent, sum.Received+e.Received, max(sum.Max, e.Max)
		if e.Received > 0 {
			least, p50, p99 = append(least, e.Min), append(p50, e.P50), append(p99, e.P99)
		}
	}
	sum.Min, sum.P50, sum.P99 = median(least), median(p50), median(p99)
	return &sum
}

// Judge holds Ringway's path to the goals.
func (l *Link) Judge() {
	l.Verdicts = []Verdict{}
	for _, r := range l.Rates {
		for _, load := range r.Loads {
			i := slices.IndexFunc(load.Paths, func(p LinkPath) bool { return p.Name == RingwayPath })
			if i < 0 {
				continue
			}
			l.Verdicts = append(l.Verdicts, r.judge(load, i)...)
		}
	}
}

func (r LinkRate) judge(load LinkLoad, i int) (out []Verdict) {
	add := func(what, unit string, goal *float64, f func(LinkPath) float64, met func(v, goal float64) bool) *Verdict {
		v := Verdict{Rate: r.Rate, Load: load.Scenario.Bulk, What: what, Unit: unit, Goal: goal, Met: true}
		v.Rounds = valuesOf(load.Rounds, func(r LinkRound) float64 { return f(r.Paths[i]) })
		v.Value = median(v.Rounds)
		if goal != nil {
			v.Met = met(v.Value, *goal)
		}
		out = append(out, v)
		return &out[len(out)-1]
	}
	atMost := func(v, goal float64) bool { return v <= goal }
	goal := func(v float64) *float64 { return &v }
	v := add("voice lost", "packets", goal(0), func(p LinkPath) float64 { return float64(p.Voice.Sent - p.Voice.Received) }, atMost)
	v.Value = 0
	for _, n := range v.Rounds {
		v.Value += n
	}
	v.Met = v.Value == 0
	v.Note = fmt.Sprintf("of %d in the worse direction", load.Paths[i].Voice.Sent)
	if load.Scenario.Bulk == Alone {
		return out
	}
	figure := func(v *float64) float64 {
		if v == nil {
			return 0
		}
		return *v
	}
	if r.Bits <= AddedUpTo {
		add("voice PDV added", "us", goal(r.BudgetUS), func(p LinkPath) float64 { return figure(p.Added) }, atMost)
	} else {
		add("voice PDV over the kernel's", "ratio", nil, func(p LinkPath) float64 { return figure(p.OverKernel) }, nil)
	}
	add("data's share of the wire", "share", goal(LeastShare), func(p LinkPath) float64 { return p.Share }, func(v, goal float64) bool { return v >= goal })
	echo := func(what string, most float64, lost float64, of func(LinkPath) *Echo, f func(*Echo) float64) {
		if of(load.Paths[i]) == nil {
			return
		}
		v := add(what, "us", goal(most), func(p LinkPath) float64 { return f(of(p)) }, func(v, goal float64) bool { return v < goal })
		e := of(load.Paths[i])
		v.Note = fmt.Sprintf("%d of %d lost", e.Sent-e.Received, e.Sent)
		v.Met = v.Met && e.Received > 0 && float64(e.Sent-e.Received) <= lost*float64(e.Sent)
	}
	echo("signalling round trip, max", MostSignalling, 0, func(p LinkPath) *Echo { return p.Signalling }, func(e *Echo) float64 { return e.Max })
	if r.Bits >= SecondFrom {
		echo("second flow's ping, p99", MostSecond, MostLost, func(p LinkPath) *Echo { return p.SecondFlow }, func(e *Echo) float64 { return e.P99 })
	}
	return out
}

// Unmet counts the goals that were not met.
func (l Link) Unmet() (n int) {
	for _, v := range l.Verdicts {
		if !v.Met {
			n++
		}
	}
	return n
}

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
		return "-" + lab.Duration(-x)
	}
	return lab.Duration(x)
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

// LinkTable prints the run for people.
func LinkTable(w io.Writer, l Link) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", linkLine(l.Settings), lab.MachineLine(l.Machine))
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
×kernel: over that of forwarding without a tunnel. budget: one data packet on the wire, 1 ms, and a voice packet for each further call.
share: of the bytes at the provider's bottleneck that voice, signalling and the path's own margin leave, what data took, the lower direction.
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
	return fmt.Sprintf("%s both ways on each path, %d bytes every %s, %.0f s a load%s; loads both ways at once: TCP, %d flows, UDP, %g times the link",
		calls, s.Size, lab.Duration(s.IntervalUS), s.Seconds, rounds, s.Flows, s.Flood)
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
	return fmt.Sprintf("%s both ways, %s behind a FIFO of %d bytes; longest packet of data %d bytes on the wire, %s; of voice %d, %s; budget of added PDV %s%s",
		r.Rate, what, r.BufferBytes, r.DataPacket.WireBytes, lab.Duration(r.DataPacket.TimeUS), r.VoicePacket.WireBytes, lab.Duration(r.VoicePacket.TimeUS), lab.Duration(r.BudgetUS), turn)
}

// Join adds what was measured on other paths in the same round.
func (r *LinkRound) Join(o LinkRound) {
	r.Unsent += o.Unsent
	if o.UnsentWhy != "" {
		r.UnsentWhy = o.UnsentWhy
	}
	r.CPU = CPU{SoftIRQ: max(r.CPU.SoftIRQ, o.CPU.SoftIRQ), Stolen: max(r.CPU.Stolen, o.CPU.Stolen), Others: max(r.CPU.Others, o.CPU.Others)}
	r.Late = Late{P50: max(r.Late.P50, o.Late.P50), P999: max(r.Late.P999, o.Late.P999), Max: max(r.Late.Max, o.Late.Max)}
	r.Paths = append(r.Paths, o.Paths...)
}

func (r LinkRate) rows() [][]string {
	rows := [][]string{{"load", "path", "lost", "of", "min", "p50", "p99", "p99.9", "max", "PDV", "added", "×kernel", "share", "Mbit/s", "signal p99", "max", "lost", "second p50", "p99", "lost"}}
	for _, l := range r.Loads {
		for _, p := range l.Paths {
			v := p.Voice
			row := []string{l.Scenario.Bulk, p.Name, fmt.Sprint(v.Sent - v.Received), fmt.Sprint(v.Sent)}
			for _, d := range []float64{v.Delay.Min, v.Delay.P50, v.Delay.P99, v.Delay.P999, v.Delay.Max, v.PDV} {
				if v.Received == 0 {
					row = append(row, "-")
				} else {
					row = append(row, lab.Duration(d))
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
	return []string{lab.Duration(v[0]), lab.Duration(v[1]), lost}
}

// LinkWarnings name what makes the figures worth less than they look.
func LinkWarnings(l Link) (out []string) {
	for _, d := range l.Denied {
		out = append(out, "this machine denies "+d)
	}
	for _, o := range l.LeftOut {
		out = append(out, "left out: "+o)
	}
	if l.Machine.Load1 > float64(l.Machine.Cores)/2 {
		out = append(out, fmt.Sprintf("the machine's load was %.1f when the run began: other programs ran beside it.", l.Machine.Load1))
	}
	for _, r := range l.Rates {
		for _, load := range r.Loads {
			at := fmt.Sprintf("%s, load %s", r.Rate, load.Scenario.Bulk)
			for _, round := range load.Rounds {
				out = append(out, roundWarnings(fmt.Sprintf("%s, round %d", at, round.Round), round.CPU, round.Unsent, round.UnsentWhy)...)
			}
			if load.Late.P999 > lateIsMuch {
				out = append(out, fmt.Sprintf("%s: the sender itself was late by %s (p99.9).", at, lab.Duration(load.Late.P999)))
			}
			for _, p := range load.Paths {
				out = append(out, voiceWarnings(at+", "+p.Name, p.Voice)...)
			}
		}
	}
	if s := l.Settings; s.IntervalUS > 0 {
		if n := s.Calls * int(s.Seconds*1e6/s.IntervalUS); n < 1000 {
			out = append(out, fmt.Sprintf("with %d packets a direction and round, p99.9 is the worst packet (--duration takes longer).", n))
		}
	}
	return out
}

// LinkDelays are all packets of one path in one direction at one rate under one load, of all rounds, for the plots.
type LinkDelays struct {
	Rate, Load, Path, Direction string
	Delays                      []time.Duration
}
