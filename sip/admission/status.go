package admission

import (
	"maps"
	"slices"
	"time"

	"ringway/qos"
	"ringway/tunnel"
)

// State is how a call was admitted.
type State string

// States.
const (
	HasPlace State = "admitted"
	IsMuted  State = "muted"   // for an emergency
	IsShort  State = "no_room" // it, or some of it, found no room when it could not be refused any more
)

// Call is a call as `ringway calls` shows it.
type Call struct {
	CallID    string    `json:"call_id"`
	Since     time.Time `json:"since"`
	Emergency bool      `json:"emergency,omitempty"`
	State     State     `json:"state"`
	Places    []Place   `json:"places"` // none: its media do not pass a budget of this branch
}

// Place is what some of a call's packets take of a budget.
type Place struct {
	Where
	Rate qos.BitRate `json:"rate_bps"` // on the provider's meter
	// Flow is whose place it is; nil while there is no answer.
	Flow *tunnel.Flow `json:"flow,omitempty"`
	// Shared: another call has the same packets. They count once.
	Shared bool `json:"shared,omitempty"`
}

// Budget is one budget and how much of it is taken, in bits a second on the provider's meter.
type Budget struct {
	Where
	Limit  qos.BitRate `json:"limit_bps,omitzero"` // for RTP; not for one without a bound
	Taken  qos.BitRate `json:"taken_bps"`
	Other  qos.BitRate `json:"other_bps,omitempty"` // by flows that no signalling explains
	Places int         `json:"places"`
}

// Calls are all calls, the oldest first.
func (l *Ledger) Calls() []Call {
	order := l.inOrder()
	all := make([]Call, len(order))
	for i, c := range order {
		all[i] = Call{CallID: c.id, Since: c.since, Emergency: c.emergency, State: c.state(), Places: []Place{}}
		for _, w := range c.has {
			p := Place{Where: w.account.Where, Rate: w.rate}
			if w.exact() {
				p.Flow = &tunnel.Flow{Source: w.flow.Source, Destination: w.flow.Destination}
			}
			p.Shared = len(l.places[w.key].users) > 1
			all[i].Places = append(all[i].Places, p)
		}
	}
	return all
}

func (c *call) state() State {
	switch {
	case c.muted:
		return IsMuted
	case c.short:
		return IsShort
	}
	return HasPlace
}

// Budgets are all budgets, in the order of the world's lines and sites.
func (l *Ledger) Budgets() []Budget {
	all := make([]Budget, len(l.world.all))
	for i, a := range l.world.all {
		all[i] = Budget{Where: a.Where, Limit: a.limit, Taken: a.taken, Other: a.other, Places: a.places}
	}
	return all
}

// Reservations are what engines were asked for and not told to release, in the order of their flows: what the
// owner of a new plane asks it for again.
func (l *Ledger) Reservations() []Reservation {
	all := make([]Reservation, 0, len(l.flows))
	for _, f := range slices.SortedFunc(maps.Keys(l.flows), compare) {
		if s := l.flows[f]; s.at != nil {
			all = append(all, s.at.reservation(f, s.rate))
		}
	}
	return all
}
