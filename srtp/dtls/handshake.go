package dtls

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	pion "github.com/pion/dtls/v3"
	"github.com/pion/logging"

	"ringway/srtp/suite"
)

// fragment is how long the library's datagrams may be, in bytes, without what a record adds: 1200 with it, which fits
// every tunnel.
const fragment = 1200 - recordHeader - handshakeHeader - 24 // explicit nonce and tag of AES-GCM

// cipherSuites are those of RFC 8827 section 6.5 (the first) with an AEAD and forward secrecy. Peers may have a
// certificate with RSA.
var cipherSuites = []pion.CipherSuiteID{
	pion.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, pion.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	pion.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, pion.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
}

// quiet has the library write nothing: by default it writes to stderr, and reads variables of the environment.
var quiet = &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}

// handshake is one with one address, and what is left of it. Endpoint's mutex guards what is not constant.
type handshake struct {
	leg    *leg
	role   Role
	remote netip.AddrPort
	suites []suite.Suite
	pipe   *pipe
	ctx    context.Context
	cancel context.CancelCauseFunc

	random  [32]byte // of the client's hello, where we are the server
	cookie  []byte   // that we wait for
	proven  bool     // the peer receives what we send
	counted bool     // among the unproven
	refused bool     // by an alert in clear

	done        bool // complete
	taken       bool // it is an association's
	keys        *Keys
	certificate []byte // the peer's
	late        bucket

	sequence uint64 // of the next record in clear
}

// newHandshakeLocked makes a handshake, which has a slot already.
func (e *Endpoint) newHandshakeLocked(l *leg, r Role, remote netip.AddrPort, allowed []suite.Suite) *handshake {
	h := &handshake{leg: l, role: r, remote: remote, suites: allowed, counted: r == Server}
	h.ctx, h.cancel = context.WithCancelCause(e.ctx)
	h.pipe = newPipe(net.UDPAddrFromAddrPort(remote), func(datagram []byte) {
		if r == Server {
			e.watch(h, datagram)
		}
		e.config.Send(l.id, remote, datagram)
	})
	l.handshakes = append(l.handshakes, h)
	e.counters.Started++
	return h
}

// deliver gives records to the library, which borrows nothing. Those in clear are numbered as they come: the library
// takes a number that is far ahead for true, and everything before it for old, so that one forged record would end
// the handshake. What comes twice is known by the numbers of the handshake's messages.
func (h *handshake) deliver(records []byte) bool {
	records = bytes.Clone(records)
	for rest := records; len(rest) > 0; {
		var r record
		if r, rest, _ = nextRecord(rest); r.epoch == 0 {
			r.number(h.sequence)
			h.sequence++
		}
	}
	return h.pipe.deliver(records)
}

// watch learns from what we send as a server: the cookie, and that the right one came back.
func (e *Endpoint) watch(h *handshake, datagram []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.proven {
		return
	}
	if body, _, ok := message(datagram, typeHelloVerifyRequest); ok && len(body) > 2 {
		if cookie, _, ok := vector(body[2:]); ok {
			h.cookie = bytes.Clone(cookie)
		}
	}
	if _, _, ok := message(datagram, typeServerHello); ok {
		e.provenLocked(h)
		// An earlier one of this address goes on nowhere: the peer has started again (RFC 6347 section 4.2.8).
		e.dropLocked(h.leg, func(other *handshake) bool {
			return other != h && other.remote == h.remote && other.role == Server && !other.done
		})
	}
}

// provenLocked takes the handshake out of the unproven.
func (e *Endpoint) provenLocked(h *handshake) {
	h.proven = true
	if h.counted {
		h.counted = false
		e.unproven--
	}
}

// alertedLocked is told of a fatal alert in clear.
func (e *Endpoint) alertedLocked(h *handshake, description int) {
	if h.done || h.refused {
		return
	}
	h.refused = true
	reason := fmt.Errorf("%w: alert %d, not authenticated", ErrAlert, description)
	time.AfterFunc(alertTime, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !h.done {
			h.cancel(reason)
		}
	})
}

// dial makes a client's attempts.
func (e *Endpoint) dial(ctx context.Context, l *leg, a *association) {
	for attempt := range attempts {
		if attempt > 0 && !sleep(ctx, attemptGap) || !e.admit(ctx) {
			return
		}
		e.mu.Lock()
		if l.closed || l.current != a || a.state != waiting {
			e.mu.Unlock()
			<-e.slots
			return
		}
		h := e.newHandshakeLocked(l, Client, a.agreement.Remote, a.agreement.Suites)
		e.mu.Unlock()
		if e.perform(h, attemptTime) == nil {
			return
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failLocked(l, a, ErrTimeout)
}

// admit waits until one more handshake may begin, and takes a slot.
func (e *Endpoint) admit(ctx context.Context) bool {
	for {
		e.mu.Lock()
		ok := e.total.take(time.Now(), handshakeRate, handshakeBurst)
		e.mu.Unlock()
		if ok {
			break
		}
		if !sleep(ctx, time.Second/handshakeRate) {
			return false
		}
	}
	select {
	case e.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// perform does the handshake, and afterwards answers what the peer repeats. It returns an error as soon as the
// handshake has failed, nil when nothing is left of it.
func (e *Endpoint) perform(h *handshake, limit time.Duration) error {
	defer h.cancel(nil)
	conn, err := e.shake(h, limit)
	<-e.slots
	if err == nil {
		err = e.complete(h, conn)
	} else {
		e.mu.Lock()
		e.rejectLocked(h.leg, h, err)
		e.mu.Unlock()
	}
	if err == nil {
		e.linger(h, conn)
	}
	h.pipe.mute()
	if conn != nil {
		_ = conn.Close()
	}
	return err
}

// shake is the handshake itself.
func (e *Endpoint) shake(h *handshake, limit time.Duration) (*pion.Conn, error) {
	options := []pion.Option{
		pion.WithCertificates(e.config.Certificate.tls), pion.WithCipherSuites(cipherSuites...),
		pion.WithSRTPProtectionProfiles(profiles(h.suites)...), pion.WithMTU(fragment),
		pion.WithFlightInterval(flightInterval), pion.WithLoggerFactory(quiet),
		// Certificates sign themselves: the fingerprint is what is checked. That the peer has the key is checked always.
		pion.WithInsecureSkipVerify(true),
		pion.WithVerifyPeerCertificate(func(certificates [][]byte, _ [][]*x509.Certificate) error {
			return e.verify(h, certificates)
		}),
	}
	conn, err := open(h, options)
	if err != nil {
		return nil, fmt.Errorf("begin DTLS handshake as %s: %w", h.role, err)
	}
	ctx, cancel := context.WithTimeout(h.ctx, limit)
	defer cancel()
	if err = conn.HandshakeContext(ctx); err == nil {
		return conn, nil
	}
	if cause := context.Cause(h.ctx); errors.Is(cause, ErrAlert) {
		return conn, cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return conn, ErrTimeout
	}
	return conn, fmt.Errorf("DTLS handshake as %s: %w", h.role, err)
}

func open(h *handshake, options []pion.Option) (*pion.Conn, error) {
	if h.role == Client {
		var all []pion.ClientOption
		for _, o := range options {
			all = append(all, o)
		}
		return pion.ClientWithOptions(h.pipe, h.pipe.peer, all...)
	}
	all := []pion.ServerOption{pion.WithClientAuth(pion.RequireAnyClientCert)}
	for _, o := range options {
		all = append(all, o)
	}
	return pion.ServerWithOptions(h.pipe, h.pipe.peer, all...)
}

func profiles(suites []suite.Suite) []pion.SRTPProtectionProfile {
	var all []pion.SRTPProtectionProfile
	for _, s := range suites {
		all = append(all, pion.SRTPProtectionProfile(s))
	}
	return all
}

// verify ends the handshake with an alert where the certificate is known to be wrong. Without an answer nothing is
// known yet.
func (e *Endpoint) verify(h *handshake, certificates [][]byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := h.leg.current
	if a == nil || a.state != waiting || h.leg.offered || a.agreement.Role != h.role {
		return nil
	}
	if len(certificates) == 0 || !anyMatches(a.agreement.Fingerprints, certificates[0]) {
		return ErrFingerprint
	}
	return nil
}

// suits says whether a complete handshake is what was agreed.
func (h *handshake) suits(a Agreement) error {
	switch {
	case !anyMatches(a.Fingerprints, h.certificate):
		return ErrFingerprint
	case !slices.Contains(a.Suites, h.keys.Suite):
		return ErrProfile
	}
	return nil
}

// complete takes the result of a handshake.
func (e *Endpoint) complete(h *handshake, conn *pion.Conn) error {
	keys, err := export(conn, h.role, h.suites)
	state, ok := conn.ConnectionState()
	if err == nil && (!ok || len(state.PeerCertificates) == 0) {
		keys.Wipe()
		err = ErrFingerprint
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil && !slices.Contains(h.leg.handshakes, h) {
		keys.Wipe()
		return ErrStopped // dropped meanwhile
	}
	if err != nil {
		e.rejectLocked(h.leg, h, err)
		return err
	}
	h.done, h.keys, h.certificate = true, keys, bytes.Clone(state.PeerCertificates[0])
	h.pipe.left = maxReceived
	e.settleLocked(h.leg)
	if !slices.Contains(h.leg.handshakes, h) {
		return ErrFingerprint // it is not the one that was agreed
	}
	return nil
}

// linger answers what the peer repeats, waits for its goodbye, and holds the keys for an answer.
func (e *Endpoint) linger(h *handshake, conn *pion.Conn) {
	goodbye := make(chan struct{})
	e.running.Go(func() {
		defer close(goodbye)
		b := make([]byte, MaxDatagram)
		for {
			// Data is not for us; an error that is not the end is a warning or a record that could not be read.
			if _, err := conn.Read(b); errors.Is(err, io.EOF) {
				return
			}
		}
	})
	hold, end := time.NewTimer(holdTime), time.NewTimer(lingerTime)
	defer hold.Stop()
	defer end.Stop()
	for over := false; !over; {
		select {
		case <-hold.C:
			e.mu.Lock()
			over = !h.taken
			e.mu.Unlock()
		case <-end.C:
			over = true
		case <-h.ctx.Done():
			over = true
		case <-goodbye:
			over = true
			e.goodbye(h)
		}
	}
	h.pipe.mute()
	_ = conn.Close()
	<-goodbye
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropLocked(h.leg, func(other *handshake) bool { return other == h })
}

// goodbye ends the association: the peer has said so, authenticated, or the library would have ignored it.
func (e *Endpoint) goodbye(h *handshake) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := h.leg.current
	if h.leg.closed || !h.taken || a == nil || a.state != established || !slices.Contains(h.leg.handshakes, h) {
		return
	}
	a.state = ended
	e.emitLocked(Event{Leg: h.leg.id, Association: a.number, Remote: h.remote, Err: ErrClosed})
}
