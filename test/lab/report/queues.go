package report

import (
	"encoding/json"
	"io"
	"regexp"
	"slices"
)

// Queues is the content of the queues on a path over time: every series has one value for each of Seconds. A
// sample that failed is in none of them.
type Queues struct {
	Interval float64       `json:"interval_s"` // between two samples, nominal
	Took     float64       `json:"took_us"`    // mean time of one sample, between its first and its last queue
	Missed   int           `json:"missed"`     // samples that failed
	Why      string        `json:"missed_why,omitempty"`
	Phases   []Phase       `json:"phases"`  // of the load, by their begin
	Seconds  []float64     `json:"seconds"` // since the first call was placed, or voice was measured; negative before
	Series   []QueueSeries `json:"series"`  // those that sent, held or dropped something
}

// Phase is a load that starts at a time.
type Phase struct {
	Name string  `json:"name"`
	From float64 `json:"from_s"`
}

// The places of a queue.
const (
	AtEdge     = "edge"     // the branch's own, on its WAN: Ringway's classes; one for everything on other paths
	AtFlows    = "flows"    // Ringway's flow queues before the data tunnel's encryption
	AtProvider = "provider" // the FIFO before the bottleneck, which no branch can see or reorder
)

// QueueSeries is one queue over time.
type QueueSeries struct {
	Direction string `json:"direction"`       // figures.AToB, figures.BToA
	Place     string `json:"place"`           // AtEdge, AtFlows, AtProvider
	Class     string `json:"class,omitempty"` // absent where there is one queue for everything
	Site      string `json:"site,omitempty"`  // that the packets go to; "local": to none
	// guaranteed to the class, or the queue's limit; 0 for flow queues, which have none
	Rate  uint64 `json:"rate_bits_per_s"`
	Ceil  uint64 `json:"ceiling_bits_per_s"`    //
	Limit uint64 `json:"limit_bytes,omitempty"` // maximum backlog
	// sent since the previous sample, with Ethernet headers; absent for flow queues
	Bits    []float64 `json:"bits_per_s,omitempty"`
	Backlog []float64 `json:"backlog_bytes"` // now
	// time to send it at the queue's rate, as in `ringway status --queues`; for flow queues, at the class's
	// ceiling
	Wait  []float64 `json:"backlog_ms"`
	Drops []float64 `json:"drops_since_reading_before"` // packets
}

// Idle reports whether the queue never held anything.
func (s QueueSeries) Idle() bool {
	nothing := func(v []float64) bool { return !slices.ContainsFunc(v, func(x float64) bool { return x != 0 }) }
	return nothing(s.Bits) && nothing(s.Backlog) && nothing(s.Drops)
}

// Find returns the series of a queue, or nil.
func (q *Queues) Find(direction, place, class string) *QueueSeries {
	if q == nil {
		return nil
	}
	for i, s := range q.Series {
		if s.Direction == direction && s.Place == place && s.Class == class && s.Site != "local" {
			return &q.Series[i]
		}
	}
	return nil
}

// numbers are lists of numbers as json indents them. There is no line break in a string.
var numbers = regexp.MustCompile(`\[\n *-?[0-9][-+.0-9eE]*(?:,\n *-?[0-9][-+.0-9eE]*)*\n *\]`)
var space = regexp.MustCompile(`\s+`)

// WriteJSON writes v indented, but each list of numbers on one line: a series of a minute would take three
// hundred lines.
func WriteJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	b = numbers.ReplaceAllFunc(b, func(list []byte) []byte { return space.ReplaceAll(list, nil) })
	_, err = w.Write(append(b, '\n'))
	return err
}
