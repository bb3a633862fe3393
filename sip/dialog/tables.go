package dialog

import "slices"

// legs are all legs by Call-ID: the first one of each, which leads to the others. Nearly all calls have one.
type legs map[string]*Leg

// of calls f with the legs of a Call-ID, those that came first at first, until it returns false.
func (t legs) of(callID []byte) func(f func(*Leg) bool) {
	return func(f func(*Leg) bool) {
		for l := t[string(callID)]; l != nil; l = l.next {
			if !f(l) {
				return
			}
		}
	}
}

func (t legs) add(l *Leg) {
	first := t[l.CallID]
	if first == nil {
		t[l.CallID] = l
		return
	}
	for first.next != nil {
		first = first.next
	}
	first.next = l
}

func (t legs) remove(l *Leg) {
	first := t[l.CallID]
	switch {
	case first != l:
		for first.next != l {
			first = first.next
		}
		first.next = l.next
	case l.next == nil:
		delete(t, l.CallID)
	default:
		delete(t, l.CallID) // the key is l's, and would keep its message's text
		t[l.next.CallID] = l.next
	}
	l.next = nil
}

// needs are the legs that need each flow. Nearly all flows are needed by one.
type needs struct {
	first  map[Flow]*Leg
	others map[Flow][]*Leg
}

func newNeeds() needs { return needs{first: map[Flow]*Leg{}, others: map[Flow][]*Leg{}} }

// add reports whether l is the only leg that needs the flow now.
func (n *needs) add(f Flow, l *Leg) bool {
	if n.first[f] == nil {
		n.first[f] = l
		return true
	}
	n.others[f] = append(n.others[f], l)
	return false
}

// remove reports whether no leg needs the flow any more.
func (n *needs) remove(f Flow, l *Leg) bool {
	others := n.others[f]
	if n.first[f] == l {
		if len(others) == 0 {
			delete(n.first, f)
			return true
		}
		n.first[f] = others[0]
		others = slices.Delete(others, 0, 1)
	} else {
		others = slices.DeleteFunc(others, func(x *Leg) bool { return x == l })
	}
	if len(others) == 0 {
		delete(n.others, f)
	} else {
		n.others[f] = others
	}
	return false
}

// of calls f with the legs that need a flow.
func (n *needs) of(f Flow) func(yield func(*Leg) bool) {
	return func(yield func(*Leg) bool) {
		first := n.first[f]
		if first == nil || !yield(first) {
			return
		}
		for _, l := range n.others[f] {
			if !yield(l) {
				return
			}
		}
	}
}
