package calls

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"ringway/sip/relay"
	"ringway/tunnel"
)

// Engine keeps places in voice budgets and counts media, as engine.Holder does.
type Engine interface {
	Reserve(ctx context.Context, wanted ...tunnel.Reservation) ([]tunnel.ReservationStatus, error)
	Unreserve(ctx context.Context, flows ...tunnel.Flow) error
	Reservations(ctx context.Context) ([]tunnel.ReservationStatus, error)
	Keeper() int
	// Series are the series of media that had packets lately, and how many packets were beyond what is counted.
	Series(ctx context.Context) (all []tunnel.SeriesStatus, beyond uint64, err error)
}

const (
	// placesEvery is how often it is looked whether another plane has to be told all places.
	placesEvery = 200 * time.Millisecond
	// engineLimit bounds a request to the engine, engineBatch how many places it has.
	engineLimit = time.Second
	engineBatch = 256
	// maxPlaces bounds the places of calls: more than an engine keeps.
	maxPlaces = 16384
)

// Reasons why a place is not asked for.
const (
	placeInvalid = "invalid"
	placeTooMany = "too_many"
)

// places keeps the engine's places as calls need them. Its table is the truth; the engine follows, in the order of
// the changes.
type places struct {
	engine Engine
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex // guards what follows
	held    map[tunnel.Flow]tunnel.Reservation
	queue   []relay.Place
	refused map[string]uint64 // by the engine, by reason
	keeper  int               // that was told everything
	whole   bool              // a relay has told everything
	failing bool
}

func newPlaces(e Engine, log *slog.Logger) *places {
	return &places{
		engine: e, log: log, wake: make(chan struct{}, 1), held: map[tunnel.Flow]tunnel.Reservation{},
		refused: map[string]uint64{},
	}
}

// change takes what calls need; whole: they need no other places. It does not wait for the engine.
func (p *places) change(changes []relay.Change, whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []relay.Place
	for _, c := range changes {
		list = append(list, c.Places...)
	}
	if whole {
		list = append(p.others(list), list...)
		if !p.whole {
			p.whole, p.keeper = true, 0 // what an earlier daemon had reserved may be over
		}
	}
	for _, x := range list {
		old, there := p.held[x.Reserve.Flow]
		switch {
		case !x.Release && x.Reserve.Check() != nil: // with it, the engine would refuse all others
			p.refused[placeInvalid]++
			continue
		case !x.Release && !there && len(p.held) >= maxPlaces:
			p.refused[placeTooMany]++
			continue
		case x.Release && !there, !x.Release && there && old == x.Reserve && !whole:
			continue
		case x.Release:
			delete(p.held, x.Reserve.Flow)
		default:
			p.held[x.Reserve.Flow] = x.Reserve
		}
		p.queue = append(p.queue, x)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// others are the releases of what is held and not in a list.
func (p *places) others(list []relay.Place) (gone []relay.Place) {
	needed := map[tunnel.Flow]bool{}
	for _, x := range list {
		needed[x.Reserve.Flow] = !x.Release
	}
	for f, r := range p.held {
		if !needed[f] {
			gone = append(gone, relay.Place{Release: true, Reserve: r})
		}
	}
	return gone
}

// run tells the engine until ctx ends.
func (p *places) run(ctx context.Context) {
	tick := time.NewTicker(placesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
		}
		p.tell(ctx)
	}
}

// tell has the engine do what is queued, or hold just what is held if another process keeps the places now.
func (p *places) tell(ctx context.Context) {
	keeper := p.engine.Keeper()
	p.mu.Lock()
	queue, all, whole := p.queue, keeper != p.keeper, p.whole
	p.queue, p.keeper = nil, keeper
	if all {
		queue = nil
		for _, r := range p.held {
			queue = append(queue, relay.Place{Reserve: r})
		}
	}
	p.mu.Unlock()
	if keeper == 0 { // whoever comes is told everything
		return
	}

	var err error
	if all && whole {
		err = p.releaseOthers(ctx)
	}
	for err == nil && len(queue) > 0 {
		n := 1
		for n < min(len(queue), engineBatch) && queue[n].Release == queue[0].Release {
			n++
		}
		err = p.send(ctx, queue[:n])
		queue = queue[n:]
	}
	p.told(ctx, err)
}

// told notes whether the engine did what it was asked for. If not, it is told everything again.
func (p *places) told(ctx context.Context, err error) {
	p.mu.Lock()
	first := err != nil && !p.failing
	p.failing = err != nil
	if err != nil {
		p.keeper = 0
	}
	p.mu.Unlock()
	if first && ctx.Err() == nil {
		p.log.Warn("the engine does not keep the places of calls; will retry", "error", err)
	}
}

// releaseOthers gives back what the engine keeps for calls that are over: an earlier daemon asked for it, or it did
// not hear of their end.
func (p *places) releaseOthers(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	kept, err := p.engine.Reservations(bounded)
	if err != nil {
		return err
	}
	p.mu.Lock()
	var gone []relay.Place
	for _, r := range kept {
		if _, held := p.held[r.Flow]; !held {
			gone = append(gone, relay.Place{Release: true, Reserve: r.Reservation})
		}
	}
	p.mu.Unlock()
	for part := range slices.Chunk(gone, engineBatch) {
		if err := p.send(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// send sends places of one kind.
func (p *places) send(ctx context.Context, list []relay.Place) error {
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	if list[0].Release {
		flows := make([]tunnel.Flow, len(list))
		for i, x := range list {
			flows[i] = x.Reserve.Flow
		}
		return p.engine.Unreserve(ctx, flows...)
	}
	wanted := make([]tunnel.Reservation, len(list))
	for i, x := range list {
		wanted[i] = x.Reserve
	}
	states, err := p.engine.Reserve(ctx, wanted...)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range states {
		if s.State != tunnel.ReservationHeld {
			p.refused[string(s.State)]++
		}
	}
	return err
}

// state is how many places calls have, and how many the engine refused.
func (p *places) state() (held int, refused map[string]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.held), maps.Clone(p.refused)
}
