package dialog

import (
	"net/netip"
	"slices"
	"time"

	"ringway/sip/sdp"
)

// Role is what a session description is to a leg (RFC 3264).
type Role uint8

// Roles.
const (
	Offer      Role = iota + 1
	Answer          // also one that comes again, or another one in place of the one before: of a 2xx after a 1xx
	Repeated        // an offer that was answered, or is older, comes again
	Strange         // an answer to an offer that was not seen
	Superseded      // of a response to the INVITE; what was offered since counts
)

func (r Role) String() string {
	return [...]string{"nothing", "offer", "answer", "repeated", "strange", "superseded"}[min(r, Superseded)]
}

// Transaction tells the transactions of a leg apart.
type Transaction = transaction

// Exchange is what a message's description is to one leg.
type Exchange struct {
	Leg    *Leg
	Dialog *Dialog // nil: of the INVITE that started the leg
	Role   Role

	FromCaller bool // the caller's end wrote it
	// Fresh: it is an offer in a response, whose request had none. Behind it there may be another peer than before.
	Fresh       bool
	Transaction Transaction
}

// Tag is the callee's tag; empty for the INVITE that started the leg.
func (x *Exchange) Tag() string {
	if x.Dialog == nil {
		return ""
	}
	return x.Dialog.Tag
}

func (x *Exchange) from() side {
	if x.FromCaller {
		return caller
	}
	return callee
}

// Branch names a dialog of a leg.
type Branch struct {
	Leg        *Leg
	Tag        string
	FromCaller bool // of a withdrawn offer: the caller's end had made it
}

// exchange takes down what a message's description is.
func (st *Step) exchange(x *seen, l *Leg, d *Dialog, from side, r Role) {
	if x.sdp != nil {
		st.Exchanges = append(st.Exchanges, Exchange{
			Leg: l, Dialog: d, Role: r, FromCaller: from == caller, Fresh: r == Offer && !x.Request,
			Transaction: transactionOf(x.Message, from),
		})
	}
}

// HopsOf are the hops of the legs that the step is about, or the two that are given if there is none.
func (st *Step) HopsOf(from, to netip.Addr) []netip.Addr {
	if len(st.Exchanges) == 0 {
		return []netip.Addr{from, to}
	}
	var all []netip.Addr
	for i := range st.Exchanges {
		all = append(all, st.Exchanges[i].Leg.Hops[:]...)
	}
	return all
}

// Add takes in what another step has led to.
func (st *Step) Add(u Step) {
	st.Opened, st.Closed = append(st.Opened, u.Opened...), append(st.Closed, u.Closed...)
	st.Shared, st.Ended = append(st.Shared, u.Shared...), append(st.Ended, u.Ended...)
	st.Withdrawn, st.Over = append(st.Withdrawn, u.Withdrawn...), append(st.Over, u.Over...)
	st.Single = append(st.Single, u.Single...)
}

// inOrder sorts exchanges of one message as its hops lie between its sender and its receiver: a request that leaves
// out a proxy passes the legs on both sides of it.
func inOrder(all []Exchange, from netip.Addr) {
	for done := range all {
		next := slices.IndexFunc(all[done:], func(x Exchange) bool { return x.Leg.Hops[x.from()] == from })
		if next < 0 {
			return
		}
		all[done], all[done+next] = all[done+next], all[done]
		x := &all[done]
		from = x.Leg.Hops[x.from().other()]
	}
}

// withdrawn takes down the offers that have ended without an answer.
func (st *Step) withdrawn(l *Leg) {
	for _, d := range l.dialogs {
		for s := range d.withdrew {
			if d.withdrew[s] {
				d.withdrew[s] = false
				st.Withdrawn = append(st.Withdrawn, Branch{l, d.Tag, side(s) == caller})
			}
		}
	}
}

// over takes down the dialogs that have ended.
func (st *Step) over(l *Leg) {
	for _, d := range l.dialogs {
		if d.State == Ended && !d.told {
			d.told = true
			st.Over = append(st.Over, Branch{Leg: l, Tag: d.Tag})
		}
	}
}

// Accepted is the tag of the only dialog of a leg that lives and was accepted; ok is false if there are several, or
// none.
func (l *Leg) Accepted() (tag string, ok bool) {
	n := 0
	for _, d := range l.dialogs {
		if d.State != Ended {
			tag = d.Tag
			n++
		}
	}
	return tag, n == 1 && l.accepted
}

// Dialog is the one of a callee's tag; nil if there is none.
func (l *Leg) Dialog(tag string) *Dialog { return l.dialog([]byte(tag)) }

// Line is a medium that this box relays: each end sends to the box, and receives from it.
type Line struct {
	Index int
	// Box is where the box receives from caller and callee, and what it sends to them from; invalid: it has no port
	// towards that end yet. RTCP has the port above unless Mux.
	Box [2]netip.AddrPort
	Mux [2]bool
	// SRTP is what it adds to each packet between the box and an end, in bytes; 0: it is RTP.
	SRTP [2]int
}

// hop is one side of a medium that the box relays: what is between one end and the box.
type hop struct {
	box  netip.AddrPort
	mux  bool
	srtp int
}

func (l *Line) hop(s side) hop { return hop{l.Box[s], l.Mux[s], l.SRTP[s]} }

// relayed is what a party's medium has where the box relays it: the hop to the party, and the one beyond the box.
type relayed struct{ own, other hop }

// Relay says which media of an exchange this box relays, and what goes on in place of its description: nil, if it is
// refused as a whole. The flows and streams of its leg are those of the two sides from then on, and the step's as
// well.
func (t *Tracker) Relay(now time.Time, st *Step, x *Exchange, passed *sdp.Description, lines []Line) {
	l, from := x.Leg, x.from()
	if l.ended != "" {
		return
	}
	refused := func(i int) bool { return passed == nil || i >= len(passed.Media) || passed.Media[i].Port == 0 }
	mark := func(all []party, s side) {
		for i := range all {
			all[i].relayed = nil
			if s == from && refused(i) {
				all[i].refused = true
			}
		}
		for k := range lines {
			if i := lines[k].Index; i < len(all) {
				all[i].relayed = &relayed{lines[k].hop(s), lines[k].hop(s.other())}
			}
		}
	}
	switch d := x.Dialog; {
	case x.Role == Offer && d == nil:
		mark(l.offer, caller)
	case x.Role == Offer && d.pending[from] != nil:
		mark(d.pending[from].media, from)
	case x.Role == Answer && d.media[caller] != nil && d.media[callee] != nil:
		// The branches of a fork have the offer in common, and each its own ports towards the caller.
		d.media[from.other()] = slices.Clone(d.media[from.other()])
		mark(d.media[caller], caller)
		mark(d.media[callee], callee)
	default:
		return
	}
	t.settle(st, l, now)
	t.Net(st)
}

// Net leaves of a step's flows those that are needed after it and were not before, and the other way round.
func (t *Tracker) Net(st *Step) {
	opened, closed := st.Opened, st.Closed
	st.Opened = slices.DeleteFunc(slices.Clone(opened), func(f Flow) bool {
		return t.flows.first[f] == nil || slices.Contains(closed, f)
	})
	st.Closed = slices.DeleteFunc(slices.Clone(closed), func(f Flow) bool {
		return t.flows.first[f] != nil || slices.Contains(opened, f)
	})
	st.Shared = slices.DeleteFunc(st.Shared, func(f Flow) bool { return t.flows.first[f] == nil })
}

// reaches reports whether a party is at an address of its own: hold by 0.0.0.0 (RFC 2543) and a name are none.
func (p *party) reaches() bool { return p.rtp.Port() > 0 && usable(p.rtp.Addr()) }

// flows are those between a party whose medium the box relays and the box: RTP if it flows, RTCP also on hold.
func (h *hop) flows(flows []Flow, p *party, toBox, fromBox bool) []Flow {
	if !h.box.IsValid() || !p.reaches() || p.rtp.Addr() == h.box.Addr() { // another leg of the box: nothing is sent
		return flows
	}
	control := netip.AddrPortFrom(h.box.Addr(), h.box.Port()+1)
	if toBox {
		flows = append(flows, NewFlow(p.rtp.Addr(), h.box, false))
	}
	if fromBox {
		flows = append(flows, NewFlow(h.box.Addr(), p.rtp, false))
	}
	if !h.mux {
		flows = append(flows, NewFlow(p.rtp.Addr(), control, true))
		if p.rtcp.Port() > 0 && usable(p.rtcp.Addr()) && p.rtcp != p.rtp {
			flows = append(flows, NewFlow(h.box.Addr(), p.rtcp, true))
		}
	}
	return flows
}

// relayedBetween are the flows of a medium between x and y that the box relays.
func relayedBetween(flows []Flow, x, y *party) []Flow {
	toY, toX := x.sends() && y.receives(), y.sends() && x.receives()
	flows = x.relayed.own.flows(flows, x, toY, toX)
	return y.relayed.own.flows(flows, y, toX, toY)
}

// relayedOffer are the flows of a medium that was offered, and that the box relays: of the hop that was asked, to the
// box, and from the box to who offers.
func relayedOffer(flows []Flow, p *party, asked netip.Addr) []Flow {
	if other := &p.relayed.other; other.box.IsValid() {
		if p.receives() {
			flows = append(flows, FlowAsked(asked, other.box, false))
		}
		flows = append(flows, FlowAsked(asked, netip.AddrPortFrom(other.box.Addr(), other.box.Port()+1), true))
	}
	own := p.relayed.own
	own.mux = own.mux || p.mux
	return own.flows(flows, p, false, p.receives())
}

// relayed adds the streams of one side of a medium that the box relays: of p, or of the hop that speaks for it if
// nothing is known of it. proto is what comes from p, back what goes to it.
func (all *streams) relayed(l *Leg, s side, end netip.AddrPort, h hop, proto, back Stream) {
	for _, x := range []*Stream{&proto, &back} {
		x.SRTP, x.Overhead = h.srtp > 0, h.srtp
		x.Exact = end.IsValid() && h.box.IsValid()
	}
	proto.FromCaller, back.FromCaller = s == caller, s != caller
	proto.From, proto.FromHop, proto.To, proto.ToBox = end, l.Hops[s], h.box, true
	back.From, back.FromBox, back.To, back.ToHop = h.box, true, end, l.Hops[s]
	*all = append(*all, proto, back)
}

// end is where p receives; invalid if it said so of nothing.
func (p *party) end() netip.AddrPort {
	if p.reaches() {
		return p.rtp
	}
	return netip.AddrPort{}
}
