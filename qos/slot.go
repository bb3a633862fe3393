package qos

import (
	"hash/fnv"
	"slices"
)

// Handles of the tree. Minors are hexadecimal, as tc prints them. A site has eight numbers in a row: its
// inner class, a leaf for each class, and two that are only the handles of queues within leaves.
const (
	rootQdisc  Handle = 0x1 << 16
	rootClass  Handle = rootQdisc | 0x1
	localClass Handle = rootQdisc | 0x2

	firstSlot   = 0x100
	slotNumbers = 8
	slotCount   = (0x10000 - firstSlot) / slotNumbers
)

// MaxSites is how many sites a tree has room for: more would leave too few slots for the rest to stay where
// they are.
const MaxSites = 1024

// Local is the name, where sites' names stand, of what goes to no site.
const Local = "local"

var classMinor = map[ClassName]uint32{Media: 0x10, Signalling: 0x20, Data: 0x30, Background: 0x40}

// ClassID is a class's place in every WAN's tree for what goes to no site and, since HTB takes skb->priority
// for a class when the major matches, the priority that a packet needs to get there (1:10 is 0x10010). 0 for
// an unknown name: such a packet goes to data, HTB's default.
func ClassID(c ClassName) uint32 {
	if m, ok := classMinor[c]; ok {
		return uint32(rootQdisc) | m
	}
	return 0
}

// slotsOf gives each site the handle of its inner class. It follows from the name, so that a site keeps its
// place, with what is queued there, whoever comes or goes; only where two names want the same slot the later
// name yields.
func slotsOf(sites []Site) map[string]Handle {
	names := make([]string, len(sites))
	for i, s := range sites {
		names[i] = s.Name
	}
	slices.Sort(names)
	out, taken := make(map[string]Handle, len(names)), make(map[uint32]bool, len(names))
	var crowded []string
	slot := func(name string, at uint32) {
		taken[at], out[name] = true, rootQdisc|Handle(firstSlot+at*slotNumbers)
	}
	for _, n := range slices.Compact(names) {
		if at := hash(n) % slotCount; taken[at] {
			crowded = append(crowded, n)
		} else {
			slot(n, at)
		}
	}
	for _, n := range crowded { // after all others, so that none of them yields to one that is not at home itself
		h := hash(n)
		at, step := h%slotCount, 1+h/slotCount%(slotCount-1)
		for taken[at] {
			at = (at + step) % slotCount
			step = step%(slotCount-1) + 1
		}
		slot(n, at)
	}
	return out
}

func hash(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return h.Sum32()
}

// leafClass says which class's leaf h is, in any branch of the tree.
func leafClass(h Handle) (ClassName, bool) {
	if h>>16 != rootQdisc>>16 {
		return "", false
	}
	minor := uint32(h & 0xffff)
	if minor >= firstSlot {
		i := minor%slotNumbers - 1 // firstSlot is a multiple of slotNumbers
		if i < uint32(len(ClassNames)) {
			return ClassNames[i], true
		}
		return "", false
	}
	for _, n := range ClassNames {
		if classMinor[n] == minor {
			return n, true
		}
	}
	return "", false
}

// innerClass says whether h is 1:1, local or a site.
func innerClass(h Handle) bool {
	return h == rootClass || h == localClass || h>>16 == rootQdisc>>16 && h&0xffff >= firstSlot && h%slotNumbers == 0
}

// childOf is the major of the queue within a leaf of data or background.
func childOf(class Handle) Handle {
	if minor := class & 0xffff; minor < firstSlot {
		return minor + 1
	}
	return class&0xffff + 2 // after data (3) and background (4) come 5 and 6
}

// Place is a class's leaf in the tree.
type Place struct {
	Site  string // Local for what goes to no site
	Class ClassName
}

// Places names the leaves of a tree with these sites.
func Places(sites []string) map[Handle]Place {
	list := make([]Site, len(sites))
	for i, n := range sites {
		list[i].Name = n
	}
	out := make(map[Handle]Place, (len(sites)+1)*len(ClassNames))
	for _, c := range ClassNames {
		out[Handle(ClassID(c))] = Place{Local, c}
	}
	for name, h := range slotsOf(list) {
		for i, c := range ClassNames {
			out[h+1+Handle(i)] = Place{name, c}
		}
	}
	return out
}

// Foreign is s with the kernel's default in place of every tree that looks like Ringway's own. What
// start keeps as "found before" is Observe(…).Foreign(): after a crash that lost the kept state, the
// tree of the run before must not be taken for somebody's and given back at stop.
func (s State) Foreign() State {
	out := s.Canonical()
	for i, l := range out.Links {
		if l.ours() {
			out.Links[i] = Link{Interface: l.Interface}
		}
	}
	return out
}

// ours is whether a tree is by its numbers one that some Ringway made, with whatever sites or WANs.
func (l Link) ours() bool {
	leaf := func(h Handle) bool { _, ok := leafClass(h); return ok }
	inner, fallback := innerClass, classMinor[Data]
	r := l.root()
	switch {
	case r == nil || r.HTB == nil:
		return false
	case r.Handle == lanQdisc:
		leaf, inner, fallback = lanClass, func(Handle) bool { return false }, uint32(restClass&0xffff)
	case r.Handle != rootQdisc:
		return false
	}
	if r.HTB.Default != fallback {
		return false
	}
	for _, c := range l.Classes {
		if !leaf(c.Handle) && !inner(c.Handle) {
			return false
		}
	}
	heads := map[Handle]Handle{} // class by its leaf's handle
	for _, q := range l.Qdiscs {
		if leaf(q.Parent) && q.Handle == q.Parent&0xffff<<16 {
			heads[q.Handle] = q.Parent
		}
	}
	for _, q := range l.Qdiscs {
		class, child := heads[q.Parent&^0xffff]
		switch {
		case q.isRoot(), heads[q.Handle] == q.Parent && q.Parent != 0:
		case child && q.Handle == childOf(class)<<16:
		default:
			return false
		}
	}
	return true
}
