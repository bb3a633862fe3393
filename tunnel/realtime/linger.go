package realtime

import "slices"

// lingering is a session that has lost its place: messages in it may be on their way.
//
// Section 6.3 keeps three sessions, the current one, the one before and the next, for that reason; the one before those is wiped. That is
// enough while handshakes are further apart than a message takes. It is not when two come close together, above all when both
// ends begin one at the same time: each then has a new session, answered and of its own, when its peer still sends in the old
// one, and what is on its way would be lost, of a call for as long as one way takes. Which places a session has is nobody's business but
// ours, and lingerFor is far from the end of its life (section 6.2). The kernel's and wireguard-go's WireGuard do lose them.
type lingering struct {
	s     *session
	until int64
	// late: the peer began another session before we had anything in this one, though it sent in it: when that comes, this is the
	// session to send with, since a peer with three places has given up the one before.
	late bool
}

// lingerLocked has a session that lost its place go on being received in for a while; nil is none.
func (e *Engine) lingerLocked(p *peer, s *session) {
	now := e.now()
	if s == nil || s.retired.Load() {
		return
	}
	if s.age(now) >= rejectAfterTime {
		e.retireLocked(s)
		return
	}
	if len(p.lingering) == lingerMax {
		e.retireLocked(p.lingering[0].s)
		p.lingering = slices.Delete(p.lingering, 0, 1)
	}
	p.lingering = append(p.lingering, lingering{s, now + int64(lingerFor), !s.confirmed.Load()})
}

// lateConfirmed is the lingering session that the peer has used for the first time; it does not linger any more.
func (p *peer) lateConfirmed() (s *session) {
	for i, l := range p.lingering {
		if l.late && l.s.confirmed.Load() {
			p.settleLingering(i)
			p.lingering = slices.Delete(p.lingering, i, i+1)
			return l.s
		}
	}
	return nil
}

// settleLingering: a newer session is active, so that nothing that still comes in the n oldest moves anybody to them.
func (p *peer) settleLingering(n int) {
	for i := range n {
		p.lingering[i].late = false
		p.lingering[i].s.confirmed.Store(true)
	}
}
