package stamp

import (
	"net/netip"
	"time"
)

// Bounds of a reflector. Voice goes before measuring it: what is above them is not answered.
const (
	maxSources    = 256   // sites' hosts that ask
	maxSessions   = 1024  // together
	maxPerSource  = 256   // sessions of one host
	sourceRate    = 5000  // packets a second of one host: a hundred voice streams
	overallRate   = 10000 // packets a second together: about a tenth of a core
	sessionIdle   = 30 * time.Second
	sweepInterval = time.Second // between two looks for what is idle, when there is no room
)

// Reason is why a packet was not answered.
type Reason string

// The reasons.
const (
	DropShort       Reason = "short"        // under 44 bytes
	DropOversized   Reason = "oversized"    // larger than the buffer
	DropSourcePort  Reason = "source_port"  // from a port of servers: the answer could be one's question, for ever
	DropRateSource  Reason = "rate_source"  // one host asks too much
	DropRate        Reason = "rate"         // all together do
	DropSourcesFull Reason = "sources_full" // too many hosts
	DropSessions    Reason = "sessions_full"
	DropSend        Reason = "send_failed"
	DropSocket      Reason = "socket_overflow" // the kernel's count: not read in time
)

// Reasons are all of them, for whoever shows counters that are zero, too.
var Reasons = []Reason{DropShort, DropOversized, DropSourcePort, DropRateSource, DropRate, DropSourcesFull, DropSessions, DropSend, DropSocket}

// bucket lets rate packets a second pass, and a tenth of a second's worth at once. Times are monotonic.
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

// session counts one sender's packets: that is all that stateful mode is (RFC 8762, section 4.3.1).
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

// sessions is the reflector's memory, bounded.
type sessions struct {
	overall bucket
	sources map[netip.Addr]*source
	by      map[sessionKey]*session
	swept   time.Duration
}

func newSessions() *sessions {
	return &sessions{sources: map[netip.Addr]*source{}, by: map[sessionKey]*session{}}
}

// find counts a packet in, or says why not.
func (s *sessions) find(key sessionKey, now time.Duration) (*session, Reason) {
	src := s.sources[key.from.Addr()]
	if src == nil {
		if len(s.sources) >= maxSources && !s.sweep(now) {
			return nil, DropSourcesFull
		}
		src = &source{last: now}
		s.sources[key.from.Addr()] = src
	}
	// First the host's own rate: what it asks too much must not be taken from the others' share.
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
			return nil, DropSessions // what went was somebody else's
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

// sweep forgets who has been silent. It says whether that made room for a source and a session.
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
