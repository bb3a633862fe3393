package tunnel

import (
	"fmt"
	"time"
)

// Measured says which packets are media whose quality is measured, by an engine that sees packets
// (EngineName.PerPacket). The zero value measures nothing.
type Measured struct {
	Media  uint64 // inner code points that are media: bit n is DSCP n
	Series int    // that are to be followed at once in each direction, at most 8192; those beyond are counted only
}

// MaxSeries bounds Measured.Series.
const MaxSeries = 8192

// LineSpan is how exactly SeriesStatus.LineAt says when: both ends compare 64 packets at a time, once a second.
const LineSpan = 3 * time.Second

// Check says what no engine can work with.
func (m Measured) Check() error {
	if m.Series < 0 || m.Series > MaxSeries {
		return fmt.Errorf("measure %d series of media (allowed 0-%d)", m.Series, MaxSeries)
	}
	return nil
}

// SeriesStatus is what an engine counted of one source (SSRC) of media in one flow.
type SeriesStatus struct {
	Flow   Flow      `json:"flow"`
	Source uint32    `json:"ssrc"`
	Site   PublicKey `json:"site"`
	// SiteName is empty where the engine does not know (the daemon fills it in).
	SiteName string `json:"site_name,omitempty"`
	Out      bool   `json:"out,omitempty"` // it goes to the site; else it comes from there
	Number   uint32 `json:"number"`        // of the series, which this engine gives no other one

	Began   time.Time `json:"began"`
	Last    time.Time `json:"last"` // packet
	Payload uint8     `json:"payload"`

	// Between the first and the last packet that came, by sequence number: how many there are, came, and went on from
	// here. Copies of one packet count once.
	Expected uint32 `json:"expected"`
	Arrived  uint32 `json:"arrived"`
	Passed   uint32 `json:"passed"`

	Copies   uint32            `json:"copies,omitempty"`
	Late     uint32            `json:"late,omitempty"` // too late to be told from others
	Restarts uint32            `json:"restarts,omitempty"`
	Dropped  map[string]uint32 `json:"dropped,omitempty"` // by this engine, by reason

	// Both ends together know of so many packets where each was lost, if it was. FarLAN of what goes to the site is known
	// where the far phone reports it by RTCP, in clear.
	Compared uint32 `json:"compared,omitempty"`
	FarLAN   uint32 `json:"lost_in_far_lan,omitempty"` // beyond the far box, seen from here
	FarBox   uint32 `json:"lost_in_far_box,omitempty"`
	Line     uint32 `json:"lost_on_line,omitempty"` // between the boxes

	// LineAt is, of what goes to the site, when packets were lost on the line, the latest times, in order: those were sent
	// in the LineSpan before. An engine measures it to that.
	LineAt []time.Time `json:"lost_on_line_at,omitempty"`

	// Delay is the one-way delay between the boxes while the media came, the mean: half of the round trip that both ends
	// measure. Absent: not known, since the far end does not say.
	Delay time.Duration `json:"delay_ns,omitempty"`

	// Jitter is that of RFC 3550, section 6.4.1. All are 0 as long as the rate of the sender's clock is not known.
	Jitter     time.Duration `json:"jitter_ns"`
	JitterMean time.Duration `json:"jitter_mean_ns"`
	JitterPeak time.Duration `json:"jitter_peak_ns"`
}

// SeriesPage is a part of an engine's series.
type SeriesPage struct {
	Series []SeriesStatus `json:"series"`
	Next   int            `json:"next,omitempty"` // where the next part begins; 0: this was the last one
	Beyond uint64         `json:"beyond"`         // packets of media that were not counted: too many series
}
