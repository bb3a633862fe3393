package plane

import (
	"ringway/boottime"
	"ringway/process"
)

// hear does what an event says: now, or when the book is there that it belongs to.
func (s *Supervisor) hear(what func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adopting {
		s.early = append(s.early, what)
		return
	}
	what()
}

func (s *Supervisor) hearChanged(m *process.Message) {
	var e changedEvents
	if m.Decode(&e) != nil {
		return
	}
	s.hear(func() {
		for i := range e.Changed {
			s.book.note(&e.Changed[i])
		}
	})
}

func (s *Supervisor) hearBeat(m *process.Message) {
	var e beatEvent
	if m.Decode(&e) == nil && e.At <= boottime.Now() {
		s.hear(func() { s.beat = max(s.beat, e.At) })
	}
}

func (s *Supervisor) hearMoved(m *process.Message) {
	var e movedEvent
	if m.Decode(&e) != nil {
		return
	}
	s.hear(func() {
		if l := s.book.legs[e.Learned.Leg]; l != nil {
			l.learned = e.Learned
		}
	})
	s.cfg.Moved(e.Learned.Leg, e.RTP, e.RTCP)
}

func (s *Supervisor) hearDTLS(m *process.Message) {
	defer m.Wipe()
	var e dtlsEvent
	if m.Decode(&e) != nil {
		return
	}
	h := Handshake{
		Leg: e.Leg, Epoch: e.Epoch, Suite: e.Suite, Failure: e.Failure, Fingerprint: e.Fingerprint, Closed: e.Closed,
	}
	if e.Suite != 0 {
		send, receive := &Key{Suite: e.Suite}, &Key{Suite: e.Suite}
		both := []*Key{send, receive}
		if err := unpackKeys(m.Attached(), both); err != nil {
			s.log.Warn("keys of an association are not taken", "leg", e.Leg, "error", err)
			return
		}
		h.Established = true
		s.hear(func() {
			defer wipeKeys(both)
			if c, err := s.book.establish(e.Leg, e.Epoch, send, receive); err == nil {
				c.commit(s.book)
			}
		})
	}
	s.cfg.DTLS(h)
}
