package dialog

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/sip/codec"
	"ringway/sip/sdp"
)

// Flow is one direction of media, or of its RTCP, that a dialog needs. It is small and has no pointers: each call has
// four or more, in several tables that the garbage collector would have to look through. Zones are not kept: no flow
// crosses a link.
type Flow struct {
	from, to [16]byte // an IPv4 address as RFC 4291, section 2.5.5.2, maps it
	port     uint16
	is       flowBits
}

type flowBits uint8

const (
	fromKnown flowBits = 1 << iota // from is the address that sends
	fromAsked                      // from is the hop that was asked
	fromIs4
	toKnown
	toIs4
	isRTCP
)

// NewFlow is a flow from an address that is known.
func NewFlow(from netip.Addr, to netip.AddrPort, rtcp bool) Flow {
	f := toward(to, rtcp)
	f.setFrom(from, fromKnown)
	return f
}

// FlowAsked is a flow of which only the offer is known: it may come from any address of the site of the hop that was
// asked.
func FlowAsked(asked netip.Addr, to netip.AddrPort, rtcp bool) Flow {
	f := toward(to, rtcp)
	f.setFrom(asked, fromAsked)
	return f
}

func toward(to netip.AddrPort, rtcp bool) (f Flow) {
	if to.Addr().IsValid() {
		f.to, f.is = to.Addr().As16(), toKnown
	}
	if to.Addr().Is4() {
		f.is |= toIs4
	}
	if rtcp {
		f.is |= isRTCP
	}
	f.port = to.Port()
	return f
}

func (f *Flow) setFrom(a netip.Addr, known flowBits) {
	if !a.IsValid() {
		return
	}
	f.from = a.As16()
	f.is |= known
	if a.Is4() {
		f.is |= fromIs4
	}
}

// From is the address that sends. It is invalid while only the offer is known: then Asked is the hop that was asked.
func (f Flow) From() netip.Addr { return f.source(fromKnown) }

// Asked is the hop that was asked; invalid if From is known.
func (f Flow) Asked() netip.Addr { return f.source(fromAsked) }

// Source is From, or else Asked.
func (f Flow) Source() netip.Addr { return f.source(fromKnown | fromAsked) }

func (f Flow) source(known flowBits) netip.Addr {
	if f.is&known == 0 {
		return netip.Addr{}
	}
	return unmapped(f.from, f.is&fromIs4 != 0)
}

// To is the address and port that receive.
func (f Flow) To() netip.AddrPort {
	if f.is&toKnown == 0 {
		return netip.AddrPortFrom(netip.Addr{}, f.port)
	}
	return netip.AddrPortFrom(unmapped(f.to, f.is&toIs4 != 0), f.port)
}

// RTCP reports whether the flow is RTCP with a port of its own.
func (f Flow) RTCP() bool { return f.is&isRTCP != 0 }

func unmapped(a [16]byte, is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte(a[12:]))
	}
	return netip.AddrFrom16(a)
}

// flowSize is the length of a flow in binary form.
const flowSize = 1 + 2 + 16 + 16

// MarshalBinary writes a flow for another process of Ringway.
func (f Flow) MarshalBinary() ([]byte, error) {
	b := append(make([]byte, 0, flowSize), byte(f.is))
	b = binary.BigEndian.AppendUint16(b, f.port)
	return append(append(b, f.from[:]...), f.to[:]...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (f *Flow) UnmarshalBinary(b []byte) error {
	if len(b) != flowSize {
		return fmt.Errorf("a flow of %d bytes, not %d", len(b), flowSize)
	}
	f.is, f.port = flowBits(b[0]), binary.BigEndian.Uint16(b[1:])
	copy(f.from[:], b[3:])
	copy(f.to[:], b[3+len(f.from):])
	// One flow has one form, whatever was written.
	if f.From().IsValid() {
		*f = NewFlow(f.From(), f.To(), f.RTCP())
	} else {
		*f = FlowAsked(f.Asked(), f.To(), f.RTCP())
	}
	return nil
}

// MarshalText writes the binary form in base64: JSON takes no bytes.
func (f Flow) MarshalText() ([]byte, error) {
	b, err := f.MarshalBinary()
	return base64.StdEncoding.AppendEncode(nil, b), err
}

// UnmarshalText reads what MarshalText wrote.
func (f *Flow) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("a flow: %w", err)
	}
	return f.UnmarshalBinary(b)
}

// String is for people: who sends, or was asked, and who receives.
func (f Flow) String() string {
	from := f.From().String()
	if f.is&fromKnown == 0 {
		from = "any(" + f.Asked().String() + ")"
	}
	return from + ">" + f.To().String()
}

// compare orders flows: those to one address and port stand together.
func compare(a, b Flow) int {
	return cmp.Or(bytes.Compare(a.to[:], b.to[:]), cmp.Compare(a.port, b.port), cmp.Compare(a.is, b.is),
		bytes.Compare(a.from[:], b.from[:]))
}

// party is what one end said of one medium.
type party struct {
	kind       sdp.Kind
	refused    bool           // port 0 (RFC 3264, sections 6 and 8.2)
	rtp, rtcp  netip.AddrPort // where it receives
	direction  sdp.Direction
	mux        bool
	candidates []netip.AddrPort

	tcp    bool        // a TCP connection: nothing is known of where
	named  bool        // its address is a name
	srtp   bool        // its packets have SRTP's tag, or may have it
	codecs []qos.Codec // in its order, one at least (codec.Formats)

	relayed *relayed // nil: the box does not relay it
}

// partiesOf reads a description. before is what the same end said last, if it did.
func partiesOf(d *sdp.Description, before []party) []party {
	all := make([]party, len(d.Media))
	for i := range d.Media {
		m := &d.Media[i]
		p := party{kind: m.Kind, direction: m.Direction, mux: m.RTCPMux}
		switch {
		case m.Port == 0:
			p.refused = true
		case m.IsTCP():
			p.tcp = true // no hole, and none of the calls' budget
		case m.Named && len(m.Candidates) == 0:
			p.named = true // where that is, the phones look up
		case usable(m.Address) || len(m.Candidates) > 0:
			p.rtp, p.rtcp = netip.AddrPortFrom(m.Address, m.Port), m.Control()
			p.candidates = slices.Clone(m.Candidates)
		default:
			// Hold as RFC 2543 has it, with the address 0.0.0.0. RTCP goes on to where it went.
			if i < len(before) && !before[i].refused {
				p = before[i]
				p.relayed = nil
			}
			p.direction = sdp.Inactive
		}
		if !p.refused {
			p.srtp, p.codecs = codec.Secured(m), codec.Formats(m)
		}
		all[i] = p
	}
	return all
}

// onHold reports whether an answer stops all media. What goes over TCP is not asked: beside it a call may be on hold,
// and alone it has nothing to hold.
func onHold(answer []party) bool {
	tcp, others := false, false
	for i := range answer {
		switch p := &answer[i]; {
		case p.refused:
		case p.tcp:
			tcp = true
		case p.direction != sdp.Inactive:
			return false
		default:
			others = true
		}
	}
	return others || !tcp
}

func usable(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() }

func (p *party) receives() bool { return p.direction == sdp.SendRecv || p.direction == sdp.RecvOnly }
func (p *party) sends() bool    { return p.direction == sdp.SendRecv || p.direction == sdp.SendOnly }

// sources are the addresses that p may send from.
func (p *party) sources() []netip.Addr {
	all := make([]netip.Addr, 0, 1+len(p.candidates))
	if usable(p.rtp.Addr()) {
		all = append(all, p.rtp.Addr())
	}
	for _, c := range p.candidates {
		if !slices.Contains(all, c.Addr()) {
			all = append(all, c.Addr())
		}
	}
	return all
}

// offered are the flows to whoever made an offer that is not answered yet.
func offered(flows []Flow, offer []party, asked netip.Addr) []Flow {
	for i := range offer {
		p := &offer[i]
		if p.refused {
			continue
		}
		if p.relayed != nil {
			flows = relayedOffer(flows, p, asked)
			continue
		}
		flows = flowsTo(flows, p, p.receives(), true, func(to netip.AddrPort, rtcp bool) Flow {
			return FlowAsked(asked, to, rtcp)
		})
	}
	return flows
}

// agreed are the flows of an offer and its answer, in both directions. A medium is theirs by its index (RFC
// 3264, section 6).
func agreed(flows []Flow, a, b []party) []Flow {
	for i := range min(len(a), len(b)) {
		x, y := &a[i], &b[i]
		if x.refused || y.refused {
			continue
		}
		if x.relayed != nil && y.relayed != nil {
			flows = relayedBetween(flows, x, y)
			continue
		}
		flows = between(flows, x, y)
		flows = between(flows, y, x)
	}
	return flows
}

// between are the flows from x to y.
func between(flows []Flow, x, y *party) []Flow {
	for _, source := range x.sources() {
		rtp, rtcp := x.sends() && y.receives(), !(x.mux && y.mux)
		flows = flowsTo(flows, y, rtp, rtcp, func(to netip.AddrPort, rtcp bool) Flow {
			return NewFlow(source, to, rtcp)
		})
	}
	return flows
}

// flowsTo are the flows to one party: RTP if it flows in this direction; RTCP also on hold, if it has a port
// of its own.
func flowsTo(flows []Flow, p *party, rtp, rtcp bool, flow func(to netip.AddrPort, rtcp bool) Flow) []Flow {
	add := func(to netip.AddrPort, rtcp bool) {
		if to.Port() > 0 && usable(to.Addr()) {
			flows = append(flows, flow(to, rtcp))
		}
	}
	if rtp {
		add(p.rtp, false)
		for _, c := range p.candidates {
			add(c, false)
		}
	}
	if rtcp {
		add(p.rtcp, true)
	}
	return flows
}
