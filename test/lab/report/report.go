// Package report presents what the lab measured: JSON with stable fields (the types here), a table (Table)
// and plots. It measures nothing itself.
package report

import (
	"time"

	"ringway/quality"
	"ringway/quality/figures"
)

// Report is one run of the lab. Field names are a promise to readers of the JSON: fields may be added, none
// renamed or removed. Durations are microseconds, shares are 0 to 1, numbers may be fractional.
type Report struct {
	Machine  figures.Machine  `json:"machine"`
	Ringway  *figures.Program `json:"ringway,omitempty"` // that was measured
	Scenario Scenario         `json:"scenario"`
	Paths    []Path           `json:"paths"`
	Events   []Event          `json:"events,omitempty"` // that happened to lines
	Gaps     []Gap            `json:"gaps,omitempty"`   // what they cost the first path: its Path.Gaps
}

// Event is what happened to a line while calls were up.
type Event struct {
	At   float64 `json:"at_s"` // since the first call was placed
	What string  `json:"what"`
}

// Gap is what an event cost, until the next one. Each figure is that of the call for which it is worst.
type Gap struct {
	At        float64 `json:"at_s"`           // the event's
	Longest   float64 `json:"longest_gap_ms"` // for which a phone heard nothing; 20 where nothing was lost
	Lost      int     `json:"lost"`           // packets of one call, both directions
	LostUntil float64 `json:"lost_until_ms"`  // from the event until the last packet that was lost; 0: none was
}

// LineBytes is what berlin sent and received by a line while calls were placed: Ethernet frames without checksum.
type LineBytes struct {
	Line     string `json:"line"`
	Sent     uint64 `json:"sent_bytes"`
	Received uint64 `json:"received_bytes"`
}

// Scenario are the options of the run.
type Scenario struct {
	WAN         string  `json:"wan"` // "20mbit", or "none" where nothing bounds it
	WANBits     uint64  `json:"wan_bits_per_s"`
	Lines       int     `json:"wans,omitempty"`     // of berlin, each of that rate; 0: one WAN, to which nothing happens
	Underlay    string  `json:"underlay,omitempty"` // ipv4 or ipv6: between the edges
	Overlay     string  `json:"overlay,omitempty"`  // and between phones
	BufferBytes int     `json:"buffer_bytes"`       // the provider's FIFO
	DelayUS     float64 `json:"delay_us"`           // added by the provider, each way
	Loss        float64 `json:"loss"`               // by the provider, each way
	Seed        uint64  `json:"seed"`
	Bulk        string  `json:"bulk"` // none, tcp, udp
	Calls       int     `json:"calls"`
	Codec       string  `json:"codec"`
	Only        string  `json:"only,omitempty"`
	Seconds     float64 `json:"seconds"` // how long calls were measured
	Started     string  `json:"started"` // RFC 3339
}

// Path is one connection between the branches: "ringway" or "baseline".
type Path struct {
	Name   string  `json:"name"`
	Voice  Voice   `json:"voice"`
	Calls  Calls   `json:"calls"`
	Bulk   Bulk    `json:"bulk"`
	Queues *Queues `json:"queues,omitempty"` // over time; absent where nothing on the way has a queue of a known rate

	Gaps  []Gap       `json:"gaps,omitempty"`  // by event
	Lines []LineBytes `json:"lines,omitempty"` // where there are lines
}

// Calls are the SIP calls placed.
type Calls struct {
	Placed    int `json:"placed"`
	Completed int `json:"completed"`
	Refused   int `json:"refused"` // by a box on the way, in its answer to the INVITE
}

// Bulk is the throughput of the bulk traffic beside the calls.
type Bulk struct {
	MbitPerS float64 `json:"mbit_per_s"`
}

// Voice joins both directions: its own fields are the worse of them, each direction is beside them.
type Voice struct {
	figures.Measure
	Directions []figures.Direction `json:"directions"`
}

// NewVoice joins the directions. Each of its own fields is the worse of the directions' fields, so none ever
// looks better than either direction; sent and received come from the direction that lost the larger share.
// So fields may come from different directions, and pdv_us need not be p99_9 - min of this object.
func NewVoice(directions ...figures.Direction) Voice {
	v := Voice{Directions: directions}
	for i, d := range directions {
		if i == 0 {
			v.Measure = d.Measure
			continue
		}
		w, m := &v.Measure, d.Measure
		if m.Loss > w.Loss || (m.Loss == w.Loss && m.Sent < w.Sent) {
			w.Sent, w.Received, w.Loss, w.BurstRatio = m.Sent, m.Received, m.Loss, m.BurstRatio
		}
		w.Delay = figures.Delay{
			Min:   max(w.Delay.Min, m.Delay.Min),
			P50:   max(w.Delay.P50, m.Delay.P50),
			P90:   max(w.Delay.P90, m.Delay.P90),
			P99:   max(w.Delay.P99, m.Delay.P99),
			P999:  max(w.Delay.P999, m.Delay.P999),
			P9999: max(w.Delay.P9999, m.Delay.P9999),
			Max:   max(w.Delay.Max, m.Delay.Max),
			Mean:  max(w.Delay.Mean, m.Delay.Mean),
		}
		w.PDV, w.Jitter, w.JitterMax = max(w.PDV, m.PDV), max(w.Jitter, m.Jitter), max(w.JitterMax, m.JitterMax)
		w.IPDV = max(w.IPDV, m.IPDV)
		w.MOS, w.R = min(w.MOS, m.MOS), min(w.R, m.R)
		w.WorstMOS, w.WorstR = min(w.WorstMOS, m.WorstMOS), min(w.WorstR, m.WorstR)
		w.MouthToEar, w.Buffer, w.Late = max(w.MouthToEar, m.MouthToEar), max(w.Buffer, m.Buffer), max(w.Late, m.Late)
		w.Duplicates, w.Reordered = max(w.Duplicates, m.Duplicates), max(w.Reordered, m.Reordered)
		w.Unmatched, w.CaptureLost = max(w.Unmatched, m.Unmatched), max(w.CaptureLost, m.CaptureLost)
		w.Negative, w.WrongDSCP = max(w.Negative, m.Negative), max(w.WrongDSCP, m.WrongDSCP)
		w.Streams = min(w.Streams, m.Streams)
	}
	return v
}

// Point is one packet for the plot.
type Point struct {
	At    time.Duration // since the run began
	Delay time.Duration
	Lost  bool
}

// Series is one direction's packets, for Plot. The JSON does not contain them.
type Series struct {
	Path      string // as Path.Name
	Direction string // figures.AToB or figures.BToA
	Points    []Point
}

// NewSeries takes every packet of the streams; start is the run's zero.
func NewSeries[K comparable](path, direction string, start quality.Timestamp, streams []quality.Stream[K]) Series {
	s := Series{Path: path, Direction: direction}
	for _, st := range streams {
		for _, p := range st.Packets {
			pt := Point{At: p.Sent.Sub(start), Lost: p.Lost}
			if !p.Lost {
				pt.Delay = p.Delay()
			}
			s.Points = append(s.Points, pt)
		}
	}
	return s
}
