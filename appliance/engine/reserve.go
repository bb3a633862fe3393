package engine

import (
	"context"
	"fmt"

	"ringway/tunnel"
)

// reserver is an engine that keeps places in voice budgets.
type reserver interface {
	Reserve(ctx context.Context, wanted ...tunnel.Reservation) ([]tunnel.ReservationStatus, error)
	Release(ctx context.Context, flows ...tunnel.Flow) error
	Reservations(ctx context.Context) ([]tunnel.ReservationStatus, error)
	PID() int
}

// Reserve keeps places in the voice budgets for flows, until they are released or the plane ends.
func (h *Holder) Reserve(ctx context.Context, wanted ...tunnel.Reservation) ([]tunnel.ReservationStatus, error) {
	e, last := h.current()
	r, ok := e.(reserver)
	if !ok {
		return nil, fmt.Errorf("tunnel %s: the engine %s keeps no places", h.Class, last.Settings.Engine)
	}
	return r.Reserve(ctx, wanted...)
}

// Unreserve gives back the places of flows.
func (h *Holder) Unreserve(ctx context.Context, flows ...tunnel.Flow) error {
	e, _ := h.current()
	if r, ok := e.(reserver); ok {
		return r.Release(ctx, flows...)
	}
	return nil
}

// Reservations are the places that the plane keeps, whoever reserved them.
func (h *Holder) Reservations(ctx context.Context) ([]tunnel.ReservationStatus, error) {
	e, _ := h.current()
	if r, ok := e.(reserver); ok {
		return r.Reservations(ctx)
	}
	return nil, nil
}

// Keeper is the process that keeps places: another one than before has none. 0: none is there.
func (h *Holder) Keeper() int {
	e, last := h.current()
	if r, ok := e.(reserver); ok && last.Settings.Engine == tunnel.EngineRealtime {
		return r.PID()
	}
	return 0
}

// meter is an engine that counts media by flow.
type meter interface {
	Series(ctx context.Context) (all []tunnel.SeriesStatus, beyond uint64, err error)
}

// Series are the series of media that had packets lately, and how many packets were beyond what is counted.
func (h *Holder) Series(ctx context.Context) (all []tunnel.SeriesStatus, beyond uint64, err error) {
	e, last := h.current()
	m, ok := e.(meter)
	if !ok || last.Settings.Engine != tunnel.EngineRealtime {
		return nil, 0, fmt.Errorf("tunnel %s: the engine %s does not see packets of media", h.Class, last.Settings.Engine)
	}
	all, beyond, err = m.Series(ctx)
	names := map[tunnel.PublicKey]string{}
	for _, p := range last.Peers {
		names[p.PublicKey] = p.Site
	}
	for i := range all {
		all[i].SiteName = names[all[i].Site]
	}
	return all, beyond, err
}
