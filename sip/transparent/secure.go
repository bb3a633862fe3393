package transparent

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"ringway/sip/certificate"
)

// How SIP over TLS is read, between the steps dial and carry of a connection to a port of TLS:
//
//	1 hello      the sender's ClientHello is read, and not answered
//	2 find       the name that it asks for picks the server; without one all bytes pass unread
//	3 server     handshake with the server, from the sender's address, as the sender would have it; verified
//	4 sender     only now the sender's handshake, with the certificate that the config has for the server
//
// What the server refuses, or what is not the server, so becomes the sender's failure. A server that asks for a
// certificate which is not there gets a second connection, by which the ClientHello passes unread.

// Security says how SIP over TLS is read.
type Security struct {
	Servers *certificate.Set
	// Port reports whether TLS is spoken at a destination.
	Port func(to netip.AddrPort) bool
	// Lenient has connections to a server that cannot be verified pass unread; else they are reset.
	Lenient bool
	// Outcome is told what came of a handshake with a server. why is the name of what is counted; empty: it succeeded.
	Outcome func(server string, to netip.AddrPort, why string, err error)
}

// secure reads the start of a connection to a port of TLS. It returns nil if the pair can be carried then, encrypted
// or not; errPaused; or a failure.
func (p *pair) secure() error {
	t := p.r.config.Secure()
	if t == nil || !t.Port(p.to) || mode(p.mode.Load()) != undecided {
		return nil
	}
	offered, state, err := p.awaitHello()
	switch {
	case err != nil:
		return err
	case state == helloMalformed:
		p.passUnread(tlsUnreadMalformed)
		return nil
	case state != helloWhole: // whatever it is, TCP's rules hold
		return nil
	}

	server, name := t.Servers.Find(offered.ServerName(), p.to.Addr())
	if why := p.unreadable(server, offered); why != none {
		p.passUnread(why)
		return nil
	}
	if !p.r.memory.reserve(tlsMemory) {
		return failure(memoryExhausted)
	}
	p.reserved = tlsMemory
	wait, why := p.r.gate.enter(p.from.Addr(), time.Duration(p.r.now()))
	if why != none {
		return failure(why)
	}
	defer p.r.gate.leave(p.from.Addr())
	if err := p.pauseFor(wait); err != nil {
		return err
	}
	return p.handshakes(t, server, name, offered)
}

// tlsMemory is what is reckoned for both sides of a pair, beside the buffers: what crypto/tls keeps (measured: 25 KB),
// and room for a record.
const tlsMemory = 32 << 10

// awaitHello reads until it is clear what the connection begins with. The bytes stay in the direction.
func (p *pair) awaitHello() (*certificate.Offered, helloState, error) {
	d := p.directions[near]
	until := p.r.now() + int64(p.r.config.Limits.Hello)
	for {
		if offered, state := readHello(d.in.bytes()); state != helloPartial {
			return offered, state, nil
		}
		if err := p.arm(d.src.conn.SetReadDeadline, p.r.began.Add(time.Duration(until))); err != nil {
			return nil, helloPartial, err
		}
		fresh := d.in.empty()
		err := d.src.read(&d.in)
		switch {
		case errors.Is(err, io.EOF): // what has come goes on as it is
			return nil, helloNone, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if err != nil {
				return nil, helloPartial, err
			}
			p.touch()
			if fresh {
				d.since = p.r.now()
			}
		case p.isPaused():
			return nil, helloPartial, errPaused
		case p.r.now() >= until:
			return nil, helloPartial, failure(tlsHelloTimedOut)
		}
	}
}

// unreadable says why a connection to server passes unread; none: it does not.
func (p *pair) unreadable(server *certificate.Server, offered *certificate.Offered) event {
	switch {
	case server == nil && offered.ServerName() == "":
		return tlsUnreadNoName
	case server == nil:
		return tlsUnreadNoCertificate
	case offered.Supports(server) != nil:
		return tlsUnreadUnsupported
	}
	return p.r.unread.why(server, p.to, p.r.now())
}

// passUnread has the pair carried as it is.
func (p *pair) passUnread(why event) {
	p.r.counts.add(why)
	p.decide(carriesRaw)
}

// pauseFor waits, unless the pair ends or is paused.
func (p *pair) pauseFor(wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.stop:
	}
	if p.isPaused() {
		return errPaused
	}
	return failure(relayClosed)
}

// handshakes makes both sides of the pair encrypted. From here on the pair cannot be exported.
func (p *pair) handshakes(t *Security, server *certificate.Server, name string, offered *certificate.Offered) error {
	deadline := time.Now().Add(p.r.config.Limits.Handshake)
	outer := tls.Client(p.sides[far].conn, server.ToServer(name, offered))
	err := p.shake(far, outer, deadline)
	if err != nil && p.isPaused() {
		return failure(tlsNotHandedOver)
	}
	why := whyNot(err)
	t.Outcome(server.Name, p.to, eventNames[why], err)
	unread := none
	switch {
	case err == nil:
	case errors.Is(err, certificate.ErrClientCertificate):
		unread = tlsUnreadClientCertificate
	case t.Lenient && why == tlsServerUnverified:
		unread = tlsUnreadUnverified
	case t.Lenient && why == tlsServerFailed:
		unread = tlsUnreadServerFailed
	default:
		return failure(why)
	}
	if unread != none {
		if unread != tlsUnreadServerFailed { // which may pass: a connection that the server gave up, above all
			p.r.unread.remember(server, p.to, unread, p.r.now())
		}
		if err := p.redial(); err != nil {
			return err
		}
		p.passUnread(unread)
		return nil
	}

	in := &p.directions[near].in
	conn := &prefixed{p.sides[near].conn, append([]byte(nil), in.bytes()...)}
	in.consume(len(in.bytes()))
	inner := tls.Server(conn, server.ToClient(outer.ConnectionState().NegotiatedProtocol))
	if err := p.shake(near, inner, deadline); err != nil {
		return p.senderFailed(err)
	}
	return p.encrypt(inner, outer)
}

// shake does a handshake within a deadline.
func (p *pair) shake(which int, c *tls.Conn, deadline time.Time) error {
	if err := p.arm(p.sides[which].conn.SetDeadline, deadline); err != nil {
		return err
	}
	return c.Handshake()
}

// whyNot is how the end of a handshake with a server is counted; none: it succeeded.
func whyNot(err error) event {
	var unverified *certificate.UnverifiedError
	switch {
	case err == nil:
		return none
	case errors.Is(err, certificate.ErrClientCertificate):
		return tlsUnreadClientCertificate
	case errors.As(err, &unverified):
		return tlsServerUnverified
	case errors.Is(err, os.ErrDeadlineExceeded):
		return tlsHandshakeTimedOut
	}
	return tlsServerFailed
}

// senderFailed says how a failed handshake with a sender is counted.
func (p *pair) senderFailed(err error) error {
	var op *net.OpError
	switch {
	case p.isPaused():
		return failure(tlsNotHandedOver)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return failure(tlsHandshakeTimedOut)
	case errors.As(err, &op) && op.Op == "remote error": // an alert: it does not trust the certificate, above all
		return failure(tlsSenderRefused)
	}
	return failure(tlsSenderFailed)
}

// encrypt has both sides go on by TLS.
func (p *pair) encrypt(inner, outer *tls.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
		return failure(relayClosed)
	case p.paused:
		return failure(tlsNotHandedOver)
	}
	p.encrypted = true
	for i, c := range []*tls.Conn{near: inner, far: outer} {
		p.sides[i].tls = c
		p.directions[i].transport = TLS
		_ = p.sides[i].conn.SetDeadline(time.Time{})
	}
	p.r.counts.add(tlsEstablished)
	return nil
}

// redial connects the far side once more, from the same address.
func (p *pair) redial() error {
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return failure(relayClosed)
	}
	reset(p.sides[far].conn) // nothing of it may stay: the next one has the same addresses
	p.sides[far].conn, p.sides[far].raw = nil, nil
	p.dialed = false
	p.mu.Unlock()
	return p.dial()
}

// unreadServers are servers whose connections pass unread for a time, after a handshake has shown that they have to.
type unreadServers struct {
	mu  sync.Mutex
	all map[unreadServer]unreadSince
}

type unreadServer struct {
	server *certificate.Server // as the config has it: with another certificate it is tried again
	at     netip.AddrPort
}

type unreadSince struct {
	why   event
	until int64 // as Relay.now says
}

const (
	maxUnreadServers = 256
	unreadFor        = 10 * time.Minute
)

func (u *unreadServers) why(server *certificate.Server, at netip.AddrPort, now int64) event {
	u.mu.Lock()
	defer u.mu.Unlock()
	since, there := u.all[unreadServer{server, at}]
	if !there || now >= since.until {
		return none
	}
	return since.why
}

// remember takes a server in. If there are too many, it is tried again each time.
func (u *unreadServers) remember(server *certificate.Server, at netip.AddrPort, why event, now int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, since := range u.all {
		if now >= since.until {
			delete(u.all, key)
		}
	}
	if u.all == nil {
		u.all = map[unreadServer]unreadSince{}
	}
	if len(u.all) < maxUnreadServers {
		u.all[unreadServer{server, at}] = unreadSince{why, now + int64(unreadFor)}
	}
}
