package keys

import (
	"encoding/binary"
	"errors"
	"math"

	"ringway/srtp/suite"
)

// ErrState is why a state cannot be restored.
var ErrState = errors.New("state of the key exchange is of another version or damaged")

// stateVersion is the first byte of a state.
const stateVersion = 1

// Save returns all legs and keys, for the next process of the same boot: through memory, never a disk. Whoever has it
// overwrites it. To survive a kill it is to be kept after every call, before actions are carried out and messages sent.
func (x *Exchange) Save(now int64) []byte {
	w := writer{b: make([]byte, 0, 16+len(x.order)*1024), now: now}
	w.byte(stateVersion)
	w.uint(uint64(len(x.order)))
	for _, l := range x.order {
		w.b = append(w.b, l.id[:]...)
		w.flags(l.begun, l.ending, l.told, l.out.stopped, l.in.over, l.out.current != nil, l.out.offered != nil)
		w.time(l.since)
		w.uint(uint64(l.out.suite))
		w.uint(uint64(l.out.life))
		w.uint(l.out.rotations)
		for _, k := range [...]*sentKey{l.out.current, l.out.offered} {
			if k != nil {
				w.key(&k.key)
				w.flags(k.fresh, k.exhausted, k.rotateAt != 0, k.heard)
				w.time(k.made)
				w.time(k.usedAt)
				w.time(k.exhaustedAt)
				if k.rotateAt != 0 {
					w.time(k.rotateAt)
				}
				w.uint(k.packets)
				w.uint(k.rotateAfter)
			}
		}
		w.uint(uint64(l.in.life))
		w.time(l.in.overAt)
		w.uint(uint64(len(l.in.keys)))
		for _, k := range l.in.keys {
			w.key(&k.key)
			w.flags(k.fresh, k.asked, k.held, k.superseded)
			w.time(k.supersededAt)
			w.time(k.openedAt)
			w.uint(k.newer)
		}
	}
	return w.b
}

// Restore makes an Exchange of what another has saved. Its channel is down. The process before may not have carried out
// its last actions: bring the media plane to Wanted first. The clock may be another one; time in between is not
// counted.
func Restore(c Config, state []byte, now int64) (*Exchange, error) {
	x, err := New(c, now)
	if err != nil {
		return nil, err
	}
	r := reader{b: state, now: now}
	if r.byte() != stateVersion {
		return nil, ErrState
	}
	for n := r.uint(); n > 0 && !r.bad; n-- {
		x.restoreLeg(&r)
	}
	if r.bad || len(r.b) != 0 {
		for _, l := range append([]*leg(nil), x.order...) {
			x.remove(l)
		}
		return nil, ErrState
	}
	return x, nil
}

func (x *Exchange) restoreLeg(r *reader) {
	var id Leg
	copy(id[:], r.take(legLen))
	f := r.flags()
	if r.bad || x.legs[id] != nil {
		r.bad = true
		return
	}
	l := x.add(id, r.time())
	l.begun, l.ending, l.told, l.out.stopped, l.in.over = f[0], f[1], f[2], f[3], f[4]
	l.out.suite, l.out.life, l.out.rotations = r.suite(), r.number(), r.uint()
	if l.begun && !l.out.suite.Valid() {
		r.bad = true
		return
	}
	for i, place := range [...]**sentKey{&l.out.current, &l.out.offered} {
		if !f[5+i] || r.bad {
			continue
		}
		k := &sentKey{}
		r.key(&k.key)
		kf := r.flags()
		k.fresh, k.exhausted, k.heard = kf[0], kf[1], kf[3]
		k.made, k.usedAt, k.exhaustedAt = r.time(), r.time(), r.time()
		if kf[2] {
			k.rotateAt = r.time()
		}
		k.packets, k.rotateAfter = r.uint(), r.uint()
		*place = k
		x.owned[fingerprintOf(&k.key)] = struct{}{}
	}
	l.in.life, l.in.overAt = r.number(), r.time()
	for n := r.uint(); n > 0 && !r.bad; n-- {
		k := &heldKey{}
		r.key(&k.key)
		kf := r.flags()
		k.fresh, k.asked, k.held, k.superseded = kf[0], kf[1], kf[2], kf[3]
		k.supersededAt, k.openedAt, k.newer = r.time(), r.time(), r.uint()
		l.in.keys = append(l.in.keys, k)
		x.owned[fingerprintOf(&k.key)] = struct{}{}
	}
}

// writer encodes a state: numbers as varints, times as what they are before or after now.
type writer struct {
	b   []byte
	now int64
}

func (w *writer) byte(v byte)   { w.b = append(w.b, v) }
func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) time(v int64)  { w.b = binary.AppendVarint(w.b, v-w.now) }

func (w *writer) flags(all ...bool) {
	var v byte
	for i, f := range all {
		if f {
			v |= 1 << i
		}
	}
	w.byte(v)
}

func (w *writer) key(k *Key) {
	w.b = append(w.b, k.MKI[:]...)
	w.uint(uint64(k.Suite))
	w.b = append(w.b, k.secret[:k.length()]...)
}

// reader decodes it. After an error everything is zero.
type reader struct {
	b   []byte
	now int64
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || r.bad {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// number reads what the messages carry in 32 bits.
func (r *reader) number() uint32 {
	v := r.uint()
	if v > math.MaxUint32 {
		r.bad = true
		return 0
	}
	return uint32(v)
}

// suite reads a known suite, or 0 where none was chosen.
func (r *reader) suite() suite.Suite {
	v := r.uint()
	if v == 0 {
		return 0
	}
	s := suite.Suite(v)
	if uint64(s) != v || !s.Valid() {
		r.bad = true
		return 0
	}
	return s
}

func (r *reader) time() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || r.bad {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return r.now + v
}

func (r *reader) flags() (f [8]bool) {
	v := r.byte()
	for i := range f {
		f[i] = v&(1<<i) != 0
	}
	return f
}

func (r *reader) key(k *Key) {
	copy(k.MKI[:], r.take(mkiLen))
	k.Suite = r.suite()
	if !k.Suite.Valid() {
		r.bad = true
		return
	}
	copy(k.secret[:], r.take(k.length()))
}
