package realtime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel/datagram"
)

// far is a rig whose ends are a while apart: what is sent arrives later, in order, while both go on.
type far struct {
	*rig
	delay    time.Duration // one way
	way      map[*bare][]flying
	sent     map[*bare]int
	seen     map[*bare]map[uint32]bool // by whom it was sent
	nextTick int64
}

type flying struct {
	due int64
	b   []byte
}

func newFar(t *testing.T, delay time.Duration) *far {
	f := &far{rig: newRig(t), delay: delay, way: map[*bare][]flying{}, sent: map[*bare]int{},
		seen: map[*bare]map[uint32]bool{}}
	f.talk()
	for _, x := range []*bare{f.a, f.b} {
		f.seen[x] = map[uint32]bool{}
	}
	return f
}

func (f *far) other(x *bare) *bare {
	if x == f.a {
		return f.b
	}
	return f.a
}

// pass lets time go by, a millisecond a step; with talk, each end sends a numbered packet every other step.
func (f *far) pass(d time.Duration, talk bool) {
	f.t.Helper()
	for end := f.now + int64(d); f.now < end; {
		f.now += int64(time.Millisecond)
		for _, x := range []*bare{f.a, f.b} {
			if talk && f.now/int64(time.Millisecond)%2 == 0 {
				p := packet(x.net, f.other(x).net, 0, 100)
				binary.BigEndian.PutUint32(p[28:], uint32(f.sent[x]))
				f.sent[x]++
				x.send(p)
			}
			x.step()
		}
		for _, x := range []*bare{f.a, f.b} {
			for _, m := range x.wire() {
				f.way[x] = append(f.way[x], flying{f.now + int64(f.delay), m})
			}
			from := datagram.RawSockaddr(f.other(x).at)
			for len(f.way[x]) > 0 && f.way[x][0].due <= f.now {
				m := f.way[x][0].b
				f.way[x] = f.way[x][1:]
				x.in.datagram(append(make([]byte, 0, len(m)+64), m...), &from, &datagram.Arrival{}, f.now)
				x.step()
			}
			for _, p := range x.got() {
				f.seen[f.other(x)][binary.BigEndian.Uint32(p[28:])] = true
			}
		}
		if f.now >= f.nextTick {
			f.nextTick = f.now + int64(tick)
			for _, x := range []*bare{f.a, f.b} {
				x.mu.Lock()
				for _, p := range x.peers {
					x.checkTimersLocked(p, f.now)
				}
				x.wipeRetiredLocked()
				x.mu.Unlock()
			}
		}
	}
}

// step lets an engine do what there is to do but receive.
func (b *bare) step() {
	for !b.out.batch(b.now()) {
	}
	b.handlePending()
	b.out.sendStaged(b.now())
}

// rekey has an end begin a new session, as if it had not done so in five seconds.
func (f *far) rekey(x *bare) {
	p := x.peerOf(f.other(x))
	x.mu.Lock()
	p.initiated = 0
	x.initiateLocked(p)
	x.mu.Unlock()
}

// none asserts that everything arrived.
func (f *far) none(msg ...any) {
	f.t.Helper()
	f.pass(2*f.delay+10*time.Millisecond, false)
	for name, x := range map[string]*bare{"a": f.a, "b": f.b} {
		assert.Zero(f.t, f.sent[x]-len(f.seen[x]), "lost of %d that %s sent: %v; drops of the other end %v",
			f.sent[x], name, msg, f.other(x).drops.all())
	}
}

// Both ends begin a session within the time that a message is on its way: what either sends in the old one
// until it has the new is on its way when the other has the new one.
func TestCrossingHandshakesLoseNothing(t *testing.T) {
	for _, gap := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 19 * time.Millisecond,
		20 * time.Millisecond, 30 * time.Millisecond, 40 * time.Millisecond, 60 * time.Millisecond} {
		t.Run(gap.String(), func(t *testing.T) {
			f := newFar(t, 20*time.Millisecond)
			for range 4 { // each end's sessions are crossed ones from the second on
				f.pass(200*time.Millisecond, true)
				f.rekey(f.a)
				f.pass(gap, true)
				f.rekey(f.b)
				f.pass(200*time.Millisecond, true)
			}
			f.none()
			for _, x := range []*bare{f.a, f.b} {
				require.True(t, x.peerOf(f.other(x)).current.Load().usable(f.now))
			}
		})
	}
}

// Re-keys in bursts, 0-200 ms apart, by either end or both, over ways of any length.
func TestBurstsOfHandshakesLoseNothing(t *testing.T) {
	t.Parallel()
	seeds := uint64(20)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		random := rand.New(rand.NewPCG(seed, 1))
		f := newFar(t, time.Duration(1+random.IntN(100))*time.Millisecond)
		last := map[*bare]int64{}
		for range 50 {
			x := []*bare{f.a, f.b}[random.IntN(2)]
			if wait := time.Duration(last[x] + int64(initiationsEvery) - f.now); wait > 0 {
				f.pass(wait, true) // sooner it would be refused
			}
			last[x] = f.now
			f.rekey(x)
			f.pass(time.Duration(random.IntN(200))*time.Millisecond, true)
		}
		f.pass(time.Second, true)
		f.none(fmt.Sprintf("seed %d, %v one way", seed, f.delay))
		for _, x := range []*bare{f.a, f.b} {
			assert.LessOrEqual(t, x.indices.n, 12)
		}
		f.pass(2*rekeyTimeout, false)
		for _, x := range []*bare{f.a, f.b} {
			assert.LessOrEqual(t, x.indices.n, 4, "old sessions are let go")
		}
	}
}
