package realtime

import (
	"slices"
	"time"
)

// Timers: what the paper asks for in section 6. They are checked ten times a second, against the times that
// forwarding threads leave behind, so that no packet sets a timer.

func (e *Engine) runTimers() {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-e.closed:
			return
		case <-t.C:
		}
		e.mu.Lock()
		now := e.now()
		for _, p := range e.peers {
			e.checkTimersLocked(p, now)
			e.followPathsLocked(p, now)
		}
		e.setPacesLocked(now)
		e.wipeRetiredLocked()
		if e.moved.Swap(false) {
			e.publishEndpointsLocked()
		}
		e.mu.Unlock()
		if e.out.hasStaged.Load() {
			e.out.Wake() // packets wait for a session for a bounded time only
		}
	}
}

// checkTimersLocked does what is due for a peer.
func (e *Engine) checkTimersLocked(p *peer, now int64) {
	e.takeConfirmedLocked(p)
	p.currentIsActive()
	if p.wanted.Load() {
		e.requestSessionLocked(p)
	}
	s := p.current.Load()
	sent, received := p.sentAt.Load(), p.receivedAt.Load()

	e.retryHandshakeLocked(p, s, now)
	e.rekeyLocked(p, s, received, now)
	e.checkSilenceLocked(p, now)
	e.sendKeepaliveLocked(p, s, max(sent, received, p.initiated), now)
	e.expireSessionsLocked(p, now)
}

func elapsed(now, at int64) time.Duration { return time.Duration(now - at) }

// retryHandshakeLocked repeats a handshake that was not answered, and gives up after 90 s (section 6.4).
func (e *Engine) retryHandshakeLocked(p *peer, s *session, now int64) {
	if p.pending == nil || now < p.retryAt || p.answering(now) {
		return
	}
	if s.usable(now) && s.created > p.initiated { // the peer's own initiation has made a session since
		e.dropPendingLocked(p)
		p.attempts = 0
		return
	}
	if p.attempts++; p.attempts >= maxAttempts {
		e.dropPendingLocked(p)
		p.attempts = 0
		p.wanted.Store(false) // until another packet requests a session
		e.log.Debug("no answer to handshakes, will retry when there is something to send", "peer", p.key)
		return
	}
	if !e.tryNextLocked(p) {
		e.forgetSource(p)
	}
	p.initiated = 0
	e.initiateLocked(p)
}

// rekeyLocked makes a new session in time (section 6.2).
func (e *Engine) rekeyLocked(p *peer, s *session, received, now int64) {
	if !s.usable(now) || p.pending != nil || p.answering(now) {
		return
	}
	switch {
	// The initiator does so when it sends in an old session,
	case s.initiator && s.age(p.usedAt.Load()) > rekeyAfterTime:
		e.initiateLocked(p)
	// and when it receives so late that silence would let the session end.
	case s.initiator && s.age(received) > rekeyOnReceive && !p.rekeyRequested:
		p.rekeyRequested = true
		e.initiateLocked(p)
	case s.nonce.Load() > rekeyAfterMessages:
		e.initiateLocked(p)
	}
}

// checkSilenceLocked makes a new session if nothing authentic came since data was sent: the other end may
// have lost this one (section 6.5).
func (e *Engine) checkSilenceLocked(p *peer, now int64) {
	at := p.unanswered.Load()
	if at == 0 || elapsed(now, at) <= keepaliveTimeout+rekeyTimeout || p.pending != nil || p.answering(now) {
		return
	}
	p.unanswered.Store(0)
	e.forgetSource(p)
	e.initiateLocked(p)
}

// sendKeepaliveLocked sends an empty message if data came and nothing was sent back (section 6.5), and at the
// interval of the persistent keepalive (wg(8)), which also begins a session. last is when anything was sent,
// received or initiated.
func (e *Engine) sendKeepaliveLocked(p *peer, s *session, last, now int64) {
	if at := p.replyDue.Load(); at != 0 && elapsed(now, at) >= keepaliveTimeout {
		if s.usable(now) {
			e.keepaliveLocked(p, s)
		} else {
			p.replyDue.Store(0)
		}
	}
	if p.keepalive > 0 && elapsed(now, last) >= p.keepalive {
		if s.usable(now) {
			e.keepaliveLocked(p, s)
		} else if p.pending == nil {
			e.initiateLocked(p)
		}
	}
}

// expireSessionsLocked wipes the keys of sessions that are over after three times their life (section 6.3).
// An old session stays for what is still on its way, but not longer than its life.
func (e *Engine) expireSessionsLocked(p *peer, now int64) {
	if p.keysSince != 0 && elapsed(now, p.keysSince) > zeroAfter {
		e.endSessionsLocked(p)
		p.keysSince = 0
	}
	if p.previous != nil && p.previous.age(now) > rejectAfterTime {
		e.retireLocked(p.previous)
		p.previous = nil
	}
	p.lingering = slices.DeleteFunc(p.lingering, func(l lingering) bool {
		over := now > l.until || l.s.age(now) > rejectAfterTime
		if over {
			e.retireLocked(l.s)
		}
		return over
	})
}

// forgetSource has the kernel choose the source address again, in case that is the cause of the silence.
func (e *Engine) forgetSource(p *peer) {
	if to := p.endpoint.Load(); to != nil {
		p.endpoint.CompareAndSwap(to, to.withoutSource())
	}
}

// endSessionsLocked takes all of a peer's sessions, and its handshake, out of use.
func (e *Engine) endSessionsLocked(p *peer) {
	e.dropPendingLocked(p)
	e.retireLocked(p.active)
	e.retireLocked(p.previous)
	e.retireLocked(p.next)
	for _, l := range p.lingering {
		e.retireLocked(l.s)
	}
	p.active, p.previous, p.next, p.lingering = nil, nil, nil, nil
}
