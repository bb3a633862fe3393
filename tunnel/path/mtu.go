package path

import (
	"net/netip"
	"slices"
	"time"
)

// How long packets to a far end may be is found by probing inside the tunnel, as packetization layers do (RFC 8899):
// ICMP from the network is believed by nobody. A probe is a message of this package that is padded to a length and
// must not be sent in fragments; the far end answers it as any other probe. Beside each goes one without padding.
// Only if that was answered is the long one lost by its length, and only after lostSizes of them: a line that loses
// packets, or everything, is no evidence.
//
// What passes is confirmed every sizesEvery, and soon after somebody sends long packets; where it does not pass any
// more the search begins again below it, and its result replaces the old one in one step. As often something longer is
// tried. Lengths are those of IP packets with all their headers.

const (
	// sizeStep is the distance of the lengths that are tried: WireGuard pads to 16 bytes (paper, section 5.4.6), so
	// others make no difference. They are sizeOffset and a multiple of it: what is inside is a multiple then.
	sizeStep   = 16
	sizeOffset = 80 // what WireGuard adds over IPv6
	// baseSize is tried where the longest does not pass (BASE_PLPMTU): IPv6 needs links of it (RFC 8200, section 5).
	baseSize = 1280
	// leastSize is the shortest that is tried over IPv4: each host takes 576 bytes (RFC 791), here inside.
	leastSize = 576 + sizeOffset

	// lostSizes is how many long packets have to be lost while short ones pass (MAX_PROBES; RFC 8899, section 5.1.2).
	// Where something longer is tried it may be fewer: nothing is taken away.
	lostSizes      = 3
	lostWhenRaised = 2
	// unheardSizes tries without an answer to either packet end the search, until unheardAfter. After unheardRounds
	// of that the far end is taken for one that answers no probes.
	unheardSizes  = 5
	unheardAfter  = time.Minute
	unheardRounds = 3

	// A try is over after twice the last round trip and answerSlack, within these bounds. RFC 8899 asks for a second
	// at least because silence is all it knows; here the short packet's answer says that the time has passed.
	leastTry    = 250 * time.Millisecond
	longestTry  = 2 * time.Second
	answerSlack = 100 * time.Millisecond

	// sizesEvery is how often what passes is confirmed, and something longer tried (PMTU_RAISE_TIMER). Each time within
	// longestRaise that it turned out wrong doubles the latter, up to that.
	sizesEvery   = 10 * time.Minute
	longestRaise = time.Hour
	// usedEvery is how often it is confirmed while long packets are sent, and calledEvery, while there are calls as
	// well: on a slow line each long packet keeps a voice packet waiting.
	usedEvery   = 10 * time.Second
	calledEvery = time.Minute
	// sizeKept is for how long a path is remembered whose line has gone.
	sizeKept = 10 * time.Minute

	// A far end of which nothing is known is greeted by a short probe: greetings times every greetAgain, then every
	// sizesEvery. One that is no Ringway drops it.
	greetings  = 3
	greetAgain = time.Second
)

// SizesSeen is what the engine knows of a peer.
type SizesSeen struct {
	Sources []netip.Addr // as in Seen
	Source  netip.Addr
	Remote  netip.Addr // where it is
	Session bool       // something can be sent
	Calls   bool       // there are some
	Knows   bool       // the far end has sent a message about paths lately
	// May reports whether a long packet may be sent now, and counts it.
	May func() bool
}

// SizeProbe is a probe to be sent: a message about paths with this stamp.
type SizeProbe struct {
	Source netip.Addr // from this address; zero: by the path that is used
	Size   int        // of the IP packet in bytes; 0: without padding
	Stamp  uint64
}

// Sizes is how long packets to one peer may be. The zero Sizes looks for nothing. It is not for several goroutines at
// once.
type Sizes struct {
	most    int // the longest that anybody sends; 0: nothing is looked for
	known   bool
	unheard int // rounds without an answer
	paths   []sized
	stamp   uint64 // of the last probe

	greeted  int64
	greets   int
	greeting uint64 // its stamp
}

type goal uint8

const (
	idle goal = iota
	confirm
	search // between low and high
	raise
)

// sized is what is known of one path.
type sized struct {
	source netip.Addr // zero: the only one
	remote netip.Addr
	listed int64 // when there last was such a line
	moved  int64 // when remote last changed

	size      int   // what passes; 0: not known
	confirmed int64 // when it last did
	next      int64 // when something is due
	raiseAt   int64 // when something longer is tried
	lowered   int64 // when it last turned out wrong; 0: never
	times     int   // how often, each within longestRaise of the one before

	goal      goal
	try       int // the length that is tried
	low, high int // the longest that passed (0: none), and the shortest that did not
	asked     int64
	long      [unheardSizes + lostSizes]uint64 // stamps of the tries of this length
	longs     int
	short     uint64 // stamp of the last short one
	heard     bool   // it was answered
	lost      int
	silent    int
	trip      time.Duration
}

// Probe has lengths up to most looked for; 0: none.
func (z *Sizes) Probe(now int64, most int) {
	if most == z.most {
		return
	}
	if most <= 0 {
		*z = Sizes{}
		return
	}
	z.most = most
	for i := range z.paths {
		p := &z.paths[i]
		p.goal, p.size, p.next, p.raiseAt = idle, min(p.size, most), now, now
	}
}

// Used notes that long packets are sent by the path that is used: whether they pass is confirmed soon.
func (z *Sizes) Used(now int64, s SizesSeen) {
	every := int64(usedEvery)
	if s.Calls {
		every = int64(calledEvery)
	}
	for i := range z.paths {
		p := &z.paths[i]
		if (p.source == s.Source || !p.source.IsValid()) && p.goal == idle && p.confirmed != 0 {
			p.next = min(p.next, max(now, p.confirmed+every))
		}
	}
}

// Look returns what to send now. It is due every 100 ms.
func (z *Sizes) Look(now int64, s SizesSeen) (probes []SizeProbe) {
	if z.most == 0 || !s.Session || !s.Remote.IsValid() {
		return nil
	}
	z.known = z.known || s.Knows
	if !z.known {
		return z.greet(now)
	}
	z.list(now, s)
	for i := range z.paths {
		p := &z.paths[i]
		if now-p.listed > 0 || !p.due(now, z) || !s.May() {
			continue
		}
		p.asked, p.heard = now, false
		p.long[p.longs%len(p.long)] = z.draw(now)
		p.short = z.draw(now)
		probes = append(probes, SizeProbe{p.source, p.try, p.long[p.longs%len(p.long)]}, SizeProbe{p.source, 0, p.short})
		p.longs++
	}
	return probes
}

// draw returns a stamp that no other probe has, nor one of a Watch at this moment.
func (z *Sizes) draw(now int64) uint64 {
	z.stamp = max(z.stamp, uint64(now)) + 1
	return z.stamp
}

func (z *Sizes) greet(now int64) []SizeProbe {
	wait := greetAgain
	if z.greets >= greetings {
		wait = sizesEvery
	}
	if z.greeted != 0 && now-z.greeted < int64(wait) {
		return nil
	}
	z.greeted, z.greeting = now, z.draw(now)
	z.greets = min(z.greets+1, greetings)
	return []SizeProbe{{Stamp: z.greeting}}
}

// list follows which paths there are.
func (z *Sizes) list(now int64, s SizesSeen) {
	sources := s.Sources
	if len(sources) < 2 {
		sources = []netip.Addr{{}}
	}
	for _, a := range sources {
		i := slices.IndexFunc(z.paths, func(p sized) bool { return p.source == a })
		if i < 0 {
			z.paths = append(z.paths, sized{source: a, remote: s.Remote, next: now})
			i = len(z.paths) - 1
		}
		p := &z.paths[i]
		p.listed = now
		if p.remote != s.Remote { // another path: what is known may be wrong for it, in both directions
			p.remote, p.goal, p.raiseAt = s.Remote, idle, now
			p.next = now
			if p.moved != 0 {
				p.next = max(now, p.moved+int64(usedEvery)) // a far end that moves to and fro is not probed each time
			}
			p.moved = now
		}
	}
	z.paths = slices.DeleteFunc(z.paths, func(p sized) bool { return now-p.listed > int64(sizeKept) })
}

// due judges the last try and reports whether another one is due.
func (p *sized) due(now int64, z *Sizes) bool {
	if p.goal == idle {
		if now < p.next {
			return false
		}
		p.begin(z)
		return p.goal != idle
	}
	if p.asked == 0 {
		return true
	}
	if now-p.asked < int64(p.patience()) {
		return false
	}
	p.asked = 0
	if p.heard {
		p.lost++
	} else {
		p.silent++
	}
	switch {
	case p.silent >= unheardSizes:
		p.goal, p.next = idle, now+int64(unheardAfter)
		if z.unheard++; z.unheard >= unheardRounds {
			z.known, z.unheard, z.greets, z.greeted = false, 0, greetings, now
		}
	case p.lost >= lostSizes, p.goal == raise && p.lost >= lostWhenRaised:
		p.fail(now, z)
	}
	return p.goal != idle
}

func (p *sized) patience() time.Duration {
	if p.trip == 0 {
		return longestTry / 2
	}
	return min(max(2*p.trip+answerSlack, leastTry), longestTry)
}

// begin begins what is due: to confirm what is known, or to search.
func (p *sized) begin(z *Sizes) {
	if p.size == 0 {
		p.low, p.high = 0, z.most+1
		p.attempt(search, z.most)
		return
	}
	p.attempt(confirm, z.Least()) // nothing longer is sent, where another path takes less
}

// attempt tries a length.
func (p *sized) attempt(g goal, size int) {
	p.goal, p.try = g, size
	p.asked, p.longs, p.lost, p.silent = 0, 0, 0, 0
	p.long = [len(p.long)]uint64{}
}

// pass takes that the length which is tried passes.
func (p *sized) pass(now int64, z *Sizes) {
	switch {
	case p.goal == confirm && p.size < z.most && now >= p.raiseAt:
		p.confirmed = now
		p.low = p.size
		p.attempt(raise, z.most)
	case p.goal == confirm:
		p.done(now, p.size, z)
	case p.try == z.most:
		p.done(now, p.try, z)
	default:
		if p.goal == raise { // a little longer passes
			p.high = z.most
		}
		p.low = p.try
		p.searchOn(now, z)
	}
}

// fail takes that it does not.
func (p *sized) fail(now int64, z *Sizes) {
	switch p.goal {
	case raise:
		if longer := lengthAt(indexOf(p.size) + 1); p.try == z.most && longer < z.most {
			p.attempt(raise, longer)
			return
		}
		p.done(now, p.size, z)
		return
	case confirm:
		p.low = 0
	}
	p.high = p.try
	p.searchOn(now, z)
}

// searchOn goes on between low and high, or ends the search.
func (p *sized) searchOn(now int64, z *Sizes) {
	least := leastSize
	if p.remote.Is6() && !p.remote.Is4In6() {
		least = baseSize
	}
	low, high := indexOf(p.low), indexOf(p.high+sizeStep-1)
	if p.low == 0 {
		if p.high > baseSize {
			p.attempt(search, baseSize)
			return
		}
		low = indexOf(least) - 1
	}
	if high-low > 1 {
		p.attempt(search, lengthAt((low+high)/2))
		return
	}
	p.done(now, max(p.low, least), z) // where not even the least passes nothing shorter would help
}

func indexOf(size int) int   { return (size - sizeOffset) / sizeStep }
func lengthAt(index int) int { return sizeOffset + index*sizeStep }

// done takes over what was found.
func (p *sized) done(now int64, size int, z *Sizes) {
	every := sizesEvery
	if size < p.size {
		if p.lowered != 0 && now-p.lowered > int64(longestRaise) {
			p.times = 0
		}
		p.lowered = now
		p.times = min(p.times+1, 8)
	}
	if p.lowered != 0 && now-p.lowered <= int64(longestRaise) {
		every = min(sizesEvery<<(p.times-1), longestRaise)
	}
	if p.goal != confirm {
		p.raiseAt = now + int64(every)
	}
	p.size, p.confirmed, p.goal = size, now, idle
	p.next = now + int64(sizesEvery)
	if p.size < z.most {
		p.next = min(p.next, p.raiseAt)
	}
}

// Refused takes that this machine itself does not send a probe so long: its line's device takes less.
func (z *Sizes) Refused(now int64, stamp uint64) {
	if p, long := z.find(stamp); p != nil && long {
		p.fail(now, z)
	}
}

// Answer takes the answer to a probe, by its stamp.
func (z *Sizes) Answer(now int64, stamp uint64) {
	if stamp == z.greeting && stamp != 0 {
		z.known, z.greeting, z.greets = true, 0, 0
		return
	}
	p, long := z.find(stamp)
	if p == nil {
		return
	}
	z.unheard = 0
	p.trip, p.silent = time.Duration(now-int64(stamp)), 0
	if long {
		p.pass(now, z)
		return
	}
	p.heard = true
}

// find returns the path by which a probe that may still be answered was sent; nil: there is none.
func (z *Sizes) find(stamp uint64) (p *sized, long bool) {
	for i := range z.paths {
		p := &z.paths[i]
		if p.goal == idle || stamp == 0 {
			continue
		}
		if slices.Contains(p.long[:], stamp) {
			return p, true
		}
		if p.short == stamp {
			return p, false
		}
	}
	return nil, false
}

// Of is what passes by the path from an address; 0: not known.
func (z *Sizes) Of(source netip.Addr) int {
	for _, p := range z.paths {
		if p.source == source {
			return p.size
		}
	}
	return 0
}

// Least is what passes by every path of which it is known; 0: of none.
func (z *Sizes) Least() (least int) {
	for _, p := range z.paths {
		if p.size > 0 && (least == 0 || p.size < least) {
			least = p.size
		}
	}
	return least
}
