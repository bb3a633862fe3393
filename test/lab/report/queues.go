package report

import (
	"encoding/json"
	"io"
	"regexp"
	"slices"
)

// Queues is what stood in the queues on a path's way, over time: every series has one value for each of Seconds. A reading that
// failed is in none.
type Queues struct {
	Interval float64       `json:"interval_s"` // between two readings, as asked for
	Took     float64       `json:"took_us"`    // one reading of all queues of the path, on average: what lies between the first queue's and the last's
	Missed   int           `json:"missed"`     // readings that failed
	Why      string        `json:"missed_why,omitempty"`
	Phases   []Phase       `json:"phases"`  // of the load, by their begin
	Seconds  []float64     `json:"seconds"` // since calls began to be placed, or voice to be measured; before, it is less than 0
	Series   []QueueSeries `json:"series"`  // those that sent, held or dropped something
}

// Phase is what the path is loaded with from then on.
type Phase struct {
	Name string  `json:"name"`
	From float64 `json:"from_s"`
}

// Where a queue stands.
const (
	AtEdge     = "edge"     // the branch's own, on its WAN: Ringway's classes; one for everything on other paths
	AtFlows    = "flows"    // Ringway's flow queues before the data tunnel's encryption
	AtProvider = "provider" // the FIFO before the bottleneck, which nobody in a branch can see or put in order
)

// QueueSeries is one queue over time.
type QueueSeries struct {
	Direction string    `json:"direction"`                  // AToB, BToA
	Place     string    `json:"place"`                      // AtEdge, AtFlows, AtProvider
	Class     string    `json:"class,omitempty"`            // absent where everything stands in one queue
	Site      string    `json:"site,omitempty"`             // that the packets go to; "local": to none
	Rate      uint64    `json:"rate_bits_per_s"`            // guaranteed to the class, or what the queue is held to; 0 of flow queues, which have none of their own
	Ceil      uint64    `json:"ceiling_bits_per_s"`         //
	Limit     uint64    `json:"limit_bytes,omitempty"`      // the most that may wait
	Bits      []float64 `json:"bits_per_s,omitempty"`       // sent since the reading before, with Ethernet headers; absent of flow queues: what they let go is the class's
	Backlog   []float64 `json:"backlog_bytes"`              // that wait in this moment
	Wait      []float64 `json:"backlog_ms"`                 // how long they take at the queue's rate, as `ringway status --queues` says it; of flow queues, at the class's ceiling
	Drops     []float64 `json:"drops_since_reading_before"` // packets
}

// Idle says that nothing ever was there.
func (s QueueSeries) Idle() bool {
	nothing := func(v []float64) bool { return !slices.ContainsFunc(v, func(x float64) bool { return x != 0 }) }
	return nothing(s.Bits) && nothing(s.Backlog) && nothing(s.Drops)
}

// Find is the series of a queue; nil where there is none.
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

// WriteJSON writes v indented, but a list of numbers on one line: a series of a minute would take three hundred.
func WriteJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	b = numbers.ReplaceAllFunc(b, func(list []byte) []byte { return space.ReplaceAll(list, nil) })
	_, err = w.Write(append(b, '\n'))
	return err
}
