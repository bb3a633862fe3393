package wireguardgo

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// endpoint is where a peer is and at which of our addresses its packets arrive. It never
// changes but for cleared: the device shares one among packets on their way.
type endpoint struct {
	dst netip.AddrPort
	src netip.Addr // our address; zero: the kernel chooses
	// The interface is left to the kernel: no one tells us of route changes, and a pinned
	// interface would outlive them.
	cleared atomic.Bool
	raw     sockaddr
}

// sockaddr is a raw socket address, as the kernel has it.
type sockaddr struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32
}

func rawSockaddr(a netip.AddrPort) (s sockaddr) {
	binary.BigEndian.PutUint16(s.b[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(s.b[4:], ip[:])
		s.n = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET6)
	ip := a.Addr().As16()
	copy(s.b[8:], ip[:])
	if z, err := strconv.ParseUint(a.Addr().Zone(), 10, 32); err == nil {
		binary.NativeEndian.PutUint32(s.b[24:], uint32(z))
	}
	s.n = unix.SizeofSockaddrInet6
	return s
}

func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.b[2:])
	if s.n == unix.SizeofSockaddrInet4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.b[4:8])), port)
	}
	a := netip.AddrFrom16([16]byte(s.b[8:24]))
	if z := binary.NativeEndian.Uint32(s.b[24:]); z != 0 && a.IsLinkLocalUnicast() {
		a = a.WithZone(strconv.FormatUint(uint64(z), 10))
	}
	return netip.AddrPortFrom(a, port)
}

func newEndpoint(dst netip.AddrPort) *endpoint {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	return &endpoint{dst: dst, raw: rawSockaddr(dst)}
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

// endpoints remembers the last endpoints seen, so that a packet from a known one costs no
// allocation. It has a fixed size: a stranger's addresses only push others out.
type endpoints [64]*endpoint

func (c *endpoints) get(s *sockaddr, src netip.Addr) *endpoint {
	var h uint32
	for i := 2; i < int(s.n); i += 2 {
		h = h*31 + uint32(binary.NativeEndian.Uint16(s.b[i:]))
	}
	slot := &c[(h^h>>16)%uint32(len(c))]
	if e := *slot; e != nil && e.raw == *s && e.src == src && !e.cleared.Load() {
		return e
	}
	e := newEndpoint(s.addrPort())
	e.src = src
	e.raw = *s
	*slot = e
	return e
}
