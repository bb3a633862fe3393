package media

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Lengths of the headers that we write (RFC 791, RFC 8200, RFC 768).
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	maxHeaders = ipv6Header + udpHeader
)

const (
	protocolUDP = 17
	hops        = 64
)

// headersOf is the length of the headers towards an address.
func headersOf(a netip.Addr) int {
	if a.Is4() {
		return ipv4Header + udpHeader
	}
	return ipv6Header + udpHeader
}

// putHeaders writes the headers of IP and UDP in front of a payload, which begins in b where headersOf says. Both
// addresses are of one family.
//
// DF is set, and its ID is the kernel's (RFC 6864): a packet that its link does not take is refused with EMSGSIZE,
// where we count it, and not cut into fragments, which firewalls drop.
func putHeaders(b []byte, from, to netip.AddrPort, dscp uint8) {
	var sum uint64
	var u []byte
	if from.Addr().Is4() {
		src, dst := from.Addr().As4(), to.Addr().As4()
		h := b[:ipv4Header]
		binary.BigEndian.PutUint32(h, 0x45<<24|uint32(dscp)<<18|uint32(len(b)))
		binary.BigEndian.PutUint32(h[4:], 0x4000) // DF
		binary.BigEndian.PutUint32(h[8:], hops<<24|protocolUDP<<16)
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		binary.BigEndian.PutUint16(h[10:], ^fold(add(0, h)))
		u = b[ipv4Header:]
		sum = uint64(fold(add(0, h[12:20])))
	} else {
		src, dst := from.Addr().As16(), to.Addr().As16()
		h := b[:ipv6Header]
		binary.BigEndian.PutUint32(h, 6<<28|uint32(dscp)<<22)
		binary.BigEndian.PutUint32(h[4:], uint32(len(b)-ipv6Header)<<16|protocolUDP<<8|hops)
		copy(h[8:], src[:])
		copy(h[24:], dst[:])
		u = b[ipv6Header:]
		sum = uint64(fold(add(0, h[8:40])))
	}

	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint32(u[4:], uint32(len(u))<<16)
	// The pseudo header has the protocol and the length besides the addresses (RFC 768, RFC 8200 section 8.1).
	check := ^fold(add(sum+protocolUDP+uint64(len(u)), u))
	if check == 0 {
		check = 0xffff // 0 means that there is none
	}
	binary.BigEndian.PutUint16(u[6:], check)
}

// add adds the 16-bit words of b to a sum in ones' complement (RFC 1071), eight bytes at once: carries out of the
// upper end come back in at the lower one, and what is left is folded at the end.
func add(sum uint64, b []byte) uint64 {
	var carry uint64
	for ; len(b) >= 8; b = b[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(last[:]), carry)
	}
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

// fold folds a sum to 16 bits.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum&0xffff)
}
