package realtime

// Taking a session out of use while threads forward: its pointers are taken away, it is marked, and when each thread has slept or
// gone a round since, nobody can be using its keys, and they are wiped.

type retired struct {
	s      *session
	rounds []uint64 // of all threads
}

// retireLocked takes a session out of use; nil is none.
func (e *Engine) retireLocked(s *session) {
	if s == nil || s.retired.Swap(true) {
		return
	}
	e.indices.remove(s.local)
	s.peer.current.CompareAndSwap(s, nil)
	e.retired = append(e.retired, retired{s, e.rounds(nil)})
}

// wipeRetiredLocked wipes what no thread can hold any more.
func (e *Engine) wipeRetiredLocked() {
	if len(e.retired) == 0 {
		return
	}
	now := e.rounds(nil)
	keep := e.retired[:0]
	for _, r := range e.retired {
		if allPassed(r.rounds, now) {
			wipe(r.s.send)
			wipe(r.s.receive)
			continue
		}
		keep = append(keep, r)
	}
	clear(e.retired[len(keep):])
	e.retired = keep
}

// rounds adds to sum the rounds of all threads.
func (e *Engine) rounds(sum []uint64) []uint64 { return e.in.rounds(e.out.rounds(sum)) }

func allPassed(then, now []uint64) bool {
	for i := range then {
		if !passed(then[i], now[i]) {
			return false
		}
	}
	return true
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
