// Package record keeps records of calls: a line of JSON for each call that has ended, in files that are bounded
// in size and age. A record never holds what was said, nor a whole number unless the policy shows numbers.
package record

import (
	"net/netip"
	"slices"
	"time"

	"ringway/sip/call"
	"ringway/sip/privacy"
)

// Direction says where a call came from, as the branch sees it.
type Direction string

// Directions.
const (
	Inbound  Direction = "in"
	Outbound Direction = "out"
	Internal Direction = "internal" // both ends in this branch
	Transit  Direction = "transit"  // neither end in this branch
)

// Record is one call. Fields are added, never renamed: they are part of `ringway calls --json`. All but ID, Began
// and Ended may be missing.
type Record struct {
	ID        string    `json:"id"`
	CallID    string    `json:"call_id,omitempty"` // of its first leg
	Began     time.Time `json:"began"`
	Answered  time.Time `json:"answered,omitzero"` // zero: never
	Ended     time.Time `json:"ended"`
	Duration  float64   `json:"duration_s"` // from Answered to Ended; 0: never answered
	Direction Direction `json:"direction,omitempty"`
	Caller    Party     `json:"caller"`
	Callee    Party     `json:"callee"`
	Site      string    `json:"site,omitempty"` // the far site; empty: the internet, or this branch
	Codec     string    `json:"codec,omitempty"`
	Emergency bool      `json:"emergency,omitempty"`

	Admitted string       `json:"admitted,omitempty"` // how: `reserved`, `muted for an emergency` …
	Why      string       `json:"why"`                // it ended
	Status   int          `json:"status,omitempty"`   // of the final error, if one ended it
	Hops     []netip.Addr `json:"hops,omitempty"`     // that exchanged its messages
	Agents   []string     `json:"user_agents,omitempty"`
	Holes    int          `json:"holes"` // the most that it had at once

	Sent     *Quality `json:"sent,omitempty"`     // of media from this branch to the far end
	Received *Quality `json:"received,omitempty"` // of media from the far end to this branch
}

// Party is one end of a call.
type Party struct {
	Number  string     `json:"number,omitempty"` // or name of the user, masked by the policy
	Address netip.Addr `json:"address,omitzero"` // of the phone, if it is known
}

// Quality is what media went through in one direction.
type Quality = call.Quality

// mask hides what the policy hides.
func (r *Record) mask(p privacy.Policy) {
	r.Caller.Number = privacy.Number(p, r.Caller.Number)
	r.Callee.Number = privacy.Number(p, r.Callee.Number)
}

// Of reports whether a phone took part in the call: as an end, or as a hop of its messages.
func (r *Record) Of(phone netip.Addr) bool {
	return r.Caller.Address == phone || r.Callee.Address == phone || slices.Contains(r.Hops, phone)
}

// Overlaps reports whether the call was under way at some time from from to to, both included.
func (r *Record) Overlaps(from, to time.Time) bool {
	return !r.Began.After(to) && !r.Ended.Before(from)
}
