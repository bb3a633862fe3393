package realtime

// Taking a session out of use while threads forward: its pointers are taken away, it is marked, and when each thread has slept or
// gone a round since, nobody can be using its keys, and they are wiped.

type retired struct {
	s      *session
	rounds [2]uint64
}

// retireLocked takes a session out of use; nil is none.
func (e *Engine) retireLocked(s *session) {
	if s == nil || s.retired.Swap(true) {
		return
	}
	e.indices.remove(s.local)
	s.peer.current.CompareAndSwap(s, nil)
	e.retired = append(e.retired, retired{s, [2]uint64{e.out.round.Load(), e.in.round.Load()}})
}

// wipeRetiredLocked wipes what no thread can hold any more.
func (e *Engine) wipeRetiredLocked() {
	keep := e.retired[:0]
	for _, r := range e.retired {
		if passed(r.rounds[0], e.out.round.Load()) && passed(r.rounds[1], e.in.round.Load()) {
			wipe(r.s.send)
			wipe(r.s.receive)
			continue
		}
		keep = append(keep, r)
	}
	clear(e.retired[len(keep):])
	e.retired = keep
}

// passed says whether a thread whose round was then cannot hold what it could hold then: it slept, or it has gone on.
func passed(then, now uint64) bool { return then%2 == 0 || now != then }

// forget wipes everything, when no thread runs any more.
func (e *Engine) forget() {
	for _, p := range e.peers {
		e.removePeerLocked(p)
	}
	for _, r := range e.retired {
		wipe(r.s.send)
		wipe(r.s.receive)
	}
	e.retired = nil
	clear(e.self.private[:])
	e.self = identity{}
	e.cookies = nil
}
