package admission

import (
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/tunnel"
)

// claim is what one direction of one medium of a leg takes of one account. A medium that may go one way or
// another, as in a fork or while a new offer has no answer, has one claim in each account: the dearest.
type claim struct {
	account    *account
	rate       qos.BitRate // bits a second on the provider's meter
	index      uint8       // of the m-line
	fromCaller bool
	sends      bool // something flows, or will if an offer is accepted
	sender     bool // end is where packets come from

	flow tunnel.Flow // of the packets; without it they are known by end alone
	// end is the one that is known while there is no answer.
	end netip.AddrPort
}

// exact reports whether the addresses of the packets are known.
func (c *claim) exact() bool { return c.flow != tunnel.Flow{} }

func (c *claim) same(o *claim) bool {
	return c.index == o.index && c.fromCaller == o.fromCaller && c.account == o.account
}

// in reports whether a list has a claim of the same medium, direction and account.
func (c *claim) in(all []claim) bool {
	return slices.ContainsFunc(all, func(o claim) bool { return o.same(c) })
}

// claims are those of a leg. callee is where the called party is thought to be while nothing is known of it
// but its hop. before are the claims of the same leg until now: a medium on hold keeps its place.
func (w *world) claims(streams []dialog.Stream, callee netip.Addr, before []claim) []claim {
	var all []claim
	for i := range streams {
		s := &streams[i]
		fromHop, toHop := s.FromHop, s.ToHop
		switch {
		case !callee.IsValid():
		case s.FromCaller && !s.ToBox:
			toHop = callee
		case !s.FromCaller && !s.FromBox:
			fromHop = callee
		}
		from, to := w.locate(s.From.Addr(), fromHop), w.locate(s.To.Addr(), toHop)
		if s.FromBox {
			from = location{kind: own}
		}
		if s.ToBox {
			to = location{kind: own}
		}
		for _, a := range w.charged(from, to) {
			if a != nil {
				all = merge(all, claimOf(a, s))
			}
		}
	}

	// What does not flow takes no place. What did keeps the one that it had while it is held.
	all = slices.DeleteFunc(all, func(c claim) bool { return !c.sends })
	for i := range before {
		c := &before[i]
		if held(streams, c.index) && !c.in(all) {
			all = append(all, *c)
		}
	}
	return all
}

func claimOf(a *account, s *dialog.Stream) claim {
	c := claim{index: uint8(s.Index), fromCaller: s.FromCaller, account: a, rate: a.cost(s), sends: s.Sends}
	switch {
	case s.Exact:
		c.flow = tunnel.Flow{Source: s.From, Destination: s.To}
	case s.From.IsValid() && !s.To.IsValid():
		c.end, c.sender = s.From, true
	case s.To.IsValid() && !s.From.IsValid():
		c.end = s.To
	}
	return c
}

// merge adds a claim, or raises the one that it is another way of.
func merge(all []claim, c claim) []claim {
	i := slices.IndexFunc(all, func(o claim) bool { return o.same(&c) })
	if i < 0 {
		return append(all, c)
	}
	known := &all[i]
	known.rate = max(known.rate, c.rate)
	known.sends = known.sends || c.sends
	if !known.exact() && c.exact() {
		known.flow = c.flow
	}
	return all
}

// held reports whether a medium was agreed on, and does not flow in both directions. Whoever holds a call may
// send music from anywhere in the meantime.
func held(streams []dialog.Stream, index uint8) bool {
	return slices.ContainsFunc(streams, func(s dialog.Stream) bool {
		return uint8(s.Index) == index && s.Settled && !s.Sends
	})
}

// key names a place. Two claims with one key are for the same packets, which are counted once.
type key struct {
	account *account
	flow    tunnel.Flow // of the packets; while there is no answer, the one end that is known
	call    *call       // whose the end is; nil if the flow is known

	// Where no end is known, of which medium it is.
	leg        *dialog.Leg
	index      uint8
	fromCaller bool
}

// exact reports whether the addresses of the packets are known.
func (k *key) exact() bool { return k.call == nil }

// want is a place that a call needs, and how much it has to carry, in bits a second.
type want struct {
	key
	rate qos.BitRate
}

// wants are the places for a call whose legs have these claims.
func (c *call) wants(legs []*leg) (all []want) {
	for _, g := range legs {
		for i := range g.claims {
			k := c.keyOf(legs, g, &g.claims[i])
			rate := g.claims[i].rate
			if at := find(all, k); at >= 0 {
				all[at].rate = max(all[at].rate, rate)
			} else if rate > 0 {
				all = append(all, want{k, rate})
			}
		}
	}
	return all
}

func find(all []want, k key) int {
	return slices.IndexFunc(all, func(w want) bool { return w.key == k })
}

// keyOf is the place of a claim. A leg whose offer has no answer yet shares the place with another leg of the
// same call where the answer has passed already: a proxy sends a call through here twice.
func (c *call) keyOf(legs []*leg, g *leg, x *claim) key {
	if x.exact() {
		return key{account: x.account, flow: x.flow}
	}
	if !x.end.IsValid() {
		return key{account: x.account, call: c, leg: g.Leg, index: x.index, fromCaller: x.fromCaller}
	}
	for _, other := range legs {
		for i := range other.claims {
			o := &other.claims[i]
			if other == g || !o.exact() || o.account != x.account {
				continue
			}
			if x.sender && o.flow.Source == x.end || !x.sender && o.flow.Destination == x.end {
				return key{account: o.account, flow: o.flow}
			}
		}
	}
	k := key{account: x.account, call: c}
	if x.sender {
		k.flow.Source = x.end
	} else {
		k.flow.Destination = x.end
	}
	return k
}
