// Package keys agrees the SRTP keys of media between two boxes, and changes them while calls go on.
//
// The sender of a direction owns its key. It draws one at random, offers it, and protects packets with it only when the
// far end has said that its media plane opens such packets. The receiver goes on opening the key before: until packets
// under a newer one have come for 60 s, and 128 of them. So there is no moment in which a packet cannot be opened, and
// a packet that was overtaken can be opened, too. Keys are never derived from each other: who learns one knows one.
//
// The first key of a direction has none before it that could stay in use: it is used as soon as it is offered. A packet
// under it that overtakes the offer is lost, as it would be if it were not sent. Would the sender wait for the word of
// the far end, the first words of a call would be lost for as long as a round trip takes.
//
//  1. Begin (one end, then the other, or the other first): a key is drawn and offered       outbound.go
//  2. offer, to the media plane (Hold), Held, acknowledgement                               inbound.go
//  3. first offer, or acknowledgement of a later one, to the media plane (Use), Sent        outbound.go
//  4. Tick: the key is old or much used, another is offered                                 outbound.go
//  5. Opened, Tick: the key before is dropped                                               inbound.go
//  6. End: the media plane stops, the far end is told, its keys are kept until it has stopped, too
//
// An Exchange does no I/O and has no clock. Messages go through a channel (srtp/keys/channel) that neither loses,
// changes, shows nor reorders them while it is up. When it comes up again, each end offers all its keys again, and says
// when those were all (Synced): a leg that is not among them has ended at that end.
package keys

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"ringway/srtp/suite"
)

// Times and bounds of ours.
const (
	// Overlap is how long a key is kept after the last packet under it, and after the first under a newer one.
	Overlap = 60 * time.Second
	// OverlapPackets is how many packets under newer keys must have come before a key is dropped.
	OverlapPackets = 128
	// AckTimeout is after what time without an acknowledgement there is a problem.
	AckTimeout = 5 * time.Second
	// MinEvery is the least Config.Every.
	MinEvery = 90 * time.Second
	// MinPackets is the least Config.Packets: 82 s of 200 packets a second.
	MinPackets = 1 << 14

	maxLifetime = 1 << 48          // packets, of every suite (RFC 3711 section 9.2, RFC 7714 section 14)
	defaultLegs = 1024             // legs begun
	maxUnbegun  = 256              // legs that the far end has offered keys of, and nobody here has begun
	unbegunFor  = 32 * time.Second // timer B of SIP (RFC 3261 section 17.1.1.2): the INVITE has come by then
	maxHeld     = 4                // keys of a direction
	maxInFlight = 32               // offers sent, not acknowledged, younger than AckTimeout
	maxOffers   = 200              // a second
	minBackoff  = time.Second      // after a refusal; doubled each time
	maxBackoff  = 30 * time.Second
	// jitter is which part of Every and Packets chance may take off, so that 500 calls that a reconnection has begun
	// at once do not change their keys at once: a fifth of an hour is 12 minutes.
	jitter = 5
	// minGap is the least time between two keys of a direction. It is more than Overlap, so that a receiver has three at
	// most: the one before, the one in use, and the next.
	minGap = MinEvery - MinEvery/jitter
)

// Errors of Begin.
var (
	ErrBegun    = errors.New("leg has begun already")
	ErrEnding   = errors.New("leg of the same name is still ending at the far end")
	ErrTooMany  = errors.New("too many legs")
	ErrNoSuite  = errors.New("not a crypto suite")
	ErrSettings = errors.New("setting out of range")
)

// Config is how keys are agreed with one far end.
type Config struct {
	// Every is the longest time that a key is offered no successor; 0: time does not matter. At least MinEvery.
	Every time.Duration
	// Packets is the number of packets after which a key gets a successor; 0: half its lifetime. At least MinPackets.
	Packets uint64
	// Lifetime is how many SRTP packets a key protects at most; 0 or more than 2^48: 2^48.
	Lifetime uint64
	// Suites are those that the far end may use; nil: all.
	Suites []suite.Suite
	// MaxLegs is how many legs may be begun at once; 0: 1024.
	MaxLegs int
	// Rand is where keys come from, and must not fail; nil: crypto/rand.
	Rand io.Reader
}

// Exchange agrees keys with one far end. It is not safe for concurrent use. Times (now) are nanoseconds of any clock
// that never goes back. After every call there may be actions and messages to be carried out (Actions, Messages).
type Exchange struct {
	config Config
	legs   map[Leg]*leg
	order  []*leg                   // as they were begun or first offered
	owned  map[fingerprint]struct{} // every key, of both ends

	up       bool
	upSince  int64 // or since when it is down
	synced   bool  // said on this connection
	offersAt int64 // the second in which offers were sent
	offers   int

	actions  []Action
	messages [][]byte
	counters Counters
}

// leg is what is known of one leg.
type leg struct {
	id    Leg
	begun bool  // by this end, and not ended
	since int64 // where it has not begun: since when the far end offers; where it is ending: since when
	// ending: this end has ended it, and keeps the far end's keys until that one has stopped sending.
	ending bool
	told   bool // the far end was offered a key of this life
	seen   bool // the far end has offered a key on this connection
	out    outbound
	in     inbound
}

// Format prints nothing of the keys: fmt calls no method of what is in unexported fields.
func (l leg) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "leg %s", l.id) }

// ActionKind is what the media plane has to do.
type ActionKind byte

// Kinds of actions. An action for what is so already changes nothing.
const (
	// Hold: open packets that carry the key's MKI, too, then call Held, or NotHeld. Where Fresh is set it is the first key
	// of a new stream: indices and sources of an earlier one are forgotten.
	Hold ActionKind = iota + 1
	// Drop: open no more packets with the key, and wipe it. With the last key of the leg the stream ends.
	Drop
	// Use: protect all further packets with the key, at most Lifetime of them, then call Sent. Where Fresh is set
	// indices begin again, else they go on.
	Use
	// Stop: protect and send no more packets of the leg, and wipe the key.
	Stop
)

// String is the kind in a word.
func (k ActionKind) String() string {
	names := [...]string{"", "hold", "drop", "use", "stop"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("action %d", byte(k))
}

// Action is something that the media plane has to do. Key is a copy: whoever carries the action out wipes it. Drop and
// Stop have no secret in it.
type Action struct {
	Kind     ActionKind
	Leg      Leg
	Key      *Key
	Fresh    bool
	Lifetime uint64 // packets
}

// Counters count since the Exchange was made.
type Counters struct {
	OffersSent, OffersReceived   uint64
	AcksSent, AcksReceived       uint64
	RefusalsSent                 uint64 // keys that this end did not take
	RefusalsReceived             uint64
	Rotations                    uint64 // keys of this end that followed another
	Ignored                      uint64 // messages of a later version, or about what is no more
	DroppedForRoom, UnbegunEnded uint64 // keys dropped below OverlapPackets; legs that nobody began
}

// New makes an Exchange without a leg, whose channel is down.
func New(c Config, now int64) (*Exchange, error) {
	if c.Every != 0 && c.Every < MinEvery {
		return nil, fmt.Errorf("rotation every %s: %w (at least %s, or 0)", c.Every, ErrSettings, MinEvery)
	}
	if c.Packets != 0 && c.Packets < MinPackets {
		return nil, fmt.Errorf("rotation after %d packets: %w (at least %d, or 0)", c.Packets, ErrSettings, MinPackets)
	}
	if c.Lifetime == 0 || c.Lifetime > maxLifetime {
		c.Lifetime = maxLifetime
	}
	if c.Packets == 0 || c.Packets > c.Lifetime/2 {
		c.Packets = c.Lifetime / 2
	}
	if c.MaxLegs < 0 {
		return nil, fmt.Errorf("%d legs: %w", c.MaxLegs, ErrSettings)
	}
	if c.MaxLegs == 0 {
		c.MaxLegs = defaultLegs
	}
	if c.Suites == nil {
		c.Suites = suite.All()
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return &Exchange{config: c, legs: make(map[Leg]*leg), owned: make(map[fingerprint]struct{}), upSince: now}, nil
}

// Format prints nothing of the keys.
func (x *Exchange) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "exchange of %d legs", len(x.legs))
}

var _ fmt.Formatter = (*Exchange)(nil)

// Actions returns what the media plane has to do, in this order, since the last call.
func (x *Exchange) Actions() []Action {
	all := x.actions
	x.actions = nil
	return all
}

// Messages returns what is to be sent, in this order, since the last call. They have keys in them: whoever has sent one
// overwrites it.
func (x *Exchange) Messages() [][]byte {
	all := x.messages
	x.messages = nil
	return all
}

// Counters returns the counters.
func (x *Exchange) Counters() Counters { return x.counters }

// Begin agrees keys of a leg: this end sends under the suite. Each end begins a leg of its own accord.
func (x *Exchange) Begin(id Leg, s suite.Suite, now int64) error {
	if !s.Valid() {
		return fmt.Errorf("leg %s: %s: %w", id, s, ErrNoSuite)
	}
	l := x.legs[id]
	switch {
	case l != nil && l.begun:
		return fmt.Errorf("leg %s: %w", id, ErrBegun)
	case l != nil && l.ending:
		return fmt.Errorf("leg %s: %w", id, ErrEnding)
	case x.count(func(l *leg) bool { return l.begun || l.ending }) >= x.config.MaxLegs:
		return fmt.Errorf("leg %s: %w (at most %d)", id, ErrTooMany, x.config.MaxLegs)
	case l == nil:
		l = x.add(id, now)
	}
	l.begun = true
	l.out.suite = s
	x.beginOutbound(l, now)
	for _, k := range l.in.keys {
		x.hold(l, k)
	}
	x.send(now)
	return nil
}

// End gives a leg up. The media plane stops sending; what the far end sends is opened until it has stopped, too.
func (x *Exchange) End(id Leg, now int64) {
	l := x.legs[id]
	if l == nil || !l.begun {
		return
	}
	x.stop(l)
	l.begun, l.ending, l.since = false, true, now
	x.sayEnded(l)
	if l.in.over || !l.told && l.in.life == 0 {
		x.remove(l)
	}
	x.send(now)
}

// Connected says that a channel is up with nothing sent or received on it yet.
func (x *Exchange) Connected(now int64) {
	x.dropMessages()
	x.up, x.upSince, x.synced = true, now, false
	for _, l := range x.order {
		l.seen = false
		l.out.unsend()
		// The far end takes a leg that is not offered for one that has ended.
		switch {
		case l.begun && l.out.stopped:
			x.say(&message{kind: KindIdle, leg: l.id, life: l.out.life})
		case l.begun && l.out.current == nil && l.out.offered == nil:
			x.offer(l, now)
		}
	}
	x.send(now)
}

// Disconnected says that the channel is down: messages that were returned may be lost.
func (x *Exchange) Disconnected(now int64) {
	if x.up {
		x.up, x.upSince = false, now
	}
	x.dropMessages()
}

// Receive takes a message of the far end. An error is one of this package's; the connection has to end.
func (x *Exchange) Receive(b []byte, now int64) error {
	m, known, err := parse(b)
	if err != nil || !x.up {
		return err
	}
	defer m.key.Wipe()
	if !known {
		x.counters.Ignored++
		return nil
	}
	switch m.kind {
	case KindOffer:
		x.counters.OffersReceived++
		x.offered(&m, now)
	case KindAck:
		x.counters.AcksReceived++
		x.acknowledged(m.leg, m.key.MKI, now)
	case KindRefuse:
		x.counters.RefusalsReceived++
		x.refused(m.leg, m.key.MKI, m.reason, now)
	case KindEnded:
		if l := x.legs[m.leg]; l != nil {
			x.ended(l, m.life, m.farLife, now)
		} else {
			x.counters.Ignored++
		}
	case KindIdle:
		// It has begun the leg, and takes it for ended here. Where it is not, an offer is on its way.
		switch l := x.legs[m.leg]; {
		case l != nil && !l.begun:
			x.remove(l)
		case l != nil:
			l.seen = true
			if l.in.life == m.life && !l.in.over {
				l.in.over, l.in.overAt = true, now
			}
		}
	case KindSynced:
		for _, l := range slices.Clone(x.order) {
			if l.in.life != 0 && !l.seen {
				x.ended(l, l.in.life, 0, now)
			} else if l.ending && !l.seen {
				x.remove(l)
			}
		}
	}
	x.send(now)
	return nil
}

// ended: the far end sends no more in that life of its, and takes no more of ours.
func (x *Exchange) ended(l *leg, life, ourLife uint32, now int64) {
	its := l.in.life == life
	ours := l.out.life != 0 && ourLife == l.out.life
	if !its && !(ours && l.in.life == 0) {
		x.counters.Ignored++ // of an earlier leg of the same name
		return
	}
	if !l.begun {
		x.remove(l)
		return
	}
	if !l.in.over {
		l.in.over, l.in.overAt = true, now
	}
	// Where it has heard nothing of us (0), it has ended before it could.
	if !l.out.stopped && (ours || ourLife == 0) {
		x.stop(l)
		x.sayEnded(l)
	}
}

func (x *Exchange) sayEnded(l *leg) {
	if x.up && (l.told || l.in.life != 0) {
		x.say(&message{kind: KindEnded, leg: l.id, life: l.out.life, farLife: l.in.life})
	}
}

// Tick does what time asks for. Call it every second or so.
func (x *Exchange) Tick(now int64) {
	for _, l := range slices.Clone(x.order) {
		age := time.Duration(now - l.since)
		switch {
		case l.ending && age >= Overlap:
			x.remove(l)
			continue
		case !l.begun && !l.ending && age >= unbegunFor:
			for _, k := range l.in.keys {
				x.refuse(l.id, k.key.MKI, RefusedLeg)
			}
			x.counters.UnbegunEnded++
			x.remove(l)
			continue
		}
		x.retire(l, now)
		if l.begun {
			x.rotate(l, now)
		}
	}
	x.send(now)
}

// send sends offers that were not sent on this connection, as many as the bounds allow: first those that calls wait
// for. At the end of the first round it says so.
func (x *Exchange) send(now int64) {
	if !x.up {
		return
	}
	inFlight := 0
	for _, l := range x.order {
		for _, k := range [...]*sentKey{l.out.current, l.out.offered} {
			if k != nil && k.sent && !k.acknowledged && time.Duration(now-k.sentAt) < AckTimeout {
				inFlight++
			}
		}
	}
	left := false
	for _, rotation := range [...]bool{false, true} {
		for _, l := range x.order {
			// The key in use first: the last one that is offered is the newest.
			for _, k := range [...]*sentKey{l.out.current, l.out.offered} {
				if k == nil || k.sent || rotation != (k == l.out.offered && l.out.current != nil) {
					continue
				}
				if inFlight >= maxInFlight || !x.mayOffer(now) {
					left = true
					continue
				}
				inFlight++
				k.sent, k.sentAt, l.told = true, now, true
				x.counters.OffersSent++
				m := message{kind: KindOffer, leg: l.id, life: l.out.life, key: k.key}
				x.say(&m)
				m.key.Wipe()
				if k.fresh && k == l.out.offered {
					x.take(l, now)
				}
			}
		}
	}
	if !left && !x.synced {
		x.synced = true
		x.say(&message{kind: KindSynced})
	}
}

// mayOffer takes one of this second's offers.
func (x *Exchange) mayOffer(now int64) bool {
	if x.offers == 0 || time.Duration(now-x.offersAt) >= time.Second {
		x.offersAt, x.offers = now, 0
	}
	if x.offers >= maxOffers {
		return false
	}
	x.offers++
	return true
}

func (x *Exchange) say(m *message) {
	x.messages = append(x.messages, m.append(make([]byte, 0, 1+bodies[KindOffer]+maxKey+maxSalt)))
}

func (x *Exchange) dropMessages() {
	for _, m := range x.messages {
		clear(m)
	}
	x.messages = nil
}

// act has the media plane do something with a key that it gets a copy of.
func (x *Exchange) act(a Action) {
	k := *a.Key
	if a.Kind == Drop || a.Kind == Stop {
		k.Wipe()
	}
	a.Key = &k
	x.actions = append(x.actions, a)
}

func (x *Exchange) count(which func(*leg) bool) (n int) {
	for _, l := range x.order {
		if which(l) {
			n++
		}
	}
	return n
}

func (x *Exchange) add(id Leg, now int64) *leg {
	l := &leg{id: id, since: now}
	x.legs[id] = l
	x.order = append(x.order, l)
	return l
}

// remove forgets a leg that this end does not send on.
func (x *Exchange) remove(l *leg) {
	x.dropAll(l)
	x.forget(&l.out.current)
	x.forget(&l.out.offered)
	delete(x.legs, l.id)
	x.order = slices.DeleteFunc(x.order, func(o *leg) bool { return o == l })
}

// number draws a number that is not 0.
func (x *Exchange) number() uint32 {
	for {
		var b [4]byte
		x.read(b[:])
		if n := binary.BigEndian.Uint32(b[:]); n != 0 {
			return n
		}
	}
}

// read fills b with random bytes.
func (x *Exchange) read(b []byte) {
	if _, err := io.ReadFull(x.config.Rand, b); err != nil {
		panic("keys: no random bytes: " + err.Error()) // as crypto/rand does: there is no key without them
	}
}
