package calls

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/relay"
	"ringway/tunnel"
)

// fakeEngine keeps places until another process takes over.
type fakeEngine struct {
	series []tunnel.SeriesStatus
	beyond uint64
	asked  int

	mu     sync.Mutex
	held   map[tunnel.Flow]tunnel.Reservation
	keeper int
	fails  bool
	full   bool
}

func (e *fakeEngine) Reserve(_ context.Context, wanted ...tunnel.Reservation) (
	states []tunnel.ReservationStatus, err error,
) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fails {
		return nil, errors.New("the plane does not answer")
	}
	for _, r := range wanted {
		state := tunnel.SiteBudgetFull
		if !e.full {
			e.held[r.Flow], state = r, tunnel.ReservationHeld
		}
		states = append(states, tunnel.ReservationStatus{Reservation: r, State: state})
	}
	return states, nil
}

func (e *fakeEngine) Unreserve(_ context.Context, flows ...tunnel.Flow) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fails {
		return errors.New("the plane does not answer")
	}
	for _, f := range flows {
		delete(e.held, f)
	}
	return nil
}

func (e *fakeEngine) Reservations(context.Context) (all []tunnel.ReservationStatus, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.held {
		all = append(all, tunnel.ReservationStatus{Reservation: r, State: tunnel.ReservationHeld})
	}
	return all, nil
}

func (e *fakeEngine) Keeper() int { return e.keeper }

func place(port uint16, release bool) relay.Place {
	return relay.Place{Release: release, Reserve: tunnel.Reservation{
		Flow: tunnel.Flow{
			Source:      netip.AddrPortFrom(netip.MustParseAddr("10.1.10.9"), port),
			Destination: netip.MustParseAddrPort("10.2.10.9:4000"),
		},
		Rate: 100_000,
	}}
}

func changeOf(list ...relay.Place) []relay.Change { return []relay.Change{{Places: list}} }

// The engine has the places that calls have, in the order in which they changed, also when another process keeps
// them from some moment on.
func TestTheEngineFollows(t *testing.T) {
	e := &fakeEngine{held: map[tunnel.Flow]tunnel.Reservation{}, keeper: 7}
	p := newPlaces(e, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	a, b, c := place(4000, false), place(4002, false), place(4004, false)

	p.change(changeOf(a, b), false)
	p.change(changeOf(place(4000, true), c), false)
	p.tell(ctx)
	assert.Equal(t, map[tunnel.Flow]tunnel.Reservation{b.Reserve.Flow: b.Reserve, c.Reserve.Flow: c.Reserve}, e.held)

	e.held, e.keeper = map[tunnel.Flow]tunnel.Reservation{}, 8
	p.tell(ctx)
	assert.Len(t, e.held, 2, "another plane is told everything")

	e.fails = true
	p.change(changeOf(a), false)
	p.tell(ctx)
	e.fails = false
	p.tell(ctx)
	assert.Len(t, e.held, 3, "what failed is told again")

	p.change(changeOf(b), true)
	p.tell(ctx)
	assert.Equal(t, map[tunnel.Flow]tunnel.Reservation{b.Reserve.Flow: b.Reserve}, e.held, "the whole")

	e.full = true
	p.change(changeOf(a), false)
	p.tell(ctx)
	held, refused := p.state()
	require.Equal(t, 2, held)
	assert.Equal(t, map[string]uint64{string(tunnel.SiteBudgetFull): 1}, refused)
}

// Nothing is sent to an engine that keeps no places.
func TestAnEngineWithoutPlaces(t *testing.T) {
	e := &fakeEngine{held: map[tunnel.Flow]tunnel.Reservation{}}
	p := newPlaces(e, slog.New(slog.DiscardHandler))
	p.change(changeOf(place(4000, false)), false)
	p.tell(t.Context())
	assert.Empty(t, e.held)
	e.keeper = 1
	p.tell(t.Context())
	assert.Len(t, e.held, 1)
}

// What an earlier daemon reserved for calls that ended meanwhile is given back, once a relay has said which calls
// there are, and what the engine did not hear of, too.
func TestPlacesOfCallsThatAreOver(t *testing.T) {
	e := &fakeEngine{held: map[tunnel.Flow]tunnel.Reservation{}, keeper: 7}
	ctx := t.Context()
	over, lives := place(4000, false), place(4002, false)
	for _, x := range []relay.Place{over, lives} {
		e.held[x.Reserve.Flow] = x.Reserve
	}
	p := newPlaces(e, slog.New(slog.DiscardHandler))
	p.tell(ctx)
	assert.Len(t, e.held, 2, "no relay has said which calls there are")
	p.change(changeOf(lives), true)
	p.tell(ctx)
	assert.Equal(t, map[tunnel.Flow]tunnel.Reservation{lives.Reserve.Flow: lives.Reserve}, e.held)

	e.fails = true
	p.change(changeOf(place(4002, true)), false)
	p.tell(ctx)
	assert.Len(t, e.held, 1)
	e.fails = false
	p.tell(ctx)
	assert.Empty(t, e.held)
}

// What waits for an engine that is not there, or that cannot be reserved, is bounded.
func TestPlacesThatNobodyKeeps(t *testing.T) {
	e := &fakeEngine{held: map[tunnel.Flow]tunnel.Reservation{}}
	p := newPlaces(e, slog.New(slog.DiscardHandler))
	for range 10 {
		p.change(changeOf(place(4000, false)), false)
		p.change(changeOf(place(4000, true)), false)
		p.tell(t.Context())
	}
	assert.Empty(t, p.queue)
	p.change(changeOf(place(0, false)), false)
	held, refused := p.state()
	assert.Zero(t, held)
	assert.EqualValues(t, 1, refused[placeInvalid])
}

func (e *fakeEngine) Series(context.Context) ([]tunnel.SeriesStatus, uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	if e.fails {
		return nil, 0, errors.New("the plane does not answer")
	}
	return e.series, e.beyond, nil
}
