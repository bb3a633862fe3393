package qos

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Input is what the plan of the queues depends on.
type Input struct {
	WANs     []Egress
	LANs     []string // cards of LANs, where what comes in from WANs is shaped; VLANs' parents
	Sites    []Site   // in any order; the plan does not depend on it
	Classes  []Class
	Features Features
}

// Egress is an interface whose outbound queue is shaped.
type Egress struct {
	Interface string
	Line          // without an uplink the interface is left alone; without a downlink nothing is shaped on LANs
	MTU       int // of the interface, layer 3; 0 = 1500
	// Headerless says that the kernel's queues count the IP packet alone, without an Ethernet header: a PPP device.
	Headerless bool
	// Tagged says that packets get the class ID of their class also where nothing is shaped: other things go by it.
	Tagged bool
}

// overhead is what the meter counts beyond what the kernel's queue of w does.
func (w Egress) overhead() int {
	if w.Headerless {
		return w.Overhead + EthernetHeader
	}
	return w.Overhead
}

// Site is another branch, as far as the queues towards it go.
type Site struct {
	Name     string
	Downlink BitRate // what its own line carries inwards; 0 = not known: only the uplink bounds what is sent there
}

// Priority is the skb->priority that puts a packet of a class into its queue on a WAN, unless it goes to a
// site.
type Priority struct {
	WAN     string
	Class   ClassName
	ClassID uint32
}

// Priorities lists, for the firewall, what Want shapes or what is tagged; nothing for a WAN that is left alone.
func Priorities(in Input) []Priority {
	var out []Priority
	for _, w := range in.WANs {
		if !shaped(w, in.Features) && !w.Tagged {
			continue
		}
		for _, c := range ClassNames {
			out = append(out, Priority{w.Interface, c, ClassID(c)})
		}
	}
	return out
}

// SitePriority is the skb->priority that puts a packet of a class to a site into its queue, the same on every
// WAN.
type SitePriority struct {
	Site    string
	Class   ClassName
	ClassID uint32
}

// SitePriorities lists, for the firewall, the queues of sites; nothing where no WAN is shaped or tagged.
func SitePriorities(in Input) []SitePriority {
	if !slices.ContainsFunc(in.WANs, func(w Egress) bool { return shaped(w, in.Features) || w.Tagged }) {
		return nil
	}
	slots := slotsOf(in.Sites)
	var out []SitePriority
	for _, s := range in.Sites {
		for i, c := range ClassNames {
			out = append(out, SitePriority{s.Name, c, uint32(slots[s.Name]) + 1 + uint32(i)})
		}
	}
	return out
}

func shaped(w Egress, f Features) bool { return w.Uplink >= 64*Kbit && f.HTB }

// whole cuts to whole bytes a second, the kernel's unit.
func whole(r BitRate) BitRate { return r / 8 * 8 }

// wire is the longest frame that the kernel counts for a packet of the MTU: ethernet and one VLAN tag.
// A PPP device adds PPPoE's header and room for PPP's own to its MTU (tbf warns of a smaller burst).
func (w Egress) wire() ByteCount {
	if w.Headerless {
		return WireFrame(w.MTU) + 4
	}
	return WireFrame(w.MTU)
}

// WireFrame is the longest frame that the kernel counts for a packet of a layer-3 MTU (0 = 1500):
// an ethernet header and one VLAN tag more.
func WireFrame(mtu int) ByteCount {
	if mtu <= 0 {
		mtu = 1500
	}
	return ByteCount(mtu) + EthernetHeader + 4
}

// Sizes of the bursts, and why. What leaves HTB at once waits in the provider's queue ahead of the next
// voice packet, so bursts are as small as the kernel's timers allow: a millisecond (a late timer then costs
// no throughput), or one packet where that is more. HTB sends as long as it owes nothing, so after an idle
// moment a burst and one packet leave at once, whatever the packet's length. Where a packet takes longer than
// a millisecond, the burst comes on top of what a call waits for anyway, and is half of that; a timer that is
// late by more costs little there, for there are few packets to be late with.
const (
	burstTime = time.Millisecond
	slowBurst = burstTime / 2 // of the line
	slowSite  = 2 * burstTime // the most of a slow site's line at a faster WAN
	// The phones of a site are not in step, but often enough many of them speak at the same
	// instant. What they send in up to mediaBurst of the whole link goes out at once and in
	// front of everything; the rest of a packet interval's worth (mediaInterval of the budget)
	// waits for the next. So the link's rate is exceeded, over any window, by no more than
	// mediaBurst and a few packets.
	mediaBurst    = 2 * time.Millisecond
	mediaInterval = 20 * time.Millisecond

	// tokenPart is the part of a WAN that a leaf of an over-subscribed tree has for itself: 4 leaves of 1024
	// sites take 3 % together. It must not depend on how many there are, or every site's classes would change
	// with a new one.
	tokenPart  = 1 << 17
	maxToken   = 400 // bit a second, a packet in half a minute
	tokenBurst = 1   // byte: one packet, and a debt of minutes after it
)

// leafPackets is the least a leaf holds, in packets. A bound in time alone would be less than one
// packet on slow links. Data holds four: TCP's fast retransmit needs three packets behind a lost one.
var leafPackets = map[ClassName]ByteCount{Media: 2, Signalling: 2, Data: 4, Background: 4}

// Want is the plan of the queues.
//
//	root 1: htb, default 1:30
//	  1:1 the uplink less the margin
//	    1:2 local: what goes to no site
//	      1:10 media       prio 0  rate = ceil = the voice budget: strict first, and policed
//	      1:20 signalling  prio 1  may borrow up to all of it
//	      1:30 data        prio 2
//	      1:40 background  prio 3
//	        x0: a leaf, bounded, which lets no skb through above one wire packet
//	    1:<slot> a site: ceil = its downlink, at most the uplink
//	      1:<slot+1> to 1:<slot+4>: the same four
//
// HTB's prio orders only classes that borrow on one level; a class within its own rate always sends first,
// and does not ask the parent. So the rates of the leaves never sum up to more than the parent's, on every
// level, and there are two ways to fill them in, by whether the sites' voice budgets fit the WAN (see
// shares).
//
// LANs have another tree (downlink.go).
func Want(in Input) State {
	var s State
	slots, sites := slotsOf(in.Sites), slices.Clone(in.Sites)
	slices.SortFunc(sites, func(a, b Site) int { return strings.Compare(a.Name, b.Name) })
	for _, w := range in.WANs {
		if shaped(w, in.Features) {
			s.Links = append(s.Links, wantLink(w, sites, slots, in.Classes, in.Features))
		}
	}
	s.Links = append(s.Links, wantLANs(in)...)
	return s.Canonical()
}

// branch is one inner class of the tree, with its leaves: local, or a site.
type branch struct {
	inner  Handle
	leaves map[ClassName]Handle
	ceil   BitRate
	budget BitRate               // of media
	rates  map[ClassName]BitRate // what each leaf has for itself
}

func (b branch) rate() (sum BitRate) {
	for _, r := range b.rates {
		sum += r
	}
	return sum
}

// shares fills in what each leaf has for itself, in one of two ways.
//
// Where the sites' voice budgets fit into the WAN's (and what no class claims), every media leaf has its
// whole budget for itself: within its rate it preempts everything, on the level where HTB looks first, and
// beyond it nowhere. What the budgets leave is the other classes' floors: half of it local's, half the
// sites', each by its budget. A site's part of both depends on itself and the WAN alone: another site that
// comes or goes changes nothing here.
//
// Where they don't fit, as at a hub whose sites' lines together are far above its own, nobody can have his
// budget for himself: leaves within their rates would go on beyond the WAN's, and 500 sites' data, each
// within a floor, before anybody's call. So no leaf has anything for itself but a token, and all wait at 1:1,
// the one level where prio orders all sites: calls before signalling before data before background, each up
// to its ceil, fair between sites. A token lets one packet through at once, and then for minutes none.
//
// It says whether the budgets fit.
func shares(w Line, local *branch, sites []branch, classes []Class) bool {
	total := w.Shaped()
	nominal, claimed := map[ClassName]BitRate{}, BitRate(0)
	for _, n := range ClassNames {
		nominal[n] = Rate(total, classes, n)
		claimed += nominal[n]
	}
	local.budget = nominal[Media]
	if len(sites) == 0 {
		local.rates = nominal
		return true
	}
	others := claimed - nominal[Media]
	pool := pool(w, classes)
	// What goes to no site has a budget as large, but half of what is left is for what is no call.
	local.budget = min(nominal[Media], whole(others/2))
	floors := (total - pool - local.budget) / 2
	floor := func(all BitRate, b *branch) {
		b.rates = map[ClassName]BitRate{Media: b.budget}
		for _, n := range ClassNames[1:] {
			b.rates[n] = max(whole(BitRate(float64(all)*float64(nominal[n])/float64(others))), 8)
		}
	}
	floor(floors, local)
	budgets, sum, fit := BitRate(0), local.rate(), true
	for i := range sites {
		b := &sites[i]
		floor(BitRate(float64(floors)*float64(b.budget)/float64(pool)), b)
		budgets += b.budget
		sum += b.rate()
		fit = fit && b.rate() <= b.ceil
	}
	if fit && budgets <= pool && sum <= total && local.rate() <= total {
		return true
	}
	tokens(total, local)
	for i := range sites {
		tokens(total, &sites[i])
	}
	return false
}

// pool is for the sites' calls: media's share of w, and what nobody claims.
func pool(w Line, classes []Class) BitRate {
	left := w.Shaped()
	for _, n := range ClassNames[1:] {
		left -= Rate(w.Shaped(), classes, n)
	}
	return left
}

// Budgets are the voice budgets of a WAN's tree.
type Budgets struct {
	Local BitRate            // of what goes to no site
	Sites map[string]BitRate // by name; the most that calls to a site get
	// most that calls with all sites together get, so that the other classes keep their shares
	Pool BitRate
	// each has all of it for itself, whatever the others do; else calls of all sites share the WAN
	Reserved bool
}

// Together is the sites' budgets, added up.
func (b Budgets) Together() (sum BitRate) {
	for _, r := range b.Sites {
		sum += r
	}
	return sum
}

// VoiceBudgets are those that Want plans for w.
func VoiceBudgets(w Line, sites []Site, classes []Class) Budgets {
	local, branches := branchesOf(w, sites, slotsOf(sites), classes)
	b := Budgets{Reserved: shares(w, &local, branches, classes), Sites: map[string]BitRate{}}
	b.Local, b.Pool = local.budget, pool(w, classes)
	for i, s := range sites {
		b.Sites[s.Name] = branches[i].budget
	}
	return b
}

// branchesOf gives what a WAN's tree is of: local and, in the order of sites, theirs, with ceilings and the
// sites' budgets.
func branchesOf(
	w Line,
	sites []Site,
	slots map[string]Handle,
	classes []Class,
) (local branch, branches []branch) {
	local = branch{inner: localClass, ceil: w.Shaped(), leaves: map[ClassName]Handle{}}
	for _, n := range ClassNames {
		local.leaves[n] = Handle(ClassID(n))
	}
	for _, s := range sites {
		b := branch{inner: slots[s.Name], ceil: w.Ceiling(s), leaves: map[ClassName]Handle{}}
		b.budget = w.VoiceBudget(s, classes)
		for i, n := range ClassNames {
			b.leaves[n] = b.inner + 1 + Handle(i)
		}
		branches = append(branches, b)
	}
	return local, branches
}

func tokens(total BitRate, b *branch) {
	token := max(whole(min(total/tokenPart, maxToken, b.ceil/4)), 8)
	b.rates = map[ClassName]BitRate{Media: min(token, b.budget)}
	for _, n := range ClassNames[1:] {
		b.rates[n] = token
	}
}

func wantLink(w Egress, sites []Site, slots map[string]Handle, classes []Class, f Features) Link {
	total, packet := w.Shaped(), w.wire()
	root := HTBClass{
		Handle: rootClass, Parent: rootQdisc, Rate: total, Ceil: total,
		Burst: burst(total, total, total, packet), CBurst: burst(total, total, total, packet),
		Quantum: packet, Overhead: uint16(max(w.overhead(), 0)), MPU: uint16(max(w.MPU, 0)), ATM: w.Cells == ATM,
	}
	l := Link{
		Interface: w.Interface,
		// Bytes that the kernel counts and the meter does not come off at the root: a class's overhead has no sign.
		Qdiscs: []Qdisc{
			{
				Handle: rootQdisc,
				Parent: RootHandle,
				Kind:   "htb",
				HTB:    &HTB{Default: classMinor[Data], Overhead: min(w.overhead(), 0)},
			},
		},
		Classes: []HTBClass{root},
	}
	local, branches := branchesOf(w.Line, sites, slots, classes)
	fit := shares(w.Line, &local, branches, classes)
	small := func(rate, line BitRate) ByteCount {
		if fit {
			return burst(rate, line, total, packet)
		}
		return tokenBurst
	}
	for _, b := range append([]branch{local}, branches...) {
		inner := root
		inner.Handle, inner.Parent, inner.Rate, inner.Ceil = b.inner, rootClass, b.rate(), b.ceil
		inner.Burst, inner.CBurst = small(inner.Rate, b.ceil), burst(b.ceil, b.ceil, total, packet)
		l.Classes = append(l.Classes, inner)
		for i, name := range ClassNames {
			leaf := inner
			leaf.Handle, leaf.Parent, leaf.Prio, leaf.Rate = b.leaves[name], b.inner, uint32(i), b.rates[name]
			leaf.Burst = small(leaf.Rate, b.ceil)
			own := Rate(b.ceil, classes, name)
			if name == Media {
				own, leaf.Ceil = b.budget, b.budget
				leaf.CBurst = max(packet, b.budget.Bytes(mediaInterval))
				if fit {
					leaf.Burst = max(packet, min(total.Bytes(mediaBurst), leaf.CBurst))
				}
			}
			l.Classes = append(l.Classes, leaf)
			l.Qdiscs = append(
				l.Qdiscs,
				wantLeaf(leaf.Handle, name, own, LeafBytes(own, classNamed(classes, name), packet), packet, f)...)
		}
	}
	return l
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

// burst is that of a class on a line, or on its part, of a WAN that carries total.
func burst(rate, line, total BitRate, packet ByteCount) ByteCount {
	if packet <= line.Bytes(burstTime) {
		return max(rate.Bytes(burstTime), packet)
	}
	wait := slowBurst
	if line < total { // a site's: while its tokens come, it waits for its turn between packets to others
		wait = min(wait+total.Serialization(2*packet), slowSite)
	}
	return line.Bytes(wait)
}

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

// wantLeaf is the queue of one class, which drops what its own rate would not carry in its time.
//
// Calls and signalling wait in a FIFO: what is late there is better dropped. Data and background have CoDel
// where the kernel has it, which tells senders early, and flow queues for what goes to no site (a site's data
// is one flow here).
func wantLeaf(class Handle, name ClassName, own BitRate, limit, packet ByteCount, f Features) []Qdisc {
	q := Qdisc{Handle: class & 0xffff << 16, Parent: class}
	bulk := name == Data || name == Background
	switch {
	case bulk && f.Cake && !(f.TBF && f.FQCoDel):
		// Of a super-packet that a socket of the box sent, the kernel books all memory on the last part that it is
		// cut into. Without room for that cake drops all of them. What waits is held by CoDel's time.
		q.Kind, q.Cake = "cake", &Cake{MemoryLimit: codelMemory(limit) + 2*maxGSO}
		return []Qdisc{q}
	case !f.TBF:
		q.Kind, q.FIFO = "bfifo", &FIFO{Limit: uint32(min(limit, 1<<31))}
		return []Qdisc{q}
	}
	// Burst is one packet and not two: two would let pairs pass as one skb.
	q.Kind, q.TBF = "tbf", &TBF{Rate: SegmentRate(packet), Burst: packet, Limit: limit}
	if !bulk || !f.FQCoDel {
		return []Qdisc{q}
	}
	// Below one packet's time CoDel would drop what no queue delays.
	target := max(codelTarget, own.Serialization(packet*3/2)).Truncate(time.Microsecond)
	return []Qdisc{q, {Handle: childOf(class) << 16, Parent: q.Handle | 1, Kind: "fq_codel", FQCoDel: &FQCoDel{
		Limit: uint32(max(limit/64, 64)), Target: target, Interval: codelInterval + target - codelTarget, Flows: 256,
		Quantum: packet, MemoryLimit: codelMemory(limit), ECN: true,
	}}}
}

// RFC 8290, sections 5.2.1 and 5.2.2.
const (
	codelTarget   = 5 * time.Millisecond
	codelInterval = 100 * time.Millisecond
)

// codelMemory is a bound of bytes as fq_codel and cake keep it: in what packets take of the kernel's memory.
func codelMemory(limit ByteCount) ByteCount {
	return max(limit*truesizeFull/WireFrame(1500), 4*truesizeFull)
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
	say(
		f.FQCoDel && f.TBF || f.Cake,
		"fq_codel or cake",
		"the data queue is a plain bounded FIFO: flows on the WAN share it unfairly",
	)
	return out
}

// Leaves says which queue each class has, and why.
func (f Features) Leaves() string {
	if !f.HTB {
		return "no queues: the kernel has no HTB"
	}
	plain, why := "bfifo", "the kernel has no TBF, which would cut super-packets"
	if f.TBF {
		plain, why = "tbf", "a FIFO bounded in time, which cuts super-packets"
	}
	bulk := "data and background as well: the kernel has neither fq_codel nor cake"
	switch {
	case f.TBF && f.FQCoDel:
		bulk = "data and background tbf with fq_codel: senders are told early, flows to no site are fair"
	case f.Cake:
		bulk = "data and background cake: fq_codel is not there, or no TBF to cut super-packets before it"
	}
	return fmt.Sprintf("media and signalling %s (%s); %s", plain, why, bulk)
}
