// Package report presents what the benchmarks measured: JSON with stable fields (the types here), a table
// (Table), and plots with one page for everything (Save). Paths have the shape of the lab's report
// (test/lab/report), which also draws. It measures nothing itself.
package report

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	"ringway/quality/figures"
	"ringway/test/bench/probe"
	lab "ringway/test/lab/report"
)

// Jitter is one run of `ringway bench jitter`. Field names are a promise to readers of the JSON: fields may
// be added, none renamed or removed. Durations are microseconds, shares 0 to 1.
type Jitter struct {
	Machine  Machine         `json:"machine"`
	Ringway  figures.Program `json:"ringway"` // that was measured
	Settings Settings        `json:"settings"`
	Loads    []Load          `json:"loads"`
}

// Machine is where the figures come from, measured itself before anything else is.
type Machine struct {
	figures.Machine
	Wakeup []Wakeup `json:"wakeup"`
	// net.core.netdev_budget: packets that the kernel takes from network cards at once; 0 where it cannot be
	// read
	NetdevBudget int      `json:"netdev_budget"`
	Denied       []string `json:"denied"` // what the machine did not allow the probes and Ringway's planes
}

// Wakeup is how late the machine woke threads under one load of one round, just before voice was measured
// there.
type Wakeup struct {
	LoadPercent *int `json:"load_percent"` // null: nothing ran but what keeps the cores awake
	Round       int  `json:"round"`        // from 1; 0 where nothing ran
	probe.Wake
}

// Settings are the options of the run.
type Settings struct {
	Build    string  `json:"build"`
	Family   string  `json:"family"` // ipv4 or ipv6: of the WAN and of what goes through the tunnels
	Engine   string  `json:"engine"` // of Ringway's planes
	Streams  int     `json:"streams"`
	Interval float64 `json:"interval_us"`
	Size     int     `json:"payload_bytes"` // of UDP
	Seconds  float64 `json:"seconds"`       // of voice a load and round
	Rounds   int     `json:"rounds"`
	Capacity float64 `json:"capacity_mbit_per_s"` // of the shared tunnel, without voice beside it
	Started  string  `json:"started"`             // RFC 3339
	Command  string  `json:"command"`             // that repeats the run
}

// Load is one load. Its own figures are those of all rounds together: counts of packets are summed up, a
// maximum is the highest of all, every other figure is the median of the rounds.
type Load struct {
	LoadPercent int     `json:"load_percent"`
	Bulk        Bulk    `json:"bulk"`
	CPU         CPU     `json:"cpu"`
	Late        Late    `json:"sender_late_us"`
	Paths       []Path  `json:"paths"`
	Rounds      []Round `json:"rounds"`
}

// Round is one run under one load.
type Round struct {
	Round int `json:"round"`
	// Packets that the phones' own kernel refused to send: they are in no path's figures. Should be 0.
	Unsent    int    `json:"unsent"`
	UnsentWhy string `json:"unsent_why,omitempty"`
	Bulk      Bulk   `json:"bulk"`
	CPU       CPU    `json:"cpu"`
	Late      Late   `json:"sender_late_us"`
	Paths     []Path `json:"paths"`
}

// Bulk is the TCP flow through the path wireguard-go-shared.
type Bulk struct {
	Asked    float64 `json:"asked_mbit_per_s"` // 0: as much as goes, or none at a load of 0
	MbitPerS float64 `json:"mbit_per_s"`
}

// CPU are shares of all cores' time while voice was measured.
type CPU struct {
	SoftIRQ float64 `json:"softirq"`
	Stolen  float64 `json:"stolen"` // by the hypervisor, for other machines
	Others  float64 `json:"others"` // by programs of this machine that do not belong to the benchmark
}

// Late is how late the sender itself was: the machine's noise as the voice met it. It is in no delay, since a
// packet's clock is read when it is sent.
type Late struct {
	P50  float64 `json:"p50"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// Path is a path in the lab's shape, and what carried it.
type Path struct {
	lab.Path
	Program string `json:"program"`
	// this path's figure over ringway's in the same round; absent where one is 0
	Against *Ratio `json:"against_ringway,omitempty"`
}

// Ratio compares a path with ringway.
type Ratio struct {
	PDV float64 `json:"pdv"`
	P50 float64 `json:"p50"`
}

// RingwayPath is the path that others are compared with.
const RingwayPath = "ringway"

// Compare fills in how each path did against ringway.
func Compare(paths []Path) {
	i := slices.IndexFunc(paths, func(p Path) bool { return p.Name == RingwayPath })
	if i < 0 {
		return
	}
	own := paths[i].Voice
	for i := range paths {
		v := paths[i].Voice
		if own.PDV > 0 && own.Delay.P50 > 0 && v.Received > 0 {
			paths[i].Against = &Ratio{PDV: v.PDV / own.PDV, P50: v.Delay.P50 / own.Delay.P50}
		}
	}
}

// Summarize makes a load's own figures from its rounds.
func (l *Load) Summarize() {
	if len(l.Rounds) == 0 {
		return
	}
	collect := func(f func(Round) float64) float64 {
		var all []float64
		for _, r := range l.Rounds {
			all = append(all, f(r))
		}
		return median(all)
	}
	l.Bulk.Asked = l.Rounds[0].Bulk.Asked
	l.Bulk.MbitPerS = collect(func(r Round) float64 { return r.Bulk.MbitPerS })
	l.CPU = CPU{
		SoftIRQ: collect(func(r Round) float64 { return r.CPU.SoftIRQ }),
		Stolen:  collect(func(r Round) float64 { return r.CPU.Stolen }),
		Others:  collect(func(r Round) float64 { return r.CPU.Others }),
	}
	l.Late = Late{
		P50:  collect(func(r Round) float64 { return r.Late.P50 }),
		P999: collect(func(r Round) float64 { return r.Late.P999 }),
	}
	for _, r := range l.Rounds {
		l.Late.Max = max(l.Late.Max, r.Late.Max)
	}
	l.Paths = nil
	for i, p := range l.Rounds[0].Paths {
		var voices []lab.Voice
		var pdv, p50 []float64
		for _, r := range l.Rounds {
			voices = append(voices, r.Paths[i].Voice)
			if a := r.Paths[i].Against; a != nil {
				pdv, p50 = append(pdv, a.PDV), append(p50, a.P50)
			}
		}
		sum := Path{Program: p.Program}
		sum.Name, sum.Voice = p.Name, together(voices)
		sum.Bulk.MbitPerS = collect(func(r Round) float64 { return r.Paths[i].Bulk.MbitPerS })
		if len(pdv) > 0 {
			sum.Against = &Ratio{PDV: median(pdv), P50: median(p50)}
		}
		l.Paths = append(l.Paths, sum)
	}
}

// together joins the rounds of one path.
func together(rounds []lab.Voice) lab.Voice {
	v := lab.Voice{}
	var own []figures.Measure
	for _, r := range rounds {
		own = append(own, r.Measure)
	}
	v.Measure = joined(own)
	for i, d := range rounds[0].Directions {
		var same []figures.Measure
		for _, r := range rounds {
			same = append(same, r.Directions[i].Measure)
		}
		v.Directions = append(v.Directions, figures.Direction{Name: d.Name, Measure: joined(same)})
	}
	return v
}

// joined is the median of every figure, but for what must not hide in a median.
func joined(rounds []figures.Measure) figures.Measure {
	m := rounds[0]
	medians(reflect.ValueOf(&m).Elem(), func(i int) reflect.Value { return reflect.ValueOf(rounds[i]) }, len(rounds))
	m.Sent, m.Received, m.Duplicates, m.Reordered = 0, 0, 0, 0
	m.Unmatched, m.CaptureLost, m.Negative, m.WrongDSCP = 0, 0, 0, 0
	m.Delay.Max, m.JitterMax = 0, 0
	for _, r := range rounds {
		m.Sent, m.Received = m.Sent+r.Sent, m.Received+r.Received
		m.Duplicates, m.Reordered, m.Unmatched = m.Duplicates+r.Duplicates, m.Reordered+r.Reordered, m.Unmatched+r.Unmatched
		m.CaptureLost, m.Negative, m.WrongDSCP = m.CaptureLost+r.CaptureLost, m.Negative+r.Negative, m.WrongDSCP+r.WrongDSCP
		m.Delay.Max, m.JitterMax = max(m.Delay.Max, r.Delay.Max), max(m.JitterMax, r.JitterMax)
	}
	m.Loss = 0
	if m.Sent > 0 {
		m.Loss = float64(m.Sent-m.Received) / float64(m.Sent)
	}
	return m
}

// medians sets every floating-point field of into, nested structs' too, to the median of the same field in
// the others.
func medians(into reflect.Value, of func(int) reflect.Value, n int) {
	for f := range into.NumField() {
		switch into.Field(f).Kind() {
		case reflect.Float64:
			var all []float64
			for i := range n {
				all = append(all, of(i).Field(f).Float())
			}
			into.Field(f).SetFloat(median(all))
		case reflect.Struct:
			medians(into.Field(f), func(i int) reflect.Value { return of(i).Field(f) }, n)
		}
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.SortFunc(v, cmp.Compare)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Delays are all packets of one path in one direction under one load, of all rounds, for the plots. The JSON
// does not carry them.
type Delays struct {
	LoadPercent int
	Path        string
	Direction   string
	Delays      []time.Duration
}
