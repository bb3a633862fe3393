package plane

import (
	"context"
	"fmt"

	"ringway/process"
	"ringway/tunnel"
)

// Reservations change with every call, so they are requests and not settings: whoever makes them owns them.
// The supervisor keeps none. A plane that was replaced has none either, and the owner makes them again:
// Reservations says what is held.

// minorReservations is the first protocol with reservations.
const minorReservations = 4

// reserver is an engine that keeps places in voice budgets.
type reserver interface {
	Reserve(r tunnel.Reservation) (tunnel.ReservationState, error)
	Release(f tunnel.Flow) (known bool, err error)
	Reservations() []tunnel.ReservationStatus
}

// Bodies of the requests and their answers.
type (
	reserveRequest struct {
		Reservations []tunnel.Reservation `json:"reservations"`
	}
	releaseRequest struct {
		Flows []tunnel.Flow `json:"flows"`
	}
	reservationsAnswer struct {
		Reservations []tunnel.ReservationStatus `json:"reservations"`
	}
)

func (s *server) handleReserve(e Engine, m *process.Message) (process.Reply, error) {
	var q reserveRequest
	r, err := reserverOf(e, m, &q)
	if err != nil {
		return process.Reply{}, err
	}
	var a reservationsAnswer
	for _, wanted := range q.Reservations {
		state, err := r.Reserve(wanted)
		if err != nil {
			return process.Reply{}, err
		}
		a.Reservations = append(a.Reservations, tunnel.ReservationStatus{Reservation: wanted, State: state})
	}
	return process.Reply{Body: a}, nil
}

func (s *server) handleRelease(e Engine, m *process.Message) (process.Reply, error) {
	var q releaseRequest
	r, err := reserverOf(e, m, &q)
	if err != nil {
		return process.Reply{}, err
	}
	for _, f := range q.Flows {
		if _, err := r.Release(f); err != nil {
			return process.Reply{}, err
		}
	}
	return process.Reply{}, nil
}

func (s *server) handleReservations(e Engine, m *process.Message) (process.Reply, error) {
	r, err := reserverOf(e, m, nil)
	if err != nil {
		return process.Reply{}, err
	}
	return process.Reply{Body: reservationsAnswer{r.Reservations()}}, nil
}

// reserverOf returns the engine as a reserver, and decodes the request into body unless that is nil.
func reserverOf(e Engine, m *process.Message, body any) (reserver, error) {
	r, ok := e.(reserver)
	if !ok {
		return nil, fmt.Errorf("request %q: the engine %s keeps no reservations (only %s does)",
			m.Type, e.Status().Engine, tunnel.EngineRealtime)
	}
	if body == nil {
		return r, nil
	}
	return r, m.Decode(body)
}

// Reserve keeps places in the voice budgets for flows, until they are released. It returns one state for
// each: held, or which budget is full. An error means that later ones of them were not tried.
func (s *Supervisor) Reserve(ctx context.Context, wanted ...tunnel.Reservation) ([]tunnel.ReservationStatus, error) {
	var a reservationsAnswer
	err := s.askForReservations(ctx, process.Request{Type: typeReserve, Body: reserveRequest{wanted}}, &a)
	return a.Reservations, err
}

// Release gives back the places of flows. A flow that has none is not an error.
func (s *Supervisor) Release(ctx context.Context, flows ...tunnel.Flow) error {
	return s.askForReservations(ctx, process.Request{Type: typeRelease, Body: releaseRequest{flows}}, nil)
}

// Reservations lists what was reserved in the running plane and not released, oldest first.
func (s *Supervisor) Reservations(ctx context.Context) ([]tunnel.ReservationStatus, error) {
	var a reservationsAnswer
	err := s.askForReservations(ctx, process.Request{Type: typeReservations}, &a)
	return a.Reservations, err
}

func (s *Supervisor) askForReservations(ctx context.Context, r process.Request, answer any) error {
	cur := s.current()
	if cur == nil {
		return fmt.Errorf("plane %s is not running", s.cfg.Class)
	}
	if cur.Hello.Minor < minorReservations {
		return fmt.Errorf("plane %s is of an older release, which keeps no reservations (ringway upgrade-planes replaces it)",
			s.cfg.Class)
	}
	return cur.Ask(ctx, r, answer)
}
