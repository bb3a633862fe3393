package sip

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"ringway/quality/figures"
	"ringway/test/bench/cost"
)

// Report is a finished run. Fields are added, none renamed.
type Report struct {
	Machine  figures.Machine  `json:"machine"`
	Ringway  figures.Program  `json:"ringway"`
	Old      *figures.Program `json:"ringway_old,omitempty"`
	Kamailio string           `json:"kamailio,omitempty"`
	Settings Settings         `json:"settings"`
	Paths    []Row            `json:"paths"` // one for each path and rate
	Memory   []Memory         `json:"memory"`
	Best     []Best           `json:"best"`
}

// Settings are the options of the run.
type Settings struct {
	DurationS float64 `json:"duration_s"`
	HoldS     float64 `json:"hold_s"`
	Rounds    int     `json:"rounds"`
	Cores     [2]int  `json:"cores"`   // of the ends, and of what is measured
	Started   string  `json:"started"` // RFC 3339
	Command   string  `json:"command"` // that repeats the run
}

// Quantiles are of a delay in microseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// Row is one path at one rate: sums of calls, medians of the rounds.
type Row struct {
	Name         Path      `json:"name"`
	CallsPerS    float64   `json:"calls_per_s"`
	Placed       int       `json:"placed"`
	Lost         int       `json:"lost"`
	Restarts     int       `json:"restarts"`            // rounds in which one of its processes was replaced
	CPUPerCallUS float64   `json:"cpu_us_per_call"`     // user and system time of its processes
	SoftIRQUS    float64   `json:"softirq_us_per_call"` // of its core, sampled by the tick, which an idle core has not
	Delay        Quantiles `json:"delay_us"`            // of a message from end to end
	DelayAdded   Quantiles `json:"delay_added_us"`      // less the kernel path's of the same round

	// Ratios within each round, and their medians; 0: there is none.
	CPURatio    float64   `json:"cpu_to_kamailio"`
	CPURatios   []float64 `json:"cpu_to_kamailio_rounds,omitempty"`
	OldRatio    float64   `json:"cpu_to_old"`
	OldRatios   []float64 `json:"cpu_to_old_rounds,omitempty"`
	DelayRatio  float64   `json:"delay_p99_to_kernel"`
	DelayRatios []float64 `json:"delay_p99_to_kernel_rounds,omitempty"`

	Rounds []Trial `json:"rounds"`
}

// Trial is one path at one rate in one round.
type Trial struct {
	Placed           int                  `json:"placed"`
	Lost             int                  `json:"lost"`
	Restarted        bool                 `json:"restarted,omitempty"` // one of its processes; CPU is not known then
	Refused          map[string]int       `json:"refused,omitempty"`   // part of lost, by status
	CPUPerCallUS     float64              `json:"cpu_us_per_call"`
	SoftIRQPerCallUS float64              `json:"softirq_us_per_call"`
	Delay            Quantiles            `json:"delay_us"`
	Messages         map[string]Quantiles `json:"messages"` // the delay by kind of message
	SenderLateUS     float64              `json:"sender_late_us"`
	Overflow         int                  `json:"overflow"`      // messages that the ends' sockets have dropped in all
	BacklogDrops     int                  `json:"backlog_drops"` // packets dropped before a core that was too busy
	Seconds          float64              `json:"seconds"`
	Unread           int                  `json:"unread,omitempty"`     // messages that passed by a relay that was silent
	HolesLeft        int                  `json:"holes_left,omitempty"` // more than before the calls
	LateFlows        uint64               `json:"late_flows,omitempty"` // messages that went on before their holes
}

// Memory is what dialogs take.
type Memory struct {
	Name           Path    `json:"name"`
	Dialogs        int     `json:"dialogs"`
	BytesPerDialog float64 `json:"bytes_per_dialog"`
	Holes          int     `json:"holes,omitempty"`
}

// Best is the highest rate that a search found without loss, and with every message read.
type Best struct {
	Name      Path    `json:"name"`
	CallsPerS float64 `json:"calls_per_s"`
	Lossy     float64 `json:"lossy_calls_per_s"` // the lowest rate with loss
}

// summarize computes the rows from their rounds.
func (r *Report) summarize() {
	for i := range r.Paths {
		w := &r.Paths[i]
		for _, t := range w.Rounds {
			w.Placed += t.Placed
			w.Lost += t.Lost
			if t.Restarted {
				w.Restarts++
			}
		}
		of := func(f func(Trial) float64) float64 {
			var all []float64
			for _, t := range w.Rounds {
				if v := f(t); v > 0 {
					all = append(all, v)
				}
			}
			return cost.Median(all)
		}
		w.CPUPerCallUS = of(func(t Trial) float64 { return t.CPUPerCallUS })
		w.SoftIRQUS = of(func(t Trial) float64 { return t.SoftIRQPerCallUS })
		w.Delay.P50 = of(func(t Trial) float64 { return t.Delay.P50 })
		w.Delay.P99 = of(func(t Trial) float64 { return t.Delay.P99 })
		if k := r.row(Kernel, w.CallsPerS); k != nil {
			w.DelayAdded.P50 = cost.Median(differences(w, k, func(t Trial) float64 { return t.Delay.P50 }))
			w.DelayAdded.P99 = cost.Median(differences(w, k, func(t Trial) float64 { return t.Delay.P99 }))
			w.DelayRatios = ratios(w, k, func(t Trial) float64 { return t.Delay.P99 })
			w.DelayRatio = cost.Median(w.DelayRatios)
		}
		if k := r.row(Old, w.CallsPerS); k != nil {
			w.OldRatios = ratios(w, k, func(t Trial) float64 { return t.CPUPerCallUS })
			w.OldRatio = cost.Median(w.OldRatios)
		}
		if k := r.row(Kamailio, w.CallsPerS); k != nil {
			w.CPURatios = ratios(w, k, func(t Trial) float64 { return t.CPUPerCallUS })
			w.CPURatio = cost.Median(w.CPURatios)
		}
	}
}

func (r *Report) row(p Path, rate float64) *Row {
	i := slices.IndexFunc(r.Paths, func(w Row) bool { return w.Name == p && w.CallsPerS == rate })
	if i < 0 {
		return nil
	}
	return &r.Paths[i]
}

// pairs calls f with a figure of each round in which both paths have it.
func pairs(a, b *Row, of func(Trial) float64, f func(x, y float64)) {
	for i := range min(len(a.Rounds), len(b.Rounds)) {
		if x, y := of(a.Rounds[i]), of(b.Rounds[i]); x > 0 && y > 0 {
			f(x, y)
		}
	}
}

func differences(a, b *Row, of func(Trial) float64) (out []float64) {
	pairs(a, b, of, func(x, y float64) { out = append(out, x-y) })
	return out
}

func ratios(a, b *Row, of func(Trial) float64) (out []float64) {
	pairs(a, b, of, func(x, y float64) { out = append(out, x/y) })
	return out
}

// JSON writes the report as JSON.
func (r Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// Table writes it for people.
func (r Report) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Settings.Command, figures.MachineLine(r.Machine), r.Ringway.Line())
	if r.Old != nil {
		fmt.Fprintf(&b, "ringway-old: %s\n", r.Old.Line())
	}
	if r.Kamailio != "" {
		fmt.Fprintln(&b, r.Kamailio)
	}
	b.WriteString("\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "path\tcalls/s\tplaced\tlost\tCPU µs/call\tto kamailio\tto old\tsoftirq µs/call\t"+
		"delay p50 µs\tp99\tadded p50\tadded p99\tp99 to kernel\t")
	for _, p := range r.Paths {
		cpu := fmt.Sprintf("%.0f", p.CPUPerCallUS)
		if p.Restarts == len(p.Rounds) {
			cpu = "-"
		}
		fmt.Fprintf(t, "%s\t%.0f\t%d\t%d\t%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t\n", p.Name, p.CallsPerS,
			p.Placed, p.Lost, cpu, share(p.CPURatio), share(p.OldRatio), p.SoftIRQUS, p.Delay.P50, p.Delay.P99,
			p.DelayAdded.P50, p.DelayAdded.P99, share(p.DelayRatio))
	}
	t.Flush()
	b.WriteString("\n")
	for _, m := range r.Memory {
		fmt.Fprintf(&b, "memory, %s: %.0f bytes a dialog with %d dialogs\n", m.Name, m.BytesPerDialog, m.Dialogs)
	}
	for _, x := range r.Best {
		fmt.Fprintf(&b, "best rate without loss, %s: %.0f calls/s (loss at %.0f)\n", x.Name, x.CallsPerS, x.Lossy)
	}
	b.WriteString("\n" + legend + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

const legend = `CPU: user and system time of the path's processes. softirq: of its core, by the kernel's tick, which
stops while a core is idle: a lower bound, part of which is in the CPU time of a process, too. delay: of a message, from
the sender's clock before its system call to the kernel's timestamp at its arrival. Figures are medians of the rounds,
ratios those of pairs within a round.`

func share(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}
