package flowqueue

import (
	"time"

	"ringway/units"
)

// Pace decides when a packet may follow the one that left for the line, on a line so slow that a packet takes
// milliseconds. While the line is busy with one, the next cannot leave, and what is behind the queues can no
// longer be overtaken: so it is chosen only shortly before the line is free. Limit decides how much may be
// behind, Pace when; on a fast line Pace never delays anything.
//
// How long before is enough depends on the machine, and Pace learns it: now and then a packet has to come
// nearly too late. Each one that does adds aheadStep to that time, each one in time takes off a lateOneIn-th
// of that, so that one in lateOneIn is nearly late.
type Pace struct {
	rate units.BitRate

	size   int // of the last that was given, on the line; 0 when it has left
	given  time.Duration
	waited bool
	ahead  time.Duration
	free   time.Duration // when the line is
}

const (
	minAhead   = 2 * time.Millisecond
	maxAhead   = 20 * time.Millisecond
	nearlyLate = 500 * time.Microsecond // a shaper's burst makes up for this much (qos slowBurst), so nothing is lost yet
	aheadStep  = 500 * time.Microsecond
	lateOneIn  = 64
)

// Paced reports whether a line is slow enough, in bit/s, for packets of that many bytes to wait for it.
func Paced(rate units.BitRate, packet int) bool { return rate > 0 && onLine(rate, packet) > minAhead }

func onLine(rate units.BitRate, n int) time.Duration {
	return time.Duration(uint64(n) * 8 * uint64(time.Second) / uint64(rate))
}

// Set sets how fast the line is at most, in bit/s. At 0, unknown, nothing has to wait.
func (p *Pace) Set(rate units.BitRate) { p.rate = rate }

// Give notes that something was given whose last packet has n bytes on the line; waited: it was there while
// the line was busy.
func (p *Pace) Give(now time.Duration, n int, waited bool) {
	p.size, p.given, p.waited = n, now, waited
}

// Left notes that nothing is under way; the first time after Give the last packet has just left for the line.
// queued is when it came to the shaper's queue, before Give if that is unknown: then it has left at once.
func (p *Pace) Left(now, queued time.Duration) {
	if p.size == 0 || p.rate == 0 {
		return
	}
	if p.ahead = max(p.ahead, minAhead); p.waited {
		if queued < p.given || now-queued < nearlyLate {
			p.ahead = min(p.ahead+aheadStep, maxAhead)
		} else {
			p.ahead = max(p.ahead-aheadStep/lateOneIn, minAhead)
		}
	}
	p.free = now + onLine(p.rate, p.size)
	p.size = 0
}

// Busy reports whether the line is busy.
func (p *Pace) Busy(now time.Duration) bool { return now < p.free }

// Early is how long the next packet has to wait. It may go if that is not above 0.
func (p *Pace) Early(now time.Duration) time.Duration { return p.free - p.ahead - now }
