package dialog

import (
	"slices"
	"time"
)

// State is how far the leg has come: as far as the dialog that has come furthest, and Early before any answer.
func (l *Leg) State() State {
	if l.ended != "" {
		return Ended
	}
	state := Early
	for _, d := range l.dialogs {
		if d.State != Ended {
			state = max(state, d.State)
		}
	}
	return state
}

// Why says why the leg ended; empty while it lives. Status is the final error that ended it, or 0.
func (l *Leg) Why() End    { return l.ended }
func (l *Leg) Status() int { return l.status }

// Began is when the first INVITE came.
func (l *Leg) Began() time.Time { return l.began }

// Flows are those that the leg needs now.
func (l *Leg) Flows() []Flow { return slices.Clone(l.flows) }

// EachFlow calls f with each flow that the leg needs now, until it returns false.
func (l *Leg) EachFlow(f func(Flow) bool) {
	for _, x := range l.flows {
		if !f(x) {
			return
		}
	}
}

// Needs is how many flows that are.
func (l *Leg) Needs() int { return len(l.flows) }

// Held reports whether no medium of the leg is sent in either direction, though it was answered.
func (l *Leg) Held() bool {
	held := false
	for _, d := range l.dialogs {
		if d.State != Ended {
			held = d.held
		}
	}
	return held
}

// Legs calls f with each leg, in no order.
func (t *Tracker) Legs(f func(*Leg)) {
	for _, first := range t.calls {
		for l := first; l != nil; l = l.next {
			f(l)
		}
	}
}
