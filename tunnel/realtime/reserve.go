package realtime

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"ringway/tunnel"
	"ringway/tunnel/ledger"
)

// Voice budgets and reservations, from the control side. Budgets reach the outbound thread through an atomic
// pointer. The ledger belongs to that thread, so a reservation is a request to it: the control side publishes
// the request, wakes the thread and waits for the answer. The thread serves it between two batches, in a few
// microseconds, without a lock; nothing on the packet path is slower for it.

// maxReservations is half of what the largest table holds: admitted flows always have the other half.
const maxReservations = 4096

// request is what the control side wants from the ledger. One at a time.
type request struct {
	reserve, release *ledger.Reservation
	settle           []*ledger.Reservation
	copy             *seriesCopy

	state    ledger.State // answer to reserve
	served   atomic.Bool
	answered chan struct{}
}

// reservations are those that were made and not released.
type reservations struct {
	mu     sync.Mutex // held while a request is on its way; before Engine.mu
	byFlow map[uint64]*reserved
	made   uint64
	counts tunnel.ReservationCounts
}

type reserved struct {
	tunnel.Reservation
	place   *ledger.Reservation
	order   uint64
	counted bool // as lost
}

// SetAdmission changes the voice budgets, from the next packet on. Flows that are in stay in, as far as they
// fit. For peers without a budget everything passes.
func (e *Engine) SetAdmission(a tunnel.Admission) error {
	if err := a.Check(); err != nil {
		return err
	}
	e.setBudgets(a)
	return e.settleReservations()
}

func (e *Engine) setBudgets(a tunnel.Admission) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.admission = nil
	if len(a.Sites) > 0 && a.Media != 0 {
		e.admission = ledger.NewBudgets(a, e.budgets.Load())
		e.budgets.Store(e.admission) // before the peers' own: a thread that sees one of those finds it
	}
	for k, p := range e.peers {
		p.voice.SetBudget(e.admission.Site(k))
	}
}

// settleReservations has reservations follow a change of budgets.
func (e *Engine) settleReservations() error {
	rs := &e.reservations
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.byFlow) == 0 {
		return nil
	}
	var all []*ledger.Reservation
	for _, r := range slices.SortedFunc(maps.Values(rs.byFlow), byOrder) {
		all = append(all, r.place)
	}
	return e.ask(&request{settle: all})
}

func byOrder(a, b *reserved) int { return cmp.Compare(a.order, b.order) }

// Reserve keeps a place in the voice budget for a flow, at once and until Release. What does not fit is
// refused, and the answer says what is full. A second reservation for a flow replaces the first one if it
// fits; else the first one stays.
func (e *Engine) Reserve(r tunnel.Reservation) (tunnel.ReservationState, error) {
	if err := r.Check(); err != nil {
		return "", err
	}
	rs := &e.reservations
	rs.mu.Lock()
	defer rs.mu.Unlock()

	state, err := e.reserve(r)
	if err != nil {
		return "", fmt.Errorf("reserve for %s: %w", r.Flow, err)
	}
	if state != tunnel.ReservationHeld {
		rs.counts.Refused[state]++
	}
	return state, nil
}

// reserve is called with reservations.mu held.
func (e *Engine) reserve(r tunnel.Reservation) (tunnel.ReservationState, error) {
	rs := &e.reservations
	if rs.byFlow == nil {
		rs.byFlow = map[uint64]*reserved{}
		rs.counts.Refused = map[tunnel.ReservationState]uint64{}
		rs.counts.Lost = map[tunnel.ReservationState]uint64{}
	}

	e.mu.Lock()
	p := e.peers[r.Site]
	e.mu.Unlock()
	if e.hasEnded() { // asked after the lookup: an engine that ends forgets its peers
		return "", errEnded
	}
	if p == nil {
		return tunnel.SiteUnknown, nil
	}

	flow := e.flowSeed.Flow(r.Flow.Source, r.Flow.Destination)
	old := rs.byFlow[flow]
	if old == nil && len(rs.byFlow) >= maxReservations {
		return tunnel.TooManyFlows, nil
	}

	place := ledger.NewReservation(flow, &p.voice, r.Rate)
	q := &request{reserve: place}
	if err := e.ask(q); err != nil {
		return "", err
	}
	if q.state != ledger.Held {
		return q.state.Name(), nil
	}

	rs.made++
	order := rs.made
	if old != nil {
		rs.noteLost(old)
		order = old.order
	}
	rs.byFlow[flow] = &reserved{Reservation: r, place: place, order: order}
	return tunnel.ReservationHeld, nil
}

// Release gives a flow's place back. known is false if it had none.
func (e *Engine) Release(f tunnel.Flow) (known bool, err error) {
	rs := &e.reservations
	rs.mu.Lock()
	defer rs.mu.Unlock()

	flow := e.flowSeed.Flow(f.Source, f.Destination)
	r := rs.byFlow[flow]
	if r == nil {
		return false, nil
	}
	rs.noteLost(r)
	if err := e.ask(&request{release: r.place}); err != nil {
		return true, fmt.Errorf("release the reservation for %s: %w", f, err)
	}
	delete(rs.byFlow, flow)
	return true, nil
}

// Reservations lists what was reserved and not released, oldest first, and whether it is still held.
func (e *Engine) Reservations() (all []tunnel.ReservationStatus) {
	rs := &e.reservations
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, r := range slices.SortedFunc(maps.Values(rs.byFlow), byOrder) {
		all = append(all, tunnel.ReservationStatus{Reservation: r.Reservation, State: r.place.State().Name()})
	}
	return all
}

// noteLost counts a reservation once that was lost.
func (rs *reservations) noteLost(r *reserved) {
	if state := r.place.State(); state != ledger.Held && !r.counted {
		r.counted = true
		rs.counts.Lost[state.Name()]++
	}
}

// status is for people; nil: nobody has asked for a reservation.
func (rs *reservations) status() *tunnel.ReservationCounts {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byFlow == nil {
		return nil
	}
	c := tunnel.ReservationCounts{Refused: maps.Clone(rs.counts.Refused)}
	for _, r := range rs.byFlow {
		rs.noteLost(r)
		if r.place.State() == ledger.Held {
			c.Held++
		}
	}
	c.Lost = maps.Clone(rs.counts.Lost)
	return &c
}

// ask has the outbound thread serve a request. It is called with reservations.mu held.
func (e *Engine) ask(r *request) error {
	r.answered = make(chan struct{})
	e.out.request.Store(r)
	e.out.Wake()
	select {
	case <-r.answered:
		return nil
	case <-e.closed:
		return errEnded
	}
}

// serveRequest is the outbound thread's part.
func (o *outbound) serveRequest(now int64) {
	r := o.request.Load()
	if r == nil || r.served.Load() {
		return
	}
	budgets := o.e.budgets.Load()
	switch {
	case r.reserve != nil:
		r.state = o.ledger.Reserve(budgets, r.reserve, now)
	case r.release != nil:
		o.ledger.Release(r.release)
	case r.copy != nil:
		r.copy.take(o.measure, true)
	default:
		o.ledger.Settle(budgets, r.settle, now)
	}
	r.served.Store(true)
	o.e.notify()
}

// finishRequest hands the answer to whoever waits for it.
func (e *Engine) finishRequest() {
	if r := e.out.request.Load(); r != nil && r.served.Load() {
		e.out.request.Store(nil)
		close(r.answered)
	}
	if c := e.in.copying.Load(); c != nil && c.served.Load() {
		e.in.copying.Store(nil)
		close(c.answered)
	}
}
