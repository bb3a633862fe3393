package keys

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"
)

// inbound is the direction of a leg in which the far end sends.
type inbound struct {
	life   uint32 // 0: nothing was heard
	over   bool   // the far end has stopped sending
	overAt int64
	keys   []*heldKey // as they were last offered
}

// heldKey is a key that the far end has drawn.
type heldKey struct {
	key   Key
	fresh bool // the first of its life
	asked bool // the media plane
	held  bool // it has said so

	// superseded: the far end has used a newer one.
	superseded   bool
	supersededAt int64
	openedAt     int64  // the last packet under it
	newer        uint64 // packets under newer ones, since it is superseded
}

// Format prints the key as Key does: fmt calls no method of an unexported field.
func (k heldKey) Format(s fmt.State, _ rune) { _, _ = fmt.Fprint(s, k.key) }

// fingerprint is a digest of a key. With it a key that is offered twice is found.
type fingerprint [sha256.Size]byte

func fingerprintOf(k *Key) fingerprint { return sha256.Sum256(k.secret[:k.length()]) }

// offered takes a key of the far end, or refuses it. Nothing is acknowledged before the media plane has said Held.
func (x *Exchange) offered(m *message, now int64) {
	l := x.legs[m.leg]
	if l == nil {
		if x.count(func(l *leg) bool { return !l.begun && !l.ending }) >= maxUnbegun {
			x.refuse(m.leg, m.key.MKI, RefusedBound)
			return
		}
		l = x.add(m.leg, now)
	}
	l.seen = true
	switch {
	case l.ending && (l.in.life == m.life || l.in.life == 0):
		// It does not know that the leg has ended: it could not, or the word was lost with a connection. It will answer that
		// it has stopped.
		l.in.life = m.life
		x.sayEnded(l)
		return
	case l.ending:
		x.remove(l)
		l = x.add(m.leg, now)
		l.seen = true
	}
	if l.in.life != m.life {
		x.dropAll(l)
		l.in = inbound{life: m.life}
	}
	l.in.over = false
	if l.begun && l.out.stopped {
		x.beginOutbound(l, now) // it has begun again
	}
	if k := l.in.key(m.key.MKI); k != nil {
		x.offeredAgain(l, k, m)
		return
	}
	if why := x.unacceptable(l, &m.key, now); why != 0 {
		x.refuse(l.id, m.key.MKI, why)
		return
	}
	k := &heldKey{key: m.key, fresh: len(l.in.keys) == 0}
	x.owned[fingerprintOf(&k.key)] = struct{}{}
	l.in.keys = append(l.in.keys, k)
	// Before it offers the next key, the far end uses the one before: older ones are in use no more.
	for _, old := range l.in.keys[:max(len(l.in.keys)-2, 0)] {
		old.supersede(now)
	}
	if l.begun {
		x.hold(l, k)
	}
}

// offeredAgain: the channel was down, and the far end does not know what has arrived.
func (x *Exchange) offeredAgain(l *leg, k *heldKey, m *message) {
	if k.key.Suite != m.key.Suite || k.key.secret != m.key.secret {
		x.refuse(l.id, m.key.MKI, RefusedMKI)
		return
	}
	// The last two that it offers are the one in use and the next one.
	l.in.keys = append(slices.DeleteFunc(l.in.keys, func(o *heldKey) bool { return o == k }), k)
	k.superseded, k.newer = false, 0
	if k.held {
		x.acknowledge(l.id, k.key.MKI)
	}
}

// unacceptable says why a new key is not taken, or 0.
func (x *Exchange) unacceptable(l *leg, k *Key, now int64) Refusal {
	if !k.Suite.Valid() || !slices.Contains(x.config.Suites, k.Suite) {
		return RefusedSuite
	}
	if len(l.in.keys) != 0 && l.in.keys[0].key.Suite != k.Suite {
		return RefusedSuite // packets of one stream have tags of one length
	}
	if _, ok := x.owned[fingerprintOf(k)]; ok {
		return RefusedReused
	}
	if len(l.in.keys) < maxHeld {
		return 0
	}
	if !l.in.keys[0].quiet(now) {
		return RefusedBound
	}
	x.counters.DroppedForRoom++
	x.drop(l, l.in.keys[0])
	return 0
}

// hold asks the media plane to open packets with the key.
func (x *Exchange) hold(l *leg, k *heldKey) {
	k.asked = true
	x.act(Action{Kind: Hold, Leg: l.id, Key: &k.key, Fresh: k.fresh})
}

// Held says that the media plane opens packets with that key.
func (x *Exchange) Held(id Leg, mki MKI, _ int64) {
	l := x.legs[id]
	if l == nil {
		return
	}
	if k := l.in.key(mki); k != nil && k.asked && !k.held {
		k.held = true
		if l.begun {
			x.acknowledge(id, mki)
		}
	}
}

// NotHeld says that the media plane cannot.
func (x *Exchange) NotHeld(id Leg, mki MKI, _ int64) {
	l := x.legs[id]
	if l == nil {
		return
	}
	if k := l.in.key(mki); k != nil && k.asked && !k.held {
		x.release(l, k)
		x.refuse(id, mki, RefusedMedia)
	}
}

// Opened says how many packets the media plane has opened with that key since it said so last.
func (x *Exchange) Opened(id Leg, mki MKI, packets uint64, now int64) {
	l := x.legs[id]
	if l == nil || packets == 0 {
		return
	}
	for i, k := range l.in.keys {
		if k.key.MKI == mki {
			k.openedAt = now
			for _, old := range l.in.keys[:i] {
				old.supersede(now)
				old.newer += packets
			}
			return
		}
	}
}

// retire drops keys that are not used any more.
func (x *Exchange) retire(l *leg, now int64) {
	for _, k := range slices.Clone(l.in.keys) {
		if k.quiet(now) && k.newer >= OverlapPackets || l.in.over && time.Duration(now-l.in.overAt) >= Overlap {
			x.drop(l, k)
		}
	}
}

// quiet says whether the far end has used a newer key for long, and nothing has come late.
func (k *heldKey) quiet(now int64) bool {
	return k.superseded && time.Duration(now-max(k.supersededAt, k.openedAt)) >= Overlap
}

func (k *heldKey) supersede(now int64) {
	if !k.superseded {
		k.superseded, k.supersededAt = true, now
	}
}

func (i *inbound) key(mki MKI) *heldKey {
	for _, k := range i.keys {
		if k.key.MKI == mki {
			return k
		}
	}
	return nil
}

func (x *Exchange) acknowledge(id Leg, mki MKI) {
	if x.up {
		x.counters.AcksSent++
		x.say(&message{kind: KindAck, leg: id, key: Key{MKI: mki}})
	}
}

func (x *Exchange) refuse(id Leg, mki MKI, why Refusal) {
	x.counters.RefusalsSent++
	if x.up {
		x.say(&message{kind: KindRefuse, leg: id, key: Key{MKI: mki}, reason: why})
	}
}

// drop has the media plane give a key up, and wipes it.
func (x *Exchange) drop(l *leg, k *heldKey) {
	if k.asked {
		x.act(Action{Kind: Drop, Leg: l.id, Key: &k.key})
	}
	x.release(l, k)
}

// release wipes a key of the far end.
func (x *Exchange) release(l *leg, k *heldKey) {
	delete(x.owned, fingerprintOf(&k.key))
	k.key.Wipe()
	l.in.keys = slices.DeleteFunc(l.in.keys, func(o *heldKey) bool { return o == k })
}

func (x *Exchange) dropAll(l *leg) {
	for _, k := range slices.Clone(l.in.keys) {
		x.drop(l, k)
	}
}
