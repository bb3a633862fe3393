package terminate

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"ringway/sip/dialog"
	"ringway/sip/sdp"
	"ringway/srtp/offer"
	"ringway/srtp/sdes"
)

// Pair is a medium that the box relays: what comes by one of its ends goes on by the other one. It has keys.
type Pair struct {
	ID   uint64
	Kind sdp.Kind
	Ends [2]End // of caller and callee
}

// End is one side of a pair.
type End struct {
	ID   uint64     // stands for its port at the box, whichever pair has it
	Call uint64     // in which its epochs are unique: two ends of a call with one epoch have one key and its counters
	Hop  netip.Addr // that speaks for this end
	offer.Leg
}

// Change is a pair that the media plane is to have from now on, in place of the one with its ID. nil: it is to have
// none.
type Change struct {
	ID   uint64
	Pair *Pair
}

// Format prints nothing of the keys.
func (p Pair) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "pair %x of %s and %s", p.ID, p.Ends[0].Local, p.Ends[1].Local)
}

// Wipe overwrites the keys.
func (p *Pair) Wipe() {
	for i := range p.Ends {
		for _, k := range slices.Concat(p.Ends[i].Send.Keys, p.Ends[i].Receive.Keys) {
			k.Wipe()
		}
	}
}

// Clone is a pair with keys of its own.
func (p *Pair) Clone() *Pair {
	n := *p
	for i := range n.Ends {
		l := &n.Ends[i].Leg
		l.Send.Keys, l.Receive.Keys = cloneKeys(l.Send.Keys), cloneKeys(l.Receive.Keys)
	}
	return &n
}

func cloneKeys(keys []sdes.Key) []sdes.Key {
	if len(keys) == 0 {
		return nil
	}
	all := slices.Clone(keys)
	for i := range all {
		k := &all[i]
		k.Master, k.Salt, k.MKI = bytes.Clone(k.Master), bytes.Clone(k.Salt), bytes.Clone(k.MKI)
	}
	return all
}

// Changes are what the media plane is to be told since they were last asked for. Their keys are the caller's to wipe.
func (c *Calls) Changes() (all []Change) {
	if len(c.touch) == 0 {
		return nil
	}
	dirty := map[uint64]bool{}
	for x := range c.touch {
		c.sync(x, dirty)
		c.unsaved[x] = true
	}
	clear(c.touch)
	for id := range dirty {
		was, is := c.told[id], c.join(id)
		switch {
		case is == nil && was == nil, is != nil && was != nil && reflect.DeepEqual(was, is):
			continue
		case is == nil:
			delete(c.told, id)
			all = append(all, Change{ID: id})
		default:
			c.told[id] = is
			all = append(all, Change{id, is.Clone()})
		}
		if was != nil {
			was.Wipe()
		}
	}
	// What goes comes last: an end goes over from the pair that had it.
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(bit(a.Pair == nil), bit(b.Pair == nil)), cmp.Compare(a.ID, b.ID))
	})
	return all
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Whole are all pairs that the media plane is to have.
func (c *Calls) Whole() (all []Change) {
	for id, p := range c.told {
		all = append(all, Change{id, p.Clone()})
	}
	return all
}

// sync brings the pairs of a call up to date, and notes those that the change may have joined or parted.
func (c *Calls) sync(x *call, dirty map[uint64]bool) {
	if len(x.kept) > 0 {
		x.freePorts(c.config.Offer.Ports)
	}
	wanted := x.wanted(c.config.NewID)
	for _, id := range x.pairs {
		if p := wanted[id]; p == nil || !reflect.DeepEqual(p, c.pairs[id]) {
			c.chain(id, dirty)
			c.remove(id)
		} else {
			p.Wipe()
		}
	}
	x.pairs = x.pairs[:0]
	for id, p := range wanted {
		x.pairs = append(x.pairs, id)
		if c.pairs[id] == nil {
			c.pairs[id] = p
			for e := range p.Ends {
				c.local[p.Ends[e].Local] = place{id, e}
			}
		}
	}
	for _, id := range x.pairs {
		c.chain(id, dirty)
	}
}

func (c *Calls) remove(id uint64) {
	p := c.pairs[id]
	for e := range p.Ends {
		if at := p.Ends[e].Local; c.local[at].id == id {
			delete(c.local, at)
		}
	}
	p.Wipe()
	delete(c.pairs, id)
}

// place is where a port of the box is: at an end of a pair.
type place struct {
	id  uint64
	end int
}

// maxChain bounds how often one medium crosses the box.
const maxChain = 16

// across finds what a pair is joined to at one of its ends: a proxy or a PBX that does not relay media has passed the
// box's own address on to the box, in another leg of the call, and the other way round. Media goes past both then.
func (c *Calls) across(at place) (next place, ok bool) {
	p := c.pairs[at.id]
	if p == nil {
		return next, false
	}
	here := &p.Ends[at.end]
	next, ok = c.local[here.Remote]
	return next, ok && next.id != at.id && c.pairs[next.id].Ends[next.end].Remote == here.Local
}

// outer is the end of a chain of pairs in the direction of one end.
func (c *Calls) outer(at place, visit func(id uint64)) place {
	for range maxChain {
		visit(at.id)
		next, ok := c.across(at)
		if !ok {
			break
		}
		at = place{next.id, 1 - next.end}
	}
	return at
}

// chain notes all pairs that a pair is joined to, and itself.
func (c *Calls) chain(id uint64, dirty map[uint64]bool) {
	for end := range 2 {
		c.outer(place{id, end}, func(id uint64) { dirty[id] = true })
	}
}

// join is the pair that the media plane has for a chain, under the lowest ID in it; nil for the others.
func (c *Calls) join(id uint64) *Pair {
	p := c.pairs[id]
	if p == nil {
		return nil
	}
	least := id
	var ends [2]place
	for end := range ends {
		ends[end] = c.outer(place{id, end}, func(id uint64) { least = min(least, id) })
	}
	if least != id {
		return nil
	}
	joined := Pair{ID: id, Kind: p.Kind}
	for end, at := range ends {
		joined.Ends[end] = c.pairs[at.id].Ends[at.end]
	}
	return joined.Clone()
}

// Secured is how media is secured between the box and caller and callee of a leg, by its latest answer; nil: none is
// relayed. Of several lines the least secured counts.
func (c *Calls) Secured(l *dialog.Leg) []string {
	x := c.legs[l]
	if x == nil {
		return nil
	}
	var least [2]offer.Keying
	found, order := false, uint64(0)
	for _, b := range x.branches {
		if len(b.media) == 0 || b.barred || found && b.order < order {
			continue
		}
		found, order = true, b.order
		for e := range least {
			least[e] = b.media[0].Legs[e].Keying
			for i := range b.media {
				least[e] = min(least[e], b.media[i].Legs[e].Keying)
			}
		}
	}
	if !found {
		return nil
	}
	return []string{least[0].String(), least[1].String()}
}

// wanted are the pairs of a call. The branches of a fork have one port of the box towards the callees in common: it
// belongs to the branch that was accepted, or else to the one that was answered last. Their keys are copies.
func (x *call) wanted(newID func() uint64) map[uint64]*Pair {
	branches := make([]*branch, 0, len(x.branches))
	for _, b := range x.branches {
		if !b.barred {
			branches = append(branches, b)
		}
	}
	slices.SortFunc(branches, func(a, b *branch) int {
		return cmp.Or(cmp.Compare(bit(b.accepted()), bit(a.accepted())), cmp.Compare(b.order, a.order))
	})
	taken := map[netip.AddrPort]bool{}
	all := map[uint64]*Pair{}
	defer x.forgetEnds()
	for _, b := range branches {
		for i := range b.media {
			m := &b.media[i]
			if taken[m.Legs[0].Local] || taken[m.Legs[1].Local] {
				continue
			}
			id := b.ids[m.Index]
			if id == 0 {
				id = newID()
				b.ids[m.Index] = id
			}
			p := &Pair{ID: id, Kind: m.Kind}
			for e := range m.Legs {
				taken[m.Legs[e].Local] = true
				p.Ends[e] = End{x.endAt(m.Legs[e].Local, newID), b.call, x.leg.Hops[e], m.Legs[e]}
			}
			all[id] = p.Clone()
		}
	}
	return all
}

// endAt is the ID of the end at a port.
func (x *call) endAt(a netip.AddrPort, newID func() uint64) uint64 {
	if x.ends[a] == 0 {
		if x.ends == nil {
			x.ends = map[netip.AddrPort]uint64{}
		}
		x.ends[a] = newID()
	}
	return x.ends[a]
}

// forgetEnds forgets those that no branch has any more.
func (x *call) forgetEnds() {
	for a := range x.ends {
		if !x.has(a) {
			delete(x.ends, a)
		}
	}
}

// has reports whether media of a branch is at a port.
func (x *call) has(a netip.AddrPort) bool {
	for _, b := range x.branches {
		for i := range b.media {
			if b.media[i].Legs[0].Local == a || b.media[i].Legs[1].Local == a {
				return true
			}
		}
	}
	return false
}

// accepted reports whether the branch was accepted and lives.
func (b *branch) accepted() bool {
	return b.dialog != nil && b.dialog.State > dialog.Early && b.dialog.State != dialog.Ended
}
