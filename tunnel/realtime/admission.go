package realtime

import (
	"encoding/binary"
	"hash/maphash"
	"time"
)

// Admission of calls. What leaves for a site as media has a budget there (tunnel.Admission), and the queue behind the engine polices it as a
// whole: of too many calls every one would lose its part. So a flow of media passes only while it was admitted: the first come are in, what
// does not fit any more is dropped here, before it is encrypted. Each end guards what it sends.
//
//  1. a flow is known by addresses and ports (flowID); its cost on the provider's meter is taken from its first packet, as if that came
//     50 times a second, until it was measured
//  2. a new flow is admitted while its cost fits beside those of the admitted, in the site's budget and the line's. Once a flow was refused, others
//     have to show that they go on (waiting): ports that change with each packet must not take the place that a call leaves
//  3. who is in stays: a flow has its cost and a quarter more (GCRA), and beyond that what is free. One that wants more than is
//     free in its first second was admitted by mistake, and goes
//  4. a flow that is silent gives its place back (patience)
//  5. where a budget shrank, the newest go
//
// All state of flows is the outbound thread's whose turn it is: no lock, no atomic but for what status reads. The table is made by the control side, by
// what the budgets can carry, and is never larger than flowsMost: 1.5 MiB at a hub of a thousand sites, 96 KiB at a branch.

const (
	assumedInterval = 20 * time.Millisecond // of a new flow: RFC 3551 (section 4.2) and all phones
	window          = time.Second           // of sound, over which a cost is measured
	pauseLength     = 200 * time.Millisecond

	flowBurst    = 500 * time.Millisecond // of a flow, that may come at once: what waited while a plane was replaced
	controlBurst = 5 * time.Second        // of RTCP: a few reports in a row
	quarter      = 4                      // a flow has 1/quarter above its cost

	// A flow that has hardly begun and stops was no call. One that goes on without pauses has ended, or is on hold, when it is silent for
	// two seconds. A pause makes for longer ones: with silence suppression no packet may come for as long as nobody speaks (G.729, Annex B,
	// sends when the noise changes; RFC 3389 leaves it to the sender), and RTCP comes in 5 s, up to 7.5 of which are in order (RFC 3550, section 6.2).
	patienceNew   = 200 * time.Millisecond
	patienceLeast = 2 * time.Second
	patienceMost  = 10 * time.Second
	patiencePause = 4 // times the longest pause

	// What a flow costs stays its highest until it was lower for so long: who is silent will speak again.
	lowWindows = 30

	pressedFor  = time.Second // after a refusal new flows have to show that they go on
	provenAfter = 3           // packets
	evictEvery  = 20 * time.Millisecond
	refusingFor = 3 * time.Second // as status says it
	costLeast   = 400             // bit/s: flows that send nothing cannot fill the table
	leastCall   = 24_000          // bit/s: G.729 with three frames a packet; by it the table is sized
	flowsLeast  = 1 << 10         // slots
	flowsMost   = 1 << 14
	sweepPacket = 2 // slots looked at with each packet
	// Before a new flow is refused, so many are looked at, at most so often: a branch's whole table, in some 10 us.
	sweepUrgent = 1 << 10
	urgentEvery = 5 * time.Millisecond

	waitSets = 128
	waitWays = 4
	waitFor  = time.Second // a flow that was not seen for so long waits no more
	learnt   = time.Second // its rate is known after that

	rtcpFirst, rtcpLast = 200, 207 // packet types (RFC 5761, section 4)
)

// guard is what the outbound thread works with; nil: every packet passes.
type guard struct {
	media uint64 // inner DSCP that are media, a bit each
	table *flows
}

// flow is an admitted one. Times are the engine's clock's.
type flow struct {
	id      uint64 // 0: none
	peer    *peer
	line    *line // that it is charged to
	last    int64
	since   int64
	tat     int64  // theoretical arrival time: before it the flow is ahead of its rate
	active  int64  // ns of sound in the window
	bytes   int64  // on the wire, in the window
	cost    int64  // bit/s
	lowPeak int64  // the highest of the windows below cost
	gap     int64  // longest pause, ns
	perByte uint32 // ns that a byte takes at cost and a quarter
	packets uint8  // up to 255
	low     uint8  // windows below cost
	young   bool   // not measured yet
	control bool   // RTCP, ICMP
}

// flows is a hash table with linear probing, at most half full.
type flows struct {
	slots  []flow
	n      int
	cursor int
	evict  int64 // when one was last put out
	urgent int64 // when room was last looked for
	wait   [waitSets][waitWays]waiting
}

// waiting is a flow that was refused and may go on.
type waiting struct {
	id          uint64
	first, last int64
	bytes       int64
	cost        int64 // it is known to have; 0: not
	packets     uint8
}

var flowSeed = maphash.MakeSeed() // so that nobody can choose ports that collide

// flowID tells a packet's flow. What has no ports (a fragment, another protocol) is one with all alike between two hosts.
func flowID(p []byte) uint64 {
	id := uint64(0)
	switch {
	case p[0] == 0x45 && p[9] == protocolUDP && p[6]&0x3f == 0 && p[7] == 0 && len(p) >= 28:
		id = maphash.Bytes(flowSeed, p[12:24])
	case p[0]>>4 == 6 && p[6] == protocolUDP && len(p) >= 48:
		id = maphash.Bytes(flowSeed, p[8:44])
	case p[0]>>4 == 6:
		id = maphash.Bytes(flowSeed, p[8:40])
	default:
		id = maphash.Bytes(flowSeed, p[12:20])
		if at := int(p[0]&15) * 4; p[9] == protocolUDP && p[6]&0x3f == 0 && p[7] == 0 && len(p) >= at+8 { // with options
			id ^= uint64(binary.BigEndian.Uint32(p[at:])) * 0x9e3779b97f4a7c15
		}
	}
	return max(id, 1)
}

// https://www.iana.org/assignments/protocol-numbers
const (
	protocolICMP   = 1
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// isControl says whether a packet is RTCP, or SRTCP, whose first words are as clear; or ICMP, which is no call either: who tries the way
// with ping, marked as calls are, must not take a call's place.
func isControl(p []byte) bool {
	if p[0]>>4 == 4 && p[9] == protocolICMP || p[0]>>4 == 6 && p[6] == protocolICMPv6 {
		return true
	}
	at := 48
	if p[0]>>4 == 4 {
		at = int(p[0]&15)*4 + 8
	}
	return len(p) >= at+8 && p[at]>>6 == 2 && p[at+1] >= rtcpFirst && p[at+1] <= rtcpLast
}

// newFlows makes a table for what rate carries, bits a second; RTCP is a flow of its own.
func newFlows(rate uint64) *flows {
	n := flowsLeast
	for n < flowsMost && uint64(n) < 4*rate/leastCall {
		n *= 2
	}
	return &flows{slots: make([]flow, n)}
}

func (f *flows) home(id uint64) int { return int(id & uint64(len(f.slots)-1)) }

// find gives the flow's slot, or the empty one where it would be.
func (f *flows) find(id uint64) *flow {
	for i := f.home(id); ; i++ {
		s := &f.slots[i&(len(f.slots)-1)]
		if s.id == id || s.id == 0 {
			return s
		}
	}
}

// remove takes the flow at i out, and closes the gap that it leaves for those that probe.
func (f *flows) remove(i int) {
	f.slots[i].charge(0)
	if !f.slots[i].control {
		f.slots[i].peer.media.flows.Add(-1)
	}
	mask := len(f.slots) - 1
	for j := i; ; {
		j = (j + 1) & mask
		if f.slots[j].id == 0 {
			break
		}
		if (j-f.home(f.slots[j].id))&mask >= (j-i)&mask {
			f.slots[i] = f.slots[j]
			i = j
		}
	}
	f.slots[i] = flow{}
	f.n--
}

func (f *flows) removeFlow(s *flow) {
	for i := f.home(s.id); ; i++ {
		if at := i & (len(f.slots) - 1); &f.slots[at] == s {
			f.remove(at)
			return
		}
	}
}

// sweep looks at the next n slots for flows that gave their place back.
func (f *flows) sweep(n int, now int64) {
	for range n {
		f.cursor = (f.cursor + 1) & (len(f.slots) - 1)
		if s := &f.slots[f.cursor]; s.id != 0 && (now-s.last > s.patience() || s.peer.gone.Load()) {
			f.remove(f.cursor) // what moves up is looked at in the next round
		}
	}
}

// adopt takes over the flows of a smaller table.
func (f *flows) adopt(old *flows) {
	f.wait = old.wait
	for i := range old.slots {
		if s := &old.slots[i]; s.id != 0 {
			*f.find(s.id) = *s
			f.n++
		}
	}
}

// putOut drops the newest flow of p, or, with l, of a line.
func (f *flows) putOut(p *peer, l *line, now int64) {
	if now-f.evict < int64(evictEvery) {
		return
	}
	f.evict = now
	newest := -1
	for i := range f.slots {
		s := &f.slots[i]
		if s.id != 0 && !s.control && (s.peer == p || l != nil && s.line == l) && (newest < 0 || s.since > f.slots[newest].since) {
			newest = i
		}
	}
	if newest >= 0 {
		s := &f.slots[newest]
		f.remember(s.id, s.cost, now)
		f.remove(newest)
	}
}

// patience is for how long the flow may be silent.
func (s *flow) patience() int64 {
	if s.packets == 1 && !s.control {
		return int64(patienceNew)
	}
	if s.control {
		return int64(patienceMost)
	}
	return min(max(patiencePause*s.gap, int64(patienceLeast)), int64(patienceMost))
}

// charge changes what the flow costs.
func (s *flow) charge(cost int64) {
	s.peer.media.taken(s.control).Add(cost - s.cost)
	s.line.take(s.control, cost-s.cost)
	s.cost = cost
	if cost > 0 {
		const bits = 8 * int64(time.Second)
		s.perByte = uint32(bits / (cost + cost/quarter))
	}
}

// admits says whether a packet for p goes on: packet is the one inside, size what it will have when it is padded.
func (o *outbound) admits(g *guard, b *budget, p *peer, packet []byte, size int, now int64) bool {
	f := o.flows
	if f != g.table {
		if f != nil {
			g.table.adopt(f)
		}
		f, o.flows = g.table, g.table
	}
	f.sweep(sweepPacket, now)
	id := flowID(packet)
	ip := 20
	if to := p.endpoint.Load(); to != nil && to.raw.V6() {
		ip = 40
	}
	wire := b.line.wire(size + headerSize + tagSize + 8 + ip)
	s := f.find(id)
	if s.id != 0 && s.peer != p { // its network is another site's now
		f.removeFlow(s)
		s = f.find(id)
	}
	if s.id == 0 {
		return f.admit(s, id, b, p, packet, wire, now)
	}
	return f.pass(s, b, wire, now)
}

// admit takes a new flow in, or refuses its packet. s is where it would be.
func (f *flows) admit(s *flow, id uint64, b *budget, p *peer, packet []byte, wire, now int64) bool {
	control := isControl(packet)
	interval := assumedInterval
	if control {
		interval = time.Second
	}
	cost := wire * 8 * int64(time.Second) / int64(interval)
	m := &p.media
	w := f.waits(id, now)
	proven := control || now-m.refusedAt.Load() > int64(pressedFor) || m.refusedAt.Load() == 0 // RTCP comes too seldom to show that it goes on
	if w != nil {
		if w.packets < 255 {
			w.packets++
		}
		switch { // of what came before this packet, over the time that it took
		case now-w.first >= int64(learnt):
			cost = w.bytes * 8 * int64(time.Second) / (now - w.first)
		case w.cost > 0:
			cost = max(cost, w.cost)
		}
		w.last, w.bytes = now, w.bytes+wire
		proven = proven || w.packets >= provenAfter
	}
	cost = max(cost, costLeast)
	fits := func() bool {
		alone := !control && m.flows.Load() == 0 && !b.line.bounded // whatever the first assumption was: it is measured
		return 2*f.n < len(f.slots) && (alone || b.room(p, control, cost))
	}
	in := proven && fits()
	if proven && !in && now-f.urgent >= int64(urgentEvery) { // some may be silent
		f.urgent = now
		f.sweep(min(sweepUrgent, len(f.slots)), now)
		in, s = fits(), f.find(id)
	}
	if in {
		if w != nil {
			*w = waiting{}
		}
		*s = flow{id: id, peer: p, line: b.line, last: now, since: now, tat: now, packets: 1, bytes: wire, young: true, control: control}
		s.charge(cost)
		s.tat += wire * int64(s.perByte)
		f.n++
		if !control {
			m.flows.Add(1)
		}
		m.at.Store(now)
		return true
	}
	if w == nil {
		f.newWaiting(id, wire, now)
	}
	m.refuse(control, now)
	return false
}

// pass says whether a packet of an admitted flow goes on, and measures it.
func (f *flows) pass(s *flow, b *budget, wire, now int64) bool {
	if s.line != b.line { // another WAN is in use, or the budgets are new
		s.line.take(s.control, -s.cost)
		s.line = b.line
		s.line.take(s.control, s.cost)
	}
	pause := now - s.last
	s.last = now
	if s.packets < 255 {
		s.packets++
	}
	s.gap = max(s.gap, pause)
	if !s.control {
		pause = min(pause, int64(pauseLength))
	}
	if s.active += pause; s.active >= int64(window) && !f.measured(s, b, now) {
		return false
	}
	burst := int64(flowBurst)
	if s.control {
		burst = int64(controlBurst)
	}
	tat := max(s.tat, now)
	if tat-now > burst {
		want := max((s.bytes+wire)*8*int64(time.Second)/max(s.active, int64(flowBurst)), s.cost+s.cost/2)
		switch {
		case b.room(s.peer, s.control, want-s.cost):
			s.charge(want)
			tat = now
		case s.young && !s.control && s.peer.media.flows.Load() > 1:
			f.misjudged(s, want, now)
			return false
		default:
			s.peer.media.refuse(s.control, now)
			return false
		}
	}
	s.tat = tat + wire*int64(s.perByte)
	s.bytes += wire
	if !s.control {
		const slack = 16 // 1/slack: what is measured is not exact
		m := &s.peer.media
		if most := b.limit.calls; m.calls.Load() > most+most/slack && m.flows.Load() > 1 {
			f.putOut(s.peer, nil, now)
		} else if most := b.line.limit.calls; b.line.bounded && b.line.taken.calls > most+most/slack {
			f.putOut(nil, b.line, now)
		}
	}
	return true // also if it was itself that was put out: its next one is not
}

// measured ends a window: s.bytes came in s.active. False: the flow is out.
func (f *flows) measured(s *flow, b *budget, now int64) bool {
	rate := max(s.bytes*8*int64(time.Second)/s.active, costLeast)
	s.active, s.bytes = 0, 0
	young := s.young
	s.young = false
	s.peer.media.at.Store(now)
	switch {
	case rate > s.cost+s.cost/10:
		s.low, s.lowPeak = 0, 0
		if b.room(s.peer, s.control, rate-s.cost) {
			s.charge(rate)
		} else if young && !s.control && s.peer.media.flows.Load() > 1 {
			f.misjudged(s, rate, now)
			return false
		}
	case rate >= s.cost-s.cost/10: // as it was: arrival times swing
		s.low, s.lowPeak = 0, 0
	case young && s.gap <= int64(pauseLength) || s.control: // one that pauses may have begun with silence, and will speak
		s.charge(rate)
	default:
		s.lowPeak = max(s.lowPeak, rate)
		if s.low++; s.low >= lowWindows {
			s.charge(s.lowPeak)
			s.low, s.lowPeak = 0, 0
		}
	}
	return true
}

// misjudged puts out a flow that was admitted for less than it takes, and remembers what that is.
func (f *flows) misjudged(s *flow, cost, now int64) {
	f.remember(s.id, cost, now)
	s.peer.media.refuse(false, now)
	f.removeFlow(s)
}

// remember has a flow that was put out wait, with what it is known to cost.
func (f *flows) remember(id uint64, cost, now int64) {
	w := f.waits(id, now)
	if w == nil {
		w = f.newWaiting(id, 0, now)
	}
	w.cost = cost
}

// waits finds a flow that waits; nil: it does not.
func (f *flows) waits(id uint64, now int64) *waiting {
	set := &f.wait[id>>32%waitSets]
	for i := range set {
		if w := &set[i]; w.id == id {
			if now-w.last > int64(waitFor) {
				*w = waiting{}
				return nil
			}
			return w
		}
	}
	return nil
}

// newWaiting has a flow wait, in the place of one that is gone, or else of the one with fewest packets and, of these, the oldest: what
// goes on stays, however many others there are.
func (f *flows) newWaiting(id uint64, wire, now int64) *waiting {
	set := &f.wait[id>>32%waitSets]
	at := &set[0]
	for i := range set {
		w := &set[i]
		if w.id == 0 || now-w.last > int64(waitFor) {
			at = w
			break
		}
		if w.packets < at.packets || w.packets == at.packets && w.last < at.last {
			at = w
		}
	}
	*at = waiting{id: id, first: now, last: now, bytes: wire, packets: 1}
	return at
}
