package series

import (
	"encoding/binary"
	"math/bits"
)

// RFC 3550, section 5.1; RFC 5761, section 4; RFC 8200; https://www.iana.org/assignments/protocol-numbers
const (
	protocolUDP = 17
	headerIPv4  = 20
	headerIPv6  = 40
	headerUDP   = 8
	headerRTP   = 12

	versionRTP          = 2
	firstRTCP, lastRTCP = 192, 223 // of the second octet
)

// Seed keys the hash by which series are known, so that nobody can choose ports that collide.
type Seed [2]uint64

// header is what a packet of RTP says of itself. Of SRTP it is in clear, too (RFC 3711, section 3.1). With more than
// four fields it would go through memory, which takes longer than all of the reading.
type header struct {
	id       uint64 // of its series, never 0
	time     uint32
	sequence uint16
	payload  uint8 // type
}

// read takes the header of a packet. ok is false for what is no RTP: other protocols, fragments, RTCP, and by the first
// octet STUN, DTLS and TURN (RFC 7983, section 7). p is an IP packet whose header was checked for its length; nothing
// else of it is trusted.
func (s *Seed) read(p []byte) (h header, ok bool) {
	var a, b uint64 // addresses
	udp := headerIPv6
	if p[0]>>4 == 4 {
		// A fragment, the first one as well, would be counted once for all of its packet.
		if len(p) < headerIPv4 || p[9] != protocolUDP || p[6]&0x3f != 0 || p[7] != 0 {
			return h, false
		}
		udp = int(p[0]&15) * 4
		a = binary.BigEndian.Uint64(p[12:])
	} else {
		if len(p) < headerIPv6 || p[6] != protocolUDP {
			return h, false
		}
		a = fold(binary.BigEndian.Uint64(p[8:])^s[1], binary.BigEndian.Uint64(p[16:])^s[0])
		b = fold(binary.BigEndian.Uint64(p[24:])^s[1], binary.BigEndian.Uint64(p[32:])^a)
	}

	if udp < headerIPv4 || len(p) < udp+headerUDP+headerRTP {
		return h, false
	}
	r := p[udp+headerUDP:][:headerRTP]
	if r[0]>>6 != versionRTP || r[1] >= firstRTCP && r[1] <= lastRTCP {
		return h, false
	}
	h.payload = r[1] & 0x7f
	h.sequence = binary.BigEndian.Uint16(r[2:])
	h.time = binary.BigEndian.Uint32(r[4:])
	ports := uint64(binary.BigEndian.Uint32(p[udp:]))
	source := uint64(binary.BigEndian.Uint32(r[8:]))
	h.id = max(fold(a^b^s[0], ports<<32|source^s[1]), 1)
	return h, true
}

// fold multiplies to 128 bits and combines the halves, as wyhash does.
func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

// name is whose packets a series counts.
type name struct {
	v6        bool
	addresses [32]byte // from, to
	ports     [4]byte
	source    uint32
}

// nameOf is that of a packet that was read.
func nameOf(p []byte) (n name) {
	udp := headerIPv6
	if n.v6 = p[0]>>4 == 6; n.v6 {
		copy(n.addresses[:], p[8:40])
	} else {
		udp = int(p[0]&15) * 4
		copy(n.addresses[:], p[12:16])
		copy(n.addresses[16:], p[16:20])
	}
	copy(n.ports[:], p[udp:])
	n.source = binary.BigEndian.Uint32(p[udp+headerUDP+8:])
	return n
}
