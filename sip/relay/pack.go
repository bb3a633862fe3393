package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"ringway/sip/dialog"
)

// flowsRequest crosses the control socket with every message that changes what a call needs. Its changes go beside the
// fields, packed: as JSON they cost more than all that the daemon does about them but for the kernel's part.
type flowsRequest struct {
	Changes []Change
	Whole   bool // there are no other flows than those that are opened here
}

// flowsHead are the fields of the request. Places has those of each change, if there are any.
type flowsHead struct {
	Whole  bool      `json:"whole,omitempty"`
	Places [][]Place `json:"places,omitempty"`
}

// maxChanges bounds a request: one change for each leg, and what waits besides.
const maxChanges = maxLegs + 2*maxQueued

// pack gives the two parts of a request.
func (r *flowsRequest) pack() (head flowsHead, packed []byte) {
	head.Whole, packed = r.Whole, make([]byte, 0, 256)
	for i := range r.Changes {
		c := &r.Changes[i]
		packed = c.pack(packed)
		if len(c.Places) > 0 && head.Places == nil {
			head.Places = make([][]Place, len(r.Changes))
		}
		if head.Places != nil {
			head.Places[i] = c.Places
		}
	}
	return head, packed
}

// unpack puts a request together. Its bytes are an unprivileged process's.
func unpack(head flowsHead, packed []byte) (r flowsRequest, err error) {
	r.Whole = head.Whole
	u := unpacker{rest: packed}
	for len(u.rest) > 0 && !u.bad && len(r.Changes) <= maxChanges {
		r.Changes = append(r.Changes, u.change())
	}
	switch {
	case len(r.Changes) > maxChanges:
		return r, fmt.Errorf("more than %d changes", maxChanges)
	case u.bad:
		return r, errors.New("changes of flows that end early, or have no such form")
	case head.Places == nil:
		return r, nil
	case len(head.Places) != len(r.Changes):
		return r, fmt.Errorf("places of %d changes, with %d changes", len(head.Places), len(r.Changes))
	}
	for i, p := range head.Places {
		r.Changes[i].Places = p
	}
	return r, nil
}

// pack appends a change without its places: three addresses or more, then two lists of flows, each with its length.
func (c *Change) pack(b []byte) []byte {
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
	return b
}

func packFlow(b []byte, f *dialog.Flow) []byte {
	rtcp := byte(0)
	if f.RTCP {
		rtcp = 1
	}
	b = packAddr(packAddr(append(b, rtcp), f.From), f.Asked)
	return binary.BigEndian.AppendUint16(packAddr(b, f.To.Addr()), f.To.Port())
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
			f := dialog.Flow{RTCP: u.take(1)[0] == 1, From: u.addr(), Asked: u.addr()}
			f.To = netip.AddrPortFrom(u.addr(), binary.BigEndian.Uint16(u.take(2)))
			*list = append(*list, f)
		}
	}
	return c
}

// minFlow is the least that a flow takes.
const minFlow = 1 + 3 + 2

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

// take gives the next n bytes, 16 at most; zeros once it is bad.
func (u *unpacker) take(n int) []byte {
	if u.bad || n > len(u.rest) {
		u.bad = true
		return make([]byte, 16)[:n]
	}
	b := u.rest[:n]
	u.rest = u.rest[n:]
	return b
}
