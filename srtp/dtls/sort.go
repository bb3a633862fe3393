package dtls

// Kind is what a packet is that arrives at a port for media, by its first byte.
type Kind uint8

// Kinds of RFC 7983 section 7, with the ranges of RFC 9443 section 3.
const (
	Unknown Kind = iota
	STUN
	ZRTP
	DTLS
	TURN
	QUIC
	Media // RTP, RTCP, and both as SRTP
)

// String is the kind's name.
func (k Kind) String() string {
	return [...]string{"unknown", "STUN", "ZRTP", "DTLS", "TURN", "QUIC", "media"}[k]
}

// Sort returns the kind of a packet. It looks at the first byte only and does not allocate: a forwarding thread calls
// it for every packet.
func Sort(packet []byte) Kind {
	if len(packet) == 0 {
		return Unknown
	}
	switch b := packet[0]; {
	case b <= 3:
		return STUN
	case b >= 16 && b <= 19:
		return ZRTP
	case b >= 20 && b <= 63:
		return DTLS
	case b >= 64 && b <= 79:
		return TURN
	case b >= 128 && b <= 191:
		return Media
	case b >= 80:
		return QUIC
	}
	return Unknown
}
