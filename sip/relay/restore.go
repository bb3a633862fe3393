package relay

import (
	"context"
	"errors"
	"sync"

	"ringway/process"
	"ringway/sip/dialog"
	"ringway/sip/terminate"
)

// What a process knows of calls whose media is relayed has keys, so it is not in the journal, which is a file. The
// process tells it the daemon with the changes that a message makes, and the daemon's Supervisor keeps it in memory,
// and gives it to the next process before the first settings. If both die at once, it is lost: those calls have no
// media until their next offer.

// restoreBatch is how many bytes of calls one request brings.
const restoreBatch = 256 << 10

// keeper has the calls of the process for the next one.
type keeper struct {
	mu    sync.Mutex // guards what follows
	calls map[terminate.Leg][]byte
}

// take keeps what changes bring, and takes it out of them; whole: there is nothing else.
func (k *keeper) take(changes []Change, whole bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if whole {
		for leg, state := range k.calls {
			clear(state)
			delete(k.calls, leg)
		}
	}
	for i := range changes {
		for _, s := range changes[i].saved {
			clear(k.calls[s.Leg])
			switch {
			case s.State == nil:
				delete(k.calls, s.Leg)
			case k.calls == nil:
				k.calls = map[terminate.Leg][]byte{s.Leg: s.State}
			case len(k.calls) < maxLegs || k.calls[s.Leg] != nil:
				k.calls[s.Leg] = s.State
			}
		}
		changes[i].saved = nil
	}
}

// batches are the calls, packed.
func (k *keeper) batches() (all [][]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var some []terminate.Saved
	size := 0
	flush := func() {
		if len(some) > 0 {
			all = append(all, packSaved(make([]byte, 0, size+64*len(some)), some))
		}
		some, size = nil, 0
	}
	for leg, state := range k.calls {
		if n := len(leg.CallID) + len(leg.Tag) + len(state); size+n > restoreBatch {
			flush()
			size = n
		} else {
			size += n
		}
		some = append(some, terminate.Saved{Leg: leg, State: state})
	}
	flush()
	return all
}

// restore gives a process the calls of the one before it.
func (s *Supervisor) restore(ctx context.Context, i *process.Instance) error {
	if i.Hello.Minor < minorMedia {
		return nil
	}
	var failed error
	for _, packed := range s.keeper.batches() {
		if failed == nil {
			failed = i.Ask(ctx, process.Request{Type: typeRestore, Attached: packed, Long: true}, nil)
		}
		clear(packed)
	}
	return failed
}

// handleRestore takes calls of the process before. It comes before the first settings.
func (s *server) handleRestore(_ context.Context, m *process.Message) (process.Reply, error) {
	u := unpacker{rest: m.Attached()}
	all := u.saved()
	clear(m.Attached())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case u.bad || len(u.rest) > 0:
		terminate.WipeSaved(all)
		return process.Reply{}, errors.New("calls that end early, or have no such form")
	case s.relay != nil:
		terminate.WipeSaved(all)
		return process.Reply{}, errors.New("it is too late: the relay runs")
	}
	s.restored = append(s.restored, all...)
	return process.Reply{}, nil
}

// restore takes over what an earlier process knew of calls whose media is relayed. Those whose legs have not been
// loaded are over.
func (c *core) restore(all []terminate.Saved) (failed error) {
	defer terminate.WipeSaved(all)
	c.mu.Lock()
	defer c.mu.Unlock()
	legs := map[terminate.Leg]*dialog.Leg{}
	c.tracker.Legs(func(l *dialog.Leg) { legs[terminate.LegOf(l)] = l })
	for i := range all {
		if l := legs[all[i].Leg]; l != nil {
			failed = errors.Join(failed, c.relayed.Load(l, all[i].State, c.ports.claim))
		}
	}
	c.settleAlone(&dialog.Step{}, Change{})
	return failed
}

// forget overwrites all that is kept.
func (k *keeper) forget() { k.take(nil, true) }
