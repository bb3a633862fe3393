// Package figures holds what a measurement of voice reports: the figures of one direction under the names
// that the JSON of the lab, the benchmarks and `ringway bench live` share, the machine that they were taken
// on, and how both are printed. It measures nothing itself; quality does.
//
// Field names are a promise to readers of the JSON: fields may be added, none renamed or removed. Durations
// are microseconds, shares are 0 to 1, numbers may be fractional.
package figures

import (
	"time"

	"ringway/quality"
)

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

// Direction names, as in the JSON.
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

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
