package plane

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"ringway/srtp/keys"
	"ringway/srtp/media"
)

// state is a whole book, for the other half. The keys are beside it.
type state struct {
	Generation uint64         `json:"generation"`
	Pairs      []pairState    `json:"pairs,omitempty"`
	Channels   []channelState `json:"channels,omitempty"`
	Used       []parked       `json:"used,omitempty"`
	Opened     []parked       `json:"opened,omitempty"`
}

type pairState struct {
	ID   uint64      `json:"id"`
	Legs [2]legState `json:"legs"`
}

type legState struct {
	Leg
	Out     *direction    `json:"out,omitempty"` // not of the channel's
	In      *direction    `json:"in,omitempty"`
	Learned media.Learned `json:"learned,omitzero"`
}

type channelState struct {
	ID  keys.Leg   `json:"id"`
	Out *direction `json:"out,omitempty"`
	In  *direction `json:"in,omitempty"`
}

// keys are all keys, always in the same order.
func (s *state) keys() (all []*Key) {
	for _, d := range s.directions() {
		for i := range d.Keys {
			all = append(all, &d.Keys[i])
		}
	}
	return all
}

func (s *state) directions() (all []*direction) {
	add := func(d *direction) {
		if d != nil {
			all = append(all, d)
		}
	}
	for i := range s.Pairs {
		for j := range s.Pairs[i].Legs {
			add(s.Pairs[i].Legs[j].Out)
			add(s.Pairs[i].Legs[j].In)
		}
	}
	for i := range s.Channels {
		add(s.Channels[i].Out)
		add(s.Channels[i].In)
	}
	return all
}

// state is the whole book. It has the book's own directions: it is to be encoded before the book changes.
func (b *book) state() *state {
	s := &state{Generation: b.generation}
	for _, id := range slices.Sorted(maps.Keys(b.pairs)) {
		p := pairState{ID: id}
		for i, l := range b.pairs[id].legs {
			p.Legs[i] = legState{Leg: l.Leg, Learned: l.learned}
			if l.Keying != Channel {
				p.Legs[i].Out, p.Legs[i].In = l.out, l.in
			}
		}
		s.Pairs = append(s.Pairs, p)
	}
	for id, ch := range b.channels {
		s.Channels = append(s.Channels, channelState{id, ch.out, ch.in})
	}
	slices.SortFunc(s.Channels, func(a, b channelState) int { return slices.Compare(a.ID[:], b.ID[:]) })
	s.Used, s.Opened = b.used.all(), b.opened.all()
	return s
}

// bookOf makes a book of a state whose keys are there. The book has the state's directions.
func bookOf(s *state) (*book, error) {
	b := newBook()
	b.generation = s.Generation
	for _, list := range []struct {
		from []parked
		to   *used
	}{{s.Used, &b.used}, {s.Opened, &b.opened}} {
		if len(list.from) > maxRetired {
			return nil, errors.New("a list of used keys of that length is not taken")
		}
		for _, p := range list.from {
			if len(p.Sent.Sources) > maxAccount || len(p.Heard) > maxAccount {
				return nil, errors.New("an account of that length is not taken")
			}
			list.to.put(&p)
		}
	}
	if len(s.Channels) > maxChannels {
		return nil, fmt.Errorf("%d legs of the key channel (allowed: %d)", len(s.Channels), maxChannels)
	}
	for i := range s.Channels {
		ch := &s.Channels[i]
		if err := cmp.Or(b.adopt(ch.Out, true), b.adopt(ch.In, false)); err != nil {
			return nil, fmt.Errorf("leg %s: %w", ch.ID, err)
		}
		if b.channels[ch.ID] != nil {
			return nil, fmt.Errorf("leg %s is there twice", ch.ID)
		}
		b.channels[ch.ID] = &channel{out: ch.Out, in: ch.In}
	}
	for i := range s.Pairs {
		if err := b.adoptPair(&s.Pairs[i]); err != nil {
			return nil, fmt.Errorf("pair %d: %w", s.Pairs[i].ID, err)
		}
	}
	return b, nil
}

func (b *book) adoptPair(p *pairState) error {
	said := Pair{ID: p.ID, Generation: b.generation, Legs: [2]Leg{p.Legs[0].Leg, p.Legs[1].Leg}}
	if err := said.check(); err != nil {
		return err
	}
	if b.pairs[p.ID] != nil {
		return errors.New("it is there twice")
	}
	next := &pair{id: p.ID}
	for i := range p.Legs {
		from := &p.Legs[i]
		l := &leg{Leg: from.Leg, pair: p.ID, out: from.Out, in: from.In, learned: from.Learned}
		switch {
		case len(l.Send.Keys) > 0 || len(l.Receive.Keys) > 0, b.legs[l.ID] != nil,
			(l.Keying == Clear || l.Keying == Channel) && (l.out != nil || l.in != nil):
			return fmt.Errorf("leg %d is not as it can be", l.ID)
		}
		if err := cmp.Or(b.adopt(l.out, true), b.adopt(l.in, false)); err != nil {
			return fmt.Errorf("leg %d: %w", l.ID, err)
		}
		if l.Keying == Channel {
			ch := b.channels[l.Channel]
			if ch == nil || ch.leg != nil {
				return fmt.Errorf("leg %d has no place in the key channel", l.ID)
			}
			ch.leg, l.in = l, ch.in
			if ch.out != nil && !ch.out.Spent {
				l.out = ch.out
			}
		}
		b.legs[l.ID], next.legs[i] = l, l
	}
	b.pairs[p.ID] = next
	return nil
}

// adopt takes a direction of another process.
func (b *book) adopt(d *direction, out bool) error {
	if d == nil {
		return nil
	}
	if n := len(d.Keys); n < 1 || n > maxReceiveKeys || out && n > 1 {
		return fmt.Errorf("%d keys of a direction", n)
	}
	if len(d.Sent.Sources) > maxAccount || len(d.Heard) > maxAccount {
		return errors.New("an account of that length is not taken")
	}
	for i := range d.Keys {
		if err := d.Keys[i].check(); err != nil {
			return err
		}
	}
	if !out {
		return nil
	}
	if was, ok := b.used.take(d); !ok || was != nil {
		return errors.New("two streams are sent with one key")
	}
	return nil
}

// resume says that another process goes on with every key, which this one may have used.
func (b *book) resume() {
	for _, d := range b.outs() {
		d.resumed = true
	}
}
