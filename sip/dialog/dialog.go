// Package dialog follows calls by the messages that cross the box (RFC 3261 dialogs, RFC 3264 offers and
// answers), and says which media flows they need now. It is pure: it has no socket and no clock.
//
// What is followed is a Leg: an INVITE between two hops, the addresses that exchange its messages, with the
// dialogs that answers to it make. A proxy that passes a call through the box twice makes two legs with the
// same Call-ID and tags, and perhaps with other addresses in their descriptions, where it relays media
// itself. Both are followed for themselves; a flow that both need is one flow.
package dialog

import (
	"net/netip"
	"time"

	"ringway/sip/message"
	"ringway/sip/sdp"
)

// Timers of RFC 3261 and our own.
const (
	// timerB is how long a transaction waits for its answer, and a 2xx for its ACK: 64*T1 (RFC 3261,
	// sections 13.3.1.4 and 17.1.1.2).
	timerB = 32 * time.Second
	// timerC is how long an INVITE may ring (RFC 3261, section 16.6).
	timerC = 180 * time.Second
	// forkGrace is how long the other dialogs of a forked INVITE stay after one was accepted: their media
	// may still be under way, and another 2xx may follow (section 13.2.2.4).
	forkGrace = 2 * time.Second
	// sessionGrace is how long a session stays after it expired: a BYE may be on its way (RFC 4028, section
	// 10).
	sessionGrace = timerB
	// maxSession bounds what a Session-Expires promises: phones say half an hour, and a call with one has no other end
	// if its phones disappear. Beyond it, the call goes on as long as something of it is seen.
	maxSession = 24 * time.Hour
	// DefaultIdle is how long a call without a session timer stays when nothing of it is seen, neither
	// signalling nor media.
	DefaultIdle = 10 * time.Minute
	// heldIdle is the same of a call on hold, which has no media: its phones may be gone.
	heldIdle = 4 * time.Hour
	// loadGrace is how long a call of an earlier process stays at least, since nobody knows when it was seen last.
	loadGrace = 2 * time.Minute
)

const (
	maxName   = 1024 // bytes of a Call-ID, tag or branch. Peers write up to some hundred
	maxLooked = 64   // legs, to find one that makes room
)

// State is how far a dialog, or a leg, has come.
type State uint8

// States.
const (
	Early     State = iota // ringing
	Accepted               // 2xx seen, ACK not yet
	Confirmed              // ACK seen
	Ending                 // BYE seen, its answer not yet
	Ended
)

var stateNames = [...]string{"early", "accepted", "confirmed", "ending", "ended"}

func (s State) String() string { return stateNames[s] }

// End says why a leg or dialog ended.
type End string

// Reasons.
const (
	ByBye          End = "bye"             // answered, or known to the far end no longer
	ByeUnanswered  End = "bye_unanswered"  // for 32 s
	Cancelled      End = "cancelled"       // CANCEL and 487
	Rejected       End = "rejected"        // any other final error
	Refused        End = "refused"         // by this box
	Redirected     End = "redirected"      // 3xx
	Unanswered     End = "unanswered"      // no response at all for 32 s
	Unacknowledged End = "unacknowledged"  // no ACK for 32 s
	Expired        End = "session_expired" // RFC 4028
	Idle           End = "idle"
	OtherBranch    End = "other_branch"  // another branch of a fork was accepted
	Lost           End = "unknown_there" // 481 or 408 to a request within the dialog
)

// side is an end of a leg.
type side uint8

const (
	caller side = iota // who sent the INVITE
	callee
)

func (s side) other() side { return 1 - s }

// Leg is an INVITE between two hops and what became of it.
type Leg struct {
	CallID string
	Hops   [2]netip.Addr // of caller and callee
	Tag    string        // the caller's

	offer     []party // of the INVITE; nil: it had none
	cseq      uint32  // of the INVITE
	branches  []branch
	cancelled bool
	responded bool // with anything
	accepted  bool // with a 2xx
	partial   bool // another leg of the call is not followed, for there was no room: its hops are not known
	began     time.Time
	seen      time.Time // its latest message
	dialogs   []*Dialog
	ended     End
	status    int // of the final error, if one ended it

	forks time.Time // until when another branch may be accepted; zero: none was, or no other one can be any more

	flows []Flow    // that it has in the tracker's count, sorted
	due   time.Time // when something of it expires
	at    int       // in the tracker's heap
	next  *Leg      // with the same Call-ID
}

// branch is one INVITE transaction of a leg: a proxy may send several to one hop.
type branch struct {
	id     string
	failed bool
}

// Dialog is what one answer to an INVITE made.
type Dialog struct {
	Tag   string // the callee's
	State State
	Why   End // if State is Ended

	media    [2][]party    // agreed, by side; nil: nothing yet
	previous []Flow        // of the exchange before, until the new one is acknowledged
	until    time.Time     // previous is kept at most so long
	pending  [2]*exchange  // offers without an answer yet, by who made them
	answered transaction   // of the latest offer that was answered
	answer   transaction   // that brought the answer: another one, if it was a PRACK
	offerer  side          // who made that offer
	deadline time.Time     // of what the State waits for; zero: nothing
	atEnd    End           // why it ends then
	before   State         // the one that Ending goes back to
	session  time.Duration // RFC 4028; 0: no timer
	expires  time.Time     // of the session
	seen     time.Time     // signalling or media
	held     bool

	withdrew [2]bool // offers that ended without an answer, of which no step has told yet
	told     bool    // a step has told of the end
}

// exchange is an offer, by the transaction whose request or response brought it.
type exchange struct {
	transaction
	media []party
	until time.Time // it has no answer any more then; zero: as long as its transaction
}

// transaction is a request within a dialog and its responses. Both sides may use the same CSeq.
type transaction struct {
	method message.Method
	cseq   uint32
	asker  side
}

// transactionOf is the one that a message belongs to. An ACK belongs to its INVITE.
func transactionOf(m *message.Message, from side) transaction {
	tx := transaction{method: m.Method, cseq: m.CSeq, asker: from}
	if m.Method == message.ACK {
		tx.method = message.INVITE
	}
	if !m.Request {
		tx.asker = from.other()
	}
	return tx
}

// dialog finds the dialog of a tag; nil if there is none.
func (l *Leg) dialog(tag []byte) *Dialog {
	for _, d := range l.dialogs {
		if string(tag) == d.Tag {
			return d
		}
	}
	return nil
}

// wanted appends the flows that the leg needs now.
func (l *Leg) wanted(flows []Flow) []Flow {
	if l.ended != "" {
		return flows
	}
	answered := false
	for _, d := range l.dialogs {
		if d.State == Ended {
			continue
		}
		if d.media[caller] != nil && d.media[callee] != nil {
			answered = true
			flows = agreed(flows, d.media[caller], d.media[callee])
		}
		for s, x := range d.pending {
			if x != nil {
				flows = offered(flows, x.media, l.Hops[side(s).other()])
			}
		}
		flows = append(flows, d.previous...)
	}
	if !answered {
		flows = offered(flows, l.offer, l.Hops[callee])
	}
	return flows
}

// describe takes a session description from one side: an offer, or the answer to one (RFC 3264; where each may be,
// RFC 6337, section 2.2).
func (d *Dialog) describe(l *Leg, from side, m *message.Message, s *sdp.Description, now time.Time) Role {
	tx := transactionOf(m, from)
	said := d.media[from]
	if x := d.pending[from]; x != nil && x.transaction == tx {
		said = x.media // the same again
	}
	parties := partiesOf(s, said)
	theirs := d.pending[from.other()]

	switch {
	case !m.Request && tx == l.transaction() && d.passedBy(l, from, tx):
		return Superseded
	case theirs != nil && (theirs.transaction == tx || m.Method == message.PRACK && theirs.method == message.INVITE):
		d.agree(from.other(), *theirs, parties, tx, now)
	case tx == d.answered && from == d.offerer:
		return Repeated
	case tx == d.answered, tx == d.answer && from != d.offerer: // a 2xx after a 1xx, or again
		d.agree(d.offerer, exchange{transaction: d.answered, media: d.media[d.offerer]}, parties, tx, now)
	case !m.Request && tx == l.transaction() && d.answered != (transaction{}): // to the caller's UPDATE, once more
		d.agree(d.offerer, exchange{transaction: d.answered, media: d.media[d.offerer]}, parties, d.answer, now)
	case m.Method == message.ACK, !m.Request && m.Method != message.INVITE:
		return Strange
	case !m.Request && l.offer != nil && tx == l.transaction():
		d.agree(caller, exchange{transaction: tx, media: l.offer}, parties, tx, now)
	default:
		x := &exchange{transaction: tx, media: parties}
		switch {
		case tx == l.transaction(): // until the call is answered, or given up
		case m.Method == message.INVITE:
			x.until = now.Add(timerC)
		default:
			x.until = now.Add(timerB)
		}
		d.pending[from] = x
		return Offer
	}
	return Answer
}

// passedBy reports whether a description in a response to the first INVITE comes too late to be an answer or an offer:
// the dialog has a newer offer, or the end that responds has had one of its own answered. Who gets it is to ignore it
// (RFC 3261, section 13.2.1).
func (d *Dialog) passedBy(l *Leg, from side, tx transaction) bool {
	for _, x := range d.pending {
		if x != nil && x.transaction != tx {
			return true
		}
	}
	return d.answered != (transaction{}) && d.answered != tx && (d.offerer == from || l.offer == nil)
}

// transaction is the INVITE that started the leg.
func (l *Leg) transaction() transaction {
	return transaction{method: message.INVITE, cseq: l.cseq, asker: caller}
}

// agree takes an answer to an offer. What was agreed before stays open until the answer is acknowledged.
func (d *Dialog) agree(offerer side, offer exchange, answer []party, by transaction, now time.Time) {
	if d.media[caller] != nil && d.media[callee] != nil {
		d.previous, d.until = agreed(nil, d.media[caller], d.media[callee]), now.Add(forkGrace)
		if offer.method == message.INVITE {
			d.until = now.Add(timerB)
		}
	}
	d.media[offerer], d.media[offerer.other()] = offer.media, answer
	if x := d.pending[offerer]; x != nil && x.transaction == offer.transaction {
		d.pending[offerer] = nil
	}
	d.answered, d.answer, d.offerer = offer.transaction, by, offerer
	d.held = onHold(answer)
}

// withdraw forgets the offers of a transaction that ended without an answer to them.
func (d *Dialog) withdraw(tx transaction) {
	for s, x := range d.pending {
		if x != nil && x.transaction == tx {
			d.pending[s], d.withdrew[s] = nil, true
		}
	}
}

func (d *Dialog) end(why End) {
	if d.State != Ended {
		d.State, d.Why = Ended, why
		d.media, d.previous, d.pending = [2][]party{}, nil, [2]*exchange{}
		d.deadline, d.expires = time.Time{}, time.Time{}
	}
}
