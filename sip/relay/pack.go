package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"ringway/sip/dialog"
	"ringway/tunnel"
	"ringway/units"
)

// flowsRequest crosses the control socket with every message that changes what a call needs, unless it goes by a
// channel. Its changes go beside the fields, packed: as JSON they cost more than all that the daemon does about them
// but for the kernel's part.
type flowsRequest struct {
	Changes []Change
	Whole   bool // there are no other flows than those that are opened here
}

// flowsHead are the fields of the request.
type flowsHead struct {
	Whole bool `json:"whole,omitempty"`
}

// maxChanges bounds a request: one change for each leg, and what waits besides.
const maxChanges = maxLegs + 2*maxQueued

// packChanges appends changes.
func packChanges(b []byte, changes []Change) []byte {
	for i := range changes {
		b = changes[i].pack(b)
	}
	return b
}

// unpackChanges reads what packChanges wrote. Its bytes are an unprivileged process's.
func unpackChanges(packed []byte) (changes []Change, err error) {
	u := unpacker{rest: packed}
	for len(u.rest) > 0 && !u.bad && len(changes) <= maxChanges {
		changes = append(changes, u.change())
	}
	switch {
	case len(changes) > maxChanges:
		WipeKeys(changes)
		return nil, fmt.Errorf("more than %d changes", maxChanges)
	case u.bad:
		WipeKeys(changes)
		return nil, errors.New("changes of flows that end early, or have no such form")
	}
	return changes, nil
}

// pack appends a change: three addresses or more, then two lists of flows and one of places, each with its length;
// where there are pairs of media, withMedia before it and a list of them behind it.
func (c *Change) pack(b []byte) []byte {
	if c.hasMedia() {
		b = append(b, withMedia)
	}
	b = packAddr(packAddr(b, c.Hops[0]), c.Hops[1])
	b = binary.AppendUvarint(b, uint64(len(c.Via)))
	for _, a := range c.Via {
		b = packAddr(b, a)
	}
	for _, list := range [][]dialog.Flow{c.Open, c.Close} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for i := range list {
			b = packFlow(b, &list[i])
		}
	}
	b = binary.AppendUvarint(b, uint64(len(c.Places)))
	for i := range c.Places {
		b = packPlace(b, &c.Places[i])
	}
	if c.hasMedia() {
		b = packSaved(packMedia(b, c.Media), c.saved)
	}
	return b
}

func packPlace(b []byte, p *Place) []byte {
	r := &p.Reserve
	b = packAddrPort(packAddrPort(append(b, flag(p.Release)), r.Flow.Source), r.Flow.Destination)
	return binary.BigEndian.AppendUint64(append(b, r.Site[:]...), uint64(r.Rate))
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func packAddrPort(b []byte, a netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(packAddr(b, a.Addr()), a.Port())
}

func packFlow(b []byte, f *dialog.Flow) []byte {
	return packAddrPort(packAddr(packAddr(append(b, flag(f.RTCP())), f.From()), f.Asked()), f.To())
}

// packAddr appends the length of an address, 0 for none, and its bytes. A zone is lost: no flow has one.
func packAddr(b []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		x := a.As4()
		return append(append(b, 4), x[:]...)
	case a.Is6():
		x := a.As16()
		return append(append(b, 16), x[:]...)
	}
	return append(b, 0)
}

// unpacker reads what pack wrote; bad: it could not.
type unpacker struct {
	rest []byte
	bad  bool
}

func (u *unpacker) change() (c Change) {
	media := u.rest[0] == withMedia
	if media {
		u.rest = u.rest[1:]
	}
	c.Hops = [2]netip.Addr{u.addr(), u.addr()}
	for range u.length(1) {
		c.Via = append(c.Via, u.addr())
	}
	for _, list := range []*[]dialog.Flow{&c.Open, &c.Close} {
		n := u.length(minFlow)
		if n > 0 {
			*list = make([]dialog.Flow, 0, n)
		}
		for range n {
			*list = append(*list, u.flow())
		}
	}
	for range u.length(minPlace) {
		p := Place{Release: u.flag()}
		p.Reserve.Flow.Source, p.Reserve.Flow.Destination = u.addrPort(), u.addrPort()
		copy(p.Reserve.Site[:], u.take(len(p.Reserve.Site)))
		p.Reserve.Rate = units.BitRate(binary.BigEndian.Uint64(u.take(8)))
		c.Places = append(c.Places, p)
	}
	if media {
		c.Media, c.saved = u.media(), u.saved()
	}
	return c
}

func (u *unpacker) flow() dialog.Flow {
	rtcp, from, asked, to := u.flag(), u.addr(), u.addr(), u.addrPort()
	if from.IsValid() {
		return dialog.NewFlow(from, to, rtcp)
	}
	return dialog.FlowAsked(asked, to, rtcp)
}

// minFlow is the least that a flow takes, minPlace a place.
const (
	minFlow  = 1 + 3 + 2
	minPlace = 1 + 2*3 + tunnel.KeySize + 8
)

// length reads how many elements follow, each of size bytes at least: what is claimed cannot be more than is there.
func (u *unpacker) length(size int) int {
	n, used := binary.Uvarint(u.rest)
	if u.bad || used <= 0 || n > uint64(len(u.rest)-used)/uint64(size) {
		u.bad = true
		return 0
	}
	u.rest = u.rest[used:]
	return int(n)
}

func (u *unpacker) addr() netip.Addr {
	switch u.take(1)[0] {
	case 0:
	case 4:
		return netip.AddrFrom4([4]byte(u.take(4)))
	case 16:
		return netip.AddrFrom16([16]byte(u.take(16)))
	default:
		u.bad = true
	}
	return netip.Addr{}
}

func (u *unpacker) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(u.addr(), binary.BigEndian.Uint16(u.take(2)))
}

func (u *unpacker) flag() bool { return u.take(1)[0] == 1 }

// take gives the next n bytes, 32 at most; zeros once it is bad.
func (u *unpacker) take(n int) []byte {
	if u.bad || n > len(u.rest) {
		u.bad = true
		return make([]byte, 32)[:n]
	}
	b := u.rest[:n]
	u.rest = u.rest[n:]
	return b
}
