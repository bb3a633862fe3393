package wireguardgo

import (
	"net/netip"
	"sync/atomic"

	"ringway/tunnel/datagram"
)

// endpoint is where a peer is, and at which of our addresses its packets arrive. Only cleared ever changes:
// the device shares one endpoint among packets on their way.
type endpoint struct {
	dst netip.AddrPort
	src netip.Addr // our address; zero: the kernel chooses
	// The interface is left to the kernel, which knows the routes: a pinned interface would outlive them.
	cleared atomic.Bool
	raw     datagram.Sockaddr
}

func newEndpoint(dst netip.AddrPort) *endpoint {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	return &endpoint{dst: dst, raw: datagram.RawSockaddr(dst)}
}

// source is our address to send from, if one is known and still good.
func (e *endpoint) source() (netip.Addr, bool) { return e.src, e.src.IsValid() && !e.cleared.Load() }

func (e *endpoint) ClearSrc()           { e.cleared.Store(true) }
func (e *endpoint) DstIP() netip.Addr   { return e.dst.Addr() }
func (e *endpoint) DstToString() string { return e.dst.String() }
func (e *endpoint) DstToBytes() []byte  { b, _ := e.dst.MarshalBinary(); return b }

func (e *endpoint) SrcIP() netip.Addr {
	a, _ := e.source()
	if !a.IsValid() || e.cleared.Load() {
		return netip.Addr{}
	}
	return a
}

func (e *endpoint) SrcToString() string {
	if a := e.SrcIP(); a.IsValid() {
		return a.String()
	}
	return ""
}

// endpointCache keeps the last endpoints seen, so that a packet from a known one costs no allocation. It has
// a fixed size: a stranger's addresses only push others out.
type endpointCache [64]*endpoint

func (c *endpointCache) get(s *datagram.Sockaddr, src netip.Addr) *endpoint {
	slot := &c[s.Hash()%uint32(len(c))]
	if e := *slot; e != nil && e.raw == *s && e.src == src && !e.cleared.Load() {
		return e
	}
	e := newEndpoint(s.AddrPort())
	e.src = src
	e.raw = *s
	*slot = e
	return e
}
