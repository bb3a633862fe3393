package relay

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// restFor is how long a port of media is not given to another call: packets of the call before may be on their way,
// and its ends may not know yet that it has ended.
const restFor = time.Minute

// ports hands out ports of media: an even one with the odd one above it, at random, so that nobody who knows one
// call's knows the next one's.
type ports struct {
	now         func() time.Time
	first, last uint16 // even; the odd one above last belongs to it
	out         map[netip.AddrPort]bool
	resting     map[netip.AddrPort]time.Time // until when
	refused     uint64
}

func newPorts(now func() time.Time) *ports {
	return &ports{now: now, out: map[netip.AddrPort]bool{}, resting: map[netip.AddrPort]time.Time{}}
}

// use takes another range. Ports that are out stay out.
func (p *ports) use(first, last uint16) {
	p.first, p.last = first+first%2, last-(last+1)%2-1
	if first == 0 || last <= first || p.last < p.first {
		p.first, p.last = 0, 0
	}
}

// rest keeps a port of an earlier process from being given away for a while, unless it is out.
func (p *ports) rest(a netip.AddrPort) {
	if !p.out[a] {
		p.resting[a] = p.now().Add(restFor)
	}
}

// claim takes a port that an earlier process has handed out.
func (p *ports) claim(a netip.AddrPort) {
	delete(p.resting, a)
	p.out[a] = true
}

// Allocate implements offer.Ports. It begins anywhere in the range, and takes the first that is free.
func (p *ports) Allocate(a netip.Addr) (port uint16, ok bool) {
	if p.first == 0 {
		p.refused++
		return 0, false
	}
	n := int(p.last-p.first)/2 + 1
	start := rand.IntN(n)
	for i := range n {
		at := netip.AddrPortFrom(a, p.first+2*uint16((start+i)%n))
		if p.out[at] || p.rests(at) {
			continue
		}
		p.out[at] = true
		return at.Port(), true
	}
	p.refused++
	return 0, false
}

func (p *ports) rests(a netip.AddrPort) bool {
	until, is := p.resting[a]
	if is && !until.After(p.now()) {
		delete(p.resting, a)
		return false
	}
	return is
}

// Release implements offer.Ports.
func (p *ports) Release(a netip.AddrPort) {
	delete(p.out, a)
	p.rest(a)
}

// expire forgets ports that have rested.
func (p *ports) expire() {
	now := p.now()
	for a, until := range p.resting {
		if !until.After(now) {
			delete(p.resting, a)
		}
	}
}
