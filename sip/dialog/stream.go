package dialog

import (
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/sip/codec"
	"ringway/sip/sdp"
)

// maxStreams bounds what Leg.Streams returns.
const maxStreams = 256

// Stream is one direction of one medium of a leg, as a budget sees it. Flows say which holes a leg needs;
// streams say what it may send, also while it is on hold.
type Stream struct {
	Index      int // of the m-line
	Kind       sdp.Kind
	FromCaller bool // the caller's end sends; else the callee's

	// From and To are where the two ends receive. Most phones send from that port (RFC 4961). An end that said
	// nothing yet, or gave a name, is invalid: all that is known then is the hop that speaks for it.
	From, To       netip.AddrPort
	FromHop, ToHop netip.Addr
	// FromBox and ToBox: that end is this box, which relays the medium. It is one stream between each end and the box.
	FromBox, ToBox bool

	// Codecs are the ones of which any may be used and be the dearest (codec.Bounds); one if it was chosen.
	Codecs []qos.Codec
	SRTP   bool
	// Overhead is what SRTP adds to each packet, in bytes; 0: what is usual.
	Overhead int
	// Sends is false while nothing flows in this direction: on hold, or as the descriptions say (RFC 3264,
	// section 5.1).
	Sends bool
	// Settled: an offer was answered. Else this is what an offer without an answer may lead to.
	Settled bool
	// Exact: the packets have these two addresses, or will have them if the other end accepts the offer and
	// stays where it is. ICE may yet choose others (RFC 8839).
	Exact bool
}

// lateOffer is what an INVITE without an offer is taken for until there is one: a call has sound, and 64
// kbit/s in packets of 20 ms is the most that is usual.
var lateOffer = []qos.Codec{qos.G711}

// Streams are the streams of a leg, those that are most certain first. There is none once it has ended.
func (l *Leg) Streams() []Stream {
	if l.ended != "" {
		return nil
	}
	var all streams
	answered, described := false, l.offer != nil
	for _, d := range l.byCertainty() {
		if d.media[caller] != nil && d.media[callee] != nil {
			answered = true
			all.agreed(l, d)
		}
	}
	for _, d := range l.byCertainty() {
		for s, x := range d.pending {
			if x != nil {
				described = true
				all.offered(l, side(s), x.media, d.media[side(s).other()])
			}
		}
	}
	switch {
	case answered:
	case described:
		all.offered(l, caller, l.offer, nil)
	case !l.accepted:
		all.late(l)
	}
	return all[:min(len(all), maxStreams)]
}

// byCertainty are the dialogs that live, accepted ones first, then those that answered last.
func (l *Leg) byCertainty() []*Dialog {
	var accepted, early []*Dialog
	for _, d := range slices.Backward(l.dialogs) {
		switch d.State {
		case Ended:
		case Early:
			early = append(early, d)
		default:
			accepted = append(accepted, d)
		}
	}
	return append(accepted, early...)
}

type streams []Stream

// add adds the stream in each direction between an end of one side and an end of the other.
func (all *streams) add(l *Leg, s side, here, there netip.AddrPort, out, in Stream) {
	out.FromCaller, in.FromCaller = s == caller, s != caller
	out.From, out.FromHop, out.To, out.ToHop = here, l.Hops[s], there, l.Hops[s.other()]
	in.From, in.FromHop, in.To, in.ToHop = there, l.Hops[s.other()], here, l.Hops[s]
	*all = append(*all, out, in)
}

// agreed adds what an offer and its answer agree on.
func (all *streams) agreed(l *Leg, d *Dialog) {
	offer, answer := d.media[d.offerer], d.media[d.offerer.other()]
	for i := range min(len(offer), len(answer)) {
		o, a := &offer[i], &answer[i]
		if o.refused || a.refused {
			continue
		}
		chosen := a.codecs[:1]
		toAnswerer := Stream{Index: i, Kind: o.kind, Settled: true, SRTP: a.srtp, Codecs: chosen}
		toOfferer := toAnswerer
		toOfferer.Codecs = as(chosen[0], o.codecs)
		toAnswerer.Sends = o.sends() && a.receives()
		toOfferer.Sends = a.sends() && o.receives()
		if o.relayed != nil && a.relayed != nil {
			if len(*all) < maxStreams-4 {
				all.relayed(l, d.offerer, o.end(), o.relayed.own, toAnswerer, toOfferer)
				all.relayed(l, d.offerer.other(), a.end(), a.relayed.own, toOfferer, toAnswerer)
			}
			continue
		}

		ours, theirs := o.ends(), a.ends()
		toAnswerer.Exact = exact(ours, theirs)
		toOfferer.Exact = toAnswerer.Exact
		for _, here := range ours {
			for _, there := range theirs {
				if len(*all) >= maxStreams {
					return
				}
				all.add(l, d.offerer, here, there, toAnswerer, toOfferer)
			}
		}
	}
}

// exact reports whether each side has one address.
func exact(ours, theirs []netip.AddrPort) bool {
	return len(ours) == 1 && len(theirs) == 1 && ours[0].IsValid() && theirs[0].IsValid()
}

// as is a codec in the packets that the other description wants of it. The duration of a packet, and Opus'
// rate, are the wish of whoever receives.
func as(chosen qos.Codec, offer []qos.Codec) []qos.Codec {
	i := slices.IndexFunc(offer, func(c qos.Codec) bool { return c.Name == chosen.Name })
	if i < 0 {
		return []qos.Codec{chosen}
	}
	return offer[i : i+1]
}

// offered adds what an offer of one side may lead to. before is what the other side said last.
func (all *streams) offered(l *Leg, s side, offer, before []party) {
	for i := range offer {
		p := &offer[i]
		if p.refused {
			continue
		}
		theirs := []netip.AddrPort{{}}
		if i < len(before) && !before[i].refused {
			theirs = before[i].ends()
		}
		ours := p.ends()
		from := Stream{Index: i, Kind: p.kind, SRTP: p.srtp, Codecs: codec.Bounds(p.codecs), Sends: p.sends()}
		if p.relayed != nil {
			to := from
			to.Sends = p.receives()
			if len(*all) < maxStreams-4 {
				all.relayed(l, s, p.end(), p.relayed.own, from, to)
				all.relayed(l, s.other(), known(before, i), p.relayed.other, to, from)
			}
			continue
		}
		from.Exact = exact(ours, theirs)
		to := from
		to.Sends = p.receives()
		for _, here := range ours {
			for _, there := range theirs {
				if len(*all) >= maxStreams {
					return
				}
				all.add(l, s, here, there, from, to)
			}
		}
	}
}

// known is where the other side receives by what it said last; invalid: it said nothing.
func known(before []party, i int) netip.AddrPort {
	if i < len(before) && !before[i].refused {
		return before[i].end()
	}
	return netip.AddrPort{}
}

func (all *streams) late(l *Leg) {
	s := Stream{Kind: sdp.Audio, Codecs: lateOffer, Sends: true}
	all.add(l, caller, netip.AddrPort{}, netip.AddrPort{}, s, s)
}

// ends are the addresses that p may receive at: the default one, else of its candidates the first of each
// address; an invalid one for a name. A party on hold that never gave an address has none.
func (p *party) ends() []netip.AddrPort {
	if p.named {
		return []netip.AddrPort{{}}
	}
	if usable(p.rtp.Addr()) {
		return []netip.AddrPort{p.rtp}
	}
	var all []netip.AddrPort
	for _, c := range p.candidates {
		same := func(a netip.AddrPort) bool { return a.Addr() == c.Addr() }
		if usable(c.Addr()) && !slices.ContainsFunc(all, same) {
			all = append(all, c)
		}
	}
	return all
}
