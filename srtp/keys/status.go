package keys

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"ringway/srtp/suite"
)

// Status is how it stands with a leg that this end has begun.
type Status struct {
	Leg Leg
	// Sending: the far end opens what this end's key protects. Receiving: this end opens the far end's.
	Sending, Receiving         bool
	SendSuite, ReceiveSuite    suite.Suite // ReceiveSuite is 0 before the far end has offered a key
	SendPackets                uint64      // under the key in use
	Rotations                  uint64      // of this end's key
	HeldKeys                   int         // of the far end
	FarEndEnded, FarEndStopped bool        // it takes nothing more; it sends nothing more
}

// Status returns how it stands with a leg. ok is false where this end has not begun it.
func (x *Exchange) Status(id Leg) (s Status, ok bool) {
	l := x.legs[id]
	if l == nil || !l.begun {
		return Status{}, false
	}
	s = Status{
		Leg: id, SendSuite: l.out.suite, Rotations: l.out.rotations, HeldKeys: len(l.in.keys),
		FarEndEnded: l.out.stopped, FarEndStopped: l.in.over,
	}
	if k := l.out.current; k != nil {
		s.Sending, s.SendPackets = k.heard && !k.exhausted, k.packets
	}
	for _, k := range l.in.keys {
		s.ReceiveSuite = k.key.Suite
		s.Receiving = s.Receiving || k.held
	}
	return s, true
}

// Legs returns the status of every leg that this end has begun, as they were begun.
func (x *Exchange) Legs() []Status {
	all := make([]Status, 0, len(x.order))
	for _, l := range x.order {
		if s, ok := x.Status(l.id); ok {
			all = append(all, s)
		}
	}
	return all
}

// Wanted returns what the media plane is to have, as actions: all keys to be held, then those in use. After either
// process was replaced it is brought to that: it carries them out, and drops and stops whatever is not among them. What
// was sent and received before (stream.Sender.Restore, stream.Receiver.Restore) is not part of it.
func (x *Exchange) Wanted() []Action {
	before := x.actions
	x.actions = nil
	for _, l := range x.order {
		for _, k := range l.in.keys {
			if k.asked {
				x.hold(l, k)
			}
		}
		if k := l.out.current; k != nil && !k.exhausted {
			x.use(l)
		}
	}
	wanted := x.actions
	x.actions = before
	return wanted
}

// ProblemKind is what is wrong.
type ProblemKind byte

// Kinds of problems.
const (
	// Disconnected: the channel is down. Calls go on under their keys, until these have protected what they may.
	Disconnected ProblemKind = iota + 1
	// Unacknowledged: a key was not acknowledged within AckTimeout. Where there is one before, it stays in use.
	Unacknowledged
	// Refused: the far end did not take a key.
	Refused
	// Exhausted: the key in use has protected as many packets as it may, and there is no other. The leg is silent.
	Exhausted
)

// Problem is something that an operator has to know.
type Problem struct {
	Kind  ProblemKind
	Leg   Leg // not of Disconnected
	Since int64
	Why   Refusal // of Refused
	InUse bool    // of Unacknowledged, Refused: the leg has a key in use that was acknowledged
}

// String is the problem in words.
func (p Problem) String() string {
	rest := "; the far end hears nothing"
	if p.InUse {
		rest = "; the key before stays in use"
	}
	switch p.Kind {
	case Disconnected:
		return "key channel is down; keys of media are not changed"
	case Unacknowledged:
		return fmt.Sprintf("leg %s: the far end did not acknowledge a key%s", p.Leg, rest)
	case Refused:
		return fmt.Sprintf("leg %s: the far end refused a key: %s%s", p.Leg, p.Why, rest)
	case Exhausted:
		return fmt.Sprintf("leg %s: the key has protected as many packets as it may, and has no successor", p.Leg)
	default:
		return fmt.Sprintf("problem %d", byte(p.Kind))
	}
}

// Problems returns what is wrong now, the oldest first.
func (x *Exchange) Problems(now int64) (all []Problem) {
	if !x.up && time.Duration(now-x.upSince) >= AckTimeout {
		all = append(all, Problem{Kind: Disconnected, Since: x.upSince})
	}
	for _, l := range x.order {
		o := &l.out
		inUse := o.current != nil && o.current.heard && !o.current.exhausted
		k := o.offered
		if k == nil && o.current != nil && !o.current.heard {
			k = o.current
		}
		switch {
		case o.refusal != 0:
			all = append(all, Problem{Kind: Refused, Leg: l.id, Since: o.refusedAt, Why: o.refusal, InUse: inUse})
		case k != nil && time.Duration(now-k.made) >= AckTimeout:
			all = append(all, Problem{Kind: Unacknowledged, Leg: l.id, Since: k.made, InUse: inUse})
		}
		if o.current != nil && o.current.exhausted {
			all = append(all, Problem{Kind: Exhausted, Leg: l.id, Since: o.current.exhaustedAt})
		}
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return cmp.Compare(a.Since, b.Since) })
	return all
}
