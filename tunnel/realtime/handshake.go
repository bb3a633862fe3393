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

	"ringway/tunnel/datagram"
)

// What forwarding threads notify the control side of: handshake messages in the rings, a packet without a
// session, a session that was taken into use, a request that was served.

// Load above which initiations must prove their address with a cookie (section 5.3): messages that nobody has
// read yet, or handshakes a second, each of which costs a quarter of a millisecond of Curve25519.
const (
	loadUnread = 32
	loadRate   = 200
)

func (e *Engine) handleNotifications() {
	var b [8]byte
	for {
		if _, err := e.notifications.Read(b[:]); err != nil {
			return // closed
		}
		e.finishRequest()
		e.hearReports()
		e.hearPaths()
		e.handlePending()
	}
}

// handlePending does everything that there is to do.
func (e *Engine) handlePending() {
	var m message
	for {
		e.mu.Lock()
		for range 16 { // then others may have the mutex
			if e.unreadMessages() > loadUnread {
				e.loadUntil = e.now() + int64(underLoadAfter)
			}
			if !e.fromPeers.get(&m) && !e.fromOthers.get(&m) {
				break
			}
			e.handshakeLocked(&m)
		}
		for _, p := range e.peers {
			if p.fresh.Load() && p.fresh.Swap(false) {
				e.confirmedLocked(p)
			}
			if p.wanted.Load() {
				e.requestSessionLocked(p)
			}
		}
		e.mu.Unlock()
		if e.unreadMessages() == 0 {
			return
		}
	}
}

// unreadMessages counts the handshake messages that nobody has read.
func (e *Engine) unreadMessages() int { return e.fromPeers.len() + e.fromOthers.len() }

// requestSessionLocked begins a handshake for a packet that waits. The request stays until there is a
// session, or the peer does not answer.
func (e *Engine) requestSessionLocked(p *peer) {
	if p.current.Load().usable(e.now()) {
		p.wanted.Store(false)
		e.out.Wake() // there is one by now
		return
	}
	if p.pending == nil {
		p.attempts = 0
		e.initiateLocked(p)
	}
}

// initiateLocked sends an initiation, unless one was just sent (section 6.4), or the peer's own is about to
// make a session.
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
		e.log.Warn("handshake initiation failed", "peer", p.key, "reason", err)
		return
	}
	var msg [initiationSize]byte
	i, err := e.self.initiate(&p.key, p.static, ent.index, e.stamp(), &msg)
	if err != nil {
		e.indices.remove(ent.index)
		e.log.Warn("handshake initiation failed", "peer", p.key, "reason", err)
		return
	}
	p.cookies.AddMacs(msg[:])
	p.pending, p.initiated = i, now
	p.retryAt = now + int64(rekeyTimeout) + rand.Int64N(int64(maxJitter))
	e.sendLocked(p, msg[:])
}

// answering reports whether the peer has begun a session that it has not used yet, so that we still send in
// the one before. A peer with three places for sessions (section 6.3) has moved that one to its last place,
// and an initiation would push it out: what we have sent in it would be lost until we use another. So our
// initiation has to wait, as the reference implementations have it wait after each answer. It waits no longer
// than the peer takes to begin again, if our answer got lost, and not where there is nothing to send in.
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
func (e *Engine) sendLocked(p *peer, b []byte) { e.sendAsLocked(p, b, e.outer.Load().socket) }

// sendAsLocked is sendLocked with a TOS octet.
func (e *Engine) sendAsLocked(p *peer, b []byte, tos uint8) {
	to := p.endpoint.Load()
	if to == nil {
		return
	}
	errno := e.transmit(to, b, tos)
	if to.controls > 0 && datagram.IsStaleSource(errno) { // the source address is no longer ours
		to = to.withoutSource()
		p.endpoint.Store(to)
		errno = e.transmit(to, b, tos)
	}
	if errno != 0 {
		e.drops.sendError(errno, 1)
	} else {
		p.txBytes.Add(uint64(len(b)))
	}
	// This counts what could not be sent, too, or it would be tried ten times a second.
	p.noteSent(e.now(), false, binary.LittleEndian.Uint32(b) == typeTransport)
}

// transmit sends one message. Its memory is its own, since threads send at the same time.
func (e *Engine) transmit(to *endpoint, b []byte, tos uint8) unix.Errno {
	return e.transmitWith(to, b, tos, false)
}

// transmitWith is transmit, of a packet of IPv6 that must not be divided if it is whole.
func (e *Engine) transmitWith(to *endpoint, b []byte, tos uint8, whole bool) unix.Errno {
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
	control, n := to.control, to.controls
	if tos != e.outer.Load().socket {
		n = datagram.PutTOS(control[:], n, to.raw.V6(), tos)
	}
	if whole {
		n = datagram.PutWhole(control[:], n)
	}
	if n > 0 {
		h.Control = &control[0]
		h.SetControllen(n)
	}
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// handshakeLocked handles one message whose first MAC is right.
func (e *Engine) handshakeLocked(m *message) {
	b := m.b[:m.n]
	if !e.self.set || e.cookies == nil {
		return
	}
	if m.n == cookieSize {
		e.cookieLocked(b)
		return
	}
	if !e.handshakes.take(e.now(), loadRate, loadRate) {
		e.loadUntil = e.now() + int64(underLoadAfter)
	}
	if e.now() < e.loadUntil {
		if did, err := e.cookies.renew(e.now()); err != nil {
			e.drops.add(dropHandshakeRate)
			return
		} else if did {
			e.publishKnownEndpointsLocked()
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

// askForCookieLocked answers with a cookie, which is shorter than what it answers.
func (e *Engine) askForCookieLocked(m *message, b []byte) {
	var out [cookieSize]byte
	if err := e.cookies.reply(b, &m.from, &out); err == nil {
		e.transmit(newEndpoint(m.from, m.src), out[:], e.outer.Load().socket)
	}
}

// cookieLocked takes in a cookie for the peer that the answered message was for.
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
		p = found.session.peer // it answers our response
	}
	if !p.cookies.ConsumeReply(&msg) {
		e.drops.add(dropHandshake)
	}
}

// initiationLocked answers a peer's initiation (section 5.4.3). A new session is not used to send until the
// peer has used it. Our own initiation, if one is on its way, stays: when two cross, each is answered, and
// there is a session whichever one the peer keeps.
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
		e.drops.add(dropHandshake) // replayed, or too many from this peer
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
	p.next, p.previous, p.keysSince = s, nil, now
	p.currentIsActive()

	e.noteHandshakeLocked(p, m)
	p.cookies.AddMacs(msg[:])
	e.sendLocked(p, msg[:])
}

// noteHandshakeLocked notes an authentic handshake message: the peer is where it came from.
func (e *Engine) noteHandshakeLocked(p *peer, m *message) {
	p.noteReceived(e.now(), false)
	p.heardAt.Store(e.now())
	p.rxBytes.Add(uint64(m.n))
	if to := p.endpoint.Load(); to == nil || to.raw != m.from || to.src != m.src {
		p.endpoint.Store(newEndpoint(m.from, m.src)) // also an address that was left: the answer must come from there
		e.moved.Store(true)
		e.publishEndpointsLocked()
	}
}

// responseLocked handles the answer to our initiation.
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
		p.next.confirmed.Store(true) // what still arrives in it is accepted, and does not make it the session to send with
		old[1] = p.active
		p.previous, p.next = p.next, nil
	} else {
		p.previous = p.active
	}
	p.active, p.keysSince = s, now
	p.confirmLingering(len(p.lingering))
	e.noteHandshakeLocked(p, m)
	e.handshakeDoneLocked(p)

	// The keepalive confirms the session to the peer before any staged packet does; those already staged follow it.
	e.keepaliveLocked(p, s)
	p.current.Store(s)
	for _, s := range old { // not before there is another to send with
		e.lingerLocked(p, s)
	}
	e.out.Wake()
}

// confirmedLocked is called when the peer has used the session that we answered with.
func (e *Engine) confirmedLocked(p *peer) {
	e.takeConfirmedLocked(p)
	p.currentIsActive()
	if e.moved.Swap(false) {
		e.publishEndpointsLocked()
	}
}

func (e *Engine) takeConfirmedLocked(p *peer) {
	before := p.previous
	if p.next != nil && p.next.confirmed.Load() {
		p.previous, p.active, p.next = p.active, p.next, nil
		p.confirmLingering(len(p.lingering))
	} else if s := p.takeLateConfirmed(); s != nil {
		p.previous, p.active = p.active, s
	} else {
		return
	}
	e.lingerLocked(p, before)
	e.handshakeDoneLocked(p)
	e.out.Wake()
}

// currentIsActive makes the active session the one to send with. The inbound thread takes a session into use
// when the peer has used it, and may do so just after the control side has chosen another. A session that
// only the peer initiated would then be used until it ends.
func (p *peer) currentIsActive() {
	if p.current.Load() != p.active {
		p.current.Store(p.active)
	}
}

func (e *Engine) handshakeDoneLocked(p *peer) {
	p.lastHandshake = time.Now()
	p.attempts, p.rekeyRequested = 0, false
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

// sealMessage encrypts the n bytes behind b's header in place; b has space for the tag. nonce is memory of
// the caller.
func (e *Engine) sealMessage(s *session, nonce *[12]byte, b []byte, n int) {
	counter := s.nonce.Add(1) - 1
	binary.LittleEndian.PutUint32(b[0:], typeTransport)
	binary.LittleEndian.PutUint32(b[4:], s.remote)
	binary.LittleEndian.PutUint64(b[8:], counter)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	s.send.Seal(b[headerSize:headerSize], nonce[:], b[headerSize:headerSize+n], nil)
}

// newMAC1 makes the first MAC of messages to us.
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
