package keys

import (
	"encoding/binary"
	"fmt"
	"time"

	"ringway/srtp/suite"
)

// outbound is the direction of a leg in which this end sends, and draws the keys.
type outbound struct {
	suite suite.Suite
	life  uint32
	// stopped: the far end has ended the leg. Nothing is offered until it begins again.
	stopped bool
	current *sentKey // in use, or about to be
	offered *sentKey // not in use: not acknowledged, or, where there is none in use, not sent

	retryAt   int64 // after a refusal
	backoff   time.Duration
	refusal   Refusal // the last, 0 once a key is acknowledged
	refusedAt int64
	rotations uint64
}

// sentKey is a key that this end has drawn.
type sentKey struct {
	key   Key
	fresh bool // the first of its life
	made  int64
	heard bool // acknowledged, on this connection or an earlier one

	sent         bool // on this connection
	sentAt       int64
	acknowledged bool // on this connection

	usedAt      int64
	packets     uint64 // that the media plane has said it sent
	rotateAt    int64  // 0: never
	rotateAfter uint64
	exhausted   bool
	exhaustedAt int64
}

// Format prints the key as Key does: fmt calls no method of an unexported field.
func (k sentKey) Format(s fmt.State, _ rune) { _, _ = fmt.Fprint(s, k.key) }

// unsend has everything offered again.
func (o *outbound) unsend() {
	for _, k := range [...]*sentKey{o.current, o.offered} {
		if k != nil {
			k.sent, k.acknowledged = false, false
		}
	}
}

// beginOutbound begins a life with a key of its own.
func (x *Exchange) beginOutbound(l *leg, now int64) {
	x.forget(&l.out.current)
	x.forget(&l.out.offered)
	l.out = outbound{suite: l.out.suite, life: x.number()}
	l.told = false
	x.offer(l, now)
}

// offer draws the next key, which is sent when there is room.
func (x *Exchange) offer(l *leg, now int64) {
	k := &sentKey{fresh: l.out.current == nil, made: now}
	k.key.Suite = l.out.suite
	for {
		x.read(k.key.MKI[:])
		// The receiver has up to maxHeld keys of the leg and refuses an MKI that it has. Of those this end knows one.
		if l.out.current == nil || l.out.current.key.MKI != k.key.MKI {
			break
		}
	}
	x.read(k.key.secret[:k.key.length()])
	x.owned[fingerprintOf(&k.key)] = struct{}{}
	l.out.offered = k
}

// acknowledged: the far end opens what is protected with that key.
func (x *Exchange) acknowledged(id Leg, mki MKI, now int64) {
	l := x.legs[id]
	switch {
	case l != nil && l.out.offered != nil && l.out.offered.key.MKI == mki && l.out.offered.sent:
		x.take(l, now)
		l.out.heard()
	case l != nil && l.out.current != nil && l.out.current.key.MKI == mki:
		l.out.heard()
	default:
		x.counters.Ignored++
	}
}

// heard notes that the key in use was acknowledged.
func (o *outbound) heard() {
	o.current.acknowledged, o.current.heard = true, true
	o.refusal, o.backoff, o.retryAt = 0, 0, 0
}

// take puts the offered key in the place of the one in use.
func (x *Exchange) take(l *leg, now int64) {
	if l.out.current != nil {
		l.out.rotations++
		x.counters.Rotations++
	}
	x.forget(&l.out.current)
	k := l.out.offered
	l.out.current, l.out.offered = k, nil
	k.usedAt = now
	if x.config.Every != 0 {
		k.rotateAt = now + int64(x.config.Every) - int64(x.below(uint64(x.config.Every)/jitter))
	}
	k.rotateAfter = x.config.Packets - x.below(x.config.Packets/jitter)
	x.use(l)
}

func (x *Exchange) use(l *leg) {
	k := l.out.current
	x.act(Action{
		Kind: Use, Leg: l.id, Key: &k.key, Fresh: k.fresh, Lifetime: x.config.Lifetime - min(k.packets, x.config.Lifetime),
	})
}

// below draws a number below n, or 0.
func (x *Exchange) below(n uint64) uint64 {
	if n == 0 {
		return 0
	}
	var b [8]byte
	x.read(b[:])
	return binary.BigEndian.Uint64(b[:]) % n
}

// Sent says that the media plane protects with that key, and how many packets it has since it said so last.
func (x *Exchange) Sent(id Leg, mki MKI, packets uint64, now int64) {
	l := x.legs[id]
	if l == nil || l.out.current == nil || l.out.current.key.MKI != mki {
		return
	}
	k := l.out.current
	k.packets += packets
	if k.packets >= x.config.Lifetime && !k.exhausted {
		// The media plane has stopped by itself, at Action.Lifetime. This is for the alarm, and for what it has miscounted.
		k.exhausted, k.exhaustedAt = true, now
		x.act(Action{Kind: Stop, Leg: l.id, Key: &k.key})
	}
	x.rotate(l, now)
	x.send(now)
}

// rotate offers the next key where it is time to.
func (x *Exchange) rotate(l *leg, now int64) {
	o := &l.out
	if o.stopped || o.offered != nil || now < o.retryAt {
		return
	}
	if o.current == nil {
		x.offer(l, now)
		return
	}
	k := o.current
	// The receiver takes the next offer for the word that this key is in use. And a key that has protected nothing needs
	// no successor: a leg on hold gets none, and the receiver does not collect keys.
	if k.packets == 0 || time.Duration(now-k.usedAt) < minGap && !k.exhausted {
		return
	}
	// Where the far end has not begun the leg, the offers of one key after the other would only pile up there.
	if !k.heard {
		return
	}
	if k.rotateAt != 0 && now >= k.rotateAt || k.packets >= k.rotateAfter {
		x.offer(l, now)
	}
}

// Renew offers the next key of a leg now: the media plane does not use the one in use any more.
func (x *Exchange) Renew(id Leg, now int64) {
	l := x.legs[id]
	if l == nil || !l.begun || l.out.stopped || l.out.offered != nil {
		return
	}
	x.offer(l, now)
	x.send(now)
}

// refused: the far end does not open what is protected with that key. The next is offered later.
func (x *Exchange) refused(id Leg, mki MKI, why Refusal, now int64) {
	l := x.legs[id]
	if l == nil {
		x.counters.Ignored++
		return
	}
	switch o := &l.out; {
	case o.offered != nil && o.offered.key.MKI == mki:
		x.forget(&o.offered)
	case o.current != nil && o.current.key.MKI == mki:
		// It has lost the key. What is sent under it is lost, too.
		x.act(Action{Kind: Stop, Leg: l.id, Key: &o.current.key})
		refusals := o.backoff
		x.forget(&o.current)
		x.forget(&o.offered)
		*o = outbound{suite: o.suite, life: x.number(), backoff: refusals}
	default:
		x.counters.Ignored++
		return
	}
	o := &l.out
	o.backoff = min(max(2*o.backoff, minBackoff), maxBackoff)
	o.retryAt = now + int64(o.backoff)
	o.refusal, o.refusedAt = why, now
}

// stop ends sending.
func (x *Exchange) stop(l *leg) {
	if k := l.out.current; k != nil {
		x.act(Action{Kind: Stop, Leg: l.id, Key: &k.key})
	}
	x.forget(&l.out.current)
	x.forget(&l.out.offered)
	l.out.stopped = true
}

// forget wipes a key of ours.
func (x *Exchange) forget(k **sentKey) {
	if *k != nil {
		delete(x.owned, fingerprintOf(&(*k).key))
		(*k).key.Wipe()
		*k = nil
	}
}
