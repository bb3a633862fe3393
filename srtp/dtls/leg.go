package dtls

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"ringway/srtp/suite"
)

// leg is one port's state. Endpoint's mutex guards all of this file.
type leg struct {
	id      Leg
	closed  bool
	offered bool // an offer of ours has no answer yet
	suites  []suite.Suite

	current    *association // nil: none was agreed yet
	handshakes []*handshake // the oldest first

	signalled, others bucket // ClientHellos of the signalled address, and of all others
}

type state uint8

const (
	waiting state = iota
	established
	ended
)

// association is what was agreed.
type association struct {
	number    uint64
	agreement Agreement
	state     state
	reason    error // of the last handshake that failed
	cancel    func()
}

func (a *association) alive() bool { return a.state != ended }

// listening says whether a ClientHello may begin a handshake.
func (l *leg) listening() bool {
	return l.offered || l.current != nil && l.current.state == waiting && l.current.agreement.Role == Server
}

// allowed are the suites of the association that is being made.
func (l *leg) allowed() []suite.Suite {
	if l.offered {
		return l.suites
	}
	return l.current.agreement.Suites
}

// expects says whether signalling has named the address.
func (l *leg) expects(from netip.AddrPort) bool {
	return l.current != nil && l.current.agreement.Remote == from
}

// of returns the handshake that a datagram from there belongs to, if it does not begin with a ClientHello: the last one
// whose peer has shown that it receives what we send. Without one it may be the rest of a ClientHello in fragments.
func (l *leg) of(from netip.AddrPort) *handshake {
	var unproven *handshake
	for _, h := range slices.Backward(l.handshakes) {
		switch {
		case h.remote != from:
		case h.proven || h.role == Client:
			return h
		case unproven == nil:
			unproven = h
		}
	}
	return unproven
}

// begunBy returns the handshake that this client has begun with that ClientHello.
func (l *leg) begunBy(from netip.AddrPort, random [32]byte) *handshake {
	for _, h := range slices.Backward(l.handshakes) {
		if h.remote == from && h.role == Server && h.random == random {
			return h
		}
	}
	return nil
}

// dispatch gives a datagram to its handshake, or begins one.
func (e *Endpoint) dispatch(d *datagram) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.legs[d.leg]
	if l == nil {
		e.counters.UnknownLeg++
		return
	}
	s := sift(e.scratch[:], d.b[:d.n])
	e.counters.Unauthenticated += uint64(s.dropped)
	h := l.of(d.from)
	if h != nil && s.alert >= 0 {
		e.alertedLocked(h, s.alert)
	}
	if len(s.records) == 0 {
		return
	}
	hello, isHello := clientHello(s.records)
	if isHello {
		h = l.begunBy(d.from, hello.random)
	}
	switch {
	case isHello && h == nil:
		e.acceptLocked(l, d.from, hello, s.records)
	case h == nil:
		e.counters.Unexpected++
	case isHello && !h.proven && len(hello.cookie) > 0 && string(hello.cookie) != string(h.cookie):
		// The library would end the handshake. A wrong cookie is to be taken as none (RFC 6347 section 4.2.1), and one
		// without was answered already.
		e.counters.WrongCookie++
	case h.done && !h.late.take(time.Now(), lateRate, lateBurst):
		e.counters.Late++
	case !h.deliver(s.records):
		e.counters.QueueFull++
	}
}

// acceptLocked begins a handshake as a server, if all bounds allow it.
func (e *Endpoint) acceptLocked(l *leg, from netip.AddrPort, first hello, records []byte) {
	// A hello with a cookie belongs to a handshake that is gone: the library cannot begin there.
	if !l.listening() || first.message != 0 || len(first.cookie) > 0 {
		e.counters.Unexpected++
		return
	}
	now := time.Now()
	others := &l.others
	if l.expects(from) {
		others = &l.signalled
	}
	// A leg's own limit is first, or what floods one leg would use up what is for all.
	switch {
	case !others.take(now, legRate, legBurst):
		e.counters.LegLimited++
		return
	case !e.sources.take(from.Addr(), now):
		e.counters.SourceLimited++
		return
	case !e.makeRoomLocked(l, from) || e.unproven >= maxUnproven:
		e.counters.Full++
		return
	case !e.total.take(now, handshakeRate, handshakeBurst):
		e.counters.RateLimited++ // the peer repeats its hello
		return
	}
	select {
	case e.slots <- struct{}{}:
	default:
		e.counters.Full++
		return
	}
	h := e.newHandshakeLocked(l, Server, from, l.allowed())
	h.random = first.random
	e.unproven++
	h.deliver(records)
	e.running.Go(func() { _ = e.perform(h, establishTime) })
}

// makeRoomLocked drops a handshake where a new one would be too many: the older of two with the same address that
// have not proven it (the peer has started again), or the oldest unproven one of an address that nobody has named.
// The newer of the two stays, so that one forged hello does not end what the peer has begun.
func (e *Endpoint) makeRoomLocked(l *leg, from netip.AddrPort) bool {
	unproven := func(h *handshake) bool { return h.role == Server && !h.done && !h.proven }
	var same []*handshake
	for _, h := range l.handshakes {
		if unproven(h) && h.remote == from {
			same = append(same, h)
		}
	}
	if len(same) >= maxOfAddress {
		e.dropLocked(l, func(h *handshake) bool { return h == same[0] })
	}
	if len(l.handshakes) < maxOfLeg {
		return true
	}
	i := slices.IndexFunc(l.handshakes, func(h *handshake) bool { return unproven(h) && !l.expects(h.remote) })
	if i < 0 {
		return false
	}
	oldest := l.handshakes[i]
	e.dropLocked(l, func(h *handshake) bool { return h == oldest })
	return true
}

// beginLocked replaces the leg's association.
func (e *Endpoint) beginLocked(l *leg, agreement Agreement) {
	if l.current != nil {
		l.current.cancel()
	}
	e.number++
	a := &association{number: e.number, agreement: agreement}
	ctx, cancel := context.WithTimeout(e.ctx, establishTime)
	a.cancel = cancel
	l.current = a
	e.dropLocked(l, func(h *handshake) bool { return !h.taken && h.role != agreement.Role })
	e.running.Go(func() {
		<-ctx.Done()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.failLocked(l, a, ErrTimeout)
	})
	if agreement.Role == Client {
		e.running.Go(func() { e.dial(ctx, l, a) })
		return
	}
	e.settleLocked(l)
}

// settleLocked looks whether a complete handshake is the one that was agreed.
func (e *Endpoint) settleLocked(l *leg) {
	a := l.current
	if l.closed || a == nil || a.state != waiting {
		return // it is held
	}
	for _, h := range slices.Clone(l.handshakes) {
		if !h.done || h.taken || h.role != a.agreement.Role {
			continue
		}
		if err := h.suits(a.agreement); err != nil {
			if !l.offered { // the answer may announce it
				e.rejectLocked(l, h, err)
			}
			continue
		}
		a.state, h.taken = established, true
		a.cancel()
		e.dropLocked(l, func(other *handshake) bool { return other != h })
		e.counters.Established++
		e.emitLocked(Event{Leg: l.id, Association: a.number, Keys: h.keys, Remote: h.remote})
		h.keys = nil // the receiver's
		return
	}
}

// rejectLocked drops a handshake that is not what was agreed. Where it came from the signalled address, nobody else
// will come: the association fails. Other addresses may be a stranger's.
func (e *Endpoint) rejectLocked(l *leg, h *handshake, reason error) {
	if !slices.Contains(l.handshakes, h) {
		return // dropped already: that is why it failed
	}
	e.counters.Rejected++
	e.dropLocked(l, func(other *handshake) bool { return other == h })
	a := l.current
	if a == nil || a.state != waiting || a.agreement.Role != h.role {
		return
	}
	a.reason = reason
	final := errors.Is(reason, ErrFingerprint) || errors.Is(reason, ErrProfile)
	if h.role == Server && final && l.expects(h.remote) {
		e.failLocked(l, a, reason)
	}
}

// failLocked ends an association that was not established.
func (e *Endpoint) failLocked(l *leg, a *association, reason error) {
	if l.closed || l.current != a || a.state != waiting {
		return
	}
	if a.reason != nil {
		reason = a.reason
	}
	a.state = ended
	a.cancel()
	e.dropLocked(l, func(h *handshake) bool { return !h.taken })
	e.counters.Failed++
	e.emitLocked(Event{Leg: l.id, Association: a.number, Remote: a.agreement.Remote, Err: reason})
}

// dropLocked ends handshakes and forgets them.
func (e *Endpoint) dropLocked(l *leg, which func(*handshake) bool) {
	l.handshakes = slices.DeleteFunc(l.handshakes, func(h *handshake) bool {
		if !which(h) {
			return false
		}
		e.forgetLocked(h)
		return true
	})
}

// forgetLocked ends a handshake. What it may still have to say, an alert, it may.
func (e *Endpoint) forgetLocked(h *handshake) {
	if h.done {
		h.pipe.mute()
	}
	h.cancel(nil)
	e.provenLocked(h)
	if h.keys != nil {
		h.keys.Wipe()
		h.keys = nil
	}
}

// close ends the leg.
func (e *Endpoint) close(l *leg) {
	for _, h := range l.handshakes {
		h.pipe.mute()
	}
	e.dropLocked(l, func(*handshake) bool { return true })
	l.closed = true
	if l.current != nil {
		l.current.cancel()
	}
	delete(e.legs, l.id)
}
