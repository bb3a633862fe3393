package abuse

import (
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
)

// Bounds of ours.
const (
	maxUsers      = 32 // that register from one address: the ports of an adapter for analogue phones
	maxRegistrars = 4  // of one address
	maxName       = 64 // bytes of a user's name
	defaultExpiry = time.Hour
	maxExpiry     = 7 * 24 * time.Hour
)

// phone is what has registered from an address.
type phone struct {
	users      []registration
	registrars []netip.Addr // that accepted it, latest last; they stay when a registration has expired
}

type registration struct {
	user  string
	until instant
}

// registered reports whether any user is registered from s.
func (s *source) registered(now instant) bool {
	return s.phone != nil && slices.ContainsFunc(s.phone.users, func(r registration) bool { return r.until > now })
}

// has reports whether a user is registered from s.
func (s *source) has(user string, now instant) bool {
	return s.phone != nil && slices.ContainsFunc(s.phone.users, func(r registration) bool {
		return r.user == user && r.until > now
	})
}

// trusts reports whether an address has accepted a registration of s.
func (s *source) trusts(registrar netip.Addr) bool {
	return s.phone != nil && slices.Contains(s.phone.registrars, registrar)
}

func (s *source) register(user string, registrar netip.Addr, now, until instant) {
	if s.phone == nil {
		s.phone = &phone{}
	}
	p := s.phone
	p.users = slices.DeleteFunc(p.users, func(r registration) bool { return r.user == user || r.until <= now })
	if until > now {
		if len(p.users) == maxUsers {
			p.users = slices.Delete(p.users, 0, 1)
		}
		p.users = append(p.users, registration{user, until})
	}
	p.registrars = slices.DeleteFunc(p.registrars, func(a netip.Addr) bool { return a == registrar })
	if len(p.registrars) == maxRegistrars {
		p.registrars = slices.Delete(p.registrars, 0, 1)
	}
	p.registrars = append(p.registrars, registrar)
}

// Registered says that a phone has registered, as Message finds it by itself: for registrations that are known
// from before a restart. near is the side of the phone.
func (w *Watch) Registered(
	now time.Time, phone netip.Addr, near bool, user string, registrar netip.Addr, until time.Time,
) {
	w.begin(now)
	s := w.sources.get(key{phone, near}, w.where(phone), w.now)
	s.register(user[:min(len(user), maxName)], registrar, w.now, instantOf(until))
	w.sources.hold(s, true)
}

// expiryOf is how long the registrations in a 2xx to REGISTER live (RFC 3261, section 10.2.4). Without a Contact
// there are none.
func expiryOf(m *message.Message) time.Duration {
	longest, found := time.Duration(0), false
	for _, h := range m.Headers() {
		if h.Kind != message.Contact {
			continue
		}
		for value := m.Bytes(h.Value); len(value) > 0; {
			a, rest, ok := message.NextAddress(value)
			if !ok {
				break
			}
			value = rest
			expires, has := message.Param(a.Params, "expires")
			if !has {
				expires = m.Header(message.Expires)
			}
			d := defaultExpiry
			if n, ok := message.Seconds(expires); ok {
				d = time.Duration(n) * time.Second
			}
			longest, found = max(longest, d), true
		}
	}
	if !found {
		return 0
	}
	return min(longest, maxExpiry)
}
