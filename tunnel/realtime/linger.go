package realtime

import "slices"

// lingering is a session that has lost its place, and in which messages may still arrive.
//
// Section 6.3 keeps three sessions for that: the current one, the previous and the next; the one before those
// is wiped. That is enough while handshakes are further apart than a message takes. It is not when two come
// close together, above all when both ends begin one at the same time: each then has two new sessions, one
// that it answered and one of its own, while its peer still sends in the old one, and what is on its way
// would be lost, for a call as much as the one-way delay. Which sessions we keep is a local matter, and
// lingerFor is far from the end of a session's life (section 6.2). The kernel's and wireguard-go's WireGuard
// lose those packets.
type lingering struct {
	s     *session
	until int64
	// late: the peer began another session before we received anything in this one, though it sent in it. When
	// that arrives, this is the session to send with, since a peer with three places has given up the one
	// before.
	late bool
}

// lingerLocked has a session that lost its place be received in for a while; nil is none.
func (e *Engine) lingerLocked(p *peer, s *session) {
	now := e.now()
	if s == nil || s.retired.Load() {
		return
	}
	if s.age(now) >= rejectAfterTime {
		e.retireLocked(s)
		return
	}
	if len(p.lingering) == maxLingering {
		e.retireLocked(p.lingering[0].s)
		p.lingering = slices.Delete(p.lingering, 0, 1)
	}
	p.lingering = append(p.lingering, lingering{s, now + int64(lingerFor), !s.confirmed.Load()})
}

// takeLateConfirmed returns the lingering session that the peer has now used for the first time; it no longer
// lingers.
func (p *peer) takeLateConfirmed() (s *session) {
	for i, l := range p.lingering {
		if l.late && l.s.confirmed.Load() {
			p.confirmLingering(i)
			p.lingering = slices.Delete(p.lingering, i, i+1)
			return l.s
		}
	}
	return nil
}

// confirmLingering has nothing that still arrives in the n oldest make them the session to send with: a newer
// one is active.
func (p *peer) confirmLingering(n int) {
	for i := range n {
		p.lingering[i].late = false
		p.lingering[i].s.confirmed.Store(true)
	}
}
