package dialog

import (
	"cmp"
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/sip/codec"
	"ringway/sip/sdp"
)

// Flow is one direction of media, or of its RTCP, that a dialog needs.
type Flow struct {
	// From is the address that sends. It is invalid while only the offer is known: then it may be any
	// address of the site of Asked.
	From  netip.Addr
	Asked netip.Addr // the hop that was asked; invalid if From is known
	To    netip.AddrPort
	RTCP  bool
}

func compare(a, b Flow) int {
	return cmp.Or(a.To.Compare(b.To), a.From.Compare(b.From), a.Asked.Compare(b.Asked), bit(a.RTCP)-bit(b.RTCP))
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// party is what one end said of one medium.
type party struct {
	kind       sdp.Kind
	refused    bool           // port 0 (RFC 3264, sections 6 and 8.2)
	rtp, rtcp  netip.AddrPort // where it receives
	direction  sdp.Direction
	mux        bool
	candidates []netip.AddrPort

	named  bool        // its address is a name
	srtp   bool        // its packets have SRTP's tag, or may have it
	codecs []qos.Codec // in its order, one at least (codec.Formats)
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
		case m.Named && len(m.Candidates) == 0:
			p.named = true // where that is, the phones look up
		case usable(m.Address) || len(m.Candidates) > 0:
			p.rtp, p.rtcp = netip.AddrPortFrom(m.Address, m.Port), m.Control()
			p.candidates = slices.Clone(m.Candidates)
		default:
			// Hold as RFC 2543 has it, with the address 0.0.0.0. RTCP goes on to where it went.
			if i < len(before) && !before[i].refused {
				p = before[i]
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
		flows = toward(flows, &offer[i], offer[i].receives(), true, func(to netip.AddrPort, rtcp bool) Flow {
			return Flow{Asked: asked, To: to, RTCP: rtcp}
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
		flows = between(flows, x, y)
		flows = between(flows, y, x)
	}
	return flows
}

// between are the flows from x to y.
func between(flows []Flow, x, y *party) []Flow {
	for _, source := range x.sources() {
		rtp, rtcp := x.sends() && y.receives(), !(x.mux && y.mux)
		flows = toward(flows, y, rtp, rtcp, func(to netip.AddrPort, rtcp bool) Flow {
			return Flow{From: source, To: to, RTCP: rtcp}
		})
	}
	return flows
}

// toward are the flows to one party: RTP if it flows in this direction; RTCP also on hold, if it has a port
// of its own.
func toward(flows []Flow, p *party, rtp, rtcp bool, flow func(to netip.AddrPort, rtcp bool) Flow) []Flow {
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
