package stream

// Bounds on the sources (SSRC) of a direction. Who sends in clear makes up as many as he likes, so there is a place for
// few; but an index that was used under a key is never used again, nor accepted, so what gives way is not forgotten.
const (
	// maxActive sources have a window. One more takes the place of the one that was silent longest, which is parked.
	maxActive = 8
	maxParked = 24
	// usualSources of a direction have their places from the beginning: a call has one, and one more after a transfer. The
	// first packet of each further one allocates, which newSources bounds.
	usualSources = 2
	// MaxSources is how many sources of a direction are told apart.
	MaxSources = maxActive + maxParked
	newSources = 10 // a second
	// contextUses is after how many new sources the library's context is made again: it keeps 100 bytes for each.
	contextUses = 256
)

// parked is what is kept of a source that is not active.
type parked struct {
	ssrc            uint32
	hasRTP, hasRTCP bool
	rtp             uint64 // the highest index
	rtcp            uint32
	kept            uint64 // the indices of the last account
	keptRTCP        uint32

	// Of a source that is sent:
	least uint64
	back  uint32
	young int
	used  bool
}

// parking is the sources that are parked.
type parking struct{ places []parked }

func (p *parking) full() bool { return len(p.places) == maxParked }

// find returns the source's place, or -1.
func (p *parking) find(ssrc uint32) int {
	for i := range p.places {
		if p.places[i].ssrc == ssrc {
			return i
		}
	}
	return -1
}

// remove takes a source out.
func (p *parking) remove(i int) parked {
	was, last := p.places[i], len(p.places)-1
	p.places[i] = p.places[last]
	p.places = p.places[:last]
	return was
}

// put has one more source. There is room for it.
func (p *parking) put(one parked) {
	p.places = append(p.places, one)
}

// first returns the place of the source that comes first in an order; there is one.
func (p *parking) first(before func(a, b *parked) bool) int {
	first := 0
	for i := range p.places {
		if before(&p.places[i], &p.places[first]) {
			first = i
		}
	}
	return first
}
