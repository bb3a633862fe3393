package terminate

import (
	"errors"
	"fmt"
	"net/netip"

	"ringway/sip/compact"
	"ringway/sip/dialog"
	"ringway/srtp/offer"
)

// Leg names a leg to another process.
type Leg struct {
	CallID string
	Tag    string // the caller's
	Hops   [2]netip.Addr
}

// LegOf is the name of a leg.
func LegOf(l *dialog.Leg) Leg { return Leg{l.CallID, l.Tag, l.Hops} }

// Saved is a call for the process that replaces this one. It has keys: it is for the memory of another process
// alone, and its owner overwrites it.
type Saved struct {
	Leg
	State []byte // nil: the call has ended
}

// savedCall is a call as it is kept. Numbers of fields are never given another meaning.
type savedCall struct {
	ID        uint64        `cbor:"1,keyasint"`
	Emergency bool          `cbor:"2,keyasint,omitempty"`
	Settled   uint64        `cbor:"3,keyasint"`
	Branches  []savedBranch `cbor:"4,keyasint,omitempty"`
	Offer     []byte        `cbor:"5,keyasint"` // package offer's
	Ends      []savedEnd    `cbor:"6,keyasint,omitempty"`
}

type savedEnd struct {
	At netip.AddrPort `cbor:"1,keyasint"`
	ID uint64         `cbor:"2,keyasint"`
}

type savedBranch struct {
	Tag    string         `cbor:"1,keyasint"`
	Order  uint64         `cbor:"2,keyasint"`
	IDs    map[int]uint64 `cbor:"3,keyasint,omitempty"`
	Media  []offer.Media  `cbor:"4,keyasint,omitempty"`
	Open   bool           `cbor:"5,keyasint,omitempty"`
	Caller bool           `cbor:"6,keyasint,omitempty"`
	Void   bool           `cbor:"7,keyasint,omitempty"`
	Call   uint64         `cbor:"8,keyasint"`
}

// Unsaved are the calls that have changed since they were last asked for.
func (c *Calls) Unsaved() (all []Saved) {
	for x := range c.unsaved {
		s := Saved{Leg: LegOf(x.leg)}
		if c.legs[x.leg] == x {
			s.State = x.save()
		} else if c.legs[x.leg] != nil {
			continue // another one has taken its place
		}
		all = append(all, s)
	}
	clear(c.unsaved)
	return all
}

// Saved are all calls, of about so many bytes at most: what is beyond is told when it changes.
func (c *Calls) Saved(limit int) (all []Saved) {
	for _, x := range c.legs {
		s := Saved{LegOf(x.leg), x.save()}
		if limit -= len(s.State); limit < 0 {
			clear(s.State)
			break
		}
		all = append(all, s)
	}
	return all
}

// Format prints nothing of the keys.
func (s Saved) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%d bytes of the call %q", len(s.State), s.CallID)
}

// save gives nil if it cannot: then the call is as one that the next process does not know.
func (x *call) save() []byte {
	s := savedCall{ID: x.id, Emergency: x.emergency, Settled: x.settled, Offer: x.Save()}
	defer clear(s.Offer)
	for a, id := range x.ends {
		s.Ends = append(s.Ends, savedEnd{a, id})
	}
	for tag, b := range x.branches {
		s.Branches = append(s.Branches, savedBranch{tag, b.order, b.ids, b.media, b.open, b.caller, b.void, b.call})
	}
	state, _ := compact.Encode(s)
	return state
}

// Load takes the call of a leg that an earlier process has saved. The state is the caller's to overwrite. claim is
// called for each port that the call holds. After an error the media that was there goes on, if that could be read.
func (c *Calls) Load(l *dialog.Leg, state []byte, claim func(netip.AddrPort)) error {
	if c.legs[l] != nil {
		return errors.New("load the media of a call: it is known")
	}
	var s savedCall
	if err := compact.Decode(state, &s); err != nil {
		return fmt.Errorf("load the media of a call: %w", err)
	}
	defer clear(s.Offer)
	x := &call{id: s.ID, leg: l, emergency: s.Emergency, settled: s.Settled, branches: map[string]*branch{}}
	x.ends = map[netip.AddrPort]uint64{}
	for _, e := range s.Ends {
		x.ends[e.At] = e.ID
	}
	caller, callee := c.at(l.Hops[0], s.Emergency), c.at(l.Hops[1], s.Emergency)
	var failed error
	if x.Call, failed = offer.Load(c.config.Offer, caller, callee, s.Offer, claim); failed != nil {
		// Its media goes on as it is until there is another offer, which is as the first one of a call.
		x.Call, x.id = offer.NewCall(c.config.Offer, caller, callee), c.config.NewID() // its epochs begin again
		x.keepPorts(s.Branches, claim)
	}
	for _, b := range s.Branches {
		d := l.Dialog(b.Tag)
		if d == nil || d.State == dialog.Ended { // it has ended meanwhile
			x.End(b.Tag)
			continue
		}
		if b.IDs == nil {
			b.IDs = map[int]uint64{}
		}
		x.branches[b.Tag] = &branch{
			dialog: d, call: b.Call, order: b.Order, ids: b.IDs, media: b.Media, open: b.Open, caller: b.Caller, void: b.Void,
		}
	}
	c.legs[l] = x
	c.tell(x)
	c.touch[x] = true
	return failed
}

// keepPorts claims the ports of media that the call does not know.
func (x *call) keepPorts(branches []savedBranch, claim func(netip.AddrPort)) {
	x.kept = map[netip.AddrPort]bool{}
	for _, b := range branches {
		for i := range b.Media {
			for e := range b.Media[i].Legs {
				if a := b.Media[i].Legs[e].Local; !x.kept[a] {
					x.kept[a] = true
					claim(a)
				}
			}
		}
	}
}

// freePorts gives back those of them that no branch has any more.
func (x *call) freePorts(ports offer.Ports) {
	for a := range x.kept {
		if !x.has(a) {
			delete(x.kept, a)
			ports.Release(a)
		}
	}
}

// WipeSaved overwrites states.
func WipeSaved(all []Saved) {
	for i := range all {
		clear(all[i].State)
	}
}
