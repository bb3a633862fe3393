package relay

import (
	"encoding/binary"
	"net/netip"

	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// withMedia is the first byte of a change that has pairs of media behind its places. No other change begins so: the
// length of an address is 0, 4 or 16. A daemon of an earlier build, which knows none, refuses them.
const withMedia = 0xff

// Bounds of what one pair may have, so that a process which was taken over cannot have the daemon keep more.
const (
	maxKeysOf   = 16
	maxCodecsOf = 64
	maxPrintsOf = 16
	maxTextOf   = 256 // bytes
)

func (c *Change) hasMedia() bool { return len(c.Media)+len(c.saved) > 0 }

func packMedia(b []byte, all []terminate.Change) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		c := &all[i]
		b = append(binary.BigEndian.AppendUint64(b, c.ID), flag(c.Pair != nil))
		if c.Pair == nil {
			continue
		}
		b = append(b, byte(c.Pair.Kind))
		for e := range c.Pair.Ends {
			b = packEnd(b, &c.Pair.Ends[e])
		}
	}
	return b
}

func packEnd(b []byte, e *terminate.End) []byte {
	b = packAddr(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, e.ID), e.Call), e.Hop)
	l := &e.Leg
	b = packText(append(b, byte(l.Keying)), l.Protocol)
	b = packAddrPort(packAddrPort(packAddrPort(b, l.Local), l.Remote), l.RemoteRTCP)
	b = binary.BigEndian.AppendUint16(append(b, flag(l.Mux)), uint16(l.Suite))
	b = append(b, byte(l.MKI), flag(l.ClearSRTCP), flag(l.Sends), flag(l.Receives))
	b = packKeys(packKeys(b, &l.Send), &l.Receive)
	b = append(b, flag(l.DTLS != nil))
	if a := l.DTLS; a != nil {
		b = append(binary.BigEndian.AppendUint32(b, a.Epoch), byte(a.Role))
		b = packText(packText(b, a.LocalID), a.RemoteID)
		b = binary.AppendUvarint(b, uint64(len(a.Remote)))
		for _, f := range a.Remote {
			b = packText(packText(b, f.Hash), f.Value)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(l.Codecs)))
	for _, x := range l.Codecs {
		b = binary.BigEndian.AppendUint32(append(b, x.PayloadType, x.Channels), x.Clock)
		b = packText(packText(b, x.Name), x.Params)
	}
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, uint32(l.Ptime)), uint32(l.MaxPtime))
}

func packKeys(b []byte, k *offer.Keys) []byte {
	b = binary.AppendUvarint(binary.BigEndian.AppendUint32(b, k.Epoch), uint64(len(k.Keys)))
	for _, x := range k.Keys {
		b = packBytes(packBytes(packBytes(b, x.Master), x.Salt), x.MKI)
		b = binary.BigEndian.AppendUint64(b, x.Lifetime)
	}
	return b
}

// packText cuts what is too long: an identifier or a name that long fits nothing.
func packText(b []byte, s string) []byte {
	s = s[:min(len(s), maxTextOf)]
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func packBytes(b, x []byte) []byte {
	x = x[:min(len(x), maxTextOf)]
	return append(binary.AppendUvarint(b, uint64(len(x))), x...)
}

// minChange is the least that a change of a pair takes.
const minChange = 9

func (u *unpacker) media() (all []terminate.Change) {
	for range u.length(minChange) {
		c := terminate.Change{ID: u.uint64()}
		if u.flag() {
			c.Pair = &terminate.Pair{ID: c.ID, Kind: sdp.Kind(u.take(1)[0])}
			for e := range c.Pair.Ends {
				c.Pair.Ends[e] = u.end()
			}
		}
		all = append(all, c)
	}
	if u.bad { // of what was read so far nothing is used
		wipeMedia(all)
	}
	return all
}

func (u *unpacker) end() (e terminate.End) {
	e.ID, e.Call, e.Hop = u.uint64(), u.uint64(), u.addr()
	l := &e.Leg
	l.Keying, l.Protocol = offer.Keying(u.take(1)[0]), u.text()
	l.Local, l.Remote, l.RemoteRTCP = u.addrPort(), u.addrPort(), u.addrPort()
	l.Mux, l.Suite = u.flag(), suite.Suite(binary.BigEndian.Uint16(u.take(2)))
	l.MKI, l.ClearSRTCP, l.Sends, l.Receives = int(u.take(1)[0]), u.flag(), u.flag(), u.flag()
	l.Send, l.Receive = u.keys(), u.keys()
	if u.flag() {
		a := &offer.Association{Epoch: u.uint32(), Role: offer.Role(u.take(1)[0]), LocalID: u.text(), RemoteID: u.text()}
		for range u.count(maxPrintsOf) {
			a.Remote = append(a.Remote, offer.Fingerprint{Hash: u.text(), Value: u.text()})
		}
		l.DTLS = a
	}
	for range u.count(maxCodecsOf) {
		b := u.take(2)
		x := offer.Codec{PayloadType: b[0], Channels: b[1], Clock: u.uint32()}
		x.Name, x.Params = u.text(), u.text()
		l.Codecs = append(l.Codecs, x)
	}
	l.Ptime, l.MaxPtime = int(u.uint32()), int(u.uint32())
	u.bad = u.bad || l.Keying > offer.Channel || l.Suite != 0 && !l.Suite.Valid()
	return e
}

func (u *unpacker) keys() (k offer.Keys) {
	k.Epoch = u.uint32()
	for range u.count(maxKeysOf) {
		k.Keys = append(k.Keys, sdes.Key{Master: u.bytes(), Salt: u.bytes(), MKI: u.bytes(), Lifetime: u.uint64()})
	}
	return k
}

// count reads how many elements follow, of those that may be at most so many.
func (u *unpacker) count(most int) int {
	n := u.length(1)
	if n > most {
		u.bad = true
		return 0
	}
	return n
}

// bytes reads a copy; nil is none.
func (u *unpacker) bytes() []byte { return u.upTo(maxTextOf) }

func (u *unpacker) upTo(most int) []byte {
	n := u.count(most)
	if u.bad || n == 0 {
		return nil
	}
	b := append([]byte(nil), u.rest[:n]...)
	u.rest = u.rest[n:]
	return b
}

func (u *unpacker) text() string   { return string(u.bytes()) }
func (u *unpacker) uint64() uint64 { return binary.BigEndian.Uint64(u.take(8)) }
func (u *unpacker) uint32() uint32 { return binary.BigEndian.Uint32(u.take(4)) }

func wipeMedia(all []terminate.Change) {
	for i := range all {
		if all[i].Pair != nil {
			all[i].Pair.Wipe()
		}
	}
}

// WipeKeys overwrites the keys of changes.
func WipeKeys(all []Change) {
	for i := range all {
		wipeMedia(all[i].Media)
		terminate.WipeSaved(all[i].saved)
	}
}

// Bounds of what is saved, in bytes: of one call, and of all in one request, which has 16 MiB at most.
const (
	maxSaved       = 256 << 10
	maxSavedAtOnce = 8 << 20
)

func packSaved(b []byte, all []terminate.Saved) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		s := &all[i]
		b = appendBytes(appendBytes(b, []byte(s.CallID)), []byte(s.Tag))
		b = appendBytes(packAddr(packAddr(b, s.Hops[0]), s.Hops[1]), s.State)
	}
	return b
}

func appendBytes(b, x []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(x))), x...) }

func (u *unpacker) saved() (all []terminate.Saved) {
	for range u.length(5) {
		s := terminate.Saved{Leg: terminate.Leg{CallID: string(u.upTo(maxSaved)), Tag: string(u.upTo(maxSaved))}}
		s.Hops = [2]netip.Addr{u.addr(), u.addr()}
		s.State = u.upTo(maxSaved)
		all = append(all, s)
	}
	if u.bad {
		terminate.WipeSaved(all)
	}
	return all
}
