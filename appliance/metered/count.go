package metered

import (
	"time"

	"ringway/routing/rtnl"
)

// Usage is what a line has carried in its month. It is kept in a file.
type Usage struct {
	Start time.Time `json:"start"` // of the month that Bytes is about
	Bytes uint64    `json:"bytes"` // received and sent

	// Before are the month before and what it had come to: the clock may have been ahead when this one began.
	Before      time.Time `json:"before,omitzero"`
	BeforeBytes uint64    `json:"before_bytes,omitempty"`

	// Boot, Index and Counter are the reading of the device's counters that Bytes goes up to.
	Boot    string `json:"boot"`
	Index   int    `json:"index"`
	Counter uint64 `json:"counter"`
}

// another is by how much a month has to begin at another time to be another one.
const another = 48 * time.Hour

// monthOf is when the month began that t is in: on the day from, 1 to 28, at midnight in t's time zone.
func monthOf(t time.Time, from int) time.Time {
	start := time.Date(t.Year(), t.Month(), from, 0, 0, 0, 0, t.Location())
	if start.After(t) {
		start = time.Date(t.Year(), t.Month()-1, from, 0, 0, 0, 0, t.Location())
	}
	return start
}

// count takes a reading. It is pure.
//
// A device that was made again, by a reboot or because it was plugged in, counts from 0. A month that begins starts at
// 0; one that began because the clock was ahead is joined with the one before when the clock is set back, so that no
// step of the clock makes a budget of its own. A clock that is set back further keeps what was counted.
func (u Usage) count(now time.Time, from int, boot string, v rtnl.Volume) Usage {
	month := monthOf(now, from)
	switch {
	case u.Start.IsZero():
		u.Start = month
		if u.Boot == "" { // nothing is known of what the counters had come to before this line was metered
			u.Boot, u.Index, u.Counter = boot, v.Index, v.Bytes
		}
	case month.Sub(u.Start).Abs() < another: // the same month, in another time zone
	case month.After(u.Start):
		u.Before, u.BeforeBytes = u.Start, u.Bytes
		u.Start, u.Bytes = month, 0
	case month.Before(u.Start):
		if !u.Before.IsZero() && !month.After(u.Before) {
			u.Bytes += u.BeforeBytes
		}
		u.Start, u.Before, u.BeforeBytes = month, time.Time{}, 0
	}
	delta := v.Bytes
	if u.Boot == boot && u.Index == v.Index && v.Bytes >= u.Counter {
		delta -= u.Counter
	}
	u.Bytes += delta
	u.Boot, u.Index, u.Counter = boot, v.Index, v.Bytes
	return u
}
