package keychannel

import (
	"fmt"
	"slices"
	"strings"
)

// Status is the component's section of the status.
type Status struct {
	Sites []SiteStatus `json:"sites"`
	// Strangers are connections from elsewhere than a site that is to dial, or beyond what a site may have.
	Strangers uint64 `json:"strangers"`
}

// SiteStatus is the channel to a site.
type SiteStatus struct {
	Site    string `json:"site"`
	Up      bool   `json:"up"`
	Dials   bool   `json:"dials"` // this box opens the connection
	Failure string `json:"failure,omitempty"`
	Legs    int    `json:"legs"`    // whose keys are agreed, or to be
	Sending int    `json:"sending"` // of them, those with a key in use

	Rotations    uint64 `json:"rotations"`     // keys of this box that followed another
	KeysOffered  uint64 `json:"keys_offered"`  // by this box, each again after the connection was lost
	KeysTaken    uint64 `json:"keys_taken"`    // of the far box
	KeysRefused  uint64 `json:"keys_refused"`  // of the far box, by this one
	RefusedThere uint64 `json:"refused_there"` // keys of this box, by the far one
}

// Status says how the channels are.
func (c *Channels) Status() fmt.Stringer {
	st := Status{Sites: []SiteStatus{}} // JSON shows an empty list, not null
	for name, s := range c.snapshot() {
		n := s.link.Counters()
		legs, _, _ := s.link.Legs()
		one := SiteStatus{
			Site: name, Up: s.link.Up(), Dials: s.link.Dials(), Legs: len(legs),
			Rotations: n.Rotations, KeysOffered: n.OffersSent, KeysTaken: n.AcksSent, KeysRefused: n.RefusalsSent,
			RefusedThere: n.RefusalsReceived,
		}
		for _, l := range legs {
			if l.Sending {
				one.Sending++
			}
		}
		c.mu.Lock()
		if !one.Up && s.failure != nil {
			one.Failure = s.failure.Error()
		}
		c.mu.Unlock()
		st.Sites = append(st.Sites, one)
	}
	slices.SortFunc(st.Sites, func(a, b SiteStatus) int { return strings.Compare(a.Site, b.Site) })
	c.mu.Lock()
	defer c.mu.Unlock()
	st.Strangers = c.strangers
	return st
}

// String is one line for people.
func (s Status) String() string {
	if len(s.Sites) == 0 {
		return "Key channels: none"
	}
	up, legs, rotations := 0, 0, uint64(0)
	var down []string
	for _, x := range s.Sites {
		legs += x.Sending
		rotations += x.Rotations
		if x.Up {
			up++
		} else {
			down = append(down, x.Site)
		}
	}
	text := fmt.Sprintf("Key channels: %d of %d sites; %d legs of media have keys, %d keys were followed by another",
		up, len(s.Sites), legs, rotations)
	if len(down) > 0 {
		text += "; down: " + strings.Join(down, ", ")
	}
	return text
}
