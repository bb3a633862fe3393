package realtime

import (
	"slices"
	"time"
)

// Timers: what the paper asks for in section 6 is looked at ten times a second, from the times that forwarding threads leave
// behind. So no packet sets a timer.

func (e *Engine) watchTimers() {
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
			e.lookLocked(p, now)
		}
		e.wipeRetiredLocked()
		if e.moved.Swap(false) {
			e.tellEndpointsLocked()
		}
		e.mu.Unlock()
		if e.out.waiting.Load() {
			e.out.ring() // what waits for a session does so for a bounded time
		}
	}
}

// lookLocked does what is due for a peer.
func (e *Engine) lookLocked(p *peer, now int64) {
	since := func(at int64) time.Duration { return time.Duration(now - at) }
	e.takeConfirmedLocked(p)
	p.currentIsActive()
	if p.wanted.Load() {
		e.wantLocked(p)
	}
	s := p.current.Load()
	sent, heard := p.sentAt.Load(), p.heardAt.Load()

	// 6.4: the handshake is tried again, and given up after 90 s.
	if p.pending != nil && now >= p.retryAt && !p.answering(now) {
		if s.usable(now) && s.created > p.initiated {
			// The peer's own initiation has made a session meanwhile: there is nothing left to try again for.
			e.dropPendingLocked(p)
			p.attempts = 0
		} else if p.attempts++; p.attempts >= maxAttempts {
			e.dropPendingLocked(p)
			p.attempts = 0
			p.wanted.Store(false) // until another packet asks
			e.log.Debug("no answer to handshakes: given up until there is something to send", "peer", p.key)
		} else {
			e.unpin(p)
			p.initiated = 0
			e.initiateLocked(p)
		}
	}
	if s.usable(now) && !p.answering(now) {
		switch {
		// 6.2: who initiated makes a new session when it sends on an old one …
		case s.initiator && s.age(p.usedAt.Load()) > rekeyAfterTime && p.pending == nil:
			e.initiateLocked(p)
		// … and when it hears from its peer so late that silence would let the session end.
		case s.initiator && s.age(heard) > rekeyOnReceive && p.pending == nil && !p.pressed:
			p.pressed = true
			e.initiateLocked(p)
		case s.nonce.Load() > rekeyAfterMessages && p.pending == nil:
			e.initiateLocked(p)
		}
	}
	// 6.5: nothing authentic came since data was sent: the session may be gone at the other end.
	if at := p.unanswered.Load(); at != 0 && since(at) > keepaliveTimeout+rekeyTimeout && p.pending == nil && !p.answering(now) {
		p.unanswered.Store(0)
		e.unpin(p)
		e.initiateLocked(p)
	}
	// 6.5: data came and nothing went back: an empty message says that we are here.
	if at := p.owed.Load(); at != 0 && since(at) >= keepaliveTimeout {
		if s.usable(now) {
			e.keepaliveLocked(p, s)
		} else {
			p.owed.Store(0)
		}
	}
	// Persistent keepalive (wg(8)): it also begins a session.
	if p.keepalive > 0 && since(max(sent, heard, p.initiated)) >= p.keepalive {
		if s.usable(now) {
			e.keepaliveLocked(p, s)
		} else if p.pending == nil {
			e.initiateLocked(p)
		}
	}
	// 6.3: keys of sessions that are over are wiped after three times their life.
	if p.derived != 0 && since(p.derived) > zeroAfter {
		e.endSessionsLocked(p)
		p.derived = 0
	}
	// An old session stays for what is still on its way, not longer than its life.
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

// unpin lets the kernel choose the source address again, in case it is the cause of the silence.
func (e *Engine) unpin(p *peer) {
	if to := p.endpoint.Load(); to != nil {
		p.endpoint.CompareAndSwap(to, to.unpinned())
	}
}

// endSessionsLocked takes all of a peer's sessions and its handshake out of use.
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
