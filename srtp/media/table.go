package media

import (
	"net/netip"
	"sync/atomic"

	"ringway/srtp/stream"
)

// table is what the threads look packets up in. It is never changed: the control side makes another one.
type table struct {
	ports [sides]map[netip.AddrPort]port
}

// port is a port of a leg.
type port struct {
	*flow
	rtcp bool // RTCP's own
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

// newTable makes the table of all pairs.
func newTable(pairs map[uint64]*pair) *table {
	t := &table{}
	for i := range t.ports {
		t.ports[i] = make(map[netip.AddrPort]port, 2*len(pairs))
	}
	for _, p := range pairs {
		for _, f := range p.flows {
			at := t.ports[f.from.Side]
			at[f.from.Local] = port{flow: f}
			if f.from.rtcpApart {
				at[f.from.LocalRTCP] = port{flow: f, rtcp: true}
			}
		}
	}
	return t
}
