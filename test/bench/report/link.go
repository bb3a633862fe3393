package report

import (
	"fmt"
	"slices"
	"time"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

// Link is one run of `ringway bench link`. Field names are a promise to readers of the JSON: fields may be
// added, none renamed or removed. Durations are microseconds, shares 0 to 1. What is reported for one load at
// one rate has the shape of the lab's report.
type Link struct {
	Machine  figures.Machine `json:"machine"`
	Ringway  figures.Program `json:"ringway"` // that was measured
	Settings LinkSettings    `json:"settings"`
	Denied   []string        `json:"denied"` // what the machine did not allow the probes
	LeftOut  []string        `json:"left_out"`
	Rates    []LinkRate      `json:"rates"`
	Verdicts []Verdict       `json:"verdicts"`
}

// LinkSettings are the options of the run.
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
	Rate        string `json:"rate"`
	Bits        uint64 `json:"rate_bits_per_s"`
	BufferBytes int    `json:"buffer_bytes"` // the provider's FIFO
	// the provider is busy with one packet at a time; otherwise it is a meter with a bucket (TBF)
	Wire        bool       `json:"wire"`
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

// LinkPath is a path in the lab's shape, and what matters on a link. Bulk is what reached the PCs as frames,
// both ways together.
type LinkPath struct {
	lab.Path
	Program    string     `json:"program"`
	Margin     float64    `json:"margin"` // of the link, that the path leaves free by its own statement
	Added      *float64   `json:"pdv_added_us,omitempty"`
	OverKernel *float64   `json:"pdv_over_kernel,omitempty"` // pdv_us over the path kernel's, same round
	Wire       []LinkWire `json:"wire"`                      // at the provider's bottleneck
	Share      float64    `json:"data_share"`                // the lower of the directions'; 0 without a load
	Signalling *Echo      `json:"signalling,omitempty"`
	SecondFlow *Echo      `json:"second_flow,omitempty"`
	// packets that Ringway's own queues dropped, both edges; all rounds
	ClassDrops map[string]uint64 `json:"class_drops,omitempty"`
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

// Verdict is one goal at one rate under one load. A median of the rounds is judged; lost packets are those of
// all rounds.
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
	MinShare        = 0.95
	MaxSignalling   = 50_000.0   // µs
	MaxSecondFlow   = 30_000.0   // µs, p99
	SecondFrom      = 2_000_000  // bit/s
	AddedUpTo       = 10_000_000 // bit/s; above, the ratio to the kernel's PDV is reported
	MaxLost         = 0.01       // of the second flow's pings: with more, its p99 would be without end
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
	l.CPU = CPU{
		SoftIRQ: of(func(r LinkRound) float64 { return r.CPU.SoftIRQ }),
		Stolen:  of(func(r LinkRound) float64 { return r.CPU.Stolen }),
		Others:  of(func(r LinkRound) float64 { return r.CPU.Others }),
	}
	l.Late = Late{
		P50:  of(func(r LinkRound) float64 { return r.Late.P50 }),
		P999: of(func(r LinkRound) float64 { return r.Late.P999 }),
	}
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
		p.Wire = l.wires(i, first.Wire)
		l.Paths = append(l.Paths, p)
	}
}

// wires are the medians of a path's bytes at the bottleneck.
func (l *LinkLoad) wires(path int, first []LinkWire) (out []LinkWire) {
	for d, w := range first {
		of := func(f func(LinkWire) float64) float64 {
			return median(valuesOf(l.Rounds, func(r LinkRound) float64 { return f(r.Paths[path].Wire[d]) }))
		}
		out = append(out, LinkWire{
			Direction: w.Direction,
			Total:     of(func(w LinkWire) float64 { return w.Total }),
			Voice:     of(func(w LinkWire) float64 { return w.Voice }),
			Signals:   of(func(w LinkWire) float64 { return w.Signals }),
			Left:      of(func(w LinkWire) float64 { return w.Left }),
			Data:      of(func(w LinkWire) float64 { return w.Data }),
			Share:     of(func(w LinkWire) float64 { return w.Share }),
		})
	}
	return out
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
	v := add(
		"voice lost",
		"packets",
		goal(0),
		func(p LinkPath) float64 { return float64(p.Voice.Sent - p.Voice.Received) },
		atMost,
	)
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
	add(
		"data's share of the wire",
		"share",
		goal(MinShare),
		func(p LinkPath) float64 { return p.Share },
		func(v, goal float64) bool { return v >= goal },
	)
	echo := func(what string, most float64, lost float64, of func(LinkPath) *Echo, f func(*Echo) float64) {
		if of(load.Paths[i]) == nil {
			return
		}
		v := add(
			what,
			"us",
			goal(most),
			func(p LinkPath) float64 { return f(of(p)) },
			func(v, goal float64) bool { return v < goal },
		)
		e := of(load.Paths[i])
		v.Note = fmt.Sprintf("%d of %d lost", e.Sent-e.Received, e.Sent)
		v.Met = v.Met && e.Received > 0 && float64(e.Sent-e.Received) <= lost*float64(e.Sent)
	}
	echo(
		"signalling round trip, max",
		MaxSignalling,
		0,
		func(p LinkPath) *Echo { return p.Signalling },
		func(e *Echo) float64 { return e.Max },
	)
	if r.Bits >= SecondFrom {
		echo(
			"second flow's ping, p99",
			MaxSecondFlow,
			MaxLost,
			func(p LinkPath) *Echo { return p.SecondFlow },
			func(e *Echo) float64 { return e.P99 },
		)
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

// Join adds what was measured on other paths in the same round.
func (r *LinkRound) Join(o LinkRound) {
	r.Unsent += o.Unsent
	if o.UnsentWhy != "" {
		r.UnsentWhy = o.UnsentWhy
	}
	r.CPU = CPU{
		SoftIRQ: max(r.CPU.SoftIRQ, o.CPU.SoftIRQ),
		Stolen:  max(r.CPU.Stolen, o.CPU.Stolen),
		Others:  max(r.CPU.Others, o.CPU.Others),
	}
	r.Late = Late{
		P50:  max(r.Late.P50, o.Late.P50),
		P999: max(r.Late.P999, o.Late.P999),
		Max:  max(r.Late.Max, o.Late.Max),
	}
	r.Paths = append(r.Paths, o.Paths...)
}

// LinkDelays are all packets of one path in one direction at one rate under one load, of all rounds, for the
// plots.
type LinkDelays struct {
	Rate, Load, Path, Direction string
	Delays                      []time.Duration
}
