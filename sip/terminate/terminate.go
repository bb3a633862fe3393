// Package terminate decides which session description goes on in place of one that came, where the box relays the
// media of a call, and which pairs of legs the media plane needs from then on. It is pure: what a description is to
// a call comes from package dialog, and what becomes of its media lines from package srtp/offer.
//
// A message takes these steps:
//
//  1. dialog.Tracker says what its description is to each leg that it belongs to (dialog.Exchange).
//  2. Calls.Message has it pass their offer.Calls, one behind the other. What comes again gets the same bytes again,
//     also where the call has gone on meanwhile (passed.go).
//  3. An offer that is not acceptable is a Refusal, which the relay answers. What cannot be answered, an answer or an
//     offer in a response, is voided: it goes on with port 0 in all lines (void.go).
//  4. Calls.Follow takes what the step of the dialogs has ended. Then Changes has what the media plane is to be told.
//
// The relay owns no transaction, so it ends no call whose answer it had to void: both ends see a call without media,
// as if the other one had refused all lines, and either hangs up.
package terminate

import (
	"net/netip"

	"ringway/sip/dialog"
	"ringway/sip/sdp"
	"ringway/srtp/offer"
)

// Config is what Calls work with.
type Config struct {
	Offer offer.Config
	// NewID makes a random number that no other pair or call has, nor had in an earlier process.
	NewID func() uint64
}

// Calls are those whose media the box may relay. They are not for several goroutines at once.
type Calls struct {
	config  Config
	places  Places
	legs    map[*dialog.Leg]*call
	pairs   map[uint64]*Pair         // of all calls
	local   map[netip.AddrPort]place // where each port of the box is
	told    map[uint64]*Pair         // that the media plane has been told of
	touch   map[*call]bool           // whose pairs may be others
	unsaved map[*call]bool           // that have changed since they were saved
	sdp     sdp.Description
}

// call is a leg with what was agreed on both sides of the box.
type call struct {
	*offer.Call
	id        uint64
	leg       *dialog.Leg
	emergency bool
	branches  map[string]*branch
	passed    passed
	pairs     []uint64
	ends      map[netip.AddrPort]uint64 // their IDs, by port
	settled   uint64                    // numbers the answers

	// kept are ports of media that was settled in a process of another build.
	kept map[netip.AddrPort]bool
}

// branch is a dialog of a leg.
type branch struct {
	dialog *dialog.Dialog
	order  uint64         // of its latest answer
	media  []offer.Media  // as settled
	call   uint64         // in which the epochs of media are unique
	ids    map[int]uint64 // of pairs, by line
	open   bool           // an offer has no answer
	caller bool           // made it
	void   bool           // its latest offer was voided, or the answer to it
	barred bool           // policy has changed since, and does not allow media any more
}

// New makes Calls of which there are none.
func New(c Config) *Calls {
	return &Calls{
		config: c, legs: map[*dialog.Leg]*call{}, touch: map[*call]bool{}, unsaved: map[*call]bool{},
		pairs: map[uint64]*Pair{}, local: map[netip.AddrPort]place{}, told: map[uint64]*Pair{},
	}
}

// Len is how many legs are followed.
func (c *Calls) Len() int { return len(c.legs) }

// Barred is how many legs have media that was agreed and that policy does not allow any more.
func (c *Calls) Barred() (n int) {
	for _, x := range c.legs {
		for _, b := range x.branches {
			if b.barred {
				n++
				break
			}
		}
	}
	return n
}

// Use takes other places. They hold for offers and answers to come, and media that they do not allow ends: its pairs
// are among the next Changes. It is back where later places allow it.
func (c *Calls) Use(p Places) {
	c.places = p
	for _, x := range c.legs {
		c.tell(x)
	}
}

// Configure takes another certificate, and other ports, for calls to come.
func (c *Calls) Configure(o offer.Config) { c.config.Offer = o }

// tell tells a call what is known of its ends.
func (c *Calls) tell(x *call) {
	for e, hop := range x.leg.Hops {
		x.SetPlace(offer.End(e), c.at(hop, x.emergency))
	}
	for tag, b := range x.branches {
		if barred := !c.allows(x, tag, b); barred != b.barred {
			b.barred = barred
			c.touch[x] = true
		}
	}
}

// allows reports whether media of a branch may pass as it was agreed.
func (c *Calls) allows(x *call, tag string, b *branch) bool {
	if x.Allowed(tag) != nil {
		return false
	}
	if len(x.kept) == 0 {
		return true
	}
	for i := range b.media { // agreed in a process of another build, of which x.Call has not heard
		for e := range b.media[i].Legs {
			if b.media[i].Legs[e].Keying == offer.Clear && c.at(x.leg.Hops[e], x.emergency).Level == offer.Require {
				return false
			}
		}
	}
	return true
}

func (c *Calls) at(hop netip.Addr, emergency bool) offer.Place {
	p := c.places.At(hop)
	p.Hop = hop
	if emergency {
		p.Policy = p.ForEmergency()
	}
	return p
}

// Follows reports whether media of a leg is relayed, or was offered to be.
func (c *Calls) Follows(l *dialog.Leg) bool { return c.legs[l] != nil }

// Needs reports whether a message between these hops is to be looked at: media is relayed for one of them.
func (c *Calls) Needs(hops ...netip.Addr) bool { return c.level(false, hops...) != offer.Off }

// Requires reports whether one of the hops requires SRTP.
func (c *Calls) Requires(emergency bool, hops ...netip.Addr) bool {
	return c.level(emergency, hops...) == offer.Require
}

func (c *Calls) level(emergency bool, hops ...netip.Addr) (l offer.Level) {
	for _, h := range hops {
		p := c.at(h, emergency)
		l = max(l, p.Level)
	}
	return l
}

// Outcome is what becomes of a description.
type Outcome struct {
	// Text goes on in its place; nil: what came goes on.
	Text []byte
	// Refusal is why it cannot.
	Refusal *offer.Refusal
	// Stale says that it comes again, and that what had gone on in its place is not known any more: it must not go on.
	Stale bool
	// Voided says that Text refuses all media, since the description was not acceptable. Reason says why.
	Voided bool
	Reason string
}

// Handling is what may become of a message.
type Handling struct {
	Refusable bool // an offer in it can be refused by a response
	Lasting   bool // it is a response or an ACK, which a call waits for: it goes on with whatever description
	Emergency bool
}

// Message takes the description of a message that a step of the dialogs is about. relay is called for each leg with
// what has become of the media of its exchange.
func (c *Calls) Message(
	st *dialog.Step, text []byte, h Handling, relay func(*dialog.Exchange, *sdp.Description, []dialog.Line),
) (o Outcome) {
	in := text
	for i := range st.Exchanges {
		x := &st.Exchanges[i]
		call := c.callOf(x, h.Emergency)
		if call == nil {
			if x.Role != dialog.Offer && c.Requires(h.Emergency, x.Leg.Hops[:]...) {
				return c.void(Outcome{}, in, "it belongs to a call that is not known")
			}
			continue
		}
		e := call.passed.find(keyOf(x, in))
		if e == nil && h.Lasting && (x.Role == dialog.Repeated || x.Role == dialog.Superseded) {
			// Who gets it is to ignore the description: it is as well the last one that he had.
			e = call.passed.latest(x.FromCaller, x.Tag())
		}
		var refusal *offer.Refusal
		var stale bool
		if e == nil {
			e, refusal, stale = call.take(x, in, h.Refusable)
			c.touch[call] = true
		}
		switch {
		case stale && h.Lasting:
			return c.void(Outcome{}, in, "its description comes again, or late")
		case stale:
			return Outcome{Stale: true}
		case refusal != nil:
			if call.idle() {
				c.forget(call)
			}
			return Outcome{Refusal: refusal}
		}
		if e.void {
			if o = c.void(o, in, e.reason); o.Text == nil {
				return o
			}
			relay(x, nil, nil)
			in = o.Text
			continue
		}
		if e.text != nil {
			in = e.text
			clear(o.Text)
			o.Text = append([]byte(nil), e.text...)
		}
		if c.sdp.Read(in) {
			relay(x, &c.sdp, e.lines)
		}
	}
	return o
}

// void gives what goes on in place of a description that is not acceptable and cannot be refused.
func (c *Calls) void(o Outcome, in []byte, reason string) Outcome {
	o.Text, o.Voided, o.Reason = Void(in), true, reason
	o.Stale = o.Text == nil
	return o
}

// callOf finds the call of an exchange, or begins it with its first offer.
func (c *Calls) callOf(x *dialog.Exchange, emergency bool) *call {
	known := c.legs[x.Leg]
	switch {
	case known != nil:
		if emergency && !known.emergency {
			known.emergency = true
			c.tell(known)
		}
		return known
	case x.Role != dialog.Offer || c.level(emergency, x.Leg.Hops[:]...) == offer.Off:
		return nil
	}
	n := &call{id: c.config.NewID(), leg: x.Leg, emergency: emergency, branches: map[string]*branch{}}
	n.Call = offer.NewCall(c.config.Offer, c.at(x.Leg.Hops[0], emergency), c.at(x.Leg.Hops[1], emergency))
	c.legs[x.Leg] = n
	return n
}

// idle reports whether nothing was agreed or offered yet.
func (x *call) idle() bool { return len(x.branches) == 0 && x.passed.empty() }

func endOf(fromCaller bool) offer.End {
	if fromCaller {
		return offer.Caller
	}
	return offer.Callee
}

// take has a description pass the call that has not passed it before.
func (x *call) take(d *dialog.Exchange, text []byte, refusable bool) (e *entry, r *offer.Refusal, stale bool) {
	tag, from, k := d.Tag(), endOf(d.FromCaller), keyOf(d, text)
	b := x.branches[tag]
	if b == nil && d.Dialog != nil {
		b = &branch{dialog: d.Dialog, ids: map[int]uint64{}}
	}
	var result offer.Result
	var err error
	switch {
	case d.Role == dialog.Repeated, d.Role == dialog.Superseded:
		return nil, nil, true
	case d.Role == dialog.Offer:
		result, err = x.Offer(tag, from, text, d.Fresh)
	case d.Role == dialog.Answer && (b == nil || !b.void):
		result, err = x.Answer(tag, from, text)
	case d.Role == dialog.Answer:
		err = &offer.Refusal{Status: 488, Reason: "it answers an offer that was refused"}
	default:
		err = &offer.Refusal{Status: 488, Reason: "it answers an offer that is not known"}
	}
	if err != nil {
		refusal := refusalOf(err)
		if d.Role == dialog.Offer && refusable {
			return nil, refusal, false
		}
		if b != nil {
			// Another answer may yet fit the INVITE's own offer, which is the same for all branches. An offer within the
			// dialog ends with the branch.
			b.void = b.void || b.open || d.Role == dialog.Offer
			x.dropBranch(tag, b)
			x.branches[tag] = b
		}
		return x.passed.add(k, entry{void: true, reason: refusal.Reason}), nil, false
	}
	defer result.Wipe()

	e = &entry{lines: linesOf(result.Media)}
	if string(result.Body) != string(text) {
		e.text = append([]byte(nil), result.Body...)
	} else {
		result.Body = nil // it is not ours to be overwritten
	}
	if b != nil {
		x.branches[tag] = b
		b.dialog, b.void = d.Dialog, false
		b.open, b.caller = !result.Settled, d.FromCaller
		if result.Settled {
			x.settled++
			b.order = x.settled
			b.keep(x.id, result.Media)
			result.Media = nil
		}
	}
	return x.passed.add(k, *e), nil, false
}

func refusalOf(err error) *offer.Refusal {
	if r, ok := err.(*offer.Refusal); ok {
		return r
	}
	return &offer.Refusal{Status: 488, Reason: err.Error()}
}

// linesOf says to the dialogs which lines are relayed.
func linesOf(all []offer.Media) (lines []dialog.Line) {
	for i := range all {
		m := &all[i]
		l := dialog.Line{Index: m.Index}
		for e := range m.Legs {
			l.Box[e], l.Mux[e] = m.Legs[e].Local, m.Legs[e].Mux
			l.SRTP[e], _ = m.Legs[e].Overhead()
		}
		lines = append(lines, l)
	}
	return lines
}

// keep takes what a branch has settled on.
func (b *branch) keep(call uint64, media []offer.Media) {
	b.wipe()
	b.call, b.media, b.barred = call, media, false
}

func (b *branch) wipe() {
	r := offer.Result{Media: b.media}
	r.Wipe()
	b.media = nil
}

// dropBranch ends what a branch has agreed on.
func (x *call) dropBranch(tag string, b *branch) {
	x.End(tag)
	b.wipe()
	b.open = false
}

// Follow takes what a step of the dialogs has ended: offers, branches and calls.
func (c *Calls) Follow(st *dialog.Step) {
	if len(c.legs) == 0 {
		return
	}
	for _, w := range st.Withdrawn {
		x := c.legs[w.Leg]
		if x == nil {
			continue
		}
		if b := x.branches[w.Tag]; b != nil && b.open && b.caller == w.FromCaller {
			b.open = false
			x.reject(w.Tag, b)
			c.touch[x] = true
		}
	}
	for _, w := range st.Over {
		if x := c.legs[w.Leg]; x != nil {
			if b := x.branches[w.Tag]; b != nil {
				x.dropBranch(w.Tag, b)
				delete(x.branches, w.Tag)
				c.touch[x] = true
			}
		}
	}
	for _, l := range st.Single {
		if x := c.legs[l]; x != nil {
			if tag, ok := l.Accepted(); ok {
				x.Settle(tag)
			}
		}
	}
	for _, l := range st.Ended {
		if x := c.legs[l]; x != nil {
			c.forget(x)
		}
	}
	if st.Leg != nil { // another dialog of its may have been accepted
		if x := c.legs[st.Leg]; x != nil && len(x.branches) > 1 {
			c.touch[x] = true
		}
	}
}

// reject goes back to what was agreed before an offer, unless that is not allowed any more: then no media passes.
func (x *call) reject(tag string, b *branch) {
	r, err := x.Reject(tag)
	switch {
	case err == nil && r.Settled:
		b.keep(x.id, r.Media)
	case err != nil, len(x.kept) == 0:
		b.wipe()
	}
}

// forget ends a call.
func (c *Calls) forget(x *call) {
	x.Close()
	for _, b := range x.branches {
		b.wipe()
	}
	clear(x.branches)
	x.freePorts(c.config.Offer.Ports)
	x.passed.wipe()
	delete(c.legs, x.leg)
	c.touch[x] = true
}
