package realtime

import (
	"encoding/binary"
	"net/netip"
)

// Reading and changing the inner packet's header: RFC 791, RFC 8200. All of these accept any bytes.

// parse returns a packet's addresses and the length that its header states. ok is false for what is no IP
// packet or is cut short.
func parse(p []byte) (src, dst netip.Addr, size int, ok bool) {
	if len(p) < 20 {
		return src, dst, 0, false
	}
	switch p[0] >> 4 {
	case 4:
		size = int(binary.BigEndian.Uint16(p[2:]))
		if size < 20 || size > len(p) || p[0]&15 < 5 {
			return src, dst, 0, false
		}
		return netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), size, true
	case 6:
		if len(p) < 40 {
			return src, dst, 0, false
		}
		size = 40 + int(binary.BigEndian.Uint16(p[4:]))
		if size > len(p) {
			return src, dst, 0, false
		}
		return netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), size, true
	}
	return src, dst, 0, false
}

// trafficClass is the octet of DSCP and ECN.
func trafficClass(p []byte) uint8 {
	if p[0]>>4 == 4 {
		return p[1]
	}
	return p[0]<<4 | p[1]>>4
}

// ECN code points (RFC 3168, section 5).
const (
	ecnMask = 3
	ecnNot  = 0
	ecnCE   = 3
)

// applyECN applies the outer ECN field to the inner packet, as the end of a tunnel does (RFC 6040, section
// 4.2). ok is false where the packet has to be dropped, because its sender would not understand the mark.
// Other differences change nothing: keeping ECT(1) of an outer header around ECT(0) matters to PCN alone.
func applyECN(p []byte, outer uint8) (ok bool) {
	if outer&ecnMask != ecnCE {
		return true
	}
	switch trafficClass(p) & ecnMask {
	case ecnNot:
		return false
	case ecnCE:
		return true
	}
	if p[0]>>4 == 6 {
		p[1] |= ecnCE << 4
		return true
	}
	// RFC 1624: HC' = ~(~HC + ~m + m') over the word of version and traffic class.
	old := binary.BigEndian.Uint16(p[0:])
	p[1] |= ecnCE
	sum := uint32(^binary.BigEndian.Uint16(p[10:])) + uint32(^old) + uint32(binary.BigEndian.Uint16(p[0:]))
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	return true
}

// padded is the length of a packet's plaintext (section 5.4.6): a multiple of 16, or up to padTo that size,
// but never above the MTU unless the packet is.
func padded(n, padTo, mtu int) int {
	size := (n + paddingMultiple - 1) &^ (paddingMultiple - 1)
	if n <= padTo {
		size = max(size, padTo)
	}
	if n <= mtu {
		size = min(size, mtu)
	}
	return size
}
