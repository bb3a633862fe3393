package qos

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Handle names a qdisc (minor 0, as 1:) or a class (as 1:10) the way tc prints it, in hexadecimal.
type Handle uint32

// RootHandle is the parent of an interface's root qdisc (TC_H_ROOT).
const RootHandle Handle = 0xffffffff

// String prints tc's form: root, 1: or 1:10.
func (h Handle) String() string {
	switch {
	case h == RootHandle:
		return "root"
	case h&0xffff == 0:
		return fmt.Sprintf("%x:", uint32(h)>>16)
	}
	return fmt.Sprintf("%x:%x", uint32(h)>>16, uint32(h)&0xffff)
}

// MarshalText writes tc's form.
func (h Handle) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Handle) UnmarshalText(b []byte) error {
	if string(b) == "root" {
		*h = RootHandle
		return nil
	}
	major, minor, ok := strings.Cut(string(b), ":")
	if minor == "" {
		minor = "0"
	}
	hi, errHi := strconv.ParseUint(major, 16, 16)
	lo, errLo := strconv.ParseUint(minor, 16, 16)
	if !ok || errHi != nil || errLo != nil {
		return fmt.Errorf("%q is no handle (root, 1: or 1:10)", b)
	}
	*h = Handle(hi<<16 | lo)
	return nil
}

// State is what the kernel holds, or should hold, on each interface: JSON-serialisable and in
// canonical order (interfaces by name, then parents before children).
type State struct {
	Links []Link `json:"links"`
}

// Link is the egress side of one interface. With neither qdiscs nor classes it has the kernel's
// own default (noqueue, mq, pfifo_fast, …: whatever is there with handle 0:), which is
// restored by deleting what somebody put in its place.
type Link struct {
	Interface string     `json:"interface"`
	Qdiscs    []Qdisc    `json:"qdiscs,omitempty"`
	Classes   []HTBClass `json:"classes,omitempty"`
}

// Qdisc is one queueing discipline. At most one of the parameter fields is set.
type Qdisc struct {
	Handle  Handle   `json:"handle"`
	Parent  Handle   `json:"parent"`
	Kind    string   `json:"kind"`
	HTB     *HTB     `json:"htb,omitempty"`
	TBF     *TBF     `json:"tbf,omitempty"`
	FIFO    *FIFO    `json:"fifo,omitempty"`
	FQCoDel *FQCoDel `json:"fq_codel,omitempty"`
	Cake    *Cake    `json:"cake,omitempty"`
	// Options is the kernel's own dump of a kind that Ringway does not build: kept only to give
	// back at stop what start found.
	Options []byte `json:"options,omitempty"`
}

// HTB are the parameters of an HTB root.
type HTB struct {
	Default  uint32 `json:"default"`            // minor of the class that takes what has no other
	Overhead int    `json:"overhead,omitempty"` // bytes a packet that its size table adds; less than 0 in ours
}

// TBF are the parameters of a token bucket. Ringway's never limits the rate: it is used
// because TBF is the one qdisc in every kernel that cuts a super-packet into wire packets on its
// way in, and because it holds a queue bounded in bytes.
type TBF struct {
	Rate BitRate `json:"rate"`
	// the largest skb that passes whole; larger ones are segmented, or dropped if they can't be
	Burst ByteCount `json:"burst"`
	Limit ByteCount `json:"limit"` // the queue's bound
}

// FIFO are the parameters of bfifo (bytes) or pfifo (packets).
type FIFO struct {
	Limit uint32 `json:"limit"`
}

// FQCoDel are the parameters of fq_codel (RFC 8290).
type FQCoDel struct {
	Limit       uint32        `json:"limit"` // packets
	Target      time.Duration `json:"target"`
	Interval    time.Duration `json:"interval"`
	Flows       uint32        `json:"flows"` // the kernel changes none
	Quantum     ByteCount     `json:"quantum"`
	MemoryLimit ByteCount     `json:"memory_limit"`
	ECN         bool          `json:"ecn"`
}

// Cake are the parameters of a cake that shapes nothing, has one class and cuts super-packets: what
// Ringway makes. Any other is kept as Options.
type Cake struct {
	MemoryLimit ByteCount `json:"memory_limit"`
}

// HTBClass is one class of an HTB tree.
type HTBClass struct {
	Handle   Handle    `json:"handle"`
	Parent   Handle    `json:"parent"`
	Rate     BitRate   `json:"rate"`
	Ceil     BitRate   `json:"ceil"`
	Burst    ByteCount `json:"burst"`
	CBurst   ByteCount `json:"cburst"`
	Prio     uint32    `json:"prio"`
	Quantum  ByteCount `json:"quantum"`
	Overhead uint16    `json:"overhead,omitempty"` // bytes a packet beyond the kernel's count
	MPU      uint16    `json:"mpu,omitempty"`      // no packet counts less than this
	ATM      bool      `json:"atm,omitempty"`      // counted in whole cells of 53 bytes for 48
}

// Link finds an interface's part of the state.
func (s State) Link(name string) (Link, bool) {
	for _, l := range s.Links {
		if l.Interface == name {
			return l, true
		}
	}
	return Link{}, false
}

// Interfaces names the interfaces that s says something about, what Observe is to be asked for.
func (s State) Interfaces() []string {
	var out []string
	for _, l := range s.Links {
		out = append(out, l.Interface)
	}
	return out
}

// Over is s, with every interface that s does not mention as it is in base. What is to be
// applied on a reload is Want(…).Over(state found before start): a WAN that the config no longer
// shapes gets back what it had.
func (s State) Over(base State) State {
	out := State{Links: slices.Clone(s.Links)}
	for _, l := range base.Links {
		if _, ok := s.Link(l.Interface); !ok {
			out.Links = append(out.Links, l)
		}
	}
	return out.Canonical()
}

// Canonical sorts the state: interfaces by name, parents before children, siblings by handle.
func (s State) Canonical() State {
	out := State{Links: slices.Clone(s.Links)}
	slices.SortFunc(out.Links, func(a, b Link) int { return strings.Compare(a.Interface, b.Interface) })
	for i := range out.Links {
		l := &out.Links[i]
		l.Qdiscs, l.Classes = slices.Clone(l.Qdiscs), slices.Clone(l.Classes)
		below := qdiscDepths(l.Qdiscs)
		slices.SortFunc(l.Qdiscs, func(a, b Qdisc) int {
			return cmp.Or(
				cmp.Compare(below[a.Handle], below[b.Handle]),
				cmp.Compare(a.Parent, b.Parent),
				cmp.Compare(a.Handle, b.Handle),
			)
		})
		depth := depths(l.Classes)
		slices.SortFunc(l.Classes, func(a, b HTBClass) int {
			return cmp.Or(cmp.Compare(depth[a.Handle], depth[b.Handle]), cmp.Compare(a.Handle, b.Handle))
		})
	}
	return out
}

// Theirs names the queue on l that somebody else made; "" for the kernel's default and for a tree of Ringway's.
func (l Link) Theirs() string {
	if r := l.root(); r != nil && !l.ours() {
		return r.Kind + " " + r.Handle.String()
	}
	return ""
}

func (q Qdisc) isRoot() bool { return q.Parent == RootHandle }

func (l Link) root() *Qdisc {
	for i := range l.Qdiscs {
		if l.Qdiscs[i].isRoot() {
			return &l.Qdiscs[i]
		}
	}
	return nil
}

// qdiscDepths gives each qdisc's distance from the root, by handle: 1 for a leaf of the root's classes, 2 for
// what is in a leaf.
func qdiscDepths(qdiscs []Qdisc) map[Handle]int {
	parent := make(map[Handle]Handle, len(qdiscs))
	for _, q := range qdiscs {
		parent[q.Handle] = q.Parent
	}
	d := make(map[Handle]int, len(qdiscs))
	for _, q := range qdiscs {
		n := 0
		for p := q.Parent; p != RootHandle && n < 8; n++ {
			up, ok := parent[p&^0xffff]
			if !ok {
				break
			}
			p = up
		}
		d[q.Handle] = n
	}
	return d
}

// depths gives each class's distance from the root qdisc: 1 for a class right under it.
func depths(classes []HTBClass) map[Handle]int {
	parent := make(map[Handle]Handle, len(classes))
	for _, c := range classes {
		parent[c.Handle] = c.Parent
	}
	d := make(map[Handle]int, len(classes))
	for _, c := range classes {
		// HTB is at most 8 levels deep; the bound keeps a hand-made state file from looping us.
		for h, n := c.Handle, 0; n <= 8; n++ {
			p, ok := parent[h]
			if !ok {
				d[c.Handle] = n
				break
			}
			h = p
		}
	}
	return d
}

// Text is the whole state in tc's words; fed to tc in this order it makes the state.
func (s State) Text() []string {
	var out []string
	var bare State // every interface, with the kernel's default
	for _, l := range s.Links {
		bare.Links = append(bare.Links, Link{Interface: l.Interface})
	}
	for _, c := range Diff(s, bare) {
		out = append(out, c.String())
	}
	return out
}

// words are the qdisc's kind and parameters as tc reads them.
func (q Qdisc) words() string {
	switch {
	case q.HTB != nil && q.HTB.Overhead != 0:
		return fmt.Sprintf("stab linklayer ethernet overhead %d htb default %x", q.HTB.Overhead, q.HTB.Default)
	case q.HTB != nil:
		return fmt.Sprintf("htb default %x", q.HTB.Default)
	case q.TBF != nil:
		return fmt.Sprintf("tbf rate %s burst %d limit %d", tcRate(q.TBF.Rate), q.TBF.Burst, q.TBF.Limit)
	case q.FIFO != nil:
		return fmt.Sprintf("%s limit %d", q.Kind, q.FIFO.Limit)
	case q.FQCoDel != nil:
		c := q.FQCoDel
		ecn := "noecn"
		if c.ECN {
			ecn = "ecn"
		}
		return fmt.Sprintf("fq_codel limit %d flows %d quantum %d target %dus interval %dus memory_limit %d %s",
			c.Limit, c.Flows, c.Quantum, c.Target.Microseconds(), c.Interval.Microseconds(), c.MemoryLimit, ecn)
	case q.Cake != nil:
		return fmt.Sprintf("cake unlimited besteffort split-gso memlimit %d", q.Cake.MemoryLimit)
	case len(q.Options) > 0:
		return q.Kind + " # with the options it had"
	}
	return q.Kind
}

func (c HTBClass) words() string {
	s := fmt.Sprintf("htb rate %s ceil %s burst %d cburst %d prio %d quantum %d",
		tcRate(c.Rate), tcRate(c.Ceil), c.Burst, c.CBurst, c.Prio, c.Quantum)
	if c.Overhead != 0 {
		s += fmt.Sprintf(" overhead %d", c.Overhead)
	}
	if c.MPU != 0 {
		s += fmt.Sprintf(" mpu %d", c.MPU)
	}
	if c.ATM {
		s += " linklayer atm"
	}
	return s
}

// tcRate avoids gbit, which tc reads, but prints as mbit: one form in both directions.
func tcRate(r BitRate) string {
	if r%Gbit == 0 {
		return fmt.Sprintf("%dmbit", r/Mbit)
	}
	return r.String()
}

// equal says whether the kernel would hold the same for both.
func (q Qdisc) equal(o Qdisc) bool {
	if q.Handle != o.Handle || q.Parent != o.Parent || q.Kind != o.Kind {
		return false
	}
	switch {
	case q.HTB != nil && o.HTB != nil:
		return *q.HTB == *o.HTB
	case q.TBF != nil && o.TBF != nil:
		return q.TBF.Rate == o.TBF.Rate && q.TBF.Limit == o.TBF.Limit && sameBurst(q.TBF.Rate, q.TBF.Burst, o.TBF.Burst)
	case q.FIFO != nil && o.FIFO != nil:
		return *q.FIFO == *o.FIFO
	case q.FQCoDel != nil && o.FQCoDel != nil:
		a, b := *q.FQCoDel, *o.FQCoDel
		// CoDel counts time in steps of 1.024 us.
		near := func(x, y time.Duration) bool { return (x - y).Abs() <= 3*time.Microsecond }
		same := near(a.Target, b.Target) && near(a.Interval, b.Interval)
		a.Target, a.Interval = b.Target, b.Interval
		return same && a == b
	case q.Cake != nil && o.Cake != nil:
		return *q.Cake == *o.Cake
	}
	none := func(q Qdisc) bool {
		return q.HTB == nil && q.TBF == nil && q.FIFO == nil && q.FQCoDel == nil && q.Cake == nil
	}
	return none(q) && none(o) && bytes.Equal(q.Options, o.Options)
}

// equal says whether the kernel would hold the same for both. The kernel takes prio and quantum
// of leaves only: an inner class keeps those that it was made with.
func (c HTBClass) equal(o HTBClass, inner bool) bool {
	return c.Handle == o.Handle && c.Parent == o.Parent && c.Rate == o.Rate && c.Ceil == o.Ceil &&
		sameBurst(c.Rate, c.Burst, o.Burst) && sameBurst(c.Ceil, c.CBurst, o.CBurst) &&
		c.Overhead == o.Overhead && c.MPU == o.MPU && c.ATM == o.ATM &&
		(inner || c.Prio == o.Prio && c.Quantum == o.Quantum)
}

// sameBurst compares bursts as the kernel stores them: as time at the rate, which tc cuts to
// microseconds.
func sameBurst(rate BitRate, a, b ByteCount) bool {
	if a < b {
		a, b = b, a
	}
	return float64(a-b) <= 1+float64(rate)/8*1e-6
}
