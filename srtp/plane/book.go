package plane

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"ringway/srtp/keys"
	"ringway/srtp/media"
	"ringway/srtp/stream"
)

// book is what both halves know: pairs, keys, and how far each key was used. The process's half has the streams, too.
// It is not safe for concurrent use.
type book struct {
	// generation is drawn with an empty book: what was used before is not in it.
	generation uint64

	pairs    map[uint64]*pair
	legs     map[uint64]*leg
	channels map[keys.Leg]*channel
	used     used // keys to send with
	opened   used // keys to receive with, of which something was heard
}

type pair struct {
	id   uint64
	legs [2]*leg
}

// leg is a leg as it was set, without keys, which are in its directions.
type leg struct {
	Leg
	pair    uint64
	out, in *direction    // nil: nothing passes, unless the leg is in clear
	learned media.Learned // zero: nothing
}

// channel is a leg of the key channel. Its keys may be there before and after its pair.
type channel struct {
	out, in *direction
	leg     *leg // nil: of no pair
}

// direction is the keys of one direction of a leg, and how far they were used. With another one of the same leg,
// indices begin again.
type direction struct {
	Keying Keying `json:"keying"`
	Call   uint64 `json:"call,omitempty"`  // of SDES
	Epoch  uint32 `json:"epoch,omitempty"` // of SDES and DTLS
	Keys   []Key  `json:"keys"`            // never changed in place: undo puts the list before back
	// Spent is of a key of the channel whose pair has ended: nothing more is sealed with it.
	Spent bool `json:"spent,omitempty"`

	Sent  stream.Account `json:"sent,omitzero"`   // of what is sent
	Heard []stream.Heard `json:"heard,omitempty"` // of what arrives

	// resumed says that a process before has used the key: the sender that is made goes on beyond Sent.
	resumed  bool
	sender   *stream.Sender
	receiver *stream.Receiver
}

func newBook() *book {
	return &book{
		pairs: map[uint64]*pair{}, legs: map[uint64]*leg{}, channels: map[keys.Leg]*channel{},
		used: newUsed(), opened: newUsed(),
		generation: rand.Uint64() | 1,
	}
}

// change is one of a book, until it is committed or undone.
type change struct {
	undos   []func()
	out, in []*direction // out of use, if it is committed
}

func (c *change) undo() {
	for _, f := range slices.Backward(c.undos) {
		f()
	}
}

// commit makes the change final: keys that are out of use are overwritten, and never sent with again.
func (c *change) commit(b *book) {
	for _, d := range c.out {
		b.used.park(d)
		d.wipe()
	}
	for _, d := range c.in {
		if d.Keying == SDES {
			b.opened.park(d)
		}
		d.wipe()
	}
}

// dropped are all directions that are out of use.
func (c *change) dropped() []*direction { return slices.Concat(c.out, c.in) }

// drop takes a direction out of use.
func (c *change) drop(d *direction, out bool) {
	if d == nil {
		return
	}
	if out {
		c.out = append(c.out, d)
	} else {
		c.in = append(c.in, d)
	}
}

// put puts a value in place, until undo.
func put[T any](c *change, place *T, v T) {
	before := *place
	c.undos = append(c.undos, func() { *place = before })
	*place = v
}

func putIn[K comparable, V any](c *change, m map[K]V, k K, v V) {
	remember(c, m, k)
	m[k] = v
}

func takeOut[K comparable, V any](c *change, m map[K]V, k K) {
	remember(c, m, k)
	delete(m, k)
}

func remember[K comparable, V any](c *change, m map[K]V, k K) {
	before, was := m[k]
	c.undos = append(c.undos, func() {
		if was {
			m[k] = before
		} else {
			delete(m, k)
		}
	})
}

// newOut makes a direction to send with that key. One that was sent with before is refused: its indices would begin
// again.
func (b *book) newOut(c *change, keying Keying, call uint64, epoch uint32, k *Key) (*direction, error) {
	d := &direction{Keying: keying, Call: call, Epoch: epoch, Keys: []Key{k.clone()}}
	was, ok := b.used.take(d)
	if !ok {
		d.wipe()
		return nil, errors.New("its key to send with was used before, and this is no stream that goes on")
	}
	if was != nil {
		d.Sent, d.resumed = was.Sent, true
	}
	c.undos = append(c.undos, func() { b.used.giveBack(d, was); d.wipe() })
	return d, nil
}

func (b *book) newIn(c *change, keying Keying, call uint64, epoch uint32, all []Key) *direction {
	d := &direction{Keying: keying, Call: call, Epoch: epoch, Keys: cloneKeys(all)}
	if was := b.opened.find(d); was != nil {
		d.Heard = was.Heard
	}
	c.undos = append(c.undos, d.wipe)
	return d
}

func cloneKeys(all []Key) (out []Key) {
	for i := range all {
		out = append(out, all[i].clone())
	}
	return out
}

func (d *direction) wipe() {
	for i := range d.Keys {
		d.Keys[i].Wipe()
	}
}

// set joins two legs, or changes what is known of them. Pairs that either leg was in before end.
func (b *book) set(p *Pair) (_ *change, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if p.Generation != b.generation {
		return nil, errors.New("its keys may have been used by a process of which nothing is known")
	}
	c := &change{}
	defer func() {
		if err != nil {
			c.undo()
		}
	}()
	if was := b.pairs[p.ID]; was != nil && !slices.ContainsFunc(p.Legs[:], func(l Leg) bool {
		return l.ID == was.legs[0].ID || l.ID == was.legs[1].ID
	}) {
		return nil, fmt.Errorf("pair %d has other legs; remove it first", p.ID)
	}

	before := map[uint64]*leg{}
	for i := range p.Legs {
		if l := b.legs[p.Legs[i].ID]; l != nil {
			for _, each := range b.pairs[l.pair].legs {
				before[each.ID] = each
			}
		}
	}
	for id, l := range before {
		b.detach(c, l)
		takeOut(c, b.pairs, l.pair)
		takeOut(c, b.legs, id)
	}
	next := &pair{id: p.ID}
	for i := range p.Legs {
		if next.legs[i], err = b.join(c, &p.Legs[i], p.ID, before[p.Legs[i].ID]); err != nil {
			return nil, fmt.Errorf("leg %d: %w", p.Legs[i].ID, err)
		}
		putIn(c, b.legs, p.Legs[i].ID, next.legs[i])
	}
	putIn(c, b.pairs, p.ID, next)
	b.dropRest(c, before, next)
	return c, nil
}

// detach takes a leg away from its place in the key channel.
func (b *book) detach(c *change, l *leg) {
	if ch := b.channels[l.Channel]; l.Keying == Channel && ch != nil {
		put(c, &ch.leg, nil)
	}
}

// join makes a leg that goes on from the one before of the same ID, which may be nil.
func (b *book) join(c *change, said *Leg, pair uint64, before *leg) (*leg, error) {
	l := &leg{Leg: *said, pair: pair}
	l.Send.Keys, l.Receive.Keys = nil, nil
	var err error
	switch l.Keying {
	case SDES:
		if l.out, err = b.goOn(c, before, said, true); err == nil {
			l.in, err = b.goOn(c, before, said, false)
		}
	case DTLS:
		// Keys of an association are right until another one has some.
		if before != nil && before.Keying == DTLS {
			l.out, l.in = before.out, before.in
		}
	case Channel:
		ch := b.channels[l.Channel]
		if ch == nil {
			if len(b.channels) >= maxChannels {
				return nil, fmt.Errorf("more than %d legs of the key channel", maxChannels)
			}
			ch = &channel{}
			putIn(c, b.channels, l.Channel, ch)
		}
		if ch.leg != nil {
			return nil, fmt.Errorf("leg %d has the keys of %s", ch.leg.ID, l.Channel)
		}
		// A leg that takes the place of another one has its stream; else the key of a pair that has ended is spent.
		same := before != nil && before.Keying == Channel && before.Channel == l.Channel
		if ch.out != nil && ch.out.Spent && !same {
			return nil, fmt.Errorf("the key of %s was used by a pair that has ended", l.Channel)
		}
		put(c, &ch.leg, l)
		l.out, l.in = ch.out, ch.in
		if l.out != nil && l.out.Spent {
			l.out = nil
		}
	}
	if before != nil && before.Learn && l.Learn && before.in == l.in && before.Remote == l.Remote &&
		before.RemoteRTCP == l.RemoteRTCP {
		l.learned = before.learned
	}
	return l, err
}

// goOn returns the direction that a leg has, if it is of the same epoch, or a new one. Without keys it is nil.
func (b *book) goOn(c *change, before *leg, said *Leg, out bool) (*direction, error) {
	s := &said.Receive
	if out {
		s = &said.Send
	}
	if before != nil && before.Keying == SDES {
		d := before.in
		if out {
			d = before.out
		}
		if d != nil && d.Call == said.Call && d.Epoch == s.Epoch && len(s.Keys) > 0 {
			if !slices.EqualFunc(d.Keys, s.Keys, func(a, b Key) bool { return a.same(&b) }) {
				return nil, fmt.Errorf("epoch %d has other keys", s.Epoch)
			}
			return d, nil
		}
	}
	switch {
	case len(s.Keys) == 0:
		return nil, nil
	case out:
		return b.newOut(c, SDES, said.Call, s.Epoch, &s.Keys[0])
	}
	return b.newIn(c, SDES, said.Call, s.Epoch, s.Keys), nil
}

// dropRest takes out of use what legs before had and the next pair, which may be nil, has not.
func (b *book) dropRest(c *change, before map[uint64]*leg, next *pair) {
	kept := map[*direction]bool{}
	if next != nil {
		for _, l := range next.legs {
			kept[l.out], kept[l.in] = true, true
		}
	}
	for _, l := range before {
		if l.Keying == Channel {
			if l.out != nil && !kept[l.out] {
				put(c, &l.out.Spent, true)
			}
			b.forgetChannel(c, l.Channel)
			continue
		}
		if !kept[l.out] {
			c.drop(l.out, true)
		}
		if !kept[l.in] {
			c.drop(l.in, false)
		}
	}
}

// forgetChannel forgets a leg of the key channel of which there is nothing.
func (b *book) forgetChannel(c *change, id keys.Leg) {
	if ch := b.channels[id]; ch != nil && ch.leg == nil && ch.in == nil && ch.out == nil {
		takeOut(c, b.channels, id)
	}
}

// remove ends a pair. That there is none changes nothing.
func (b *book) remove(id uint64) *change {
	c := &change{}
	p := b.pairs[id]
	if p == nil {
		return c
	}
	before := map[uint64]*leg{}
	for _, l := range p.legs {
		before[l.ID] = l
		b.detach(c, l)
		takeOut(c, b.legs, l.ID)
	}
	takeOut(c, b.pairs, id)
	b.dropRest(c, before, nil)
	return c
}

// establish gives a leg the keys of its association.
func (b *book) establish(legID uint64, epoch uint32, send, receive *Key) (*change, error) {
	l := b.legs[legID]
	if l == nil || l.Keying != DTLS || l.Association.Epoch != epoch {
		return nil, fmt.Errorf("leg %d has no such association", legID)
	}
	if err := errors.Join(send.check(), receive.check()); err != nil {
		return nil, err
	}
	c := &change{}
	out, err := b.newOut(c, DTLS, 0, epoch, send)
	if err != nil {
		return nil, err
	}
	in := b.newIn(c, DTLS, 0, epoch, []Key{*receive})
	c.drop(l.out, true)
	c.drop(l.in, false)
	put(c, &l.out, out)
	put(c, &l.in, in)
	return c, nil
}

// established says whether the leg has keys of the association that it is to have.
func (l *leg) established() bool {
	return l.Keying == DTLS && l.out != nil && l.out.Epoch == l.Association.Epoch
}

// effect is what a change of keys means for streams that are in use.
type effect uint8

const (
	effectNone  effect = iota
	effectAdd          // of a key to open with
	effectUse          // another key to send with; indices go on
	effectDrop         // of a key to open with
	effectOther        // streams begin or end
)

// act carries out an action of the key channel. An action for what is so already changes nothing.
func (b *book) act(a *action) (_ *change, e effect, err error) {
	c := &change{}
	defer func() {
		if err != nil {
			c.undo()
		}
	}()
	ch := b.channels[a.Leg]
	if ch == nil {
		if a.Kind == keys.Drop || a.Kind == keys.Stop {
			return c, effectNone, nil
		}
		if len(b.channels) >= maxChannels {
			return nil, 0, fmt.Errorf("more than %d legs of the key channel", maxChannels)
		}
		ch = &channel{}
		putIn(c, b.channels, a.Leg, ch)
	}
	switch a.Kind {
	case keys.Hold:
		e, err = b.hold(c, ch, a)
	case keys.Drop:
		e = ch.drop(c, a)
	case keys.Use:
		e, err = b.use(c, ch, a)
	case keys.Stop:
		if ch.out != nil {
			c.drop(ch.out, true)
			put(c, &ch.out, nil)
			e = effectOther
		}
	default:
		err = fmt.Errorf("%s is not an action", a.Kind)
	}
	if err != nil {
		return nil, 0, err
	}
	if ch.leg == nil {
		b.forgetChannel(c, a.Leg)
		return c, effectNone, nil
	}
	put(c, &ch.leg.in, ch.in)
	out := ch.out
	if out != nil && out.Spent {
		out = nil
	}
	put(c, &ch.leg.out, out)
	return c, e, nil
}

func (b *book) hold(c *change, ch *channel, a *action) (effect, error) {
	if err := a.Key.check(); err != nil {
		return 0, err
	}
	if ch.in != nil {
		for i := range ch.in.Keys {
			if k := &ch.in.Keys[i]; k.same(&a.Key) {
				return effectNone, nil
			} else if !a.Fresh && bytes.Equal(k.MKI, a.Key.MKI) {
				return 0, errors.New("another key has this MKI")
			}
		}
	}
	if ch.in == nil || a.Fresh {
		c.drop(ch.in, false)
		put(c, &ch.in, b.newIn(c, Channel, 0, 0, []Key{a.Key}))
		return effectOther, nil
	}
	if len(ch.in.Keys) >= maxReceiveKeys {
		return 0, fmt.Errorf("more than %d keys to receive with", maxReceiveKeys)
	}
	if first := &ch.in.Keys[0]; first.Suite != a.Key.Suite || len(first.MKI) != len(a.Key.MKI) {
		return 0, errors.New("several keys need one suite and MKIs of one length")
	}
	put(c, &ch.in.Keys, append(slices.Clone(ch.in.Keys), a.Key.clone()))
	return effectAdd, nil
}

func (ch *channel) drop(c *change, a *action) effect {
	if ch.in == nil {
		return effectNone
	}
	i := slices.IndexFunc(ch.in.Keys, func(k Key) bool { return bytes.Equal(k.MKI, a.Key.MKI) })
	switch {
	case i < 0:
		return effectNone
	case len(ch.in.Keys) == 1:
		c.drop(ch.in, false)
		put(c, &ch.in, nil)
		return effectOther
	}
	c.drop(&direction{Keys: ch.in.Keys[i : i+1 : i+1]}, false)
	put(c, &ch.in.Keys, slices.Delete(slices.Clone(ch.in.Keys), i, i+1))
	return effectDrop
}

func (b *book) use(c *change, ch *channel, a *action) (effect, error) {
	if err := a.Key.check(); err != nil {
		return 0, err
	}
	before := ch.out
	if before != nil && before.Keys[0].same(&a.Key) {
		return effectNone, nil
	}
	next, err := b.newOut(c, Channel, 0, 0, &a.Key)
	if err != nil {
		return 0, err
	}
	if before == nil || a.Fresh {
		c.drop(before, true)
		put(c, &ch.out, next)
		return effectOther, nil
	}
	if before.Spent {
		// The far end takes a smaller index for an old one: go on from where the key before was.
		next.Sent, next.resumed = before.Sent, true
		c.drop(before, true)
		put(c, &ch.out, next)
		return effectOther, nil
	}
	old := &direction{Keys: before.Keys}
	c.drop(old, true)
	put(c, &before.Keys, next.Keys)
	return effectUse, nil
}

// sent keeps what a leg has sent. It is dropped where the leg has nothing to send with any more.
//
// The account may be of a stream that was replaced while it was on its way. It does no harm: an account comes with the
// first packet of a source, and the next 2^12 later, so that the wrong one is in place for less than what is skipped.
func (b *book) sent(legID uint64, a stream.Account) bool {
	l := b.legs[legID]
	if l == nil || l.out == nil || len(a.Sources) > maxAccount {
		return false
	}
	l.out.Sent = a
	return true
}

// heard keeps what a leg has heard.
func (b *book) heard(legID uint64, all []stream.Heard) bool {
	l := b.legs[legID]
	if l == nil || l.in == nil || len(all) > maxAccount {
		return false
	}
	l.in.Heard = all
	return true
}

// Bounds of what a process may say.
const (
	maxChannels = 4096
	maxAccount  = 1024 // sources
)

// given says that the book was given to a process, which may use every key: from now on the accounts are those that it
// begins with.
func (b *book) given() {
	for _, d := range b.outs() {
		if d.resumed {
			d.Sent, d.resumed = d.Sent.Advanced(), false
		}
	}
}

// outs are all directions that are sent with.
func (b *book) outs() (all []*direction) {
	for _, l := range b.legs {
		if l.out != nil && l.Keying != Channel {
			all = append(all, l.out)
		}
	}
	for _, ch := range b.channels {
		if ch.out != nil {
			all = append(all, ch.out)
		}
	}
	return all
}

// wipe overwrites every key.
func (b *book) wipe() {
	for _, l := range b.legs {
		for _, d := range []*direction{l.out, l.in} {
			if d != nil {
				d.wipe()
			}
		}
	}
	for _, ch := range b.channels {
		for _, d := range []*direction{ch.out, ch.in} {
			if d != nil {
				d.wipe()
			}
		}
	}
}
