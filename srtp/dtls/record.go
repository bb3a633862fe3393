package dtls

import "encoding/binary"

// Numbers of RFC 6347 and RFC 5246.
const (
	recordHeader    = 13 // type, version, epoch, sequence number, length: RFC 6347 section 4.1
	handshakeHeader = 12 // RFC 6347 section 4.2.2

	contentChangeCipherSpec = 20
	contentAlert            = 21
	contentHandshake        = 22
	contentApplicationData  = 23

	typeClientHello        = 1
	typeServerHello        = 2
	typeHelloVerifyRequest = 3

	alertFatal = 2

	versionMajor = 0xfe // 0xfeff is DTLS 1.0, which the first ClientHello may still say, 0xfefd DTLS 1.2
)

// record is one record of a datagram.
type record struct {
	content uint8
	epoch   uint16
	body    []byte
	raw     []byte // with its header
}

// nextRecord cuts the first record off a datagram. Not ok: what is left is no record, and is to be ignored
// (RFC 6347 section 4.1.2.7).
func nextRecord(b []byte) (r record, rest []byte, ok bool) {
	if len(b) < recordHeader || b[1] != versionMajor {
		return record{}, nil, false
	}
	n := recordHeader + int(binary.BigEndian.Uint16(b[11:]))
	if n > len(b) {
		return record{}, nil, false
	}
	return record{b[0], binary.BigEndian.Uint16(b[3:]), b[recordHeader:n], b[:n]}, b[n:], true
}

// number gives the record another sequence number.
func (r record) number(n uint64) {
	binary.BigEndian.PutUint16(r.raw[5:], uint16(n>>32))
	binary.BigEndian.PutUint32(r.raw[7:], uint32(n))
}

// sifted is what is left of a datagram.
type sifted struct {
	records []byte
	dropped int
	alert   int // the last fatal alert in clear, -1: none
}

// sift copies to dst, which has room for the datagram, the records that may reach the library. What could end a
// handshake or an association without being authenticated stays out: anyone can send it. That is an alert in clear,
// data in clear, a record of an unknown type, and a ChangeCipherSpec that is none; the library ends the handshake for
// each.
func sift(dst, datagram []byte) sifted {
	s := sifted{records: dst[:0], alert: -1}
	for rest := datagram; len(rest) > 0; {
		var r record
		var ok bool
		if r, rest, ok = nextRecord(rest); !ok {
			s.dropped++
			break
		}
		if r.content == contentAlert && r.epoch == 0 && len(r.body) == 2 && r.body[0] == alertFatal {
			s.alert = int(r.body[1])
		}
		if !r.harmless() {
			s.dropped++
			continue
		}
		s.records = append(s.records, r.raw...)
	}
	return s
}

// harmless says whether the library does no more with the record than it should. Those of epoch 1 are authenticated
// by it; there is no later epoch, since nobody renegotiates.
func (r record) harmless() bool {
	switch {
	case r.epoch > 1 || len(r.body) == 0:
		return false
	case r.epoch == 1:
		return r.content >= contentAlert && r.content <= contentApplicationData
	case r.content == contentChangeCipherSpec:
		return len(r.body) == 1 && r.body[0] == 1
	}
	return r.content == contentHandshake && len(r.body) >= handshakeHeader
}

// hello is the start of a ClientHello.
type hello struct {
	message uint16 // message_seq: 0, or 1 with a cookie
	random  [32]byte
	cookie  []byte // of the datagram
}

// clientHello finds the start of a ClientHello in a datagram. A fragment that ends before the cookie does not count.
func clientHello(datagram []byte) (h hello, ok bool) {
	body, message, ok := message(datagram, typeClientHello)
	if !ok || len(body) < 2+32+1 {
		return hello{}, false
	}
	h.message = message
	copy(h.random[:], body[2:])
	if _, rest, ok := vector(body[34:]); ok { // the session's identifier
		if h.cookie, _, ok = vector(rest); ok {
			return h, true
		}
	}
	return hello{}, false
}

// message finds the first fragment of a handshake message of a type in clear.
func message(datagram []byte, wanted uint8) (body []byte, sequence uint16, ok bool) {
	for rest := datagram; len(rest) > 0; {
		var r record
		if r, rest, ok = nextRecord(rest); !ok {
			return nil, 0, false
		}
		b := r.body
		if r.content != contentHandshake || r.epoch != 0 || len(b) < handshakeHeader || b[0] != wanted {
			continue
		}
		offset, n := uint24(b[6:]), uint24(b[9:])
		if b = b[handshakeHeader:]; offset == 0 && n <= len(b) {
			return b[:n], binary.BigEndian.Uint16(r.body[4:]), true
		}
	}
	return nil, 0, false
}

// vector cuts off bytes behind a length of one byte.
func vector(b []byte) (v, rest []byte, ok bool) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return nil, nil, false
	}
	return b[1 : 1+int(b[0])], b[1+int(b[0]):], true
}

func uint24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }
