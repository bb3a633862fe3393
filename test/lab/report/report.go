// Package report says what the lab found: JSON whose shape stays (types here), a table that a person understands
// (Table) and a plot (Plot). test/lab and cmd/ringway import it; it measures nothing itself, quality does.
package report

import (
	"time"

	"ringway/quality"
)

// Report is one run of the lab. Field names are a promise to whoever reads the JSON: fields may be added, none
// renamed or removed. Durations are microseconds, shares 0 to 1, numbers may be fractional.
type Report struct {
	Machine  Machine  `json:"machine"`
	Scenario Scenario `json:"scenario"`
	Paths    []Path   `json:"paths"`
}

// Scenario is what was asked for.
type Scenario struct {
	WAN         string  `json:"wan"` // "20mbit", or "none" where nothing bounds it
	WANBits     uint64  `json:"wan_bits_per_s"`
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

// Path is one way from branch to branch: "ringway" or "baseline".
type Path struct {
	Name   string  `json:"name"`
	Voice  Voice   `json:"voice"`
	Calls  Calls   `json:"calls"`
	Bulk   Bulk    `json:"bulk"`
	Queues *Queues `json:"queues,omitempty"` // over time; absent where nothing on the way has a queue of a known rate
}

// Calls are the SIP calls placed.
type Calls struct {
	Placed    int `json:"placed"`
	Completed int `json:"completed"`
}

// Bulk is the throughput of the bulk traffic beside the calls.
type Bulk struct {
	MbitPerS float64 `json:"mbit_per_s"`
}

// Measure is how good voice was, by the fields of the promise and some more.
type Measure struct {
	Sent        int     `json:"sent"`
	Received    int     `json:"received"`
	Loss        float64 `json:"loss"`
	Delay       Delay   `json:"delay_us"`
	PDV         float64 `json:"pdv_us"`             // RFC 8219: p99.9 - min
	Jitter      float64 `json:"jitter_rfc3550_us"`  // mean of the running estimate
	JitterMax   float64 `json:"jitter_max_us"`      // its highest value
	IPDV        float64 `json:"ipdv_p99_9_us"`      // RFC 5481: |change of delay| between neighbours, p99.9
	MOS         float64 `json:"mos"`                // G.107, all calls together
	R           float64 `json:"r"`                  //
	WorstMOS    float64 `json:"worst_call_mos"`     // of the single worst stream
	WorstR      float64 `json:"worst_call_r"`       //
	MouthToEar  float64 `json:"mouth_to_ear_us"`    // packetization + codec + network + jitter buffer
	Buffer      float64 `json:"jitter_buffer_us"`   // depth that the model's receiver takes
	Late        float64 `json:"late"`               // share that came too late for it
	BurstRatio  float64 `json:"burst_ratio"`        // G.107 BurstR: 1 random, above bursty
	Duplicates  int     `json:"duplicates"`         //
	Reordered   int     `json:"reordered"`          // RFC 4737
	Unmatched   int     `json:"unmatched"`          // arrivals whose sending the capture did not see: should be 0
	CaptureLost uint32  `json:"capture_drops"`      // packets the capture itself missed: above 0 the row is worthless
	Negative    int64   `json:"negative_delays"`    // above 0: the clocks of the two captures disagree
	Streams     int     `json:"streams"`            // RTP streams
	WrongDSCP   int     `json:"dscp_other_than_ef"` // packets that reached the phone without EF
}

// Delay is the distribution of one-way delays, microseconds.
type Delay struct {
	Min   float64 `json:"min"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	P9999 float64 `json:"p99_99"`
	Max   float64 `json:"max"`
	Mean  float64 `json:"mean"`
}

// Voice is both directions in one: in its own fields the worse, each direction beside them.
type Voice struct {
	Measure
	Directions []Direction `json:"directions"`
}

// Direction names, as they stand in the JSON.
const (
	AToB = "a_to_b"
	BToA = "b_to_a"
)

// Direction is one direction.
type Direction struct {
	Name string `json:"name"`
	Measure
}

// Found is what a capture adds to the figures of quality.
type Found struct {
	Unmatched   int
	CaptureLost uint32
	WrongDSCP   int
}

// NewDirection puts a summary into the JSON's units.
func NewDirection(name string, s quality.Summary, f Found) Direction {
	d := s.Delay
	return Direction{Name: name, Measure: Measure{
		Sent: s.Sent, Received: s.Received, Loss: s.Loss,
		Delay: Delay{
			Min: us(d.Min()), P50: us(d.Percentile(50)), P90: us(d.Percentile(90)), P99: us(d.Percentile(99)),
			P999: us(d.Percentile(99.9)), P9999: us(d.Percentile(99.99)), Max: us(d.Max()), Mean: us(d.Mean()),
		},
		PDV: us(s.PDV), Jitter: us(s.Jitter), JitterMax: us(s.JitterMax), IPDV: us(s.IPDV.Percentile(99.9)),
		MOS: s.Voice.MOS, R: s.Voice.R, WorstMOS: s.WorstVoice.MOS, WorstR: s.WorstVoice.R,
		MouthToEar: us(s.Voice.MouthToEar), Buffer: us(s.Voice.Buffer), Late: s.Voice.Late, BurstRatio: s.BurstR,
		Duplicates: s.Duplicates, Reordered: s.Reordered, Negative: d.Negative(), Streams: s.Streams,
		Unmatched: f.Unmatched, CaptureLost: f.CaptureLost, WrongDSCP: f.WrongDSCP,
	}}
}

// NewVoice joins the directions. Every field of its own is the worse of the directions' fields, so none ever looks
// better than either direction was; sent and received come from the direction that lost the larger share. So
// fields may come from different directions, and pdv_us need not be p99_9 - min of this object.
func NewVoice(directions ...Direction) Voice {
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
		w.Delay = Delay{
			Min: max(w.Delay.Min, m.Delay.Min), P50: max(w.Delay.P50, m.Delay.P50), P90: max(w.Delay.P90, m.Delay.P90),
			P99: max(w.Delay.P99, m.Delay.P99), P999: max(w.Delay.P999, m.Delay.P999), P9999: max(w.Delay.P9999, m.Delay.P9999),
			Max: max(w.Delay.Max, m.Delay.Max), Mean: max(w.Delay.Mean, m.Delay.Mean),
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

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// Point is one packet for the plot.
type Point struct {
	At    time.Duration // since the run began
	Delay time.Duration
	Lost  bool
}

// Series is one direction's packets. The JSON does not carry them; they go to Plot only.
type Series struct {
	Path      string // as Path.Name
	Direction string // AToB or BToA
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
