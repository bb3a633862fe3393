package realtime

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// endpoint is where a peer is and at which of our addresses its packets arrive. It never changes, so threads share it.
type endpoint struct {
	raw sockaddr
	src netip.Addr // our address; zero: the kernel chooses. The interface is the kernel's choice: routes change.
	// control is the message that pins the source, ready to be sent; empty where none is known.
	control  [controlSize]byte
	controls int
}

// sockaddr is a raw socket address, as the kernel has it.
type sockaddr struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32
}

func (s *sockaddr) v6() bool { return s.n == unix.SizeofSockaddrInet6 }

func rawSockaddr(a netip.AddrPort) (s sockaddr) {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
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

// bare is the address without its zone: a forwarding thread may not make one, which takes a lock of package unique's.
func (s *sockaddr) bare() netip.Addr {
	if s.v6() {
		return netip.AddrFrom16([16]byte(s.b[8:24]))
	}
	return netip.AddrFrom4([4]byte(s.b[4:8]))
}

// addrPort is for the control side.
func (s *sockaddr) addrPort() netip.AddrPort {
	a := s.bare()
	if s.v6() && a.IsLinkLocalUnicast() {
		if z := binary.NativeEndian.Uint32(s.b[24:]); z != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(z), 10))
		}
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(s.b[2:]))
}

func newEndpoint(raw sockaddr, src netip.Addr) *endpoint {
	e := &endpoint{raw: raw, src: src}
	if src.IsValid() && src.Is4() != raw.v6() && !src.IsUnspecified() && !src.IsMulticast() {
		e.controls = putSource(e.control[:], 0, src)
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

func (c *endpoints) get(s *sockaddr, src netip.Addr) *endpoint {
	var h uint32
	for i := 2; i < int(s.n); i += 2 {
		h = h*31 + uint32(binary.NativeEndian.Uint16(s.b[i:]))
	}
	slot := &c[(h^h>>16)%uint32(len(c))]
	if e := *slot; e != nil && e.raw == *s && e.src == src {
		return e
	}
	e := newEndpoint(*s, src)
	*slot = e
	return e
}
