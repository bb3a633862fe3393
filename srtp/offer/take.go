package offer

import (
	"net/netip"
	"slices"

	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// weaker says whether s is weaker than the weakest that may be.
func weaker(s, minimum suite.Suite) bool {
	all := suite.All()
	return slices.Index(all, s) > slices.Index(all, minimum)
}

// accepts says whether the policy takes keys of that attribute.
func (p *Policy) accepts(a sdes.Attribute) bool {
	return !a.UnencryptedSRTP && !a.Unauthenticated && (p.ClearSRTCP || !a.UnencryptedSRTCP) &&
		(p.Level != Require || !weaker(a.Suite, p.minimum()))
}

// isBox says whether the line is the far box's. One on hold by 0.0.0.0 may be.
func (p *Place) isBox(s *section) bool {
	return p.Box.IsValid() && (s.held() || s.Address == p.Box)
}

// channelSuite is the suite between boxes.
func (p *Place) channelSuite() suite.Suite {
	if p.minimum() == suite.AEADAES256GCM {
		return suite.AEADAES256GCM
	}
	return suite.AEADAES128GCM
}

// choose picks how the leg to who has offered a line is keyed: the reason why it cannot be, or how.
func (c *Call) choose(p *Place, l *leg, s *section) (k Keying, a sdes.Attribute, reason string) {
	if p.isBox(s) && s.protocol.class == avp && !s.named {
		up := p.ChannelUp || l.keying == Channel
		switch {
		case p.Level != Off && up && s.channel != 0 && (p.Level != Require || !weaker(s.channel, p.minimum())):
			return Channel, a, "" // under Prefer also a weaker suite: it is more than none
		case p.Level == Require && !up:
			return 0, a, "the key channel to the site is down"
		case p.Level == Require:
			return 0, a, "SRTP is required, and the site's box does not offer it"
		}
		return Clear, a, ""
	}
	if p.Level == Off && s.protocol.class == avp {
		return Clear, a, ""
	}
	for _, m := range append(slices.Clone(p.methods()), SDES, DTLS) {
		switch m {
		case SDES:
			if a, ok := p.chooseCrypto(l, s); ok && s.protocol.class != tls {
				return SDES, a, ""
			}
		case DTLS:
			if len(s.prints) > 0 && s.mux && c.config.Certificate != nil {
				return DTLS, a, ""
			}
		}
	}
	switch {
	case s.protocol.class == avp && p.Level != Require:
		return Clear, a, "" // RFC 8643 section 3.1
	case len(s.prints) > 0 && !s.mux:
		return 0, a, "a media line offers " + needsMux
	case s.protocol.class == avp:
		return 0, a, "SRTP is required, and a media line offers none that is acceptable"
	case s.protocol.class == tls:
		return 0, a, "a media line has no certificate fingerprint that is acceptable"
	}
	return 0, a, "a media line has no crypto attribute that is acceptable"
}

// needsMux ends the reason why a line with a fingerprint is not taken: the box makes one association for a line, and
// RTCP on a port of its own would need another one, with other keys (RFC 5764 section 4.2).
const needsMux = "DTLS-SRTP without a=rtcp-mux"

// chooseCrypto picks one of the attributes, in the order of who offers (RFC 4568 section 5.1.2), but stays with the
// suite that is in use.
func (p *Place) chooseCrypto(l *leg, s *section) (sdes.Attribute, bool) {
	accepts := func(a sdes.Attribute) bool { return p.accepts(a) && !l.ours(a.Keys) }
	if l.keying == SDES {
		a, ok := sdes.Choose(s.crypto, func(a sdes.Attribute) bool { return a.Suite == l.suite && accepts(a) })
		if ok {
			return a, true
		}
	}
	return sdes.Choose(s.crypto, accepts)
}

// takeOffer brings the leg to who offers up to date with its line.
func (c *Call) takeOffer(end End, l *leg, s *section) (reason string) {
	k, a, reason := c.choose(&c.places[end], l, s)
	if reason != "" {
		return reason
	}
	moved, reason := l.notes(s, s.mux)
	if reason != "" {
		return reason
	}
	same := l.keying == k && !moved
	l.became(k)
	l.live, l.protocol = true, s.protocol

	switch k {
	case SDES:
		same = same && l.suite == a.Suite
		mki := len(a.Keys[0].MKI)
		l.renew = l.renew || !same || l.stale || len(l.send) == 0 || mki != l.mki
		l.receives(c, a.Keys, same)
		l.suite, l.tag, l.mki, l.clearSRTCP = a.Suite, a.Tag, mki, a.UnencryptedSRTCP
	case DTLS:
		l.offersTLSID = s.tlsID != ""
		return l.dtls.takeOffer(c, s, same && l.dtls.same(s))
	case Channel:
		l.channel(c, s.channel, same)
	}
	return ""
}

// channel sets what a leg between boxes has.
func (l *leg) channel(c *Call, s suite.Suite, same bool) {
	if !same || l.suite != s {
		l.sendEpoch = c.nextEpoch()
		l.receiveEpoch = c.nextEpoch()
	}
	l.suite = s
}

// equip gives the leg to who offers what the answer needs: a port and a key. The branches of a fork each have their
// own, or packets that one end sends to several could not be told apart.
func (c *Call) equip(end End, l *leg) *Refusal {
	p := &c.places[end]
	a := p.local(netip.IPv4Unspecified())
	if l.remote.IsValid() {
		a = p.family(l.remote.Addr().Is4()) // no other: the end may not have the other family
	}
	if r := c.place(l, a); r != nil {
		return r
	}
	if l.keying == SDES && l.renew {
		k := c.config.NewKey(l.suite)
		if l.mki > 0 {
			k.MKI = c.newMKI(l.mki)
		}
		l.sends(k, c.nextEpoch())
		k.Wipe()
		l.wipeLines() // they have the old key
		wipeProposals(l.again)
		l.again = nil
		l.renew = false
	}
	return nil
}

// newMKI is another one for each key of a call.
func (c *Call) newMKI(n int) []byte {
	mki := make([]byte, n)
	v := c.nextEpoch()
	for i := n - 1; i >= 0 && v > 0; i-- {
		mki[i], v = byte(v), v>>8
	}
	return mki
}

// answerTo is what the answer says to who has offered.
func (c *Call) answerTo(l *leg) []string {
	switch l.keying {
	case SDES:
		a := sdes.Attribute{Tag: l.tag, Suite: l.suite, Keys: l.send, UnencryptedSRTCP: l.clearSRTCP}
		return []string{cryptoLine(a)}
	case DTLS:
		id := ""
		if l.offersTLSID {
			id = l.dtls.LocalID
		}
		return l.dtls.attributes(&c.config, l.dtls.setup, id)
	case Channel:
		return []string{attrChannel + ":" + l.suite.String()}
	}
	return nil
}

func cryptoLine(a sdes.Attribute) string { return string(a.Append([]byte(attrCrypto + ":"))) }
