package offer

import (
	"bytes"
	"net/netip"
	"slices"

	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// leg is what a branch knows of one side of a line. A copy owns its keys and holds its ports.
type leg struct {
	live     bool     // has been offered to the end, or by it
	protocol protocol // on this side
	keying   Keying   // as agreed, or as the answer will have it

	local       netip.AddrPort
	remote      netip.AddrPort // the last that was no hold
	remoteRTCP  netip.AddrPort
	mux         bool
	stale       bool // the key of what the box sends is to be replaced with the next offer: Leg.Stale
	suite       suite.Suite
	clearSRTCP  bool
	dtls        association
	offersTLSID bool // the end knows a=tls-id

	tag          uint32 // of the attribute that the end has offered and the box takes
	mki          int    // its length there
	renew        bool   // equip makes a new key
	send         []sdes.Key
	sendEpoch    uint32
	receive      []sdes.Key
	receiveEpoch uint32

	// What the box offers to this end, kept so that a refresh is the same offer.
	lines         []proposal
	offersDTLS    bool
	offersChannel suite.Suite // 0: none
	// What was offered last and failed, for the next offer.
	again   []proposal
	againID string
}

// proposal is a crypto attribute that the box offers. Its key has its epoch since it was drawn: who shares the key, as
// the branches of a fork do, shares the epoch.
type proposal struct {
	sdes.Attribute
	epoch uint32
	left  bool // the leg has used the key, and uses it no more
	taken bool // of the first offer: a branch has used the key
}

func (a proposal) wasLeft() bool { return a.left }

func cloneKeys(keys []sdes.Key) []sdes.Key {
	all := make([]sdes.Key, len(keys))
	for i, k := range keys {
		k.Master, k.Salt, k.MKI = bytes.Clone(k.Master), bytes.Clone(k.Salt), bytes.Clone(k.MKI)
		all[i] = k
	}
	return all
}

func (c *Call) cloneLeg(l *leg) leg {
	n := *l
	n.send, n.receive = cloneKeys(l.send), cloneKeys(l.receive)
	n.lines, n.again = cloneProposals(l.lines), cloneProposals(l.again)
	n.dtls.Remote = slices.Clone(l.dtls.Remote)
	if n.local.IsValid() {
		c.ports[n.local]++
	}
	return n
}

func cloneProposals(proposals []proposal) []proposal {
	all := slices.Clone(proposals)
	for i := range all {
		all[i].Keys = cloneKeys(all[i].Keys)
	}
	return all
}

func (l *leg) wipeLines() {
	wipeProposals(l.lines)
	l.lines = nil
}

func wipeProposals(all []proposal) {
	for _, a := range all {
		wipe(a.Keys)
	}
}

// drop overwrites the keys and gives up the port.
func (c *Call) drop(l *leg) {
	wipe(l.send)
	wipe(l.receive)
	l.wipeLines()
	wipeProposals(l.again)
	if l.local.IsValid() {
		if c.ports[l.local]--; c.ports[l.local] == 0 {
			delete(c.ports, l.local)
			c.config.Ports.Release(l.local)
		}
	}
	*l = leg{}
}

// setAside is for a leg that was offered and not taken. What was offered with it stays, so that the same offer can be
// made again; what was in use does not.
func (c *Call) setAside(l *leg) {
	if l.keying == Undecided {
		l.live = false
		return
	}
	c.drop(l)
}

// keepOffer takes over what was offered in place of l and failed: the end has seen it, and may be offered it again.
func (c *Call) keepOffer(l, failed *leg) {
	switch {
	case !l.live:
		c.drop(l)
		*l, *failed = *failed, leg{}
		c.setAside(l)
	case failed.live:
		wipeProposals(l.again)
		l.again, failed.lines = failed.lines, nil
		l.againID = failed.dtls.offered
	}
}

// offersAgain makes what failed the last offer.
func (l *leg) offersAgain() {
	if len(l.again) > 0 {
		l.wipeLines()
		l.lines, l.again = l.again, nil
	}
	if l.againID != "" {
		l.dtls.offered, l.againID = l.againID, ""
	}
}

// place gives the leg a port of the box.
func (c *Call) place(l *leg, a netip.Addr) *Refusal {
	if l.local.IsValid() {
		return nil
	}
	if !a.IsValid() {
		return notAcceptable("the box has no media address for this end")
	}
	port, ok := c.config.Ports.Allocate(a)
	if !ok {
		return &Refusal{503, "no media port is free"}
	}
	l.local = netip.AddrPortFrom(a, port)
	c.ports[l.local]++
	return nil
}

func sameKeys(a, b []sdes.Key) bool {
	return slices.EqualFunc(a, b, func(x, y sdes.Key) bool { return x.Equal(y) && bytes.Equal(x.MKI, y.MKI) })
}

// receives sets the keys of what the end sends. same is false if its address, its suite or the keying has changed: then
// the roll-over counter starts at 0 even where the key has not (RFC 4568 section 7.1.4).
func (l *leg) receives(c *Call, keys []sdes.Key, same bool) {
	if same && sameKeys(l.receive, keys) {
		return
	}
	wipe(l.receive)
	l.receive, l.receiveEpoch = cloneKeys(keys), c.nextEpoch()
}

// sends sets the key of what the box sends, and the epoch that the key was drawn with.
func (l *leg) sends(key sdes.Key, epoch uint32) {
	if len(l.send) > 0 && l.sendEpoch == epoch {
		return
	}
	l.leave()
	l.send, l.sendEpoch = cloneKeys([]sdes.Key{key}), epoch
}

// leave gives up the key of what the box sends. It must not come back: the end would start with a roll-over counter of
// 0, and the box, too, if it has forgotten the sender. So it is not offered again, and not taken from this offer.
func (l *leg) leave() {
	for _, lines := range [][]proposal{l.lines, l.again} {
		for i := range lines {
			if len(l.send) > 0 && lines[i].epoch == l.sendEpoch {
				lines[i].left = true
			}
		}
	}
	wipe(l.send)
	l.send, l.sendEpoch, l.stale = nil, 0, false
}

func (l *leg) offersKeyInUse() bool {
	return slices.ContainsFunc(l.lines, func(a proposal) bool { return len(l.send) > 0 && a.epoch == l.sendEpoch })
}

// ours says whether one of the keys is the box's own. Under such a key there would be two senders, and packets of the
// box could be sent back to it.
func (l *leg) ours(keys []sdes.Key) bool {
	return slices.ContainsFunc(keys, func(k sdes.Key) bool {
		return slices.ContainsFunc(l.send, k.Equal) ||
			slices.ContainsFunc(l.lines, func(a proposal) bool { return k.Equal(a.Keys[0]) })
	})
}

// match is the proposal that an answer's attribute has chosen.
func (l *leg) match(answer sdes.Attribute) (chosen proposal, ok bool) {
	all := make([]sdes.Attribute, len(l.lines))
	for i := range l.lines {
		all[i] = l.lines[i].Attribute
	}
	a, err := sdes.Match(all, answer)
	if err != nil {
		return chosen, false
	}
	return l.lines[slices.IndexFunc(l.lines, func(p proposal) bool { return p.Tag == a.Tag })], true
}

// became ends what the leg had by another keying.
func (l *leg) became(k Keying) {
	if l.keying == k {
		return
	}
	l.leave()
	wipe(l.receive)
	l.receive, l.receiveEpoch = nil, 0
	if k != SDES {
		l.suite, l.clearSRTCP = 0, false
	}
	if k != DTLS {
		offered := l.dtls.offered
		if l.keying == DTLS {
			offered = "" // an identifier is for one association
		}
		l.dtls = association{offered: offered}
	}
	l.keying = k
}

// notes takes over where the end receives, and reports whether it has moved. A hold by 0.0.0.0 is no move.
func (l *leg) notes(s *section, mux bool) (moved bool, reason string) {
	rtp, rtcp, reason := s.remote(mux)
	if reason != "" {
		return false, reason
	}
	if l.local.IsValid() && rtp.IsValid() && rtp.Addr().Is4() != l.local.Addr().Is4() {
		return false, "a media line has an address of the other family than the box's"
	}
	l.mux = mux
	if !rtp.IsValid() {
		return false, ""
	}
	moved = l.remote.IsValid() && l.remote != rtp
	l.remote, l.remoteRTCP = rtp, rtcp
	return moved, ""
}
