package flowqueue

import "time"

// Pace says when a packet may follow the one that left for the line, on a line so slow that a packet takes milliseconds. While the
// line is busy with one, the next cannot leave, and what stands behind the queues cannot be overtaken any more: so it is chosen
// only shortly before the line is free. Limit says how much may be behind, Pace when; on a fast line Pace never has a say.
//
// How long before is enough depends on the machine. Pace learns it: now and then a packet has to come nearly too late. Each one that
// does moves the time by paceStep, each one in time by a paceOften-th of that the other way, so that one in paceOften is nearly late.
type Pace struct {
	rate uint64

	size   int // of the last that was given, on the line; 0 when it has left
	given  time.Duration
	waited bool
	ahead  time.Duration
	free   time.Duration // when the line is
}

const (
	paceLeast  = 2 * time.Millisecond
	paceMost   = 20 * time.Millisecond
	paceNearly = 500 * time.Microsecond // a shaper's burst makes up for as much (qos slowBurst), so nothing is lost yet
	paceStep   = 500 * time.Microsecond
	paceOften  = 64
)

// Paced says whether a line is slow enough, in bit/s, for packets of that many bytes to wait for it.
func Paced(rate uint64, packet int) bool { return rate > 0 && onLine(rate, packet) > paceLeast }

func onLine(rate uint64, n int) time.Duration {
	return time.Duration(uint64(n) * 8 * uint64(time.Second) / rate)
}

// Set says how fast the line is at most, in bit/s; 0: nobody knows, and nothing has to wait.
func (p *Pace) Set(rate uint64) { p.rate = rate }

// Give notes that something was given whose last packet has n bytes on the line; waited: it was there while the line was busy.
func (p *Pace) Give(now time.Duration, n int, waited bool) {
	p.size, p.given, p.waited = n, now, waited
}

// Left notes that nothing is under way; the first time after Give the last packet has just left for the line. queued is when it came
// to the shaper's queue, before Give if nobody knows: then it has left at once.
func (p *Pace) Left(now, queued time.Duration) {
	if p.size == 0 || p.rate == 0 {
		return
	}
	if p.ahead = max(p.ahead, paceLeast); p.waited {
		if queued < p.given || now-queued < paceNearly {
			p.ahead = min(p.ahead+paceStep, paceMost)
		} else {
			p.ahead = max(p.ahead-paceStep/paceOften, paceLeast)
		}
	}
	p.free = now + onLine(p.rate, p.size)
	p.size = 0
}

// Busy says whether the line is.
func (p *Pace) Busy(now time.Duration) bool { return now < p.free }

// Early is how long the next packet has to wait; at most 0: it may go.
func (p *Pace) Early(now time.Duration) time.Duration { return p.free - p.ahead - now }
