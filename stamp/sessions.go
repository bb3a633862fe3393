package stamp

import (
	"net/netip"
	"time"
)

// Bounds of a reflector. Packets above them are not answered: voice takes precedence over measuring it.
const (
	maxSources    = 256   // hosts that send probes
	maxSessions   = 1024  // together
	maxPerSource  = 256   // sessions of one host
	sourceRate    = 5000  // packets per second of one host: a hundred voice streams
	overallRate   = 10000 // packets per second in total: about a tenth of a core
	sessionIdle   = 30 * time.Second
	sweepInterval = time.Second // between two searches for idle sessions while the table is full
)

// Reason is why a packet was not answered.
type Reason string

// The reasons.
const (
	DropShort     Reason = "short"     // under 44 bytes
	DropOversized Reason = "oversized" // larger than the buffer
	// from a server's port: two reflectors could answer each other forever
	DropSourcePort  Reason = "source_port"
	DropRateSource  Reason = "rate_source"  // one host exceeds its rate
	DropRate        Reason = "rate"         // all hosts exceed the total rate
	DropSourcesFull Reason = "sources_full" // too many hosts
	DropSessions    Reason = "sessions_full"
	DropSend        Reason = "send_failed"
	DropSocket      Reason = "socket_overflow" // the kernel's count: not read in time
)

// Reasons lists all of them, for counters that start at zero.
var Reasons = []Reason{
	DropShort, DropOversized, DropSourcePort, DropRateSource, DropRate, DropSourcesFull, DropSessions, DropSend,
	DropSocket,
}

// bucket is a token bucket of rate packets per second, with a burst of a tenth of a second. Times are
// monotonic.
type bucket struct {
	tokens float64
	at     time.Duration
}

func (b *bucket) take(now time.Duration, rate float64) bool {
	if b.at == 0 {
		b.tokens = rate / 10
	}
	b.tokens = min(rate/10, b.tokens+(now-b.at).Seconds()*rate)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

type sessionKey struct {
	from netip.AddrPort
	ssid uint16
}

// session counts one sender's packets, which is all that stateful mode needs (RFC 8762, section 4.3.1).
type session struct {
	source         *source
	received, sent uint32
	last           time.Duration
}

type source struct {
	bucket   bucket
	sessions int
	last     time.Duration
}

// sessions is the bounded table of sessions.
type sessions struct {
	overall bucket
	sources map[netip.Addr]*source
	by      map[sessionKey]*session
	swept   time.Duration
}

func newSessions() *sessions {
	return &sessions{sources: map[netip.Addr]*source{}, by: map[sessionKey]*session{}}
}

// find counts a packet in its session, or returns why it is not answered.
func (s *sessions) find(key sessionKey, now time.Duration) (*session, Reason) {
	src := s.sources[key.from.Addr()]
	if src == nil {
		if len(s.sources) >= maxSources && !s.sweep(now) {
			return nil, DropSourcesFull
		}
		src = &source{last: now}
		s.sources[key.from.Addr()] = src
	}
	// The host's own rate first: packets beyond it must not use up the total rate.
	if !src.bucket.take(now, sourceRate) {
		return nil, DropRateSource
	}
	if !s.overall.take(now, overallRate) {
		return nil, DropRate
	}
	ses := s.by[key]
	if ses == nil {
		if (len(s.by) >= maxSessions || src.sessions >= maxPerSource) && !s.sweep(now) {
			return nil, DropSessions
		}
		if len(s.by) >= maxSessions || src.sessions >= maxPerSource {
			return nil, DropSessions // what was freed belonged to others
		}
		ses = &session{source: src}
		// Sweeping may have taken the source itself, when it had no session.
		s.sources[key.from.Addr()] = src
		s.by[key] = ses
		src.sessions++
	} else if now-ses.last > sessionIdle {
		ses.received, ses.sent = 0, 0 // as if it had been swept: a new session begins at zero
	}
	ses.last, src.last = now, now
	ses.received++
	return ses, ""
}

// sweep removes idle sessions and sources. It returns whether there is a place for a source and a session.
func (s *sessions) sweep(now time.Duration) bool {
	if s.swept != 0 && now-s.swept < sweepInterval {
		return false
	}
	s.swept = now
	for k, ses := range s.by {
		if now-ses.last > sessionIdle {
			ses.source.sessions--
			delete(s.by, k)
		}
	}
	for a, src := range s.sources {
		if src.sessions == 0 && now-src.last > sessionIdle {
			delete(s.sources, a)
		}
	}
	return len(s.by) < maxSessions && len(s.sources) < maxSources
}

// active counts the sessions that are not idle.
func (s *sessions) active(now time.Duration) int {
	n := 0
	for _, ses := range s.by {
		if now-ses.last <= sessionIdle {
			n++
		}
	}
	return n
}
