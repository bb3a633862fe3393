package dialog

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
	"ringway/sip/sdp"
)

// Bounds of ours.
const (
	maxDialogs  = 16  // of one leg: forks
	maxBranches = 16  // of one leg
	maxFlows    = 256 // of one leg
)

// Tracker follows all legs. It is not for several goroutines at once.
type Tracker struct {
	// Idle is how long a leg without a session timer stays when nothing of it is seen.
	Idle time.Duration
	// MaxLegs bounds the legs. What is beyond passes without being followed.
	MaxLegs int

	calls  legs
	legs   int
	flows  needs
	timers timers
	beyond uint64

	scratch []Flow // of settle
}

// New makes a Tracker without legs.
func New(maxLegs int) *Tracker {
	return &Tracker{Idle: DefaultIdle, MaxLegs: maxLegs, calls: legs{}, flows: newNeeds()}
}

// Drop says why a message must not go on.
type Drop string

// ForeignHop is a request within a dialog from an address that no message of the call has come from or gone
// to: a forged BYE ends a call otherwise.
const ForeignHop Drop = "foreign_hop"

// Step is what a message, or time, changed.
type Step struct {
	Leg    *Leg    // that the message belongs to; nil: none that is followed
	Dialog *Dialog // nil: none yet
	Others []*Leg  // whose streams may have changed as well: the message belongs to several, or time passed
	Drop   Drop    // empty: the message may go on

	// Offered: the message brings an offer, so that Refuse makes sense.
	Offered bool
	// Ended are the legs of which nothing is left.
	Ended []*Leg
	// Opened and Closed are flows that the first leg came to need, and the last one no longer needs.
	Opened, Closed []Flow
	// Shared are flows that a leg came to need and another one needs already. Whether a flow may be opened depends
	// on the hops, so that those of this leg may allow what those of the other did not.
	Shared []Flow

	// Exchanges are what the message's description is to each leg that it belongs to. There is none for a description
	// in a message that no leg expects.
	Exchanges []Exchange
	// Withdrawn are offers that have ended without an answer, and Over dialogs that have ended while their leg may go on.
	Withdrawn, Over []Branch
	// Single are legs of which no other branch can be accepted any more.
	Single []*Leg

	offers []member // that it brings, with who made them, by leg
}

// turnTo makes l the leg of the step.
func (st *Step) turnTo(l *Leg) {
	if st.Leg != nil && st.Leg != l {
		st.Others = append(st.Others, st.Leg)
	}
	st.Leg = l
}

// offer takes down that the message made an offer in a dialog, unless it was an answer.
func (st *Step) offer(l *Leg, d *Dialog, by side) {
	if d.pending[by] != nil {
		st.Offered = true
		st.offers = append(st.offers, member{l, d, by})
	}
}

// Hops are those of all legs of a leg's call: where a proxy passes the call on, those beyond it as well.
func (t *Tracker) Hops(l *Leg) (all []netip.Addr) {
	for x := t.calls[l.CallID]; x != nil; x = x.next {
		for _, h := range x.Hops {
			if !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
	}
	return all
}

// Len is how many legs there are; Beyond, how many more there were to follow.
func (t *Tracker) Len() int       { return t.legs }
func (t *Tracker) Beyond() uint64 { return t.beyond }

// Message follows one message that goes from one hop to another. s is its session description; nil if it
// has none.
func (t *Tracker) Message(now time.Time, from, to netip.Addr, m *message.Message, s *sdp.Description) (st Step) {
	x := seen{Message: m, sdp: s, from: from, to: to, now: now}
	x.fromTag, x.toTag = tagOf(m, message.From), tagOf(m, message.To)
	switch {
	case !m.Request:
		t.response(&st, &x)
	case m.Method == message.INVITE && len(x.toTag) == 0:
		t.invite(&st, &x)
	case m.Method == message.CANCEL:
		t.cancel(&st, &x)
	default:
		t.inDialog(&st, &x)
	}
	if len(st.Exchanges) > 1 {
		inOrder(st.Exchanges, from)
	}
	return st
}

// seen is one message with what was read of it.
type seen struct {
	*message.Message
	sdp            *sdp.Description
	from, to       netip.Addr
	fromTag, toTag []byte
	now            time.Time
}

func tagOf(m *message.Message, k message.Kind) []byte {
	a, _ := message.ParseAddress(m.Header(k))
	return a.Tag()
}

func branchOf(m *message.Message) []byte {
	v, _ := message.ParseVia(m.Header(message.Via))
	return v.Branch()
}

// invite takes an INVITE that starts a dialog.
func (t *Tracker) invite(st *Step, x *seen) {
	l := t.leg(x.CallID(), x.fromTag, x.from, x.to)
	if l == nil {
		if l = t.add(st, x); l == nil {
			return
		}
	}
	st.Leg = l
	if x.CSeq < l.cseq || l.accepted { // an older one comes again
		st.exchange(x, l, nil, caller, Repeated)
		return
	}
	st.exchange(x, l, nil, caller, Offer)
	st.Offered = x.sdp != nil
	if x.CSeq > l.cseq { // again, with credentials or elsewhere
		for _, d := range l.dialogs {
			d.end(OtherBranch)
		}
		st.over(l)
		l.cseq, l.branches, l.cancelled = x.CSeq, nil, false
		l.responded, l.dialogs = false, nil
	}
	if id := branchOf(x.Message); l.branch(id) == nil && len(l.branches) < maxBranches && len(id) <= maxName {
		l.branches = append(l.branches, branch{id: string(id)})
	}
	l.offer = nil
	if x.sdp != nil {
		l.offer = partiesOf(x.sdp, nil)
	}
	t.settle(st, l, x.now)
}

func (l *Leg) branch(id []byte) *branch {
	for i := range l.branches {
		if l.branches[i].id == string(id) {
			return &l.branches[i]
		}
	}
	return nil
}

func (t *Tracker) cancel(st *Step, x *seen) {
	if l := t.leg(x.CallID(), x.fromTag, x.from, x.to); l != nil {
		st.Leg, l.cancelled = l, true
		t.settle(st, l, x.now)
		return
	}
	if t.foreign(x) {
		st.Drop = ForeignHop
	}
}

// foreign reports whether a request belongs to a call that is followed, and its sender does not. Of a call's legs those
// count that have the tags of the request, if there are any: others may be of somebody who has taken its Call-ID.
func (t *Tracker) foreign(x *seen) bool {
	const (
		sameID = iota
		sameTags
		kinds
	)
	var known, belongs [kinds]bool
	for l := range t.calls.of(x.CallID()) {
		kind := sameID
		if l.hasTags(x) {
			kind = sameTags
		}
		known[kind] = true
		belongs[kind] = belongs[kind] || l.Hops[caller] == x.from || l.Hops[callee] == x.from || l.partial
	}
	if known[sameTags] {
		return !belongs[sameTags]
	}
	return known[sameID] && !belongs[sameID]
}

// hasTags reports whether a request is of a leg by its tags: of a dialog, or, for a CANCEL, of the INVITE.
func (l *Leg) hasTags(x *seen) bool {
	if len(x.toTag) == 0 {
		return l.Tag == string(x.fromTag)
	}
	return l.Tag == string(x.fromTag) && l.dialog(x.toTag) != nil ||
		l.Tag == string(x.toTag) && l.dialog(x.fromTag) != nil
}

// inDialog takes all other requests.
func (t *Tracker) inDialog(st *Step, x *seen) {
	found := t.within(x.CallID(), x.fromTag, x.toTag, x.from, x.to)
	if found == nil && t.foreign(x) {
		switch x.Method {
		case message.BYE, message.INVITE, message.UPDATE:
			st.Drop = ForeignHop
		}
		return
	}
	if found == nil {
		if x.Method != message.INVITE && (x.Method != message.UPDATE || x.sdp == nil) {
			return
		}
		// A call that was there before we were, or goes another way from now on; or none, if nobody responds.
		l := t.add(st, x)
		if l == nil {
			return
		}
		l.accepted = true
		found = []member{{l, l.addDialog(x.toTag, Confirmed, x.now), caller}}
	}

	for _, f := range found {
		l, d := f.leg, f.dialog
		st.turnTo(l)
		st.Dialog = d
		if d.State == Ended {
			continue // of a fork; others of the leg live
		}
		l.seen, d.seen = x.now, x.now
		switch x.Method {
		case message.BYE:
			if d.State != Ending {
				d.before, d.State, d.deadline, d.atEnd = d.State, Ending, x.now.Add(timerB), ByeUnanswered
			}
		case message.ACK:
			if d.State == Accepted {
				d.State, d.deadline = Confirmed, time.Time{}
			}
			d.previous = nil
		}
		switch x.Method {
		case message.INVITE, message.UPDATE, message.PRACK, message.ACK:
			if x.sdp != nil {
				st.exchange(x, l, d, f.sender, d.describe(l, f.sender, x.Message, x.sdp, x.now))
				st.offer(l, d, f.sender)
			}
		}
		if x.Method == message.ACK {
			d.withdraw(transactionOf(x.Message, f.sender)) // what is not answered by now never is
		}
		t.settle(st, l, x.now)
	}
}

// Refuse takes back what the message of a step offered: it does not go on, and this box answers it.
func (t *Tracker) Refuse(now time.Time, st Step) (undone Step) {
	if l := st.Leg; len(st.offers) == 0 && l != nil && l.ended == "" && !l.accepted {
		l.ended = Refused
		t.settle(&undone, l, now)
	}
	for _, o := range st.offers {
		if o.leg.ended == "" {
			o.dialog.pending[o.sender], o.dialog.withdrew[o.sender] = nil, true
			t.settle(&undone, o.leg, now)
		}
	}
	return undone
}

// Media says that media of a flow was seen, so that its legs are not idle.
func (t *Tracker) Media(now time.Time, flow Flow) {
	for l := range t.flows.of(flow) {
		l.seen = now
		for _, d := range l.dialogs {
			d.seen = now
		}
	}
}

// settle carries out what a leg has come to: the flows that it needs, its end, its next deadline.
func (t *Tracker) settle(st *Step, l *Leg, now time.Time) {
	lives := func(d *Dialog) bool { return d.State != Ended }
	if l.ended == "" && l.accepted && !slices.ContainsFunc(l.dialogs, lives) {
		l.ended = l.dialogs[len(l.dialogs)-1].Why
		for _, d := range l.dialogs {
			if d.Why != OtherBranch {
				l.ended = d.Why
			}
		}
	}
	st.withdrawn(l)
	st.over(l)
	t.scratch = l.wanted(t.scratch[:0])
	t.refer(st, l, t.scratch)
	if l.ended != "" {
		st.Ended = append(st.Ended, l)
		t.remove(l)
		return
	}
	l.due = t.nextDue(l, now)
	heap.Fix(&t.timers, l.at)
}

// refer has a leg need these flows and no others. It keeps a copy of them.
func (t *Tracker) refer(st *Step, l *Leg, flows []Flow) {
	slices.SortFunc(flows, compare)
	flows = slices.Compact(flows)
	if len(flows) > maxFlows {
		t.beyond += uint64(len(flows) - maxFlows)
		flows = flows[:maxFlows]
	}
	if slices.Equal(flows, l.flows) {
		return // as with most messages
	}
	for _, f := range flows {
		if _, has := slices.BinarySearchFunc(l.flows, f, compare); !has {
			if t.flows.add(f, l) {
				st.Opened = append(st.Opened, f)
			} else {
				st.Shared = append(st.Shared, f)
			}
		}
	}
	for _, f := range l.flows {
		if _, has := slices.BinarySearchFunc(flows, f, compare); !has {
			if t.flows.remove(f, l) {
				st.Closed = append(st.Closed, f)
			}
		}
	}
	l.flows = slices.Clone(flows)
}

func (l *Leg) addDialog(tag []byte, state State, now time.Time) *Dialog {
	if len(l.dialogs) == maxDialogs || len(tag) > maxName {
		return nil
	}
	d := &Dialog{Tag: string(tag), State: state, seen: now}
	l.dialogs = append(l.dialogs, d)
	return d
}

// leg finds the leg of an INVITE that one hop sends to another.
func (t *Tracker) leg(callID, tag []byte, from, to netip.Addr) *Leg {
	for l := range t.calls.of(callID) {
		if l.Tag == string(tag) && l.Hops == [2]netip.Addr{from, to} {
			return l
		}
	}
	return nil
}

// member is a dialog of a leg, and which end of it sent the request in question.
type member struct {
	leg    *Leg
	dialog *Dialog
	sender side
}

// within finds the dialogs with two tags of which a hop sends a request to another: on that leg, or, where
// requests within the dialog go another way than the INVITE did, on all its legs, if the sender is a hop of
// one.
func (t *Tracker) within(callID, fromTag, toTag []byte, from, to netip.Addr) (related []member) {
	known := false
	for l := range t.calls.of(callID) {
		x := member{leg: l, sender: caller}
		if l.Tag == string(fromTag) {
			x.dialog = l.dialog(toTag)
		}
		if x.dialog == nil && l.Tag == string(toTag) {
			x.dialog, x.sender = l.dialog(fromTag), callee
		}
		if x.dialog == nil {
			continue
		}
		if l.Hops[x.sender] == from && l.Hops[x.sender.other()] == to {
			return []member{x}
		}
		known = known || l.Hops[caller] == from || l.Hops[callee] == from
		related = append(related, x)
	}
	if !known {
		return nil
	}
	return related
}

// add begins a leg of a request's sender. Without room, or with names that nobody needs, it is nil.
func (t *Tracker) add(st *Step, x *seen) *Leg {
	long := max(len(x.CallID()), len(x.fromTag), len(x.toTag)) > maxName
	if long || t.legs >= t.MaxLegs && !t.makeRoom(st, x.now) {
		t.beyond++
		for l := range t.calls.of(x.CallID()) {
			l.partial = true
		}
		return nil
	}
	id := string(x.CallID())
	l := &Leg{
		CallID: id, Hops: [2]netip.Addr{x.from, x.to}, Tag: string(x.fromTag),
		cseq: x.CSeq, began: x.now, seen: x.now, due: x.now,
	}
	t.calls.add(l)
	t.legs++
	heap.Push(&t.timers, l)
	return l
}

// makeRoom ends a leg that nobody has responded to, among those that end soonest: anybody can begin calls.
func (t *Tracker) makeRoom(st *Step, now time.Time) bool {
	for _, l := range t.timers[:min(len(t.timers), maxLooked)] {
		if !l.responded && l.ended == "" {
			l.ended = Unanswered
			t.settle(st, l, now)
			st.Others = append(st.Others, l)
			return true
		}
	}
	return false
}

func (t *Tracker) remove(l *Leg) {
	heap.Remove(&t.timers, l.at)
	t.legs--
	t.calls.remove(l)
}
