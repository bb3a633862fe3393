package datagram

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sockaddr is a raw socket address, in the form of the kernel.
type Sockaddr struct {
	B [unix.SizeofSockaddrInet6]byte
	N uint32
}

// V6 reports whether it is an IPv6 address.
func (s *Sockaddr) V6() bool { return s.N == unix.SizeofSockaddrInet6 }

// RawSockaddr converts an address to the form of the kernel. An IPv4-mapped IPv6 address becomes IPv4.
func RawSockaddr(a netip.AddrPort) (s Sockaddr) {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	binary.BigEndian.PutUint16(s.B[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s.B[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(s.B[4:], ip[:])
		s.N = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.B[:], unix.AF_INET6)
	ip := a.Addr().As16()
	copy(s.B[8:], ip[:])
	if z, err := strconv.ParseUint(a.Addr().Zone(), 10, 32); err == nil {
		binary.NativeEndian.PutUint32(s.B[24:], uint32(z))
	}
	s.N = unix.SizeofSockaddrInet6
	return s
}

// Bare is the address without its zone. A forwarding thread must not make a zone, which takes a lock in
// package unique.
func (s *Sockaddr) Bare() netip.Addr {
	if s.V6() {
		return netip.AddrFrom16([16]byte(s.B[8:24]))
	}
	return netip.AddrFrom4([4]byte(s.B[4:8]))
}

// BareAddrPort is the address and port, without a zone.
func (s *Sockaddr) BareAddrPort() netip.AddrPort {
	return netip.AddrPortFrom(s.Bare(), binary.BigEndian.Uint16(s.B[2:]))
}

// AddrPort is the address with its zone. It is not for a forwarding thread.
func (s *Sockaddr) AddrPort() netip.AddrPort {
	a := s.Bare()
	if s.V6() && a.IsLinkLocalUnicast() {
		if z := binary.NativeEndian.Uint32(s.B[24:]); z != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(z), 10))
		}
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(s.B[2:]))
}

// Hash spreads addresses over small caches. It is not keyed: a stranger can make addresses collide, and push
// others out.
func (s *Sockaddr) Hash() uint32 {
	var h uint32
	for i := 2; i < int(s.N); i += 2 {
		h = h*31 + uint32(binary.NativeEndian.Uint16(s.B[i:]))
	}
	return h ^ h>>16
}
