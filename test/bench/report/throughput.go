package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ringway/quality/figures"
)

// Throughput is one run of `ringway bench throughput`. Field names are a promise to readers of the JSON:
// fields may be added, none renamed or removed. Durations are microseconds, shares 0 to 1, sizes bytes of IP
// packets.
type Throughput struct {
	Machine  figures.Machine    `json:"machine"`
	Ringway  figures.Program    `json:"ringway"` // that was measured
	Settings ThroughputSettings `json:"settings"`
	Denied   []string           `json:"denied"` // what the machine did not allow
	Sizes    []ThroughputSize   `json:"sizes"`
}

// ThroughputSettings are the options of the run.
type ThroughputSettings struct {
	Build        string  `json:"build"`
	TrialSeconds float64 `json:"trial_seconds"`
	Resolution   float64 `json:"resolution"`
	Loss         float64 `json:"accepted_loss"`
	// the sending edge's engine alone, on one core: what it sent counts, not what arrived
	OneCore bool   `json:"one_core"`
	Rounds  int    `json:"rounds"`
	IMIX    []int  `json:"imix"`
	Started string `json:"started"` // RFC 3339
	Command string `json:"command"` // that repeats the run
}

// ThroughputSize is one size, or "imix".
type ThroughputSize struct {
	Size    string             `json:"size"`
	IPBytes float64            `json:"ip_bytes"` // mean
	Engines []ThroughputEngine `json:"engines"`
}

// ThroughputEngine is one engine at one size; its own figures are the medians of its rounds.
type ThroughputEngine struct {
	Name         string    `json:"name"`
	Program      string    `json:"program"`
	PacketsPerS  float64   `json:"packets_per_s"` // the highest rate without loss
	BitsPerS     float64   `json:"bits_per_s"`    // of IP packets
	CPU          PacketCPU `json:"cpu_us_per_packet"`
	PerCPUSecond float64   `json:"packets_per_cpu_second"` // of the sending edge's engine; 0 for the kernel
	// packets a second over stock wireguard-go's, median of the rounds
	AgainstStock    *float64          `json:"against_stock,omitempty"`
	CPUAgainstStock *float64          `json:"cpu_vs_stock,omitempty"` // packets per CPU-second over stock's, same
	Rounds          []ThroughputRound `json:"rounds"`
}

// ThroughputRound is one search.
type ThroughputRound struct {
	Round       int     `json:"round"`
	PacketsPerS float64 `json:"packets_per_s"`
	BitsPerS    float64 `json:"bits_per_s"`
	LimitedBy   string  `json:"limited_by"` // ByLoss, ByTester, ByLimit
	Trial       Trial   `json:"trial"`      // the one at this rate
	Trials      []Trial `json:"trials"`     // all, in order
}

// Trial is one trial.
type Trial struct {
	Asked      float64   `json:"asked_packets_per_s"`
	Offered    float64   `json:"offered_packets_per_s"`
	Sent       int       `json:"sent"`
	Received   int       `json:"received"`
	Duplicates int       `json:"duplicates"`
	Refused    int       `json:"refused"`  // by the tester's own kernel; not in Sent
	Overflow   int       `json:"overflow"` // arrived, and found the tester's buffer full: not the engine's loss
	Late       float64   `json:"tester_late_us"`
	Verdict    string    `json:"verdict"`
	CPU        PacketCPU `json:"cpu_us_per_packet"`
}

// PacketCPU is processor time for one packet: that of the engine's processes at each end, and of all cores
// for whatever they did, the testers, the kernel's forwarding and other programs included.
type PacketCPU struct {
	SenderEdge      float64 `json:"sender_edge"`
	ReceiverEdge    float64 `json:"receiver_edge"`
	Machine         float64 `json:"machine"`
	SenderEdgeShare float64 `json:"sender_edge_share_of_a_core"` // while packets were sent
}

// What a trial was, and what ended a search.
const (
	Held   = "held"
	Lossy  = "lossy"
	Unsent = "unsent" // the tester could not send at this rate

	ByLoss   = "loss"
	ByTester = "tester"
	ByLimit  = "limit" // nothing faster was tried
)

// Summarize makes each engine's own figures from its rounds; stock is the engine that the others are compared
// with.
func (t *Throughput) Summarize(stock string) {
	for i := range t.Sizes {
		engines := t.Sizes[i].Engines
		for j := range engines {
			e := &engines[j]
			of := func(f func(ThroughputRound) float64) float64 {
				var all []float64
				for _, r := range e.Rounds {
					all = append(all, f(r))
				}
				return median(all)
			}
			e.PacketsPerS = of(func(r ThroughputRound) float64 { return r.PacketsPerS })
			e.BitsPerS = of(func(r ThroughputRound) float64 { return r.BitsPerS })
			e.CPU = PacketCPU{
				SenderEdge:      of(func(r ThroughputRound) float64 { return r.Trial.CPU.SenderEdge }),
				ReceiverEdge:    of(func(r ThroughputRound) float64 { return r.Trial.CPU.ReceiverEdge }),
				Machine:         of(func(r ThroughputRound) float64 { return r.Trial.CPU.Machine }),
				SenderEdgeShare: of(func(r ThroughputRound) float64 { return r.Trial.CPU.SenderEdgeShare }),
			}
			if e.CPU.SenderEdge > 0 {
				e.PerCPUSecond = 1e6 / e.CPU.SenderEdge
			}
		}
		k := slices.IndexFunc(engines, func(e ThroughputEngine) bool { return e.Name == stock })
		if k < 0 {
			continue
		}
		for j := range engines {
			var rate, cpu []float64
			for n, r := range engines[j].Rounds {
				if n >= len(engines[k].Rounds) {
					break
				}
				s := engines[k].Rounds[n]
				if s.PacketsPerS > 0 {
					rate = append(rate, r.PacketsPerS/s.PacketsPerS)
				}
				if r.Trial.CPU.SenderEdge > 0 && s.Trial.CPU.SenderEdge > 0 {
					cpu = append(cpu, s.Trial.CPU.SenderEdge/r.Trial.CPU.SenderEdge)
				}
			}
			if len(rate) > 0 {
				v := median(rate)
				engines[j].AgainstStock = &v
			}
			if len(cpu) > 0 {
				v := median(cpu)
				engines[j].CPUAgainstStock = &v
			}
		}
	}
}

// ThroughputTable prints the run as text.
func ThroughputTable(w io.Writer, t Throughput) error {
	var b strings.Builder
	s := t.Settings
	what := "without loss (RFC 2544, section 26.1)"
	if s.Loss > 0 {
		what = fmt.Sprintf(
			"at which no more than %g %% are lost (a partial drop rate, as FD.io CSIT reports beside RFC 2544's)",
			100*s.Loss,
		)
	}
	fmt.Fprintf(&b, "Highest rate %s: trials of %g s, to %g %%", what, s.TrialSeconds, 100*s.Resolution)
	if s.Rounds > 1 {
		fmt.Fprintf(&b, ", median of %d rounds", s.Rounds)
	}
	fmt.Fprintf(&b, "\n%s\n%s\n", figures.MachineLine(t.Machine), t.Ringway.Line())
	if s.OneCore {
		b.WriteString(
			"The sending edge's engine has one core of its own. What it sent counts; the far end drops it on arrival.\n",
		)
	}
	for _, size := range t.Sizes {
		fmt.Fprintf(&b, "\n%s\n", size.title())
		rows := [][]string{{"", "packets/s", "Mbit/s", "×stock", "CPU µs out", "in", "machine",
			"packets/CPU-s", "×stock", "core", "all rounds", "ended by"}}
		for _, e := range size.Engines {
			rows = append(rows, e.row())
		}
		grid(&b, rows)
	}
	b.WriteString("\n" + throughputLegend + "\n")
	if len(t.Sizes) > 0 {
		for _, e := range t.Sizes[0].Engines {
			fmt.Fprintf(&b, "%s: %s\n", e.Name, e.Program)
		}
	}
	for _, warning := range ThroughputWarnings(t) {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s ThroughputSize) title() string {
	if s.Size == "imix" {
		return fmt.Sprintf("IMIX (7 × 46, 4 × 552, 1 × 1420; mean %.0f bytes)", s.IPBytes)
	}
	return s.Size + " bytes"
}

func (e ThroughputEngine) row() []string {
	var rounds, ends []string
	for _, r := range e.Rounds {
		rounds = append(rounds, fmt.Sprintf("%.0f", r.PacketsPerS))
		if !slices.Contains(ends, r.LimitedBy) {
			ends = append(ends, r.LimitedBy)
		}
	}
	return []string{
		e.Name,
		fmt.Sprintf("%.0f", e.PacketsPerS),
		fmt.Sprintf("%.1f", e.BitsPerS/1e6),
		times(e.AgainstStock),
		some("%.2f", e.CPU.SenderEdge),
		some("%.2f", e.CPU.ReceiverEdge),
		some("%.2f", e.CPU.Machine),
		some("%.0f", e.PerCPUSecond),
		times(e.CPUAgainstStock),
		some("%.0f %%", 100*e.CPU.SenderEdgeShare),
		strings.Join(rounds, " "),
		strings.Join(ends, ", "),
	}
}

const throughputLegend = `packets/s, Mbit/s: of IP packets, one direction. CPU µs: user and system time of the engine's processes for one packet, at the
edge where it enters (out) and where it leaves (in); machine: all cores, testers and kernel included. core: the share of one core
that the sending edge's engine used. ended by: loss, or the tester, which could not send faster.`

func times(v *float64) string {
	if v == nil {
		return "-"
	}
	return ratio(*v)
}

// some prints a figure that is there.
func some(format string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// testerLateLimit is how late the tester may be, in µs, before its bursts are what is measured.
const testerLateLimit = 2000

// ThroughputWarnings name what makes the figures less reliable than they look.
func ThroughputWarnings(t Throughput) (out []string) {
	for _, d := range t.Denied {
		out = append(out, "this machine denies "+d)
	}
	if t.Machine.Load1 > float64(t.Machine.Cores)/2 {
		out = append(
			out,
			fmt.Sprintf(
				"the machine's load was %.1f when the run began: other programs ran beside it.",
				t.Machine.Load1,
			),
		)
	}
	for _, s := range t.Sizes {
		for _, e := range s.Engines {
			overflow, late, refused := 0, 0, 0
			for _, r := range e.Rounds {
				for _, trial := range r.Trials {
					overflow += trial.Overflow
					refused += trial.Refused
					if trial.Late > testerLateLimit && trial.Verdict != Unsent {
						late++
					}
				}
			}
			at := fmt.Sprintf("%s at %s", e.Name, s.Size)
			if overflow > 0 {
				out = append(
					out,
					fmt.Sprintf(
						"%s: %d packets overflowed the tester's own buffer: they are not the engine's loss.",
						at,
						overflow,
					),
				)
			}
			if refused > 0 {
				out = append(out, fmt.Sprintf("%s: the tester's own kernel refused %d packets.", at, refused))
			}
			if late > 0 {
				out = append(
					out,
					fmt.Sprintf(
						"%s: in %d trials the tester was late by more than %s: packets came in longer bursts than requested.",
						at,
						late,
						figures.Duration(testerLateLimit),
					),
				)
			}
		}
	}
	return out
}
