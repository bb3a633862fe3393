package abuse

import (
	"bytes"
	"net/netip"

	"ringway/sip/message"
)

// request remembers a request, so that its answer can be told from one that nobody has asked for.
func (w *Watch) request(in *Input, s *source) {
	m := in.Message
	w.credit(in)
	if m.Method == message.ACK || m.Method == message.CANCEL {
		return
	}
	account := userOf(m, message.From)
	if m.Method == message.REGISTER {
		account = userOf(m, message.To)
	}
	tx := transaction{
		id:          w.transaction(m),
		peer:        in.To,
		at:          w.now,
		user:        w.sum(targetOf(m)),
		account:     w.sum(account),
		method:      m.Method,
		credentials: m.Has(message.Authorization) || m.Has(message.ProxyAuthorization),
		inDialog:    len(tagOf(m, message.To)) > 0,
	}
	s.ask(tx)
	if w.scans(s, &tx) && !tx.inDialog && !w.trusted(s, in.To) && !in.Emergency {
		s.try(probe{what: w.sumAddr(in.To), at: w.now, target: true}, 4*w.limits.Scan.count())
	}
}

// Answers to a request cost the one who was asked nothing: a PBX that restarts asks all phones at once.
const (
	answersEach = 4 // 100, 180, 183 and a final one
	maxOwed     = 1000
)

// credit takes note that somebody owes answers.
func (w *Watch) credit(in *Input) {
	for _, near := range [...]bool{true, false} {
		if s := w.sources.all[key{in.To, near}]; s != nil {
			s.owed = min(s.owed+answersEach, maxOwed)
		}
	}
}

// transaction identifies a request and its responses (RFC 3261, section 17.1.3). The Call-ID is there for
// phones that choose a poor branch, or none.
func (w *Watch) transaction(m *message.Message) uint64 {
	via, _ := message.ParseVia(m.Header(message.Via))
	return w.sum(via.Branch(), m.CallID(), m.Header(message.CSeq))
}

// scans reports whether a request may be part of a scan. A PBX asks all phones, there or not; a registered
// phone subscribes to the state of extensions on its keys, of which a PBX may refuse each.
func (w *Watch) scans(s *source, tx *transaction) bool {
	return s.place != PBX && s.place != Trunk && !(tx.method == message.SUBSCRIBE && s.registered(w.now))
}

// trusted reports whether an address is one that a source may be expected to talk to.
func (w *Watch) trusted(s *source, a netip.Addr) bool {
	place := w.where(a)
	return place == PBX || place == Trunk || s.trusts(a)
}

// response takes a response. It reports whether it must not go on.
func (w *Watch) response(in *Input, from *source) (leak bool) {
	m := in.Message
	asker, tx := w.answered(in)
	if w.leaks(in, tx) {
		w.reportLeak(from)
		return true
	}
	if asker == nil || asker.banned > w.now {
		return false
	}
	target := w.sumAddr(in.From)
	switch {
	case m.Status < 200:
		asker.reached(target, true)
	case refuses(m.Status):
		w.refused(in, asker, tx, target)
	default:
		asker.reached(target, true)
		if m.Status < 300 {
			w.accepted(in, asker, tx)
		}
	}
	return false
}

// answered finds the request of a response: one that was sent to the address that the response comes from. A final
// response takes it away.
func (w *Watch) answered(in *Input) (*source, *transaction) {
	id := w.transaction(in.Message)
	for _, near := range [...]bool{!in.Near, in.Near} {
		s := w.sources.all[key{in.To, near}]
		if s == nil {
			continue
		}
		for i := range s.asked {
			if tx := s.asked[i]; tx.id == id && tx.peer == in.From {
				if in.Message.Status >= 200 {
					s.asked = append(s.asked[:i], s.asked[i+1:]...)
				}
				return s, &tx
			}
		}
	}
	return nil, nil
}

// leaks reports whether a response would have a phone compute a digest of its password for somebody else: whoever
// has called a phone can challenge the request with which it ends the call (SySS, "SIP digest leak"). Within a
// dialog only the phone's registrar may do so, or a PBX or trunk of the config, which may be a registrar that was
// asked before a restart.
func (w *Watch) leaks(in *Input, tx *transaction) bool {
	m := in.Message
	if m.Status != 401 && m.Status != 407 {
		return false
	}
	inDialog := m.Method == message.BYE || m.Method == message.UPDATE || m.Method == message.PRACK ||
		m.Method == message.INFO
	if tx != nil {
		inDialog = tx.inDialog
	}
	from := w.where(in.From)
	if !inDialog || w.where(in.To).peer() || from == PBX || from == Trunk {
		return false
	}
	for _, near := range [...]bool{true, false} {
		if s := w.sources.all[key{in.To, near}]; s != nil && s.trusts(in.From) {
			return false
		}
	}
	return true
}

func (w *Watch) reportLeak(s *source) {
	if last := s.reported[DigestLeak]; last != 0 && last.add(quiet) > w.now {
		return
	}
	s.reported[DigestLeak] = w.now
	w.events = append(w.events, Event{
		At: w.now.time(), Source: s.addr, Kind: DigestLeak, Level: Block, Action: Alarm,
		Text: "it asked a phone for credentials within a call, and is not the phone's registrar",
	})
}

// refuses reports whether a status tells a guesser something about a user.
func refuses(status int) bool {
	switch status {
	case 401, 403, 404, 407, 604:
		return true
	}
	return false
}

// refused takes a request that was refused. A challenge is part of every registration: it counts only if
// no credentials follow.
func (w *Watch) refused(in *Input, s *source, tx *transaction, target uint64) {
	m := in.Message
	challenge := (m.Status == 401 || m.Status == 407) && !tx.credentials
	if w.scans(s, tx) && !tx.inDialog {
		p := probe{what: tx.user, at: w.now, refused: !challenge}
		s.try(p, 4*w.limits.Scan.count())
		if !w.trusted(s, in.From) {
			p.what, p.target = target, true
			s.try(p, 4*w.limits.Scan.count())
		}
		w.judgeScan(s)
	}
	// A registered phone that may not call a number gets 403 as well: its credentials were right.
	barred := m.Status == 403 && tx.method != message.REGISTER && s.registered(w.now)
	if tx.credentials && m.Status != 404 && m.Status != 604 && !barred && !isStale(m) && s.banned <= w.now {
		rule := &w.limits.Guess
		w.judge(s, Guess, s.fail(w.now, tx.account, rule.Within, rule.count()), rule)
	}
}

func (w *Watch) judgeScan(s *source) {
	rule := &w.limits.Scan
	w.judge(s, Scan, s.refusals(w.now, rule.Within, w.limits.Grace), rule)
}

// isStale reports whether credentials were right but for an old nonce (RFC 7616, section 3.3).
func isStale(m *message.Message) bool {
	for _, name := range [...]string{"WWW-Authenticate", "Proxy-Authenticate"} {
		value := bytes.ToLower(otherHeader(m, name))
		if bytes.Contains(value, []byte("stale=true")) || bytes.Contains(value, []byte(`stale="true"`)) {
			return true
		}
	}
	return false
}

// accepted takes a request that went well.
func (w *Watch) accepted(in *Input, s *source, tx *transaction) {
	s.reached(tx.user, false)
	if tx.credentials {
		kept := s.failures[:0]
		for _, f := range s.failures {
			if f.account != tx.account {
				kept = append(kept, f)
			}
		}
		s.failures = kept
	}
	if tx.method == message.REGISTER {
		user := userOf(in.Message, message.To)
		until := w.now.add(expiryOf(in.Message))
		s.register(string(user[:min(len(user), maxName)]), in.From, w.now, until)
		w.sources.hold(s, s.keeps(w.now, w.limits.Guess.MaxBan))
	}
}
