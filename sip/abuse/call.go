package abuse

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
)

// How long a call is remembered.
const (
	unanswered = 4 * time.Minute // timer C of RFC 3261, section 16.6, is more than three
	answeredIn = 24 * time.Hour  // when no end is seen
	byeGrace   = 32 * time.Second
)

// maxParties is how many addresses may send messages of a call: a proxy and two more hops.
const maxParties = 4

// call is an INVITE and what became of it, by its Call-ID: for who may speak during a ban, and for how long a
// foreign number was talked to.
type call struct {
	id           uint64
	asker, asked netip.Addr // of the first INVITE
	parties      []netip.Addr
	number       number
	user         *user   // who pays; nil: nobody is counted
	answered     instant // 0: not yet
	ending       instant // of a BYE; 0: none
	until        instant // it is forgotten then
	list         *list.List
	element      *list.Element
}

// holds reports whether a message belongs to a call in progress: it is neither one that starts a call, nor sent
// by anybody who has no part in it. c may be nil.
func (c *call) holds(in *Input) bool {
	if c == nil || !slices.Contains(c.parties, in.From) {
		return false
	}
	m := in.Message
	switch {
	case !m.Request:
		return true
	case m.Method == message.ACK || m.Method == message.CANCEL:
		return true
	case m.Method == message.BYE, m.Method == message.INVITE, m.Method == message.UPDATE,
		m.Method == message.PRACK, m.Method == message.INFO, m.Method == message.REFER, m.Method == message.NOTIFY:
		return len(tagOf(m, message.To)) > 0
	}
	return false
}

// calls are bounded. Those that were never answered are the first to be forgotten, since anybody can begin calls;
// of each kind, the one that was heard of longest ago.
type calls struct {
	max               int
	all               map[uint64]*call
	ringing, answered *list.List
	gone              uint64
}

func newCalls(limit int) calls {
	return calls{max: limit, all: map[uint64]*call{}, ringing: list.New(), answered: list.New()}
}

func (t *calls) find(id uint64) *call { return t.all[id] }

func (t *calls) add(c *call) {
	t.all[c.id] = c
	c.list = t.ringing
	c.element = c.list.PushBack(c)
	for len(t.all) > t.max {
		oldest := t.ringing.Front()
		if oldest == c.element && t.answered.Len() > 0 {
			oldest = t.answered.Front() // all others are answered
		}
		t.remove(oldest.Value.(*call))
		t.gone++
	}
}

// answer moves a call to those that were answered.
func (t *calls) answer(c *call) {
	c.list.Remove(c.element)
	c.list = t.answered
	c.element = c.list.PushBack(c)
}

func (t *calls) remove(c *call) {
	c.list.Remove(c.element)
	delete(t.all, c.id)
	c.user.leave(c)
}

// involve reports whether an address takes part in any call.
func (t *calls) involve(a netip.Addr) bool {
	for _, c := range t.all {
		if slices.Contains(c.parties, a) {
			return true
		}
	}
	return false
}

// start takes the first INVITE of a call. It returns why it must not go on.
func (w *Watch) start(in *Input, s *source) Kind {
	c := &call{
		id: w.callID(in.Message), asker: in.From, asked: in.To, parties: []netip.Addr{in.From, in.To},
		until: w.now.add(unanswered),
	}
	if !in.Emergency {
		if why := w.charge(in, s, c); why != None {
			return why
		}
	}
	w.calls.add(c)
	return None
}

// follow takes what a message says of a call that is known.
func (w *Watch) follow(in *Input, c *call) {
	if c == nil {
		return
	}
	m := in.Message
	c.list.MoveToBack(c.element)
	for _, a := range [...]netip.Addr{in.From, in.To} {
		// Whoever sends an INVITE, or is sent one by somebody who belongs to the call, belongs to it.
		if m.Method == message.INVITE && len(c.parties) < maxParties && slices.Contains(c.parties, in.From) &&
			!slices.Contains(c.parties, a) {
			c.parties = append(c.parties, a)
		}
	}
	switch {
	case !slices.Contains(c.parties, in.From):
	case m.Request && m.Method == message.BYE:
		if c.ending == 0 {
			c.ending, c.until = w.now, w.now.add(byeGrace)
		}
	case m.Request:
	case m.Method == message.INVITE:
		w.toInvite(in, c)
	case m.Method == message.BYE:
		w.toBye(m.Status, c)
	}
}

func (w *Watch) toInvite(in *Input, c *call) {
	status := in.Message.Status
	switch {
	case status < 200:
	case status < 300:
		if c.answered == 0 {
			c.answered, c.until = w.now, w.now.add(answeredIn)
			w.calls.answer(c)
		}
	case c.answered == 0 && in.From == c.asked && in.To == c.asker && status != 401 && status != 407:
		if status == 484 && c.user != nil && len(c.user.recent) > 0 {
			// A number that is dialled digit by digit is one call (RFC 3578, section 3).
			c.user.recent = c.user.recent[:len(c.user.recent)-1]
		}
		w.calls.remove(c)
	}
}

func (w *Watch) toBye(status int, c *call) {
	switch {
	case c.ending == 0 || status < 200:
	case status == 401 || status == 407: // a challenge ends nothing
		c.ending, c.until = 0, w.now.add(answeredIn)
	default:
		w.end(c, c.ending)
	}
}

// end forgets a call that ended at a time.
func (w *Watch) end(c *call, at instant) {
	w.spend(c, at)
	w.calls.remove(c)
}

// Ended says that a call has ended, when no message shows it, as a session timer does. It is needed for the time
// spent abroad alone.
func (w *Watch) Ended(now time.Time, callID string) {
	w.begin(now)
	if c := w.calls.find(w.sum([]byte(callID))); c != nil {
		w.end(c, w.now)
	}
}

func (w *Watch) expireCalls() {
	for _, c := range w.calls.all {
		if c.until <= w.now {
			w.end(c, c.end(w.now))
		}
	}
	w.watchAbroad()
	w.users.expire(w.now)
}
