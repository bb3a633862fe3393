package offer

import (
	"slices"

	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// makeOffer brings the leg to who is offered a line up to date. A leg that exists is offered as it is: with its
// protocol and its keys, so that a refresh of a session is the same offer again (RFC 4028 section 7.4). fresh asks
// for new keys. repeats says that the end which offers has made the same offer before, by its o=. asked is the protocol
// that it offers.
func (c *Call) makeOffer(end End, l *leg, asked protocol, fresh, repeats bool) (reason string) {
	p := &c.places[end]
	l.offersAgain()
	renew := fresh || l.stale && l.offersKeyInUse() && !repeats
	l.offersChannel, l.offersDTLS = 0, false
	if p.Level == Require && l.keying == Clear {
		l.became(Undecided) // nothing goes on in clear
	}

	if p.Box.IsValid() && l.keying != SDES && l.keying != DTLS {
		switch {
		case p.Level == Off:
		case l.keying == Channel && p.permits(l):
			l.offersChannel = l.suite
		case p.ChannelUp:
			l.offersChannel = p.channelSuite()
		}
		if p.Level == Require && l.offersChannel == 0 {
			return "the key channel to the site is down"
		}
		l.wipeLines()
		l.live, l.protocol = true, protocol{avp, l.feedback(avp, asked)}
		return ""
	}

	kind, methods := p.form(l)
	if slices.Contains(methods, DTLS) && c.config.Certificate == nil {
		methods = slices.DeleteFunc(methods, func(k Keying) bool { return k == DTLS })
		if kind == tls || len(methods) == 0 && p.Level == Require {
			return "DTLS is to be offered, and the box has no certificate"
		}
	}
	if slices.Contains(methods, SDES) {
		if renew || len(l.lines) == 0 || slices.ContainsFunc(l.lines, proposal.wasLeft) || p.outdates(l) {
			c.newLines(l, p, renew)
		}
	} else {
		l.wipeLines()
	}
	if l.offersDTLS = slices.Contains(methods, DTLS); l.offersDTLS && (renew || l.dtls.offered == "") {
		l.dtls.offered = c.config.NewID()
	}
	l.live, l.protocol = true, protocol{kind, l.feedback(kind, asked)}
	return ""
}

// feedback says whether the offer to this end is of a protocol with feedback (RFC 4585). That of DTLS has it as a
// matter of course (RFC 8834 section 4.2), while a phone that does not speak DTLS may refuse RTP/AVPF. Ends with
// and without understand each other (RFC 4585 section 5), so a leg that exists stays as it is.
func (l *leg) feedback(kind class, asked protocol) bool {
	if l.live {
		return l.protocol.feedback
	}
	return asked.feedback && (kind == tls || asked.class != tls)
}

// form is how keys are offered to an end that is not a box: by which protocol, and by which methods.
func (p *Place) form(l *leg) (class, []Keying) {
	methods := slices.Clone(p.methods())
	kind := l.protocol.class
	if !l.live {
		switch {
		case p.Level != Require:
			kind = avp // RFC 8643 section 3.1, where the policy is Prefer
		case methods[0] == DTLS:
			kind = tls
		default:
			kind = savp
		}
	}
	switch {
	case kind == tls, kind == savp && l.keying == DTLS:
		return kind, []Keying{DTLS}
	case kind == savp:
		return kind, []Keying{SDES}
	case p.Level != Off:
		return kind, methods
	case l.keying == SDES, l.keying == DTLS:
		return kind, []Keying{l.keying}
	}
	return kind, nil
}

// outdates says whether something was offered that the policy has ruled out since.
func (p *Policy) outdates(l *leg) bool {
	inUse := p.suiteInUse(l)
	return slices.ContainsFunc(l.lines, func(a proposal) bool {
		return a.Suite != inUse && weaker(a.Suite, p.minimum())
	})
}

// suiteInUse is the suite that is offered even if it is weaker than others may be; 0: there is none. Its key may be
// another one than that in use.
func (p *Policy) suiteInUse(l *leg) suite.Suite {
	if l.keying != SDES || len(l.send) == 0 || !p.permits(l) {
		return 0
	}
	return l.suite
}

// newLines makes the crypto attributes of an offer: the key in use first, then one with a key of its own for each suite
// that the policy lets in. They have no MKI, which many phones do not know, unless the key in use has one.
func (c *Call) newLines(l *leg, p *Place, renew bool) {
	l.wipeLines()
	propose := func(s suite.Suite, k sdes.Key, epoch uint32) {
		tag := uint32(len(l.lines)) + 1 // never 0: not every phone takes that
		a := sdes.Attribute{Tag: tag, Suite: s, Keys: []sdes.Key{k}}
		l.lines = append(l.lines, proposal{Attribute: a, epoch: epoch})
	}
	inUse := p.suiteInUse(l)
	if inUse != 0 {
		if renew {
			propose(inUse, c.config.NewKey(inUse), c.nextEpoch())
		} else {
			propose(inUse, cloneKeys(l.send)[0], l.sendEpoch)
		}
		l.lines[0].UnencryptedSRTCP = l.clearSRTCP
	}
	for _, s := range suite.All() {
		if s != inUse && !weaker(s, p.minimum()) {
			propose(s, c.config.NewKey(s), c.nextEpoch())
		}
	}
}

// offerTo is what the offer says to who is offered.
func (c *Call) offerTo(l *leg) []string {
	var all []string
	if l.offersChannel != 0 {
		all = append(all, attrChannel+":"+l.offersChannel.String())
	}
	for _, a := range l.lines {
		all = append(all, cryptoLine(a.Attribute))
	}
	if l.offersDTLS {
		all = append(all, l.dtls.attributes(&c.config, "actpass", l.dtls.offered)...)
	}
	return all
}

// takeAnswer brings the leg to who answers up to date with its line. mux says that who offered has rtcp-mux, too.
func (c *Call) takeAnswer(end End, l *leg, s *section, mux bool) (reason string) {
	p := &c.places[end]
	k, offered, a, reason := p.answered(l, s)
	if reason != "" {
		return reason
	}
	moved, reason := l.notes(s, s.mux && (mux || l.offersDTLS))
	if reason != "" {
		return reason
	}
	was, before, epoch := l.keying, l.suite, l.sendEpoch
	l.became(k)
	same := was == k && !moved

	switch k {
	case SDES:
		// The key in use stays in use where the end has moved: the next index of it is not used yet, and another key was
		// not offered. The next offer has one.
		taken := c.take(end, offered.epoch)
		l.sends(offered.Keys[0], offered.epoch)
		l.receives(c, a.Keys, same && before == a.Suite)
		l.suite, l.clearSRTCP = a.Suite, a.UnencryptedSRTCP
		l.mki = len(offered.Keys[0].MKI)
		if l.sendEpoch == epoch {
			l.stale = l.stale || moved
		} else {
			l.stale = taken
		}
	case DTLS:
		return l.dtls.takeAnswer(c, s, same && l.dtls.same(s))
	case Channel:
		l.channel(c, s.channel, same)
	}
	return ""
}

// answered is what an answer has chosen of our offer.
func (p *Place) answered(l *leg, s *section) (k Keying, offered proposal, a sdes.Attribute, reason string) {
	if l.offersChannel != 0 && p.isBox(s) && s.channel != 0 && s.protocol.class == avp && !s.named {
		if s.channel != l.offersChannel {
			return 0, offered, a, "the site's box answers with a suite that was not offered"
		}
		return Channel, offered, a, ""
	}
	left, echo := false, false
	if s.protocol.class != tls {
		for _, a := range s.crypto {
			o, ok := l.match(a)
			switch {
			case !ok || !p.accepts(a):
			case l.ours(a.Keys):
				echo = true
			case o.left:
				left = true
			default:
				return SDES, o, a, ""
			}
		}
	}
	switch {
	case l.offersDTLS && len(s.prints) > 0 && !s.mux:
		return 0, offered, a, "the answer takes " + needsMux
	case l.offersDTLS && len(s.prints) > 0:
		return DTLS, offered, a, ""
	case echo:
		return 0, offered, a, "the answer has a key of the box for its own"
	case left:
		return 0, offered, a, "the answer goes back to a key that another one has replaced"
	case s.protocol.class != avp || l.protocol.class != avp:
		return 0, offered, a, "the answer has no keys for SRTP that were offered"
	case s.named:
		// It would send and expect SRTP.
		return 0, offered, a, "the answer has keys for SRTP that were not offered"
	case p.Level == Require:
		return 0, offered, a, "SRTP is required, and the answer has none"
	}
	return Clear, offered, a, ""
}
