package media

// kind is what a packet says that it is.
type kind uint8

const (
	kindOther kind = iota // STUN, ZRTP, TURN, or nothing at all
	kindDTLS
	kindRTP
	kindRTCP
)

// Lengths of headers (RFC 3550 sections 5.1 and 6.4).
const (
	rtpHeader  = 12
	rtcpHeader = 8
)

// classify sorts by the first byte (RFC 7983 section 7), and RTCP from RTP by the second (RFC 5761 section 4).
func classify(p []byte) kind {
	if len(p) < 2 {
		return kindOther
	}
	switch first := p[0]; {
	case first >= 20 && first <= 63:
		return kindDTLS
	case first < 128 || first > 191: // RTP's version 2
		return kindOther
	case p[1] >= 192 && p[1] <= 223:
		if len(p) < rtcpHeader {
			return kindOther
		}
		return kindRTCP
	case len(p) < rtpHeader:
		return kindOther
	}
	return kindRTP
}

// payloadType is that of a packet of RTP.
func payloadType(p []byte) uint8 { return p[1] & 0x7f }
