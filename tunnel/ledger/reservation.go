package ledger

import (
	"sync/atomic"

	"ringway/tunnel"
	"ringway/units"
)

// Reservations. Signalling knows of a call before its first packet and after its last, so it can reserve: a
// flow with a reservation is in at once and keeps its place through hold and silence until it is released. It
// counts in the same sums as the flows that were admitted by their packets, at its reserved rate or what it
// is measured to take, whichever is higher.
//
// A reservation is lost only where a budget shrinks below what is in it (the newest flow goes first, reserved
// or not), or where its site is removed. State says so.

// State is whether a flow has a place, or why not.
type State int32

// The states of a reservation, and the answers to a request for one.
const (
	Held           State = iota
	LostSiteBudget       // the site's voice budget is full, or has shrunk
	LostLineBudget       // that of the WAN with all sites together
	LostSite             // the site was removed, or its network belongs to another one
	TableFull            // more flows than the table may hold
	Released

	states = iota
)

var stateNames = [states]tunnel.ReservationState{
	Held:           tunnel.ReservationHeld,
	LostSiteBudget: tunnel.SiteBudgetFull,
	LostLineBudget: tunnel.LineBudgetFull,
	LostSite:       tunnel.SiteUnknown,
	TableFull:      tunnel.TooManyFlows,
	Released:       "released",
}

// Name is the state as status and the answer to a request show it.
func (s State) Name() tunnel.ReservationState { return stateNames[s] }

// Reservation is a place that a flow keeps. The control side makes it; the ledger's owner alone works with
// it, except for State.
type Reservation struct {
	id    uint64
	site  *Account
	cost  int64 // bit/s
	since int64 // 0: it has not been placed yet
	// placed: the table has an entry for it. Where the site has no budget it needs none.
	placed bool
	state  atomic.Int32
}

// NewReservation is one for a flow (Seed.Flow) to a site, at a rate in bit/s on the provider's meter.
func NewReservation(flow uint64, site *Account, rate units.BitRate) *Reservation {
	return &Reservation{id: flow, site: site, cost: max(int64(rate), minCost)}
}

// State is whether the place is held, or why it is lost.
func (r *Reservation) State() State {
	if s := State(r.state.Load()); s != Held || !r.site.gone.Load() {
		return s
	}
	return LostSite
}

// Reserve gives the reservation's flow its place, or says what is full; then a flow that was in stays as it
// was. A second reservation for a flow replaces the first one, and keeps its age.
func (l *Ledger) Reserve(budgets *Budgets, r *Reservation, now int64) State {
	if r.site.gone.Load() {
		return LostSite
	}
	if r.since == 0 {
		r.since = now
	}
	b := r.site.budget.Load()
	if b == nil || budgets == nil {
		return Held // everything passes; Settle places it when there is a budget
	}
	if budgets != l.budgets {
		l.use(budgets)
	}

	e := l.entryFor(r)
	state := l.tryReserve(e, b, r, now)
	if state != Held {
		l.table.sweep(sweepBeforeRefusal, now) // some may be silent
		state = l.tryReserve(l.entryFor(r), b, r, now)
	}
	return state
}

// entryFor returns the slot of a reservation's flow. If it is taken, then by a flow to the same site.
func (l *Ledger) entryFor(r *Reservation) *entry {
	e := l.table.find(r.id)
	if e.id != 0 && e.site != r.site {
		l.table.evict(e, LostSite)
		e = l.table.find(r.id)
	}
	return e
}

func (l *Ledger) tryReserve(e *entry, b *Budget, r *Reservation, now int64) State {
	known := e.id != 0
	cost, has := r.cost, int64(0)
	if known {
		e.moveTo(b.line)
		cost = max(r.cost, e.unreservedCost())
	} else if l.table.full() {
		return TableFull
	}
	if known && !e.rtcp {
		has = e.cost
	}
	if cost > has {
		if state := b.fits(r.site, false, cost-has); state != Held {
			return state
		}
	}

	r.placed = true
	if !known {
		*e = entry{id: r.id, site: r.site, line: b.line, reservation: r, last: now, since: r.since, tat: now, young: true}
		l.table.enter(e, cost)
		if c := l.candidates.find(r.id, now); c != nil {
			*c = candidate{}
		}
		return Held
	}

	if old := e.reservation; old != nil {
		old.placed = false
	} else {
		r.site.reserved.Add(1)
	}
	r.since = e.since
	e.reservation = r
	if e.rtcp { // its first packet looked like RTCP
		e.becomeMedia()
	}
	e.charge(cost)
	return Held
}

// unreservedCost is what the flow is known to take without its reservation.
func (e *entry) unreservedCost() int64 {
	if e.reservation != nil && e.cost <= e.reservation.cost {
		return 0
	}
	return e.cost
}

// becomeMedia moves a flow's cost from the share of RTCP to that of media.
func (e *entry) becomeMedia() {
	cost := e.cost
	e.add(-cost)
	e.rtcp = false
	e.site.flows.Add(1)
	e.add(cost)
}

// Release gives the place back. If the flow still sends, it is a new one.
func (l *Ledger) Release(r *Reservation) {
	if r.placed {
		l.table.remove(l.table.find(r.id))
	}
	r.state.Store(int32(Released))
}

// Settle follows a change of budgets for all reservations, oldest first: silent flows are charged to the
// lines that they use now, and those that had no budget get their place. They keep their age, and are lost if
// they do not fit.
func (l *Ledger) Settle(budgets *Budgets, all []*Reservation, now int64) {
	if budgets != nil {
		l.use(budgets)
	}
	for _, r := range all {
		if r.placed || r.State() != Held {
			continue
		}
		if state := l.Reserve(budgets, r, now); state != Held {
			r.state.Store(int32(state))
		}
	}
}
