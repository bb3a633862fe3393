package offer

import (
	"slices"
	"strings"

	"ringway/srtp/suite"
)

// media is what the media plane is told of a branch.
func (b *branch) media() []Media {
	x := b.exchange.from
	y := x.other()
	var all []Media
	for i := range b.exchange.lines {
		o := &b.exchange.lines[i]
		if o.fate != relayed || !b.legs[x][i].live {
			continue
		}
		m := Media{Index: i, Kind: o.kind}
		m.Legs[x] = b.legs[x][i].describe()
		m.Legs[y] = b.legs[y][i].describe()
		o.terms(&m.Legs[x], &m.Legs[y], b.before == nil)
		all = append(all, m)
	}
	return all
}

func (l *leg) describe() Leg {
	d := Leg{
		Keying: l.keying, Protocol: l.protocol.String(), Local: l.local, Remote: l.remote, RemoteRTCP: l.remoteRTCP,
		Mux: l.mux, Stale: l.stale, Suite: l.suite, ClearSRTCP: l.clearSRTCP,
		Send:    Keys{cloneKeys(l.send), l.sendEpoch},
		Receive: Keys{cloneKeys(l.receive), l.receiveEpoch},
	}
	switch l.keying {
	case Undecided:
		d.Suite, d.MKI = l.dearest()
	case Channel:
		d.MKI = ChannelMKI
	case SDES:
		d.MKI = l.mki
	case DTLS:
		a := l.dtls.Association
		a.Remote = slices.Clone(a.Remote)
		d.DTLS = &a
	}
	return d
}

// dearest is the suite that costs most of those that were offered, and the length of its MKI.
func (l *leg) dearest() (s suite.Suite, mki int) {
	switch {
	case l.offersChannel != 0:
		return l.offersChannel, ChannelMKI
	case l.offersDTLS:
		return costliest, 0
	}
	for _, a := range l.lines {
		if !s.Valid() || a.Suite.Overhead() > s.Overhead() {
			s, mki = a.Suite, len(a.Keys[0].MKI)
		}
	}
	return s, mki
}

// terms sets what the ends send. A packet of the end that offered has a payload type of the answer, and the packet time
// that the answer asks for; and the other way round (RFC 3264 section 6.1).
func (o *offered) terms(offerer, answerer *Leg, settled bool) {
	offerer.Sends, offerer.Receives = o.offer.sends(), o.offer.receives()
	answerer.Ptime, answerer.MaxPtime = o.offer.ptime, o.offer.maxPtime
	answerer.Codecs = slices.Clone(o.offer.codecs)
	if !settled {
		answerer.Sends, answerer.Receives = offerer.Receives, offerer.Sends
		offerer.Codecs = slices.Clone(o.offer.codecs)
		return
	}
	offerer.Sends = offerer.Sends && o.answer.receives()
	offerer.Receives = offerer.Receives && o.answer.sends()
	answerer.Sends, answerer.Receives = offerer.Receives, offerer.Sends
	offerer.Ptime, offerer.MaxPtime = o.answer.ptime, o.answer.maxPtime
	offerer.Codecs = slices.Clone(o.answer.codecs)
	chosen := slices.DeleteFunc(slices.Clone(o.offer.codecs), func(x Codec) bool {
		return !slices.ContainsFunc(o.answer.codecs, x.same)
	})
	if len(chosen) > 0 {
		answerer.Codecs = chosen
	}
}

// same says whether two payload types, one of each description, mean the same codec.
func (x Codec) same(y Codec) bool {
	if x.Name == "" || y.Name == "" {
		return x.PayloadType == y.PayloadType
	}
	return strings.EqualFold(x.Name, y.Name) && x.Clock == y.Clock && max(x.Channels, 1) == max(y.Channels, 1)
}
