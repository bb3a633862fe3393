package calls

import (
	"net/netip"
	"slices"

	"ringway/sip/dialog"
	"ringway/sip/relay"
	"ringway/sip/terminate"
)

// Media that this box relays is not forwarded: it comes to a port of the box, and leaves from there. So its flows
// need no hole, and the rules of the media plane bound what it takes and sends. What pairs of it the relay of
// signalling may ask for is checked here, since it may have been taken over.

// relayed are the addresses and ports at which this box relays media, and the addresses of far boxes, which may be
// in no network of their sites.
type relayed struct {
	addresses, boxes []netip.Addr
	first, last      uint16
}

// relayedBy are those of the settings of the relay.
func relayedBy(m *relay.Media) (r relayed) {
	if m == nil {
		return r
	}
	r.first, r.last = m.First, m.Last
	for i := range m.Places {
		p := &m.Places[i].Place
		for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
			if a.IsValid() && !slices.Contains(r.addresses, a) {
				r.addresses = append(r.addresses, a)
			}
		}
		if p.Box.IsValid() {
			r.boxes = append(r.boxes, p.Box)
		}
	}
	return r
}

// at reports whether an address and port are the box's own for media.
func (r *relayed) at(a netip.AddrPort) bool {
	return slices.Contains(r.addresses, a.Addr()) && a.Port() >= r.first && a.Port() <= r.last
}

// has reports whether a flow is of media that the box relays: it comes to one of its ports, or is sent by it.
func (r *relayed) has(f dialog.Flow) bool {
	return r.at(f.To()) || slices.Contains(r.addresses, f.From())
}

// far is where an end of relayed media is. Another address of this box is none.
func (w *world) far(a netip.Addr) side {
	switch {
	case slices.Contains(w.relayed.addresses, a):
		return nowhere
	case slices.Contains(w.relayed.boxes, a):
		return atSite
	}
	return w.side(a)
}

// relayedSides are the sides of a flow of relayed media, of which the box itself counts as the other one's.
func (w *world) relayedSides(f dialog.Flow) (from, to side) {
	if w.relayed.at(f.To()) {
		from = w.far(f.Source())
		return from, from
	}
	to = w.far(f.To().Addr())
	return to, to
}

// allowed are those of the changes that the media plane may carry out. A pair that may not be is one that is to end.
func (h *holes) allowed(all []terminate.Change) []terminate.Change {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]terminate.Change, 0, len(all))
	for _, c := range all {
		if c.Pair != nil {
			if why := h.world.checkPair(c.Pair); why != "" {
				h.refused[why]++
				c.Pair = nil
			}
		}
		out = append(out, c)
	}
	return out
}

// checkPair says why there may be no such pair; empty: there may. It receives at the box's own ports for media, and
// sends to LANs and sites; to the internet only in a call with it.
func (w *world) checkPair(p *terminate.Pair) string {
	abroad := false
	for i := range p.Ends {
		abroad = abroad || w.side(p.Ends[i].Hop) == internet
	}
	for i := range p.Ends {
		e := &p.Ends[i]
		if !w.relayed.at(e.Local) || e.Local.Port()%2 != 0 || e.Local.Port() == w.relayed.last {
			return refusedAddress
		}
		for _, to := range []netip.AddrPort{e.Remote, e.RemoteRTCP} {
			if !to.IsValid() {
				continue // it is not known yet
			}
			switch s := w.far(to.Addr()); {
			case to.Port() < lowestPort:
				return refusedPort
			case s == nowhere || to.Addr().Is4() != e.Local.Addr().Is4():
				return refusedAddress
			case s == internet && !abroad:
				return refusedNetwork
			}
		}
	}
	return ""
}

// keyChannels are the boxes with which keys can be agreed.
func keyChannels(m *relay.Media) int {
	up := map[netip.Addr]bool{}
	if m != nil {
		for i := range m.Places {
			if p := &m.Places[i].Place; p.ChannelUp {
				up[p.Box] = true
			}
		}
	}
	return len(up)
}
