package realtime

import "ringway/tunnel/turn"

// Taking a session out of use while threads forward: it is marked, and the pointers to it are removed. When
// each thread has slept or gone another round since, no thread can be using its keys, and they are wiped.

type retired struct {
	s      *session
	rounds []uint64 // of all threads, when it was retired
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

// wipeRetiredLocked wipes the keys that no thread can hold any more.
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

// rounds appends the rounds of all threads to sum.
func (e *Engine) rounds(sum []uint64) []uint64 { return e.in.Rounds(e.out.Rounds(sum)) }

func allPassed(then, now []uint64) bool {
	for i := range then {
		if !turn.Passed(then[i], now[i]) {
			return false
		}
	}
	return true
}

// wipeAll wipes everything, when no thread runs any more.
func (e *Engine) wipeAll() {
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
