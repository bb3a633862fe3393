package media

import (
	"net/netip"
	"slices"
	"time"

	"ringway/srtp/stream"
	"ringway/tunnel/datagram"
)

const (
	batch     = 64
	maxPacket = 2048 // of what arrives, without headers of IP and UDP
	// maxTrailer is what SRTP adds: the longest tag, the index of SRTCP, an MKI.
	maxTrailer = 64
	slotSize   = maxHeaders + maxPacket + maxTrailer
)

// arrival is a packet that arrived.
type arrival struct {
	from, to netip.AddrPort
	payload  []byte // borrowed for the call
}

// out is a packet that is ready to leave.
type out struct {
	wire []byte // from the header of IP on, in the slot's memory
	to   datagram.Sockaddr
	leg  *end
	side Side
	size int // of the payload
}

// forwarder turns packets that arrive on a side into packets that leave. It belongs to the thread that has the turn
// and makes no system call.
type forwarder struct {
	side    Side
	table   *table
	total   *drops // of packets that belong to no leg
	dtls    *ring[dtlsPacket]
	updates *ring[pending]
	// told says that something is in a ring for the control side.
	told bool
	// longest is maxWait; tests on machines that are busy have more.
	longest time.Duration

	memory []byte
	outs   [batch]out
	n      int
}

func newForwarder(side Side, t *table, total *drops) *forwarder {
	return &forwarder{
		side: side, total: total, table: t,
		dtls: newRing[dtlsPacket](dtlsRing), updates: newPending(updateRing),
		memory: make([]byte, batch*slotSize), longest: maxWait,
	}
}

// slot is the memory of the next packet to leave. With three indices, nothing grows into the memory of another.
func (f *forwarder) slot() []byte {
	at := f.n * slotSize
	return f.memory[at : at+slotSize : at+slotSize]
}

// take forwards one packet, or counts why not. There is room for it in outs. waited is for how long it was in the
// queue, wall the time of day and now that of a clock that never goes back, all in ns.
func (f *forwarder) take(a *arrival, waited time.Duration, wall, now int64) {
	p := f.table.find(f.side, a.to)
	if p == nil {
		f.total.add(dropNoLeg)
		return
	}
	from := p.from
	if waited > f.longest {
		from.drops.add(dropLate)
		return
	}

	rtcp := p.rtcp
	switch k := classify(a.payload); {
	case k == kindOther:
		from.drops.add(dropOther)
		return
	case k == kindDTLS:
		f.handOver(p, a)
		return
	case k == kindRTP && p.rtcp, k == kindRTCP && from.rtcpApart && !p.rtcp:
		from.drops.add(dropMux) // RFC 5761 section 5.1.1: it is as negotiated
		return
	case k == kindRTCP:
		rtcp = true
	}

	if !from.Learn && a.from.Addr() != from.said(rtcp) {
		from.drops.add(dropSource)
		return
	}
	headers := headersOf(p.to.Local.Addr())
	plain, why, ok := f.open(p.flow, f.slot()[headers:], a, rtcp, now)
	if !ok {
		from.drops.add(why)
		return
	}
	f.note(p.flow, a, rtcp, wall, now)
	if rtcp && p.answers != nil {
		p.answers.Translate(plain)
	}

	switch {
	case !rtcp && !from.Payloads.has(payloadType(plain)):
		from.drops.add(dropPayload)
	case !rtcp && !p.state.media.take(len(plain), now), rtcp && !p.state.control.take(len(plain), now):
		from.drops.add(dropQuota)
	default:
		f.seal(p.flow, plain, headers, rtcp, now)
	}
}

// open authenticates and decrypts a packet into dst.
func (f *forwarder) open(fl *flow, dst []byte, a *arrival, rtcp bool, now int64) (plain []byte, why reason, ok bool) {
	if fl.from.Protection == Clear {
		if !rtcp && !wholeRTP(a.payload) || rtcp && !wholeRTCP(a.payload) {
			return nil, dropMalformed, false
		}
		return dst[:copy(dst, a.payload)], 0, true
	}

	r := fl.state.receiver
	if r == nil {
		return nil, dropNoKey, false
	}
	r.Expected = a.from == fl.from.towards(rtcp)
	var err error
	if rtcp {
		plain, err = r.OpenRTCP(dst, a.payload, now)
	} else {
		plain, err = r.Open(dst, a.payload, now)
	}
	if err != nil {
		return nil, reasonOf(err), false
	}
	// The library grows a slice that is too short: what is elsewhere than in the slot has no room for headers.
	if len(plain) == 0 || &plain[0] != &dst[0] {
		return nil, dropMalformed, false
	}
	return plain, 0, true
}

// note learns from a packet that is authentic, or from where signalling said.
func (f *forwarder) note(fl *flow, a *arrival, rtcp bool, wall, now int64) {
	e, s := fl.from, fl.state
	e.receivedPackets.Add(1)
	e.receivedBytes.Add(uint64(len(a.payload)))
	e.lastReceived.Store(wall)
	if e.Protection != Secure {
		return
	}
	if n := s.receiver.Recovered(); n != 0 {
		e.recovered.Add(n)
	}
	if s.untoldHeard || s.receiver.Due() {
		f.reportHeard(fl)
	}

	l := e.latch(rtcp)
	if !e.Learn || a.from == l.load() || now-s.learned < int64(learnEvery) {
		return
	}
	if a.from.Addr().Is4() != e.Local.Addr().Is4() {
		return
	}
	s.learned = now
	l.store(a.from)
	e.moved.Add(1)
}

// seal encrypts what was opened for the other leg, writes the headers in front, and puts it into outs.
func (f *forwarder) seal(fl *flow, plain []byte, headers int, rtcp bool, now int64) {
	to, slot := fl.to, f.slot()
	wire := plain
	if to.Protection == Secure {
		s := fl.state.sender
		if s == nil {
			to.drops.add(dropNoKey)
			return
		}
		// The result may be longer, and the slot has room for it.
		in := slot[headers : headers+len(plain)]
		var err error
		if rtcp {
			wire, err = s.SealRTCP(slot[headers:], in, now)
		} else {
			wire, err = s.Seal(slot[headers:], in, now)
		}
		if s.Due() || fl.state.untoldSent {
			f.reportSent(fl)
		}
		if c := s.Crowded(); c != to.crowded.Load() {
			to.crowded.Store(c)
		}
		if err != nil {
			to.drops.add(reasonOf(err))
			return
		}
		if &wire[0] != &slot[headers] {
			to.drops.add(dropOversized)
			return
		}
		to.sealed.Store(s.Key().Sealed())
	}

	size := headers + len(wire)
	towards := to.towards(rtcp)
	putHeaders(slot[:size], to.local(rtcp), towards, to.DSCP)
	o := &f.outs[f.n]
	o.wire, o.leg, o.side, o.size = slot[:size], to, to.Side, len(wire)
	// Raw sockets of IPv6 take a port for a protocol (raw(7), ipv6(7)).
	o.to = datagram.RawSockaddr(netip.AddrPortFrom(towards.Addr(), 0))
	f.n++
}

// wholeRTP says whether the header of RTP is whole: SRTP opens no other, and what comes in clear is treated alike.
func wholeRTP(p []byte) bool {
	const sourceSize, extensionHeader = 4, 4
	n := rtpHeader + int(p[0]&0x0f)*sourceSize
	if p[0]&0x10 != 0 {
		if len(p) < n+extensionHeader {
			return false
		}
		n += extensionHeader + (int(p[n+2])<<8|int(p[n+3]))*4
	}
	return len(p) >= n
}

// wholeRTCP says whether the packets of a compound fill it (RFC 3550 section 6.4.1).
func wholeRTCP(p []byte) bool {
	for len(p) > 0 {
		if len(p) < 4 || p[0]>>6 != 2 {
			return false
		}
		n := (int(p[2])<<8|int(p[3]))*4 + 4
		if n > len(p) {
			return false
		}
		p = p[n:]
	}
	return true
}

// truncated counts a packet that was longer than any that is taken.
func (f *forwarder) truncated(to netip.AddrPort) {
	if p := f.table.find(f.side, to); p != nil {
		p.from.drops.add(dropTruncated)
		return
	}
	f.total.add(dropNoLeg)
}

// handOver hands a packet of DTLS to the goroutine that speaks it.
func (f *forwarder) handOver(p *port, a *arrival) {
	from := p.from
	switch {
	case !from.DTLS || p.rtcp:
		from.drops.add(dropDTLS)
	// Nothing of it is authenticated before the handshake is over: it comes from where signalling said.
	case a.from.Addr() != from.Remote.Addr():
		from.drops.add(dropSource)
	default:
		d := f.dtls.next()
		if d == nil || from.dtlsWaiting.Load() >= maxDTLSWaiting {
			from.drops.add(dropDTLSFull)
			return
		}
		from.dtlsWaiting.Add(1)
		d.of, d.leg, d.from, d.n = from.endCounts, from.ID, a.from, copy(d.packet[:], a.payload)
		f.dtls.put()
		f.told = true
	}
}

// reportHeard tells the control side which sources a flow has heard, if there is room.
func (f *forwarder) reportHeard(fl *flow) {
	u := f.updates.next()
	if u == nil {
		return
	}
	u.leg, u.isSent, u.heard = fl.from.ID, false, fl.state.receiver.AppendHeard(u.heard[:0])
	f.updates.put()
	fl.state.untoldHeard, f.told = false, true
}

// reportSent tells the control side what a flow has sent, where the account that it has is too old. Without room it
// is tried again with the next packet.
func (f *forwarder) reportSent(fl *flow) {
	u := f.updates.next()
	if u == nil {
		return
	}
	u.leg, u.isSent = fl.to.ID, true
	fl.state.sender.AccountTo(&u.sent)
	f.updates.put()
	fl.state.untoldSent, f.told = false, true
}

// pending is an update on its way. Its memory is used again.
type pending struct {
	leg    uint64
	isSent bool // else it is what was heard
	sent   stream.Account
	heard  []stream.Heard
}

func newPending(n int) *ring[pending] {
	r := newRing[pending](n)
	for i := range r.values {
		r.values[i].sent.Sources = make([]stream.Sent, 0, stream.MaxSources)
		r.values[i].heard = make([]stream.Heard, 0, stream.MaxHeard)
	}
	return r
}

// update is a copy of it.
func (p *pending) update() Update {
	if !p.isSent {
		return Update{Leg: p.leg, Heard: slices.Clone(p.heard)}
	}
	return Update{Leg: p.leg, Sent: &stream.Account{Sources: slices.Clone(p.sent.Sources), Begin: p.sent.Begin}}
}

// Update is what the next process has to know of a leg: what was sent, or which sources were heard. It replaces the
// one before of the same leg and kind, and, where a Sender or Receiver has come from another leg, that one's.
type Update struct {
	Leg   uint64
	Sent  *stream.Account // for Sender.Restore
	Heard []stream.Heard  // for Receiver.Restore
}

// dtlsPacket is a packet of DTLS on its way.
type dtlsPacket struct {
	of     *endCounts
	leg    uint64
	from   netip.AddrPort
	n      int
	packet [maxPacket]byte
}

// Sizes of the rings to the control side, powers of two.
const (
	dtlsRing   = 64
	updateRing = 256
)
