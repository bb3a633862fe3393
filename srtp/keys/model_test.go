package keys

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/srtp/suite"
)

// end is one box: an exchange, and a media plane that does what it is asked to when the test lets it.
type end struct {
	t    require.TestingT
	net  *network
	name string
	x    *Exchange
	rand *rand.ChaCha8

	saved   []byte // after every call, before anything of it is carried out
	actions []Action
	wire    [][]byte // messages on their way to the far end

	sending map[Leg]Key
	holding map[Leg]map[MKI]Key
	begun   map[Leg]bool
	endedAt map[Leg]int64
	sent    map[Leg]map[MKI]uint64
}

// network is two ends and what is on its way between them.
type network struct {
	t       require.TestingT
	now     int64
	up      bool
	config  Config
	large   bool // nothing is kept for the next process
	ends    [2]*end
	packets []packet
	drawn   map[[maxKey + maxSalt]byte]string // what every key was ever for
	excused map[MKI]bool                      // keys that the far end need not hold any more
	refused int                               // packets that were not opened
}

// packet is one of SRTP: what matters is its key.
type packet struct {
	from *end
	leg  Leg
	key  Key
	at   int64
	// unheard: its key is the first of its life, and was used before it was acknowledged.
	unheard bool
}

func newNetwork(t require.TestingT, c Config, seed uint64) *network {
	n := &network{t: t, now: int64(time.Hour), config: c, drawn: map[[maxKey + maxSalt]byte]string{},
		excused: map[MKI]bool{}}
	for i, name := range [...]string{"a", "b"} {
		var s [32]byte
		s[0], s[1], s[2], s[3] = byte(i), byte(seed), byte(seed>>8), byte(seed>>16)
		e := &end{t: t, net: n, name: name, rand: rand.NewChaCha8(s)}
		n.ends[i] = e
		e.cold()
	}
	return n
}

func (n *network) end(name string) *end { return n.ends[name[0]-'a'] }

func (e *end) far() *end {
	if e == e.net.ends[0] {
		return e.net.ends[1]
	}
	return e.net.ends[0]
}

func (e *end) config() Config {
	c := e.net.config
	c.Rand = e.rand
	return c
}

// cold starts an end that knows nothing, media plane included.
func (e *end) cold() {
	if e.x != nil {
		e.net.excuse() // it holds none of the far end's keys, and what it has sent itself is of a stream that has ended
	}
	var err error
	e.x, err = New(e.config(), e.net.now)
	require.NoError(e.t, err)
	e.actions, e.wire = nil, nil
	e.sending, e.holding, e.sent = map[Leg]Key{}, map[Leg]map[MKI]Key{}, map[Leg]map[MKI]uint64{}
	e.begun, e.endedAt = map[Leg]bool{}, map[Leg]int64{}
	e.saved = e.x.Save(e.net.now)
}

// excuse: nothing that is there now, or on its way, need be opened any more.
func (n *network) excuse() {
	for _, p := range n.packets {
		n.excused[p.key.MKI] = true
	}
	for _, e := range n.ends {
		for _, k := range e.sending {
			n.excused[k.MKI] = true
		}
		for _, l := range e.x.order {
			for _, k := range [...]*sentKey{l.out.current, l.out.offered} {
				if k != nil {
					n.excused[k.key.MKI] = true
				}
			}
		}
	}
}

// warm starts the daemon again: what it had not carried out is lost, and the media plane goes on.
func (e *end) warm() {
	x, err := Restore(e.config(), e.saved, e.net.now)
	require.NoError(e.t, err)
	e.x, e.actions, e.wire = x, nil, nil
	wanted := x.Wanted()
	sending, holding := map[Leg]Key{}, map[Leg]map[MKI]bool{}
	for _, a := range wanted {
		if a.Kind == Use {
			sending[a.Leg] = *a.Key
			continue
		}
		if holding[a.Leg] == nil {
			holding[a.Leg] = map[MKI]bool{}
		}
		holding[a.Leg][a.Key.MKI] = true
	}
	for l, k := range e.sending {
		if now, ok := sending[l]; !ok || now.MKI != k.MKI {
			e.net.excused[k.MKI] = e.net.excused[k.MKI] || !ok
			delete(e.sending, l)
		}
	}
	for l, keys := range e.holding {
		for mki := range keys {
			if !holding[l][mki] {
				delete(keys, mki)
			}
		}
	}
	for _, a := range wanted {
		e.carry(a)
	}
}

// do calls the exchange, and keeps what it has for the next process before anything is carried out.
func (e *end) do(what func(*Exchange)) {
	what(e.x)
	if !e.net.large {
		e.saved = e.x.Save(e.net.now)
	}
	for _, a := range e.x.Actions() {
		if a.Kind == Stop || a.Kind == Drop {
			assert.Zero(e.t, a.Key.secret, "to be given up")
		}
		if a.Kind == Stop {
			e.net.excused[a.Key.MKI] = true
			for _, p := range e.net.packets {
				if p.from == e && p.leg == a.Leg {
					e.net.excused[p.key.MKI] = true
				}
			}
		}
		e.actions = append(e.actions, a)
	}
	messages := e.x.Messages()
	e.wire = append(e.wire, messages...)
	if !e.net.up {
		e.wire = nil
	}
	for _, l := range e.x.order {
		if len(l.in.keys) > maxHeld {
			assert.Fail(e.t, "too many keys", "%d of leg %s", len(l.in.keys), l.id)
		}
	}
}

// carry is the media plane.
func (e *end) carry(a Action) {
	switch a.Kind {
	case Hold:
		if e.holding[a.Leg] == nil || a.Fresh && e.holding[a.Leg][a.Key.MKI] != *a.Key {
			e.holding[a.Leg] = map[MKI]Key{}
		}
		e.holding[a.Leg][a.Key.MKI] = *a.Key
		e.do(func(x *Exchange) { x.Held(a.Leg, a.Key.MKI, e.net.now) })
	case Drop:
		delete(e.holding[a.Leg], a.Key.MKI)
	case Use:
		e.net.draw(e, a)
		e.sending[a.Leg] = *a.Key
		e.do(func(x *Exchange) { x.Sent(a.Leg, a.Key.MKI, 0, e.net.now) })
	case Stop:
		if e.sending[a.Leg].MKI == a.Key.MKI {
			delete(e.sending, a.Leg)
		}
	}
}

// draw: a key is for one direction of one leg.
func (n *network) draw(e *end, a Action) {
	is := fmt.Sprint(e.name, a.Leg, a.Key.MKI)
	if was, ok := n.drawn[a.Key.secret]; ok {
		assert.Equal(n.t, was, is, "a key is used for two directions or legs")
	}
	n.drawn[a.Key.secret] = is
}

func (e *end) begin(l Leg) error {
	if at, ok := e.endedAt[l]; ok && !e.begun[l] && time.Duration(e.net.now-at) >= Overlap {
		// It was kept for as long as an end waits for one that it cannot reach.
		e.net.excuse()
	}
	var err error
	e.do(func(x *Exchange) { err = x.Begin(l, suite.AEADAES128GCM, e.net.now) })
	if err == nil {
		e.begun[l] = true
	}
	return err
}

func (e *end) end(l Leg) {
	if e.begun[l] {
		e.endedAt[l] = e.net.now
		delete(e.begun, l)
		e.do(func(x *Exchange) { x.End(l, e.net.now) })
	}
}

func (n *network) connect() {
	if !n.up {
		n.up = true
		for _, e := range n.ends {
			e.wire = nil
			e.do(func(x *Exchange) { x.Connected(n.now) })
		}
	}
}

func (n *network) cut() {
	n.up = false
	for _, e := range n.ends {
		e.wire = nil
		e.do(func(x *Exchange) { x.Disconnected(n.now) })
	}
}

// deliver takes one message off the wire.
func (e *end) deliver() bool {
	if len(e.wire) == 0 || !e.net.up {
		return false
	}
	m := e.wire[0]
	e.wire = e.wire[1:]
	e.far().do(func(x *Exchange) { require.NoError(e.t, x.Receive(m, e.net.now)) })
	return true
}

// act has the media plane carry out one action.
func (e *end) act() bool {
	if len(e.actions) == 0 {
		return false
	}
	a := e.actions[0]
	e.actions = e.actions[1:]
	e.carry(a)
	return true
}

// settle delivers and carries out everything.
func (n *network) settle() {
	for busy := true; busy; {
		busy = false
		for _, e := range n.ends {
			busy = e.deliver() || e.act() || busy
		}
	}
}

// pass lets time pass, in steps of a second at most, or what the test says.
func (n *network) pass(d, step time.Duration) {
	for ; d > 0; d -= step {
		n.now += int64(min(d, step))
		for _, e := range n.ends {
			e.do(func(x *Exchange) { x.Tick(n.now) })
		}
		n.land(5 * time.Second)
	}
}

// send has the media plane send packets of a leg.
func (e *end) send(l Leg, count uint64) {
	k, ok := e.sending[l]
	if !ok {
		return
	}
	p := packet{from: e, leg: l, key: k, at: e.net.now, unheard: e.unheard(l, k.MKI)}
	e.net.check(p, "at the moment of sending")
	e.net.packets = append(e.net.packets, p)
	e.do(func(x *Exchange) { x.Sent(l, k.MKI, count, e.net.now) })
	far := e.far()
	if far.holding[l][k.MKI] == k {
		far.do(func(x *Exchange) { x.Opened(l, k.MKI, count-1, e.net.now) })
	}
}

// unheard reports whether a key is used before it was acknowledged: the first of a life is.
func (e *end) unheard(l Leg, mki MKI) bool {
	leg := e.x.legs[l]
	if leg == nil || leg.out.current == nil || leg.out.current.key.MKI != mki {
		return false
	}
	return leg.out.current.fresh && !leg.out.current.heard
}

// land brings packets that are at least that old.
func (n *network) land(age time.Duration) {
	for len(n.packets) > 0 && time.Duration(n.now-n.packets[0].at) >= age {
		p := n.packets[0]
		n.packets = n.packets[1:]
		if time.Duration(n.now-p.at) < Overlap {
			n.check(p, "on arrival")
		}
		if p.from.far().holding[p.leg][p.key.MKI] == p.key {
			p.from.far().do(func(x *Exchange) { x.Opened(p.leg, p.key.MKI, 1, n.now) })
		}
	}
}

// check: who receives a packet holds its key.
func (n *network) check(p packet, when string) {
	far := p.from.far()
	if far.holding[p.leg][p.key.MKI] == p.key || n.excused[p.key.MKI] || p.unheard || !p.from.begun[p.leg] {
		return
	}
	if at, ok := far.endedAt[p.leg]; ok && !far.begun[p.leg] && time.Duration(n.now-at) >= Overlap {
		// It was kept for as long as an end waits for one that it cannot reach.
		n.excused[p.key.MKI] = true
		return
	}
	n.refused++
	assert.Fail(n.t, "packet cannot be opened", "%s sends %s of leg %s: %s", p.from.name, p.key, p.leg, when)
}

func legOf(i int) Leg { return Leg{15: byte(i), 0: 0xa} }

// both begins a leg at both ends and lets everything arrive.
func (n *network) both(t require.TestingT, l Leg) {
	for _, e := range n.ends {
		require.NoError(t, e.begin(l))
	}
	n.settle()
}

// TestWhatIsSentCanBeOpened lets anything happen at any moment. Whoever sends under a key is opened, and in the end
// everything is as it has to be.
func TestWhatIsSentCanBeOpened(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := newNetwork(t, Config{Every: MinEvery, Packets: MinPackets}, uint64(rapid.Uint32().Draw(t, "seed")))
		n.connect()
		leg := rapid.Custom(func(t *rapid.T) Leg { return legOf(rapid.IntRange(0, 2).Draw(t, "leg")) })
		side := rapid.Custom(func(t *rapid.T) string { return n.ends[rapid.IntRange(0, 1).Draw(t, "end")].name })
		weigh := func(times int, name string, do func(*rapid.T), into map[string]func(*rapid.T)) {
			for i := range times {
				into[fmt.Sprint(name, i)] = do
			}
		}
		actions := map[string]func(*rapid.T){}
		weigh(3, "begin", func(t *rapid.T) { _ = n.end(side.Draw(t, "of")).begin(leg.Draw(t, "leg")) }, actions)
		weigh(1, "end", func(t *rapid.T) { n.end(side.Draw(t, "of")).end(leg.Draw(t, "leg")) }, actions)
		weigh(3, "deliver", func(t *rapid.T) { n.end(side.Draw(t, "of")).deliver() }, actions)
		weigh(3, "act", func(t *rapid.T) { n.end(side.Draw(t, "of")).act() }, actions)
		weigh(3, "settle", func(*rapid.T) { n.settle() }, actions)
		weigh(4, "send", func(t *rapid.T) {
			n.end(side.Draw(t, "of")).send(leg.Draw(t, "leg"), uint64(rapid.IntRange(1, 20000).Draw(t, "packets")))
		}, actions)
		weigh(3, "pass", func(t *rapid.T) {
			n.pass(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds"))*time.Second, 10*time.Second)
		}, actions)
		weigh(1, "cut", func(*rapid.T) { n.cut() }, actions)
		weigh(2, "connect", func(*rapid.T) { n.connect() }, actions)
		weigh(1, "warm", func(t *rapid.T) { n.cut(); n.end(side.Draw(t, "of")).warm() }, actions)
		actions["cold"] = func(t *rapid.T) {
			if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
				n.cut()
				n.end(side.Draw(t, "of")).cold()
			}
		}
		t.Repeat(actions)

		n.connect()
		for range 200 {
			n.settle()
			n.pass(time.Second, time.Second)
		}
		for i := range 3 {
			l := legOf(i)
			if n.ends[0].begun[l] && n.ends[1].begun[l] {
				for _, e := range n.ends {
					s, ok := e.x.Status(l)
					assert.True(t, ok && s.Sending && s.Receiving, "end %s: %+v", e.name, s)
					assert.Equal(t, e.sending[l], e.far().holding[l][e.sending[l].MKI])
				}
			}
			if !n.ends[0].begun[l] && !n.ends[1].begun[l] {
				for _, e := range n.ends {
					assert.NotContains(t, e.x.legs, l, "end %s", e.name)
					assert.NotContains(t, e.sending, l)
					assert.Empty(t, e.holding[l])
				}
			}
		}
	})
}
