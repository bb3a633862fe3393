package transparent

import (
	"net/netip"
	"sync"
	"time"
)

// gate bounds handshakes, which are what a stranger can have this machine compute most: how many there are at once,
// of all senders and of one, and how many begin in a second. One sender has few of those that wait, so it cannot keep
// the others waiting for long.
type gate struct {
	limits Limits

	mu      sync.Mutex // guards what follows
	inside  int
	sources map[netip.Addr]int
	next    time.Duration // when the next handshake may begin, if those before came evenly
}

// handshakeBurst is how many handshakes may begin at once after a pause.
const handshakeBurst = 16

func newGate(l Limits) *gate { return &gate{limits: l, sources: map[netip.Addr]int{}} }

// enter counts a handshake in, and says how long it has to wait; or why there can be none. now is the time since
// any fixed moment. leave must follow.
func (g *gate) enter(source netip.Addr, now time.Duration) (wait time.Duration, why event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	interval := time.Second / time.Duration(g.limits.HandshakeRate)
	next := max(g.next, now)
	wait = max(0, next-now-handshakeBurst*interval)
	switch {
	case g.inside >= g.limits.Handshakes, wait > g.limits.Handshake:
		return 0, tlsTooMany
	case g.sources[source] >= g.limits.HandshakesPerSource:
		return 0, tlsTooManyOfSource
	}
	g.next = next + interval
	g.inside++
	g.sources[source]++
	return wait, none
}

func (g *gate) leave(source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.sources[source]--; g.sources[source] == 0 {
		delete(g.sources, source)
	}
}
