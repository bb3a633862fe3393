package qos

import (
	"fmt"
	"slices"
	"time"
)

// Input is what the plan of the queues depends on.
type Input struct {
	WANs     []WAN
	Classes  []Class
	Features Features
}

// WAN is one uplink.
type WAN struct {
	Interface string
	Uplink    BitRate // what the provider's meter lets through; 0 = unknown, the interface is left alone
	Margin    int     // percent of the uplink kept free, 0-50
	Overhead  int     // bytes a packet on the provider's meter beyond the kernel's count (which has the 14 of ethernet)
	MPU       int     // the least that a packet counts on that meter, overhead included; 0 = no least
	MTU       int     // of the interface, layer 3; 0 = 1500
}

// Handles of the tree. Minors are hexadecimal, as tc prints them.
const (
	rootQdisc Handle = 0x1 << 16
	rootClass Handle = rootQdisc | 0x1
)

var classMinor = map[ClassName]uint32{Media: 0x10, Signalling: 0x20, Data: 0x30, Background: 0x40}

// ClassID is a class's place in every WAN's tree and, since HTB takes skb->priority for a class
// when the major matches, the priority that a packet needs to get there (1:10 is 0x10010).
// 0 for a name that is no class: such a packet goes to data, HTB's default.
func ClassID(c ClassName) uint32 {
	if m, ok := classMinor[c]; ok {
		return uint32(rootQdisc) | m
	}
	return 0
}

// Priority is the skb->priority that puts a packet of a class into its queue on a WAN.
type Priority struct {
	WAN     string
	Class   ClassName
	ClassID uint32
}

// Priorities lists, for the firewall, what Want shapes; nothing for a WAN that is left alone.
func Priorities(in Input) []Priority {
	var out []Priority
	for _, w := range in.WANs {
		if !shaped(w, in.Features) {
			continue
		}
		for _, c := range ClassNames {
			out = append(out, Priority{w.Interface, c, ClassID(c)})
		}
	}
	return out
}

func shaped(w WAN, f Features) bool { return w.Uplink >= 64*Kbit && f.HTB }

// Shaped is what a WAN's tree lets through: the uplink less the margin. 0 where nothing is shaped.
func (w WAN) Shaped() BitRate { return whole(w.Uplink.Percent(100 - min(max(w.Margin, 0), 50))) }

// whole cuts to whole bytes a second, the kernel's unit.
func whole(r BitRate) BitRate { return r / 8 * 8 }

// wire is the longest frame that the kernel counts for a packet of the MTU: ethernet and one VLAN tag.
func (w WAN) wire() ByteCount { return WireFrame(w.MTU) }

// WireFrame is the longest frame that the kernel counts for a packet of a layer-3 MTU (0 = 1500):
// an ethernet header and one VLAN tag more.
func WireFrame(mtu int) ByteCount {
	if mtu <= 0 {
		mtu = 1500
	}
	return ByteCount(mtu) + 14 + 4
}

// Sizes of the bursts, and why. What leaves HTB at once stands in the provider's queue in front
// of the next voice packet, so bursts are as small as the kernel's timers allow: a millisecond
// (a late timer then costs no throughput), and never less than one packet, below which HTB
// would still send one and owe the rest.
const (
	burstTime = time.Millisecond
	// The phones of a site are not in step, but often enough many of them speak at the same
	// instant. What they send in up to mediaBurst of the whole link goes out at once and in
	// front of everything; the rest of a packet interval's worth (mediaInterval of the budget)
	// borrows from the link, first of all borrowers. So the link's rate is exceeded, over any
	// window, by no more than mediaBurst and a few packets.
	mediaBurst    = 2 * time.Millisecond
	mediaInterval = 20 * time.Millisecond
)

// leafPackets is the least a leaf holds, in packets. A bound in time alone would be less than one
// packet on slow links. Data holds four: TCP's fast retransmit needs three packets behind a lost one.
var leafPackets = map[ClassName]ByteCount{Media: 2, Signalling: 2, Data: 4, Background: 4}

// Want is the plan of the queues.
//
//	root 1: htb, default 1:30
//	  1:1 the uplink less the margin
//	    1:10 media       prio 0  rate = ceil = the voice budget: strict first, and policed
//	    1:20 signalling  prio 1  may borrow up to all of it
//	    1:30 data        prio 2
//	    1:40 background  prio 3
//	      x0: a leaf bounded in bytes, which lets no skb through above one wire packet
//
// HTB's prio orders only classes that borrow; a class within its own rate always sends, and does
// not ask the parent. So the rates of the leaves never sum up to more than the parent's.
func Want(in Input) State {
	var s State
	for _, w := range in.WANs {
		if shaped(w, in.Features) {
			s.Links = append(s.Links, wantLink(w, in.Classes, in.Features))
		}
	}
	return s.Canonical()
}

func wantLink(w WAN, classes []Class, f Features) Link {
	total, packet := w.Shaped(), w.wire()
	parent := HTBClass{
		Handle: rootClass, Parent: rootQdisc, Rate: total, Ceil: total,
		Burst: burst(total, packet), CBurst: burst(total, packet),
		Quantum: packet, Overhead: uint16(max(w.Overhead, 0)), MPU: uint16(max(w.MPU, 0)),
	}
	l := Link{
		Interface: w.Interface,
		Qdiscs:    []Qdisc{{Handle: rootQdisc, Parent: RootHandle, Kind: "htb", HTB: &HTB{Default: classMinor[Data]}}},
		Classes:   []HTBClass{parent},
	}
	for i, name := range ClassNames {
		c := classNamed(classes, name)
		leaf := parent
		leaf.Handle, leaf.Parent, leaf.Prio = rootQdisc|Handle(classMinor[name]), rootClass, uint32(i)
		leaf.Rate = Rate(total, classes, name)
		leaf.Burst = burst(leaf.Rate, packet)
		if name == Media {
			leaf.Ceil = leaf.Rate
			leaf.CBurst = max(packet, leaf.Rate.Bytes(mediaInterval))
			leaf.Burst = max(packet, min(total.Bytes(mediaBurst), leaf.CBurst))
		}
		l.Classes = append(l.Classes, leaf)
		l.Qdiscs = append(l.Qdiscs, wantLeaf(leaf, LeafBytes(leaf.Rate, c, packet), packet, f))
	}
	return l
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

func (l Link) ours() bool {
	r := l.root()
	if r == nil || r.HTB == nil || r.Handle != rootQdisc || r.HTB.Default != classMinor[Data] {
		return false
	}
	for _, c := range l.Classes {
		if _, known := ClassOf(c.Handle); !known && c.Handle != rootClass {
			return false
		}
	}
	for _, q := range l.Qdiscs {
		_, known := ClassOf(q.Parent)
		if !q.isRoot() && (!known || q.Handle != q.Parent&0xffff<<16) {
			return false
		}
	}
	return true
}

// Rate is the guaranteed rate of a class where the whole tree has total: its share, and together
// with the others never more than total even where the shares are (the config's check refuses
// such shares). For media it is also the ceiling: the voice budget.
func Rate(total BitRate, classes []Class, name ClassName) BitRate {
	sum := 0
	for _, n := range ClassNames {
		sum += max(classNamed(classes, n).Share, 1)
	}
	r := total * BitRate(max(classNamed(classes, name).Share, 1)) / BitRate(max(sum, 100))
	return max(whole(r), 8)
}

// LeafBytes is the bound of a class's leaf: what its rate carries in its Limit, but at least a few packets.
func LeafBytes(rate BitRate, c Class, packet ByteCount) ByteCount {
	least := leafPackets[c.Name]
	if least == 0 {
		least = 2
	}
	return max(rate.Bytes(c.Limit), least*packet)
}

func burst(rate BitRate, packet ByteCount) ByteCount { return max(packet, rate.Bytes(burstTime)) }

// segmentTick is how long a segmenting TBF's bucket takes to fill: two wire packets leave no
// faster than that apart, which no kernel can do anyway. So the rate follows from the burst, and
// since a kernel gives back the rate exactly, but the burst only in steps of 64 ns, it also tells it.
const segmentTick = 100 * time.Nanosecond

// SegmentRate is the rate of a TBF that only segments, for its burst.
func SegmentRate(burst ByteCount) BitRate {
	return BitRate(burst) * 8 * BitRate(time.Second/segmentTick)
}

// SegmentBurst is SegmentRate's inverse; false for any other rate.
func SegmentBurst(rate BitRate) (ByteCount, bool) {
	per := BitRate(8 * time.Second / segmentTick)
	return ByteCount(rate / per), rate >= 64*per && rate%per == 0
}

func wantLeaf(c HTBClass, limit, packet ByteCount, f Features) Qdisc {
	q := Qdisc{Handle: c.Handle & 0xffff << 16, Parent: c.Handle}
	if f.TBF {
		// Burst is one packet and not two: two would let pairs pass as one skb.
		q.Kind, q.TBF = "tbf", &TBF{Rate: SegmentRate(packet), Burst: packet, Limit: limit}
	} else {
		q.Kind, q.FIFO = "bfifo", &FIFO{Limit: uint32(min(limit, 1<<31))}
	}
	return q
}

func classNamed(classes []Class, name ClassName) Class {
	if i := slices.IndexFunc(classes, func(c Class) bool { return c.Name == name }); i >= 0 {
		return classes[i]
	}
	return Class{Name: name, Share: 1, Limit: 50 * time.Millisecond}
}

// Features is what the running kernel can do for queues; qos/tc.Probe finds out.
type Features struct {
	HTB     bool `json:"htb"`
	TBF     bool `json:"tbf"`
	BFIFO   bool `json:"bfifo"`
	FQCoDel bool `json:"fq_codel"`
	Cake    bool `json:"cake"`
	FQ      bool `json:"fq"`
	Prio    bool `json:"prio"`
	IFB     bool `json:"ifb"`
	Ingress bool `json:"ingress"`
}

// AssumedFeatures is what a plan is made for when nobody has probed a kernel (`ringway plan` without root).
func AssumedFeatures() Features { return Features{HTB: true, TBF: true, BFIFO: true} }

// Missing says, in an operator's words, what the kernel lacks that the plan could use and what that costs.
func (f Features) Missing() []string {
	var out []string
	say := func(has bool, name, cost string) {
		if !has {
			out = append(out, fmt.Sprintf("the kernel has no %s: %s", name, cost))
		}
	}
	say(f.HTB, "HTB", "no WAN is shaped, voice waits behind data in the provider's queue")
	if f.HTB {
		say(f.TBF, "TBF", "super-packets leave the WAN's queues whole, voice may wait for 64 kB of data")
	}
	say(f.FQCoDel || f.Cake, "fq_codel or cake", "the data queue is a plain bounded FIFO: flows on the WAN share it unfairly")
	return out
}
