package realtime

import (
	"net/netip"

	"ringway/tunnel/datagram"
)

// endpoint is where a peer is, and at which of our addresses its packets arrive. It never changes, so threads
// share it.
type endpoint struct {
	raw datagram.Sockaddr
	src netip.Addr // our address; zero: the kernel chooses. It always chooses the interface, since routes change.
	// control is the control message that sets the source, ready to be sent; empty if none is known.
	control  [datagram.ControlSize]byte
	controls int
}

func newEndpoint(raw datagram.Sockaddr, src netip.Addr) *endpoint {
	e := &endpoint{raw: raw, src: src}
	if src.IsValid() && src.Is4() != raw.V6() {
		e.controls = datagram.PutSource(e.control[:], 0, src)
	}
	return e
}

// withoutSource returns e without its source address.
func (e *endpoint) withoutSource() *endpoint {
	if e.controls == 0 {
		return e
	}
	return newEndpoint(e.raw, netip.Addr{})
}

// endpointCache keeps the last endpoints seen, so that a peer that moves back and forth costs no memory. It
// has a fixed size: a stranger's addresses only push others out.
type endpointCache [64]*endpoint

func (c *endpointCache) get(s *datagram.Sockaddr, src netip.Addr) *endpoint {
	slot := &c[s.Hash()%uint32(len(c))]
	if e := *slot; e != nil && e.raw == *s && e.src == src {
		return e
	}
	e := newEndpoint(*s, src)
	*slot = e
	return e
}
