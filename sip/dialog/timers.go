package dialog

import "time"

// Next is when Expire has something to do; zero: never.
func (t *Tracker) Next() time.Time {
	if len(t.timers) == 0 {
		return time.Time{}
	}
	return t.timers[0].due
}

// Expire ends what has expired.
func (t *Tracker) Expire(now time.Time) (st Step) {
	for len(t.timers) > 0 && !t.timers[0].due.After(now) {
		l := t.timers[0]
		t.expire(l, now)
		if !l.forks.IsZero() && !l.forks.After(now) {
			l.forks = time.Time{}
			st.Single = append(st.Single, l)
		}
		t.settle(&st, l, now)
		st.Others = append(st.Others, l)
	}
	return st
}

func (t *Tracker) expire(l *Leg, now time.Time) {
	if !l.responded && !l.seen.Add(timerB).After(now) {
		l.ended = Unanswered
	}
	if l.responded && !l.accepted && !l.seen.Add(t.Idle).After(now) {
		l.ended = Idle
	}
	for _, d := range l.dialogs {
		if d.previous != nil && !d.until.After(now) {
			d.previous = nil
		}
		for s, x := range d.pending {
			if x != nil && !x.until.IsZero() && !x.until.After(now) { // or the other end could not offer anything any more
				d.pending[s], d.withdrew[s] = nil, true
			}
		}
		switch {
		case d.State == Ended:
		case !d.deadline.IsZero() && !d.deadline.After(now):
			d.end(d.atEnd)
		case !d.expires.IsZero() && !d.expires.After(now):
			if d.session == maxSession && d.seen.Add(t.Idle).After(now) { // its phones said more, and are still there
				d.expires = d.seen.Add(t.Idle)
				continue
			}
			d.end(Expired)
		case d.expires.IsZero() && !d.seen.Add(t.idle(d)).After(now):
			d.end(Idle)
		}
	}
}

// idle is how long a dialog without a session timer stays when nothing of it is seen.
func (t *Tracker) idle(d *Dialog) time.Duration {
	if d.held {
		return max(heldIdle, t.Idle)
	}
	return t.Idle
}

// nextDue is when something of a leg expires, or has to be looked at again.
func (t *Tracker) nextDue(l *Leg, now time.Time) time.Time {
	due := now.Add(24 * time.Hour) // to look again, at the latest
	sooner := func(x time.Time) {
		if !x.IsZero() && x.Before(due) {
			due = x
		}
	}
	switch {
	case !l.responded:
		sooner(l.seen.Add(timerB))
	case !l.accepted:
		sooner(l.seen.Add(t.Idle))
	}
	sooner(l.forks)
	for _, d := range l.dialogs {
		if d.State == Ended {
			continue
		}
		sooner(d.deadline)
		sooner(d.expires)
		if d.previous != nil {
			sooner(d.until)
		}
		for _, x := range d.pending {
			if x != nil {
				sooner(x.until)
			}
		}
		if d.expires.IsZero() {
			sooner(d.seen.Add(t.idle(d)))
		}
	}
	return due
}

// timers are legs by due, the next one first.
type timers []*Leg

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].due.Before(t[j].due) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i]; t[i].at, t[j].at = i, j }

func (t *timers) Push(x any) {
	l := x.(*Leg)
	l.at = len(*t)
	*t = append(*t, l)
}

func (t *timers) Pop() any {
	old := *t
	l := old[len(old)-1]
	*t = old[:len(old)-1]
	return l
}
