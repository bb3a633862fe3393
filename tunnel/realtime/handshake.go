package realtime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"
	"unsafe"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// The control side's answers to what forwarding threads knock for: handshake messages in the ring, a packet without a session,
// a session that was taken into use.

// Load above which initiations have to prove their address with a cookie (section 5.3): messages that wait, or handshakes
// a second, each of which is a quarter of a millisecond of Curve25519.
const (
	loadWaiting = 32
	loadRate    = 200
)

func (e *Engine) answerKnocks() {
	var b [8]byte
	for {
		if _, err := e.knocks.Read(b[:]); err != nil {
			return // closed
		}
		e.answer()
	}
}

// answer does everything that there is to do.
func (e *Engine) answer() {
	var m message
	for {
		e.mu.Lock()
		for range 16 { // then others get the mutex
			if e.waiting() > loadWaiting {
				e.loadUntil = e.now() + int64(underLoadAfter)
			}
			if !e.ring.get(&m) && !e.crowd.get(&m) {
				break
			}
			e.handshakeLocked(&m)
		}
		for _, p := range e.peers {
			if p.fresh.Load() && p.fresh.Swap(false) {
				e.confirmedLocked(p)
			}
			if p.wanted.Load() {
				e.wantLocked(p)
			}
		}
		e.mu.Unlock()
		if e.waiting() == 0 {
			return
		}
	}
}

// waiting counts the handshake messages that nobody has looked at.
func (e *Engine) waiting() int { return e.ring.waiting() + e.crowd.waiting() }

// wantLocked sees to a session for a packet that waits. The wish stays until there is one, or the peer is given up.
func (e *Engine) wantLocked(p *peer) {
	if p.current.Load().usable(e.now()) {
		p.wanted.Store(false)
		e.out.ring() // it came meanwhile
		return
	}
	if p.pending == nil {
		p.attempts = 0
		e.initiateLocked(p)
	}
}

// initiateLocked sends an initiation, unless one was sent a moment ago (section 6.4), or the peer's own is about to make a session.
func (e *Engine) initiateLocked(p *peer) {
	now := e.now()
	if !e.self.set || p.static == [32]byte{} || p.endpoint.Load() == nil {
		return
	}
	if p.initiated != 0 && time.Duration(now-p.initiated) < rekeyTimeout || p.answering(now) {
		return
	}
	e.dropPendingLocked(p)
	ent := &entry{peer: p}
	if err := e.indices.add(ent); err != nil {
		e.log.Warn("no handshake", "peer", p.key, "reason", err)
		return
	}
	var msg [initiationSize]byte
	i, err := e.self.initiate(&p.key, p.static, ent.index, e.stamp(), &msg)
	if err != nil {
		e.indices.remove(ent.index)
		e.log.Warn("no handshake", "peer", p.key, "reason", err)
		return
	}
	p.cookies.AddMacs(msg[:])
	p.pending, p.initiated = i, now
	p.retryAt = now + int64(rekeyTimeout) + rand.Int64N(int64(jitterMax))
	e.sendLocked(p, msg[:])
}

// answering says whether the peer has begun a session that it has not used yet, so that we still send in the one before. A peer with
// three places for sessions (section 6.3) has moved that one to its last, and an initiation would take it from there: what we have
// sent in it would be lost until we use another. So it has to wait, as the reference implementations have it wait after each answer;
// not longer than the peer takes to begin again, if our answer got lost, and not where there is nothing to send in.
func (p *peer) answering(now int64) bool {
	return p.next != nil && p.next.age(now) < rekeyTimeout && p.active.usable(now)
}

func (e *Engine) dropPendingLocked(p *peer) {
	if p.pending != nil {
		e.indices.remove(p.pending.index)
		p.pending.wipe()
		p.pending = nil
	}
}

// sendLocked sends a handshake message or a keepalive to a peer.
func (e *Engine) sendLocked(p *peer, b []byte) {
	to := p.endpoint.Load()
	if to == nil {
		return
	}
	errno := e.transmit(to, b)
	if to.controls > 0 && staleSource(errno) { // the source address went
		to = to.unpinned()
		p.endpoint.Store(to)
		errno = e.transmit(to, b)
	}
	if errno != 0 {
		e.drops.add(sendReason(errno))
	} else {
		p.txBytes.Add(uint64(len(b)))
	}
	// Also what could not be sent: it is not tried ten times a second.
	p.sent(e.now(), false, binary.LittleEndian.Uint32(b) == typeTransport)
}

// transmit sends one message; the memory is the call's own, since threads send meanwhile.
func (e *Engine) transmit(to *endpoint, b []byte) unix.Errno {
	fd := e.udp[0]
	if to.raw.V6() {
		fd = e.udp[1]
	}
	if fd < 0 {
		return unix.ENETUNREACH
	}
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	h := unix.Msghdr{Name: &to.raw.B[0], Namelen: to.raw.N, Iov: &iov}
	h.SetIovlen(1)
	if to.controls > 0 {
		h.Control = &to.control[0]
		h.SetControllen(to.controls)
	}
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// handshakeLocked takes one message whose first MAC is right.
func (e *Engine) handshakeLocked(m *message) {
	b := m.b[:m.n]
	if !e.self.set || e.cookies == nil {
		return
	}
	if m.n == cookieSize {
		e.cookieLocked(b)
		return
	}
	if !e.budget.take(e.now(), loadRate, loadRate) {
		e.loadUntil = e.now() + int64(underLoadAfter)
	}
	if e.now() < e.loadUntil {
		if did, err := e.cookies.renew(e.now()); err != nil {
			e.drops.add(dropHandshakeRate)
			return
		} else if did {
			e.settleHomesLocked()
		}
		if !e.cookies.check(b, &m.from) {
			e.drops.add(dropCookie)
			e.askForCookieLocked(m, b)
			return
		}
		if !e.limiter.Allow(m.from.Bare()) {
			e.drops.add(dropHandshakeRate)
			return
		}
	}
	if m.n == initiationSize {
		e.initiationLocked(m, b)
	} else {
		e.responseLocked(m, b)
	}
}

// askForCookieLocked answers with a cookie: shorter than what it answers.
func (e *Engine) askForCookieLocked(m *message, b []byte) {
	var out [cookieSize]byte
	if err := e.cookies.reply(b, &m.from, &out); err == nil {
		e.transmit(newEndpoint(m.from, m.src), out[:])
	}
}

// cookieLocked takes a cookie for the peer whom the message was for that it answers.
func (e *Engine) cookieLocked(b []byte) {
	var msg device.MessageCookieReply
	msg.Receiver = binary.LittleEndian.Uint32(b[4:])
	copy(msg.Nonce[:], b[8:])
	copy(msg.Cookie[:], b[8+len(msg.Nonce):])
	found := e.indices.find(msg.Receiver)
	if found == nil {
		e.drops.add(dropHandshake)
		return
	}
	p := found.peer
	if p == nil {
		p = found.session.peer // the answer that made the session asked for too much
	}
	if !p.cookies.ConsumeReply(&msg) {
		e.drops.add(dropHandshake)
	}
}

// initiationLocked answers a peer's initiation (section 5.4.3). A new session is not used to send until the peer has used it. Our own
// initiation, if one is on its way, stays: when two cross, each is answered, and there is a session whichever the peer keeps.
func (e *Engine) initiationLocked(m *message, b []byte) {
	r, err := e.self.read(b)
	if err != nil {
		e.drops.add(dropHandshake)
		return
	}
	defer r.wipe()
	p := e.peers[r.static]
	if p == nil || p.static == [32]byte{} || r.finish(p.static, b) != nil {
		e.drops.add(dropHandshake)
		return
	}
	now := e.now()
	if !r.time.After(p.lastStamp) || p.lastRead != 0 && time.Duration(now-p.lastRead) < initiationsEvery {
		e.drops.add(dropHandshake) // replayed, or a flood of a peer's own
		return
	}
	ent := &entry{}
	if err := e.indices.add(ent); err != nil {
		return
	}
	var msg [responseSize]byte
	send, receive, err := r.respond(&p.psk, ent.index, &msg)
	if err != nil {
		e.indices.remove(ent.index)
		return
	}
	e.takeConfirmedLocked(p)
	p.lastStamp, p.lastRead = r.time, now
	s := newSession(p, send, receive, ent.index, r.sender, false, now)
	clear(send[:])
	clear(receive[:])
	e.indices.replace(&entry{index: ent.index, session: s})
	e.lingerLocked(p, p.next)
	e.lingerLocked(p, p.previous)
	p.next, p.previous, p.derived = s, nil, now
	p.currentIsActive()
	e.heardLocked(p, m)
	p.cookies.AddMacs(msg[:])
	e.sendLocked(p, msg[:])
}

// heardLocked follows a peer to where an authentic handshake message came from.
func (e *Engine) heardLocked(p *peer, m *message) {
	p.heard(e.now(), false)
	p.rxBytes.Add(uint64(m.n))
	if to := p.endpoint.Load(); to == nil || to.raw != m.from || to.src != m.src {
		p.endpoint.Store(newEndpoint(m.from, m.src))
		e.moved.Store(true)
		e.tellEndpointsLocked()
	}
}

// responseLocked takes the answer to our initiation.
func (e *Engine) responseLocked(m *message, b []byte) {
	found := e.indices.find(binary.LittleEndian.Uint32(b[8:]))
	if found == nil || found.peer == nil || found.peer.pending == nil || found.peer.pending.index != found.index {
		e.drops.add(dropHandshake)
		return
	}
	p := found.peer
	send, receive, sender, err := e.self.complete(p.pending, &p.psk, b)
	if err != nil {
		e.drops.add(dropHandshake)
		return
	}
	now := e.now()
	s := newSession(p, send, receive, p.pending.index, sender, true, now)
	clear(send[:])
	clear(receive[:])
	p.pending.wipe()
	p.pending = nil
	e.indices.replace(&entry{index: s.local, session: s})
	e.takeConfirmedLocked(p)
	old := [2]*session{p.previous} // section 6.3: three sessions have a place
	if p.next != nil {
		p.next.confirmed.Store(true) // what still comes in it is taken, and moves nobody to it
		old[1] = p.active
		p.previous, p.next = p.next, nil
	} else {
		p.previous = p.active
	}
	p.active, p.derived = s, now
	p.settleLingering(len(p.lingering))
	e.heardLocked(p, m)
	e.shakenLocked(p)
	// The keepalive confirms the session to the peer before any packet that waits; those already there come with it.
	e.keepaliveLocked(p, s)
	p.current.Store(s)
	for _, s := range old { // not before there is another to send with
		e.lingerLocked(p, s)
	}
	e.out.ring()
}

// confirmedLocked: the peer has used the session that we answered with.
func (e *Engine) confirmedLocked(p *peer) {
	e.takeConfirmedLocked(p)
	p.currentIsActive()
	if e.moved.Swap(false) {
		e.tellEndpointsLocked()
	}
}

func (e *Engine) takeConfirmedLocked(p *peer) {
	before := p.previous
	if p.next != nil && p.next.confirmed.Load() {
		p.previous, p.active, p.next = p.active, p.next, nil
		p.settleLingering(len(p.lingering))
	} else if s := p.lateConfirmed(); s != nil {
		p.previous, p.active = p.active, s
	} else {
		return
	}
	e.lingerLocked(p, before)
	e.shakenLocked(p)
	e.out.ring()
}

// currentIsActive: the inbound thread takes a session into use when the peer has used it, and may do so a moment after the
// control side has decided for another. A session that only the peer initiated would then be sent with until it ends.
func (p *peer) currentIsActive() {
	if p.current.Load() != p.active {
		p.current.Store(p.active)
	}
}

func (e *Engine) shakenLocked(p *peer) {
	p.shaken = time.Now()
	p.attempts, p.pressed = 0, false
	e.log.Debug("handshake", "peer", p.key)
}

// keepaliveLocked sends an empty message in the session.
func (e *Engine) keepaliveLocked(p *peer, s *session) {
	if s == nil || s.retired.Load() {
		return
	}
	var b [keepaliveSize]byte
	var nonce [12]byte
	e.sealMessage(s, &nonce, b[:], 0)
	e.sendLocked(p, b[:])
}

// sealMessage makes a message of the n bytes behind b's header, in place; b has room for the tag. nonce is the caller's memory.
func (e *Engine) sealMessage(s *session, nonce *[12]byte, b []byte, n int) {
	counter := s.nonce.Add(1) - 1
	binary.LittleEndian.PutUint32(b[0:], typeTransport)
	binary.LittleEndian.PutUint32(b[4:], s.remote)
	binary.LittleEndian.PutUint64(b[8:], counter)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	s.send.Seal(b[headerSize:headerSize], nonce[:], b[headerSize:headerSize+n], nil)
}

// newMAC1 is the first MAC's key for messages to us.
func (id *identity) newMAC1() (*mac1, error) {
	h, err := blake2s.New256(nil)
	if err != nil {
		return nil, err
	}
	h.Write([]byte(device.WGLabelMAC1))
	h.Write(id.public[:])
	m, err := blake2s.New128(h.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("key the first MAC: %w", err)
	}
	return &mac1{m}, nil
}
