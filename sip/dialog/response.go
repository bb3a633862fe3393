package dialog

import (
	"slices"
	"time"

	"ringway/sip/message"
)

// response takes a response. Its From and To are those of the request that it answers.
func (t *Tracker) response(st *Step, x *seen) {
	if x.Method == message.INVITE {
		l := t.leg(x.CallID(), x.fromTag, x.to, x.from)
		if l != nil && l.cseq == x.CSeq && len(l.branches) > 0 { // no branches: its first INVITE was not seen
			t.toInvite(st, l, x)
			return
		}
	}
	for _, f := range t.within(x.CallID(), x.fromTag, x.toTag, x.to, x.from) {
		l, d := f.leg, f.dialog
		st.turnTo(l)
		st.Dialog = d
		l.seen, d.seen, l.responded = x.now, x.now, true
		switch x.Method {
		case message.BYE:
			d.byeAnswered(x.Status)
		case message.INVITE, message.UPDATE, message.PRACK:
			t.toExchange(st, l, d, f.sender.other(), x)
		}
		t.settle(st, l, x.now)
	}
}

func (d *Dialog) byeAnswered(status int) {
	switch {
	case d.State != Ending:
	case status >= 200 && status < 300, status == 481, status == 408:
		d.end(ByBye)
	case status == 401, status == 407:
		d.State, d.deadline = d.before, time.Time{}
	}
}

// toInvite takes a response to the INVITE that started a leg.
func (t *Tracker) toInvite(st *Step, l *Leg, x *seen) {
	st.Leg = l
	l.seen, l.responded = x.now, true
	switch {
	case x.Status >= 300:
		l.failed(branchOf(x.Message), x.Status)
	case len(x.toTag) > 0:
		d := l.dialog(x.toTag)
		if d == nil {
			if d = l.addDialog(x.toTag, Early, x.now); d == nil {
				return
			}
		}
		st.Dialog, d.seen = d, x.now
		if d.State == Ended {
			return
		}
		switch {
		case x.sdp == nil:
		case d.State <= Accepted:
			role := d.describe(l, callee, x.Message, x.sdp, x.now)
			st.exchange(x, l, d, callee, role)
			if role != Superseded { // an offer that is pending is another message's
				st.offer(l, d, callee)
			}
		default: // it comes again, and may no longer hold
			st.exchange(x, l, d, callee, Repeated)
		}
		if x.Status >= 200 {
			l.accept(d, x)
		}
	}
	t.settle(st, l, x.now)
}

// failed ends the leg when all its branches have failed.
func (l *Leg) failed(id []byte, status int) {
	if l.accepted {
		return
	}
	if b := l.branch(id); b != nil {
		b.failed = true
	}
	if slices.ContainsFunc(l.branches, func(b branch) bool { return !b.failed }) {
		return
	}
	l.status = status
	switch {
	case status == 487 && l.cancelled:
		l.ended = Cancelled
	case status < 400:
		l.ended = Redirected
	default:
		l.ended = Rejected
	}
}

// accept takes a 2xx to the INVITE.
func (l *Leg) accept(d *Dialog, x *seen) {
	if !l.accepted {
		l.accepted, l.forks = true, x.now.Add(timerB)
	}
	d.timer(x)
	if d.State != Early {
		return // it comes again, since the ACK was lost
	}
	d.State, d.deadline, d.atEnd = Accepted, x.now.Add(timerB), Unacknowledged
	for _, other := range l.dialogs {
		if other != d && other.State == Early {
			other.deadline, other.atEnd = x.now.Add(forkGrace), OtherBranch
		}
	}
}

// timer takes the session timer of a 2xx to an INVITE or UPDATE (RFC 4028, section 7.2).
func (d *Dialog) timer(x *seen) {
	d.session, d.expires = 0, time.Time{}
	if seconds, ok := message.Seconds(x.Header(message.SessionExpires)); ok && seconds > 0 {
		d.session = min(time.Duration(seconds)*time.Second, maxSession)
		d.expires = x.now.Add(d.session + sessionGrace)
	}
}

// toExchange takes a response to a request within a dialog that may offer or answer. by is who responds.
func (t *Tracker) toExchange(st *Step, l *Leg, d *Dialog, by side, x *seen) {
	switch {
	// RFC 3261, section 12.2.1.2. A PRACK is of a response that is not known there (RFC 3262, section 3), not of a dialog.
	case x.Status == 481 && x.Method != message.PRACK, x.Status == 408 && x.Method == message.INVITE:
		d.end(Lost)
	case x.Status >= 300:
		d.withdraw(transactionOf(x.Message, by))
	default:
		if x.sdp != nil && d.State != Ended {
			st.exchange(x, l, d, by, d.describe(l, by, x.Message, x.sdp, x.now))
			st.offer(l, d, by)
		}
		if x.Status < 200 {
			return
		}
		if x.Method != message.INVITE {
			d.withdraw(transactionOf(x.Message, by))
		}
		if x.Method != message.PRACK {
			d.timer(x)
		}
	}
}
