package media

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"ringway/srtp/stream"
)

// table is what the threads look packets up in. The control side changes it in place: a copy for each change would take
// more memory than the calls do, and the collector's time.
type table struct {
	places [sides]atomic.Pointer[[]*address] // another list when an address comes or goes
}

// address has the ports of one of our addresses, in pages that are made when they are needed.
type address struct {
	netip.Addr
	pages [1 << 16 / pageSize]atomic.Pointer[page]
	ports int // of the control side: how many there are
}

type page [pageSize]atomic.Pointer[port]

const pageSize = 256

// port is a port of a leg.
type port struct {
	*flow
	rtcp bool // RTCP's own
}

// find is what is at a place; nil is nothing.
func (t *table) find(side Side, at netip.AddrPort) *port {
	a := t.address(side, at.Addr())
	if a == nil {
		return nil
	}
	p := a.pages[at.Port()/pageSize].Load()
	if p == nil {
		return nil
	}
	return p[at.Port()%pageSize].Load()
}

func (t *table) address(side Side, at netip.Addr) *address {
	all := t.places[side].Load()
	if all == nil {
		return nil
	}
	for _, a := range *all {
		if a.Addr == at {
			return a
		}
	}
	return nil
}

// put has a port at a place, in place of what is there; nil is none. It is for the control side.
func (t *table) put(side Side, at netip.AddrPort, to *port) {
	a := t.address(side, at.Addr())
	if a == nil {
		if to == nil {
			return
		}
		a = &address{Addr: at.Addr()}
		t.store(side, append(slices.Clone(t.all(side)), a))
	}
	p := a.pages[at.Port()/pageSize].Load()
	if p == nil {
		p = &page{}
		a.pages[at.Port()/pageSize].Store(p)
	}
	switch before := p[at.Port()%pageSize].Swap(to); {
	case before == nil && to != nil:
		a.ports++
	case before != nil && to == nil:
		a.ports--
	}
	if a.ports == 0 { // it may be an address that the box has no more
		t.store(side, slices.DeleteFunc(slices.Clone(t.all(side)), func(o *address) bool { return o == a }))
	}
}

func (t *table) all(side Side) []*address {
	if all := t.places[side].Load(); all != nil {
		return *all
	}
	return nil
}

func (t *table) store(side Side, all []*address) { t.places[side].Store(&all) }

// replace puts the flows of a pair in, and takes those of others out that are not at its places. nil is no pair.
func (t *table) replace(before map[uint64]*pair, next *pair) {
	type place struct {
		side Side
		at   netip.AddrPort
	}
	is := map[place]bool{}
	next.each(func(side Side, at netip.AddrPort, p *port) {
		is[place{side, at}] = true
		t.put(side, at, p)
	})
	for _, p := range before {
		p.each(func(side Side, at netip.AddrPort, _ *port) {
			if !is[place{side, at}] {
				t.put(side, at, nil)
			}
		})
	}
}

// each tells of the places of a pair.
func (p *pair) each(f func(Side, netip.AddrPort, *port)) {
	if p == nil {
		return
	}
	for _, x := range p.flows {
		f(x.from.Side, x.from.Local, &port{flow: x})
		if x.from.rtcpApart {
			f(x.from.Side, x.from.LocalRTCP, &port{flow: x, rtcp: true})
		}
	}
}

// flow is what arrives on one leg and leaves by the other. Besides state it is never changed.
type flow struct {
	from, to *end
	state    *state
	// answers is what protects the other direction, which RTCP that arrives here speaks of; nil: that is in clear.
	answers *stream.Sender
}

// state is the part of a flow that belongs to the thread of the side that it arrives from. A flow that takes the
// place of another one of the same leg, with the same streams, has its state.
type state struct {
	receiver *stream.Receiver // of from; nil: in clear, or no key yet
	sender   *stream.Sender   // of to; the same
	media    bucket
	control  bucket
	learned  int64
	// The next process was told of neither stream that it is this leg's.
	untoldHeard, untoldSent bool
}

// end is a leg as the threads see it: what it is, and what both directions' threads keep of it.
type end struct {
	Leg
	remote     [2]latch // RTP's and RTCP's, where that is apart
	rtcpApart  bool
	*endCounts // go on when the leg is replaced
}

// endCounts are counted by the threads of both directions.
type endCounts struct {
	receivedPackets, receivedBytes atomic.Uint64
	sentPackets, sentBytes         atomic.Uint64
	sealed                         atomic.Uint64 // with the key in use
	recovered                      atomic.Uint64
	moved                          atomic.Uint64
	crowded                        atomic.Bool
	dtlsWaiting                    atomic.Int32
	rotations                      atomic.Uint64
	lastReceived                   atomic.Int64 // ns of the wall clock
	drops                          drops
}

const (
	rtpEnd = iota
	rtcpEnd
)

// newEnd makes an end of a leg. It goes on from the one before, which may be nil.
func newEnd(l Leg, before *end) *end {
	e := &end{Leg: l, rtcpApart: l.LocalRTCP.IsValid()}
	if before != nil {
		e.endCounts = before.endCounts
		if before.Sender != l.Sender {
			e.sealed.Store(0)
		}
	} else {
		e.endCounts = &endCounts{}
	}
	remotes := [2]netip.AddrPort{l.Remote, l.RemoteRTCP}
	for i, said := range remotes {
		a := said
		// What was learned stays while signalling says the same, and the keys are the same: with others it may be
		// another device.
		if before != nil && before.Learn && l.Learn && before.Receiver == l.Receiver &&
			[2]netip.AddrPort{before.Remote, before.RemoteRTCP}[i] == said {
			a = before.remote[i].load()
		}
		if said.IsValid() {
			e.remote[i].store(a)
		}
	}
	return e
}

// local and towards are where packets leave from and go to.
func (e *end) local(rtcp bool) netip.AddrPort {
	if rtcp && e.rtcpApart {
		return e.LocalRTCP
	}
	return e.Local
}

func (e *end) towards(rtcp bool) netip.AddrPort { return e.latch(rtcp).load() }

func (e *end) latch(rtcp bool) *latch {
	if rtcp && e.rtcpApart {
		return &e.remote[rtcpEnd]
	}
	return &e.remote[rtpEnd]
}

// said is the address from which signalling says that packets come.
func (e *end) said(rtcp bool) netip.Addr {
	if rtcp && e.rtcpApart {
		return e.RemoteRTCP.Addr()
	}
	return e.Remote.Addr()
}
