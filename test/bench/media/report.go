package media

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"ringway/quality/figures"
	"ringway/test/bench/cost"
)

// Report is a finished run. Fields are added, none renamed.
type Report struct {
	Machine   figures.Machine  `json:"machine"`
	Ringway   figures.Program  `json:"ringway"`
	Old       *figures.Program `json:"ringway_old,omitempty"`
	RTPEngine string           `json:"rtpengine,omitempty"`
	Settings  Settings         `json:"settings"`
	Cases     []CaseReport     `json:"cases"`
}

// Settings are the options of the run.
type Settings struct {
	Calls     int     `json:"calls"`
	DurationS float64 `json:"duration_s"`
	Rounds    int     `json:"rounds"`
	Cores     [2]int  `json:"cores"`   // of the ends, and of what is measured
	Started   string  `json:"started"` // RFC 3339
	Command   string  `json:"command"` // that repeats the run
}

// CaseReport is a case with a suite.
type CaseReport struct {
	Case  Case         `json:"case"`
	Suite string       `json:"suite"`       // of the callee's leg
	Other string       `json:"callers_leg"` // suite of the caller's leg; RTP: none
	Paths []PathReport `json:"paths"`
}

// PathReport is a path in a case: at the first rate, and over all.
type PathReport struct {
	Name           Path      `json:"name"`
	CPUPerPacketNS float64   `json:"cpu_ns_per_packet"` // the core's, for whatever it did
	BestRatePPS    float64   `json:"best_rate_pps"`     // the highest without loss, and p99 below 5 ms; 0: not searched
	DelayAdded     Quantiles `json:"delay_added_us"`    // to the path that forwards only, in the same round
	MemoryMiB      float64   `json:"memory_mib"`        // with all calls
	MemoryPerCall  float64   `json:"memory_bytes_per_call"`
	// Ratios to rtpengine of the medians of rounds: of pairs at the same rate. 0: there is none.
	CPURatio    float64 `json:"cpu_to_rtpengine"`
	DelayRatio  float64 `json:"delay_p99_9_to_rtpengine"`
	BestRatio   float64 `json:"best_rate_to_rtpengine"`
	MemoryRatio float64 `json:"memory_per_call_to_rtpengine"`
	OldRatio    float64 `json:"cpu_to_old,omitempty"`

	Rates  []RateReport `json:"rates"`
	Search []Trial      `json:"search,omitempty"`
}

// RateReport is a path at one rate: sums of packets, medians of rounds.
type RateReport struct {
	PPS        int       `json:"pps"`
	Sent       int       `json:"sent"`
	Lost       int       `json:"lost"`
	CoreNS     float64   `json:"core_ns_per_packet"`
	ProcessNS  float64   `json:"process_ns_per_packet"` // user and system time of its processes
	Delay      Quantiles `json:"delay_us"`              // from end to end
	DelayAdded Quantiles `json:"delay_added_us"`
	CPURatios  []float64 `json:"cpu_to_rtpengine_rounds,omitempty"`
	OldRatios  []float64 `json:"cpu_to_old_rounds,omitempty"`
	Rounds     []Trial   `json:"rounds"`
}

// Quantiles are of a delay in microseconds.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
}

func (q Quantiles) less(other Quantiles) Quantiles {
	return Quantiles{q.P50 - other.P50, q.P99 - other.P99, q.P999 - other.P999}
}

// Trial is one path at one rate, once.
type Trial struct {
	PPS          int       `json:"pps"`
	Sent         int       `json:"sent"`
	Lost         int       `json:"lost"`
	Twice        int       `json:"twice,omitempty"`         // packets that arrived once more
	Strange      int       `json:"strange,omitempty"`       // that were not of this trial
	Overflow     int       `json:"overflow,omitempty"`      // dropped by the ends' sockets in all
	BacklogDrops int       `json:"backlog_drops,omitempty"` // dropped before a core that was too busy
	CoreNS       float64   `json:"core_ns_per_packet"`
	ProcessNS    float64   `json:"process_ns_per_packet"`
	SoftIRQNS    float64   `json:"softirq_ns_per_packet"` // part of the core's, by the kernel's tick
	Delay        Quantiles `json:"delay_us"`
	SenderLateUS float64   `json:"sender_late_us"`
	Seconds      float64   `json:"seconds"`
}

// passable is what counts as a rate that a path can carry: no loss alone would count what waits in buffers.
func (t Trial) passable() bool { return t.Lost == 0 && t.Delay.P99 < maxP99 }

const maxP99 = 5000 // us

func medians(all []Trial, of func(Trial) Quantiles) Quantiles {
	at := func(f func(Quantiles) float64) float64 {
		var v []float64
		for _, t := range all {
			v = append(v, f(of(t)))
		}
		return cost.Median(v)
	}
	return Quantiles{
		at(func(q Quantiles) float64 { return q.P50 }), at(func(q Quantiles) float64 { return q.P99 }),
		at(func(q Quantiles) float64 { return q.P999 }),
	}
}

func figure(all []Trial, of func(Trial) float64) float64 {
	var v []float64
	for _, t := range all {
		v = append(v, of(t))
	}
	return cost.Median(v)
}

// ratios are those of a figure within each round.
func ratios(a, b []Trial, of func(Trial) float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		if x, y := of(a[i]), of(b[i]); x > 0 && y > 0 {
			out = append(out, x/y)
		}
	}
	return out
}

func core(t Trial) float64 { return t.CoreNS }

// summarize computes medians and ratios from the trials.
func (r *Report) summarize() {
	for i := range r.Cases {
		r.Cases[i].summarize()
	}
}

func (c *CaseReport) path(name Path) *PathReport {
	for i := range c.Paths {
		if c.Paths[i].Name == name {
			return &c.Paths[i]
		}
	}
	return nil
}

func (c *CaseReport) summarize() {
	kernel := c.path(Kernel)
	for i := range c.Paths {
		p := &c.Paths[i]
		for n := range p.Rates {
			w := &p.Rates[n]
			for _, t := range w.Rounds {
				w.Sent += t.Sent
				w.Lost += t.Lost
			}
			w.CoreNS = figure(w.Rounds, core)
			w.ProcessNS = figure(w.Rounds, func(t Trial) float64 { return t.ProcessNS })
			w.Delay = medians(w.Rounds, func(t Trial) Quantiles { return t.Delay })
			if kernel != nil && p != kernel {
				var added []Trial
				for k := range min(len(w.Rounds), len(kernel.Rates[n].Rounds)) {
					added = append(added, Trial{Delay: w.Rounds[k].Delay.less(kernel.Rates[n].Rounds[k].Delay)})
				}
				w.DelayAdded = medians(added, func(t Trial) Quantiles { return t.Delay })
			}
		}
	}
	for i := range c.Paths {
		p := &c.Paths[i]
		first := &p.Rates[0]
		p.CPUPerPacketNS, p.DelayAdded = first.CoreNS, first.DelayAdded
		if old := c.path(Old); old != nil && p.Name == Ringway {
			for n := range p.Rates {
				p.Rates[n].OldRatios = ratios(p.Rates[n].Rounds, old.Rates[n].Rounds, core)
			}
			p.OldRatio = cost.Median(first.OldRatios)
		}
		rival := c.path(RTPEngine)
		if rival == nil || p == rival || p.Name == Kernel {
			continue
		}
		for n := range p.Rates {
			p.Rates[n].CPURatios = ratios(p.Rates[n].Rounds, rival.Rates[n].Rounds, core)
		}
		p.CPURatio = cost.Median(first.CPURatios)
		p.DelayRatio = over(first.DelayAdded.P999, rival.Rates[0].DelayAdded.P999)
		p.BestRatio = over(p.BestRatePPS, rival.BestRatePPS)
		p.MemoryRatio = over(p.MemoryPerCall, rival.MemoryPerCall)
	}
}

func over(a, b float64) float64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return a / b
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
	if r.RTPEngine != "" {
		fmt.Fprintln(&b, r.RTPEngine)
	}
	for _, c := range r.Cases {
		fmt.Fprintf(&b, "\n%s, %s to %s, %d calls\n", c.Case, c.Other, c.Suite, r.Settings.Calls)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "path\tpackets/s\tsent\tlost\tcore ns/packet\tprocess ns\tto rtpengine\tto old\t"+
			"delay p50 us\tp99\tp99.9\tadded p50\tadded p99\tadded p99.9\t")
		for _, p := range c.Paths {
			for _, x := range p.Rates {
				d, a := x.Delay, x.DelayAdded
				fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.0f\t%.0f\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", p.Name, x.PPS,
					x.Sent, x.Lost, x.CoreNS, x.ProcessNS, share(cost.Median(x.CPURatios)), share(cost.Median(x.OldRatios)),
					d.P50, d.P99, d.P999, a.P50, a.P99, a.P999)
			}
		}
		t.Flush()
		for _, p := range c.Paths {
			if p.Name == Kernel {
				continue
			}
			fmt.Fprintf(&b, "%s: %.1f MiB, %.0f bytes a call", p.Name, p.MemoryMiB, p.MemoryPerCall)
			if p.BestRatePPS > 0 {
				fmt.Fprintf(&b, "; best rate %.0f packets/s", p.BestRatePPS)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n" + legend + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

const legend = `core: the time that the box's core was not idle, per packet sent, for whatever it worked; process: user and
system time of the path's processes, part of which is the core's software interrupts. delay: of a packet, from the
sender's clock before its system call to the kernel's timestamp at its arrival; added: to the path that forwards only,
in the same round. Best rate: without loss, and p99 of the delay below 5 ms. Figures are medians of the rounds, ratios
those of pairs within a round.`

func share(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}
