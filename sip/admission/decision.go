package admission

import (
	"cmp"
	"slices"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/tunnel"
)

// Verdict is whether a message with an offer may go on.
type Verdict uint8

// Verdicts.
const (
	// Admitted: the message goes on. So it does where nothing was asked.
	Admitted Verdict = iota
	// Refused: the offer does not fit. The message is answered here (package refusal), and the ledger is as
	// if it had not come.
	Refused
)

func (v Verdict) String() string { return [...]string{"admitted", "refused"}[v] }

// Reason is which budget is full. The names of the first two are an engine's for the same
// (tunnel.ReservationState).
type Reason string

// Reasons.
const (
	SiteBudget     Reason = "site_budget"     // of what is sent to a site
	LineBudget     Reason = "line_budget"     // of a WAN with all its sites together
	InboundBudget  Reason = "inbound_budget"  // of what a site without Ringway sends here
	InternetBudget Reason = "internet_budget" // of a WAN for what goes to no site, or comes from none
	TableFull      Reason = "table_full"      // more calls than the ledger keeps: they pass and take no place
)

func (a *account) reason() Reason {
	switch {
	case a.Internet:
		return InternetBudget
	case a.Inbound:
		return InboundBudget
	case a.Site != "":
		return SiteBudget
	}
	return LineBudget
}

// Decision is what a change in a call leads to.
type Decision struct {
	Verdict Verdict
	Reason  Reason // why it was refused, or has no place; empty: it has one, or needs none
	Where   Where  // whose budget is full; not for TableFull

	// Mute are calls whose media make way for an emergency call; their signalling goes on. Unmute are those
	// that have their place again.
	Mute, Unmute []Muted
	// Actions are for the engines, to be carried out in this order: what is freed, then what needs less, then
	// what needs more.
	Actions []Action
}

// Muted is a call that loses its media, or has them again.
type Muted struct {
	CallID string
	Legs   []*dialog.Leg // their streams are the media
}

// Do is what an Action does.
type Do uint8

// The actions.
const (
	Release Do = iota // the flow has its place no longer
	Settle            // it has one, at another rate from now on
	Reserve           // it gets one
)

func (d Do) String() string { return [...]string{"release", "settle", "reserve"}[d] }

// Reservation is a place for one direction of media out of this branch.
type Reservation struct {
	Flow tunnel.Flow
	Site string           // empty: it goes to no site, and no tunnel's engine sees it
	Key  tunnel.PublicKey // of the site
	Line string           // the WAN
	Rate qos.BitRate      // on the provider's meter
}

// Action changes a reservation. That of a Release is the one that is given back.
type Action struct {
	Do Do
	Reservation
	raised bool // of Settle
}

// Tunnel is the reservation as an engine takes it. ok is false if no engine has to be asked.
func (r Reservation) Tunnel() (t tunnel.Reservation, ok bool) {
	return tunnel.Reservation{Flow: r.Flow, Site: r.Key, Rate: r.Rate}, r.Site != ""
}

// sortActions puts what frees something before what needs it.
func sortActions(all []Action) {
	rank := func(a Action) int {
		if a.Do == Settle && a.raised {
			return int(Settle) + 1
		}
		if a.Do == Reserve {
			return int(Reserve) + 1
		}
		return int(a.Do)
	}
	slices.SortStableFunc(all, func(a, b Action) int { return cmp.Compare(rank(a), rank(b)) })
}

// Refusable reports whether an offer in m can be refused by a final response: in an INVITE or an UPDATE.
// The offer of a response, and that of a PRACK, cannot (RFC 6337, section 3.1).
func Refusable(m *message.Message) bool {
	return m.Request && (m.Method == message.INVITE || m.Method == message.UPDATE)
}
