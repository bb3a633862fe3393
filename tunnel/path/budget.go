package path

import (
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"time"

	"ringway/units"
)

// What messages about paths take of a line. Media is not slowed down by them: where they would take more than their
// share, they are sent less often, and silence is waited for accordingly.

const (
	// share is the part of a line's rate that messages about paths may take.
	share = 0.01
	// wireIPv4 and wireIPv6 are the lengths of a message on the line in bytes: 16 header and 16 tag of WireGuard (paper,
	// section 5.4.6), 8 UDP, and the IP header.
	wireIPv4 = Size + 16 + 16 + 8 + 20
	wireIPv6 = Size + 16 + 16 + 8 + 40

	// everyUnit is the unit in which a message states how often its sender sends, and maxEvery the longest such time.
	everyUnit = 20 * time.Millisecond
	maxEvery  = 31 * everyUnit
	// helloSlow is the largest factor by which messages beside media are slower: by them both ends know what is lost, and
	// that copies come, above all when a line is bad and its probes take the most. They are a hundredth of the media.
	helloSlow = 2
	// maxSlow is the largest factor by which something is slower. All are powers of two.
	maxSlow = 1 << 7
)

// Load is what is to be sent by a line, or to a far end.
type Load struct {
	Fill  int     // far ends to which there is a call, and no media: something is sent to each every SendEvery
	Often float64 // probes and answers in a second
	Hello float64 // messages beside media in a second, which are slower by helloSlow at most
}

// Pace is how often something is sent. The zero Pace is as often as it is useful.
type Pace struct {
	// Send is the longest time without a message while calls are up; 0: SendEvery. Mute: it would be longer than maxEvery,
	// and nothing is promised.
	Send time.Duration
	Mute bool
	// Slow is by how much everything else is slower, a power of two; 0 is 1.
	Slow int
}

// PaceOf is the pace at which messages take at most their share of a line.
//
// rate: of the line, 0: not known, there is no bound; v6: whether the messages are sent over IPv6.
func PaceOf(rate units.BitRate, v6 bool, l Load) (p Pace) {
	size := wireIPv4
	if v6 {
		size = wireIPv6
	}
	budget := share * float64(rate) / float64(8*size)
	if rate == 0 || float64(l.Fill)/SendEvery.Seconds()+l.Often+l.Hello <= budget {
		return p
	}
	others := budget
	if l.Fill > 0 {
		others /= 2
	}
	for p.Slow = 1; p.Slow < maxSlow; p.Slow *= 2 {
		// Probes have half of it at the least: without them no line is known that is better than a bad one.
		if slow := float64(p.Slow); slow*(others-l.hello(p.Slow)) >= l.Often ||
			p.Slow >= helloSlow && slow*others/2 >= l.Often {
			break
		}
	}
	if l.Fill == 0 {
		return p
	}
	every := float64(l.Fill) / (budget - min(l.Often/float64(p.Slow)+l.hello(p.Slow), budget/2))
	steps := math.Ceil(every / everyUnit.Seconds())
	if steps > maxEvery.Seconds()/everyUnit.Seconds() {
		p.Mute = true
		return p
	}
	p.Send = max(time.Duration(steps)*everyUnit, SendEvery)
	return p
}

// Plus is both together.
func (l Load) Plus(m Load) Load {
	return Load{Fill: l.Fill + m.Fill, Often: l.Often + m.Often, Hello: l.Hello + m.Hello}
}

// hello is how many messages beside media are sent in a second at a pace.
func (l Load) hello(slow int) float64 { return l.Hello / float64(min(slow, helloSlow)) }

// helloOf is how often a message is sent beside media at a pace.
func helloOf(slow int) time.Duration { return helloEvery * time.Duration(min(max(slow, 1), helloSlow)) }

// Slower is the slower of two paces in each respect.
func (p Pace) Slower(o Pace) Pace {
	return Pace{Send: max(p.Send, o.Send), Mute: p.Mute || o.Mute, Slow: max(p.Slow, o.Slow)}
}

func (p Pace) send() time.Duration { return max(p.Send, SendEvery) }
func (p Pace) slow() int64         { return int64(max(p.Slow, 1)) }

// silenceOf is the longest time in which nothing is received from an end that sends so often: five messages in a row
// are missing.
func silenceOf(every time.Duration) time.Duration {
	return 5*max(every, SendEvery) + 10*time.Millisecond
}

// Load calls add with what the far end costs on the line of each source, at the pace of the zero Pace.
func (w *Watch) Load(now int64, s Seen, add func(source netip.Addr, l Load)) {
	several := len(s.Paths) > 1
	if !w.Knows(now) || !several && !w.farLines {
		return
	}
	up := now < w.active
	switch {
	case !w.Active(now):
	case w.filling(now, s):
		add(s.Used.Source, Load{Fill: 1})
	default:
		add(s.Used.Source, Load{Hello: 1 / helloEvery.Seconds()})
	}
	if !several { // answers alone
		every := restProbeEvery
		if up {
			every = probeEvery
		}
		add(s.Used.Source, Load{Often: 1 / every.Seconds()})
		return
	}
	for _, p := range s.Paths {
		if slices.Contains(s.Metered, p.Source) && !w.hurried() {
			continue
		}
		// The far end probes as often.
		add(p.Source, Load{Often: 2 / w.interval(now, s, p, up).Seconds()})
	}
}

// filling reports whether messages are sent since there is no media, or would be.
func (w *Watch) filling(now int64, s Seen) bool {
	every := max(w.every, SendEvery)
	return w.filledAt != 0 && now-w.filledAt < int64(activeIn+2*every) || now-s.Sent > int64(2*every)
}

// phase spreads the probes of many peers and paths: those of a box that has just started would all be sent at once, and
// again each time.
func (p Path) phase() int64 {
	h := fnv.New64a()
	from, to := p.Source.As16(), p.Remote.Addr().As16()
	_, _ = h.Write(from[:])
	_, _ = h.Write(to[:])
	sum := h.Sum64()
	sum = (sum ^ sum>>33) * 0xff51afd7ed558ccd // the last byte reaches all bits
	return int64(sum >> 20)                    // up to five hours, in ns
}
