package realtime

import (
	"encoding/binary"
	"net/netip"

	"ringway/tunnel/datagram"
)

// endpoint is where a peer is and at which of our addresses its packets arrive. It never changes, so threads share it.
type endpoint struct {
	raw datagram.Sockaddr
	src netip.Addr // our address; zero: the kernel chooses. The interface is the kernel's choice: routes change.
	// control is the message that pins the source, ready to be sent; empty where none is known.
	control  [datagram.ControlSize]byte
	controls int
}

func newEndpoint(raw datagram.Sockaddr, src netip.Addr) *endpoint {
	e := &endpoint{raw: raw, src: src}
	if src.IsValid() && src.Is4() != raw.V6() && !src.IsUnspecified() && !src.IsMulticast() {
		e.controls = datagram.PutSource(e.control[:], 0, src)
	}
	return e
}

// unpinned is e without its source address.
func (e *endpoint) unpinned() *endpoint {
	if e.controls == 0 {
		return e
	}
	return newEndpoint(e.raw, netip.Addr{})
}

// endpoints remembers the last endpoints seen, so that a peer that moves back and forth costs no memory. It has a fixed size:
// other addresses only push some out.
type endpoints [64]*endpoint

func (c *endpoints) get(s *datagram.Sockaddr, src netip.Addr) *endpoint {
	var h uint32
	for i := 2; i < int(s.N); i += 2 {
		h = h*31 + uint32(binary.NativeEndian.Uint16(s.B[i:]))
	}
	slot := &c[(h^h>>16)%uint32(len(c))]
	if e := *slot; e != nil && e.raw == *s && e.src == src {
		return e
	}
	e := newEndpoint(*s, src)
	*slot = e
	return e
}
