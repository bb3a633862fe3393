package plane

import (
	"errors"
	"net/netip"

	"ringway/srtp/dtls"
)

// agree has the endpoint do what a leg's description asks for.
func (s *server) agree(l *leg) error {
	if l.Keying != DTLS {
		s.disagree(l.ID)
		return nil
	}
	if s.endpoint == nil {
		return errors.New("there is no certificate for DTLS")
	}
	id := dtls.Leg(l.ID)
	if l.Association.Offered {
		if err := s.endpoint.Offer(id, l.Association.Suites); err != nil {
			return err
		}
	}
	agreement, err := l.agreement()
	if err != nil || agreement == nil {
		return err
	}
	if _, known := s.handshakes[l.ID]; !known && l.established() { // by a process before
		s.handshakes[l.ID], err = s.endpoint.Restore(id, *agreement)
		return err
	}
	number, kept, err := s.endpoint.Start(id, *agreement)
	if err == nil && kept && l.out != nil && !l.established() {
		// Offer and answer ask for another handshake.
		s.endpoint.Close(id)
		number, _, err = s.endpoint.Start(id, *agreement)
	}
	if err == nil {
		s.handshakes[l.ID] = number
	}
	return err
}

// disagree ends what the endpoint has of a leg.
func (s *server) disagree(leg uint64) {
	if s.endpoint != nil {
		s.endpoint.Close(dtls.Leg(leg))
	}
	delete(s.handshakes, leg)
}

func (s *server) receivedDTLS(leg uint64, from netip.AddrPort, packet []byte) {
	if s.endpoint != nil {
		s.endpoint.Receive(dtls.Leg(leg), from, packet)
	}
}

// sendDTLS sends what the endpoint has to say. A datagram that does not leave is as one that is lost on its way.
func (s *server) sendDTLS(leg dtls.Leg, _ netip.AddrPort, datagram []byte) {
	_ = s.relay.SendDTLS(uint64(leg), datagram)
}

// established takes what has become of an association.
func (s *server) established(e dtls.Event) {
	if e.Keys != nil {
		defer e.Keys.Wipe()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.book.legs[uint64(e.Leg)]
	if l == nil || l.Keying != DTLS || s.stopped || s.handshakes[l.ID] != e.Association {
		return // of an association that was replaced
	}
	out := dtlsEvent{Leg: l.ID, Epoch: l.Association.Epoch}
	if e.Err != nil || e.Keys == nil {
		if e.Err != nil {
			out.Failure = e.Err.Error()
		}
		out.Fingerprint, out.Closed = errors.Is(e.Err, dtls.ErrFingerprint), errors.Is(e.Err, dtls.ErrClosed)
		s.child.Push(eventDTLS, out)
		return
	}
	send := Key{Suite: e.Keys.Suite, Master: e.Keys.Send.Master, Salt: e.Keys.Send.Salt}
	receive := Key{Suite: e.Keys.Suite, Master: e.Keys.Receive.Master, Salt: e.Keys.Receive.Salt}
	c, err := s.book.establish(l.ID, out.Epoch, &send, &receive)
	if err == nil {
		if err = s.apply(s.book.pairs[l.pair]); err != nil {
			c.undo()
		}
	}
	if err != nil {
		out.Failure = err.Error()
		s.child.Push(eventDTLS, out)
		return
	}
	for _, d := range c.dropped() {
		d.sender, d.receiver = nil, nil
	}
	c.commit(s.book)
	out.Suite = e.Keys.Suite
	secrets := packKeys(nil, []*Key{&send, &receive})
	defer clear(secrets)
	s.child.PushAttached(eventDTLS, out, secrets)
}
