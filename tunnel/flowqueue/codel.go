package flowqueue

import (
	"math"
	"time"

	"ringway/units"
)

// CoDel is how long packets of a flow may wait, and for how long they may wait longer (RFC 8289, section 4).
type CoDel struct {
	Target   time.Duration // an acceptable wait
	Interval time.Duration // how long it may be above that: about a long round trip
	Packet   int           // bytes: a queue of no more than this is never too long
}

// CoDelFor is for a line of so many bits a second and packets of so many bytes: the usual 5 ms and 100 ms,
// but on a slow line at least one and a half packets' time, or a single packet on its way would count as a
// queue.
func CoDelFor(rate units.BitRate, packet int) CoDel {
	c := CoDel{Target: 5 * time.Millisecond, Interval: 100 * time.Millisecond, Packet: packet}
	if rate > 0 {
		long := time.Duration(float64(packet) * 12 / float64(rate) * float64(time.Second))
		if long > c.Target {
			c.Interval = max(c.Interval+long-c.Target, 2*long)
			c.Target = long
		}
	}
	return c
}

// state is a flow's, with the names of RFC 8289, section 5.
type state struct {
	firstAbove  time.Duration // when it will have been above target for an interval; 0: it is not
	dropNext    time.Duration
	count, last uint32 // drops since dropping began; and when it last began
	dropping    bool
}

// law says when the next drop is due (section 5.2): the interval shortens with the root of the number of drops.
func (c CoDel) law(t time.Duration, count uint32) time.Duration {
	return t + time.Duration(float64(c.Interval)/math.Sqrt(float64(count)))
}

// next removes a packet and reports whether its queue was too long for too long (dodequeue, section 5.4).
func (q *Queue) next(f *flow, now time.Duration) (m *packet, late bool) {
	m = q.cut(f)
	s := &f.codel
	if m == nil {
		s.firstAbove = 0
		return nil, false
	}
	if now-m.at < q.c.Target || f.bytes <= q.c.Packet {
		s.firstAbove = 0
		return m, false
	}
	if s.firstAbove == 0 {
		s.firstAbove = now + q.c.Interval
		return m, false
	}
	return m, now >= s.firstAbove
}

// codel returns the flow's next packet that goes on; nil if it has none (deque, section 5.5). A packet whose ends
// understand ECN is marked instead of dropped (RFC 8290, section 4.2).
func (q *Queue) codel(f *flow, now time.Duration) *packet {
	s := &f.codel
	m, late := q.next(f, now)
	if s.dropping {
		if !late {
			s.dropping = false
		}
		for s.dropping && now >= s.dropNext {
			s.count++
			if mark(m.buf[:m.n]) {
				q.Marked++
				s.dropNext = q.c.law(s.dropNext, s.count)
				return m
			}
			q.Delayed++
			q.put(m)
			if m, late = q.next(f, now); late {
				s.dropNext = q.c.law(s.dropNext, s.count)
			} else {
				s.dropping = false
			}
		}
		return m
	}
	if !late {
		return m
	}
	if mark(m.buf[:m.n]) {
		q.Marked++
	} else {
		q.Delayed++
		q.put(m)
		m, _ = q.next(f, now)
	}
	s.dropping = true
	// Where it was above target a moment ago, the rate of drops that held it then is where to begin.
	delta := s.count - s.last
	s.count = 1
	if delta > 1 && now-s.dropNext < 16*q.c.Interval {
		s.count = delta
	}
	s.dropNext = q.c.law(now, s.count)
	s.last = s.count
	return m
}

// mark sets "congestion experienced" in a packet whose ends understand it (RFC 3168, section 5). It reports
// whether they do.
func mark(p []byte) bool {
	if len(p) < 20 {
		return false
	}
	switch p[0] >> 4 {
	case 4:
		if p[1]&3 == 0 {
			return false
		}
		old := uint32(p[0])<<8 | uint32(p[1])
		p[1] |= 3
		// RFC 1624, equation 3.
		sum := uint32(^(uint16(p[10])<<8 | uint16(p[11]))) + uint32(^uint16(old)) + (uint32(p[0])<<8 | uint32(p[1]))
		sum = sum&0xffff + sum>>16
		sum = sum&0xffff + sum>>16
		p[10], p[11] = byte(^sum>>8), byte(^sum)
		return true
	case 6:
		if p[1]&0x30 == 0 {
			return false
		}
		p[1] |= 0x30
		return true
	}
	return false
}
