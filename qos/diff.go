package qos

import (
	"cmp"
	"fmt"
	"slices"
)

// Op is what a Change does, in the kernel's sense of the verbs: Add fails if it is there, Change
// if it is not, Replace does either, Delete removes with everything below.
type Op string

// The operations.
const (
	Add       Op = "add"
	ChangeOp  Op = "change"
	ReplaceOp Op = "replace"
	DeleteOp  Op = "delete"
)

// Change is one netlink write. Exactly one of Qdisc and Class is set.
type Change struct {
	Op        Op        `json:"op"`
	Interface string    `json:"interface"`
	Qdisc     *Qdisc    `json:"qdisc,omitempty"`
	Class     *HTBClass `json:"class,omitempty"`
}

// String is the change as one tc command.
func (c Change) String() string {
	if c.Class != nil {
		s := fmt.Sprintf("tc class %s dev %s parent %s classid %s", c.Op, c.Interface, c.Class.Parent, c.Class.Handle)
		if c.Op == DeleteOp {
			return s
		}
		return s + " " + c.Class.words()
	}
	at := "parent " + c.Qdisc.Parent.String()
	if c.Qdisc.isRoot() {
		at = "root"
	}
	s := fmt.Sprintf("tc qdisc %s dev %s %s", c.Op, c.Interface, at)
	if c.Qdisc.Handle != 0 {
		s += " handle " + c.Qdisc.Handle.String()
	}
	if c.Op == DeleteOp {
		return s
	}
	return s + " " + c.Qdisc.words()
}

// Diff is what has to be written so that have becomes want, for the interfaces that want names and
// have shows to be there; others are left alone: a WAN whose device is yet to come must not keep the
// rest from being shaped. What stays the same is not touched, what changes is changed in place
// (no packet lost, no queue torn down), and at every step in between the rates of a class's
// children fit under its own: first everything that shrinks or goes, children before parents;
// then everything that grows or comes, parents before children.
func Diff(want, have State) []Change {
	var out []Change
	for _, w := range want.Canonical().Links {
		if h, there := have.Canonical().Link(w.Interface); there {
			out = append(out, diffLink(w, h)...)
		}
	}
	return out
}

func diffLink(want, have Link) []Change {
	wr, hr := want.root(), have.root()
	if wr == nil {
		if hr == nil {
			return nil
		}
		return []Change{{DeleteOp, have.Interface, hr, nil}} // the kernel puts its default in its place
	}
	var out []Change
	if hr == nil || !wr.equal(*hr) {
		// No kernel changes an HTB root in place, and its handle names every class below: rebuild the tree.
		if hr != nil && hr.Handle == wr.Handle {
			// A replace with the present handle means "change it", which HTB refuses.
			out = append(out, Change{DeleteOp, want.Interface, hr, nil})
		}
		out = append(out, Change{ReplaceOp, want.Interface, wr, nil})
		have = Link{Interface: want.Interface, Qdiscs: []Qdisc{*wr}}
	}
	shrink, grow := diffClasses(want, have)
	del, set := diffLeaves(want, have)
	out = append(out, shrink...)
	out = append(out, del...) // before grow: a class that gets children loses its leaf by itself
	out = append(out, grow...)
	return append(out, set...)
}

func diffClasses(want, have Link) (shrink, grow []Change) {
	old, inner := map[Handle]HTBClass{}, map[Handle]bool{}
	for _, c := range have.Classes {
		old[c.Handle], inner[c.Parent] = c, true
	}
	depth := depths(have.Classes)
	keep := make(map[Handle]bool, len(want.Classes))
	for _, c := range want.Classes {
		h, ok := old[c.Handle]
		// A class that hangs elsewhere now is another class: HTB moves none. Nor can one be kept
		// that lost its parent to such a move.
		ok = ok && h.Parent == c.Parent && (keep[c.Parent] || c.Parent&0xffff == 0)
		keep[c.Handle] = ok
		switch {
		case !ok:
			grow = append(grow, Change{Add, want.Interface, nil, &c})
		case c.equal(h, inner[c.Handle]):
		case c.Rate < h.Rate || c.Rate == h.Rate && c.Ceil < h.Ceil:
			shrink = append(shrink, Change{ChangeOp, want.Interface, nil, &c})
		default:
			grow = append(grow, Change{ChangeOp, want.Interface, nil, &c})
		}
	}
	for _, c := range have.Classes {
		if !keep[c.Handle] {
			shrink = append(shrink, Change{DeleteOp, want.Interface, nil, &c})
		}
	}
	slices.SortStableFunc(
		shrink,
		func(a, b Change) int { return cmp.Compare(depth[b.Class.Handle], depth[a.Class.Handle]) },
	)
	return shrink, grow
}

func diffLeaves(want, have Link) (del, set []Change) {
	gone := map[Handle]bool{} // classes that were deleted took their leaf along, leaves what is in them
	parents := make(map[Handle]Handle, len(want.Classes))
	for _, c := range want.Classes {
		parents[c.Handle] = c.Parent
	}
	kept := make(map[Handle]bool, len(have.Classes))
	for _, c := range have.Classes {
		p, wanted := parents[c.Handle]
		kept[c.Handle] = wanted && p == c.Parent && (kept[c.Parent] || c.Parent&0xffff == 0)
		gone[c.Handle] = !kept[c.Handle]
	}
	lost := func(q Qdisc) bool { return gone[q.Parent] || gone[q.Parent&^0xffff] }
	byParent, inside := make(map[Handle]Qdisc, len(have.Qdiscs)), map[Handle]bool{}
	for _, q := range have.Qdiscs {
		if lost(q) {
			gone[q.Handle] = true
			continue
		}
		byParent[q.Parent], inside[q.Parent&^0xffff] = q, true
	}
	wanted, filled := make(map[Handle]bool, len(want.Qdiscs)), map[Handle]bool{}
	for _, q := range want.Qdiscs {
		wanted[q.Parent], filled[q.Parent&^0xffff] = true, true
	}
	for _, q := range want.Qdiscs {
		if q.isRoot() {
			continue
		}
		h, there := byParent[q.Parent]
		there = there && !lost(h)
		// A bucket whose child is removed would hold nothing at all, so it is made again.
		emptied := there && inside[h.Handle] && !filled[q.Handle]
		switch {
		case there && !emptied && q.equal(h):
		case there && !emptied && q.Handle == h.Handle && q.Kind == h.Kind && !q.fixed(h):
			set = append(set, Change{ChangeOp, want.Interface, &q, nil})
		default:
			if there {
				del = append(del, Change{DeleteOp, want.Interface, &h, nil})
				gone[h.Handle] = true
			}
			set = append(set, Change{Add, want.Interface, &q, nil})
		}
	}
	for _, q := range have.Qdiscs {
		if !q.isRoot() && !lost(q) && !wanted[q.Parent] {
			del = append(del, Change{DeleteOp, want.Interface, &q, nil})
			gone[q.Handle] = true
		}
	}
	return del, set
}

// fixed is whether q differs from h, of the same kind, in what no kernel changes while it stands.
func (q Qdisc) fixed(h Qdisc) bool {
	switch {
	case q.FQCoDel != nil && h.FQCoDel != nil:
		return q.FQCoDel.Flows != h.FQCoDel.Flows
	case q.Cake != nil && h.Cake != nil:
		return false
	}
	// One of Ringway's and one of somebody's, with options that Ringway's does not say.
	return q.FQCoDel != nil || h.FQCoDel != nil || q.Cake != nil || h.Cake != nil
}
