package call

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Segments of a call's way, where packets are lost.
const (
	PhoneLAN = "phone's LAN" // before they came to this box from its own side
	ThisBox  = "this box"    // they came, and did not go on
	Line     = "line"        // between the boxes
	FarBox   = "far box"
	FarLAN   = "far LAN"
	Unknown  = "unknown" // somewhere before they came here
)

// Segments are all of them.
var Segments = [...]string{PhoneLAN, ThisBox, Line, FarBox, FarLAN, Unknown}

// Quality is what media went through in one direction, as far as this box knows.
type Quality struct {
	Packets   uint64  `json:"packets"`   // that came, as far as this box knows
	Lost      uint64  `json:"lost"`      // between the first and the last of them
	Jitter    float64 `json:"jitter_ms"` // RFC 3550, section 6.4.1: the mean
	JitterMax float64 `json:"jitter_max_ms,omitempty"`
	// Delay is the one-way delay between the boxes, as far as both measure it: half of the round trip, the mean.
	// Absent: not known, and then R and MOS are without it.
	Delay float64           `json:"delay_ms,omitempty"`
	R     float64           `json:"r"` // ITU-T G.107
	MOS   float64           `json:"mos"`
	Where map[string]uint64 `json:"lost_where,omitempty"` // lost packets by segment: `line`, `far LAN` …
	Why   map[string]uint64 `json:"dropped,omitempty"`    // packets that this box dropped, by reason

	// WANDrops is how many packets the queues of this box's WANs dropped, of whatever traffic, in the seconds in which
	// media was lost on the line, by class. Absent: none was, it is not known, or the media is what is received.
	WANDrops map[string]uint64 `json:"wan_queue_drops,omitempty"`
}

// Loss is the share of packets that were lost, 0 to 1.
func (q *Quality) Loss() float64 {
	if q.Lost == 0 {
		return 0
	}
	return float64(q.Lost) / float64(q.Packets+q.Lost)
}

// String is what fits in a column.
func (q *Quality) String() string {
	if q == nil {
		return "-"
	}
	s := fmt.Sprintf("%.2f, %.1f%%, %.1fms", q.MOS, 100*q.Loss(), q.Jitter)
	if q.Delay > 0 {
		s += fmt.Sprintf(", delay %.1fms", q.Delay)
	}
	if where := q.where(); where != "" {
		s += " (" + where + ")"
	}
	return s
}

// Detail is all of it, in a line.
func (q *Quality) Detail() string {
	if q == nil {
		return "not measured"
	}
	s := fmt.Sprintf("MOS %.2f (R %.1f), %d of %d packets lost", q.MOS, q.R, q.Lost, q.Packets+q.Lost)
	if where := counts(q.Where); where != "" {
		s += " (" + where + ")"
	}
	if why := counts(q.Why); why != "" {
		s += ", dropped here: " + why
	}
	s += fmt.Sprintf(", jitter %.1f ms, at most %.1f ms, ", q.Jitter, q.JitterMax)
	if q.Delay > 0 {
		s += fmt.Sprintf("delay %.1f ms", q.Delay)
	} else {
		s += "delay not known"
	}
	if q.WANDrops != nil {
		s += "; while the line lost packets, the WANs' queues dropped " + cmp.Or(counts(q.WANDrops), "none")
	}
	return s
}

// where is the lost packets by segment, most first, and what the WANs' queues dropped meanwhile.
func (q *Quality) where() string {
	s := counts(q.Where)
	if q.WANDrops == nil {
		return s
	}
	sum := uint64(0)
	for _, n := range q.WANDrops {
		sum += n
	}
	return fmt.Sprintf("%s; WAN queues dropped %d", s, sum)
}

// counts is what is not zero, most first.
func counts(of map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(of), func(a, b string) int {
		return cmp.Or(cmp.Compare(of[b], of[a]), strings.Compare(a, b))
	})
	var parts []string
	for _, n := range names {
		if of[n] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(n, "_", " "), of[n]))
		}
	}
	return strings.Join(parts, ", ")
}
