// Package stamp measures between live appliances with the Simple Two-Way Active Measurement Protocol (RFC
// 8762, unauthenticated mode) and the extensions of RFC 8972 that a voice probe needs: padding to the size
// of a voice packet, the code point that arrived at the far end, and the far end's counters. Reflector
// answers inside the daemon, so that the far end needs no tool; Measure sends and collects; Result.Figures
// evaluates.
package stamp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"ringway/units"
)

// Port is the registered UDP port of reflectors (RFC 8762, section 9.1).
const Port = units.STAMPPort

// Constants of the specification.
const (
	// BaseSize is a test packet in unauthenticated mode, question and answer alike (RFC 8762, sections
	// 4.2.1 and 4.3.1).
	BaseSize = 44
	// tlvHeader is flags, type and length of an extension (RFC 8972, section 4).
	tlvHeader = 4

	// of questions: the TTL in the answer gives the number of hops (RFC 8762, section 4.2)
	senderTTL = 255

	secondsToUnix = 2208988800 // from NTP's epoch, 1900, to Unix's (RFC 868)
)

// ErrShort is returned for a packet that is too short for STAMP.
var ErrShort = errors.New("shorter than a test packet of 44 bytes")

// Question is a Session-Sender's packet, figure 2 of RFC 8762, with the session identifier of RFC 8972,
// figure 1.
//
//	0  sequence number        4
//	4  timestamp              8
//	12 error estimate         2
//	14 SSID                   2
//	16 zero                  28
type Question struct {
	Seq   uint32
	Sent  Timestamp
	Error ErrorEstimate
	SSID  uint16
}

// Append appends the 44 bytes to b.
func (q Question) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, q.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(q.Sent))
	b = binary.BigEndian.AppendUint16(b, uint16(q.Error))
	b = binary.BigEndian.AppendUint16(b, q.SSID)
	return append(b, make([]byte, BaseSize-16)...)
}

// ParseQuestion reads the base of a question. What must be zero is ignored, as RFC 8762 wants it of a
// receiver: senders of TWAMP Light fill it (section 4.6).
func ParseQuestion(b []byte) (Question, error) {
	if len(b) < BaseSize {
		return Question{}, ErrShort
	}
	return Question{
		Seq: binary.BigEndian.Uint32(b), Sent: Timestamp(binary.BigEndian.Uint64(b[4:])),
		Error: ErrorEstimate(binary.BigEndian.Uint16(b[12:])), SSID: binary.BigEndian.Uint16(b[14:]),
	}, nil
}

// Answer is a Session-Reflector's packet, figure 5 of RFC 8762, with the session identifier of RFC 8972,
// figure 3.
//
//	0  sequence number        4
//	4  timestamp              8
//	12 error estimate         2
//	14 SSID                   2
//	16 receive timestamp      8
//	24 sender's sequence      4
//	28 sender's timestamp     8
//	36 sender's error         2
//	38 zero                   2
//	40 sender's TTL           1
//	41 zero                   3
type Answer struct {
	Seq         uint32
	Sent        Timestamp
	Error       ErrorEstimate
	SSID        uint16
	Received    Timestamp
	SenderSeq   uint32
	SenderSent  Timestamp
	SenderError ErrorEstimate
	SenderTTL   uint8
}

// put overwrites the 44 bytes of the question.
func (a Answer) put(b []byte) {
	_ = b[BaseSize-1]
	binary.BigEndian.PutUint32(b, a.Seq)
	binary.BigEndian.PutUint64(b[4:], uint64(a.Sent))
	binary.BigEndian.PutUint16(b[12:], uint16(a.Error))
	binary.BigEndian.PutUint16(b[14:], a.SSID)
	binary.BigEndian.PutUint64(b[16:], uint64(a.Received))
	binary.BigEndian.PutUint32(b[24:], a.SenderSeq)
	binary.BigEndian.PutUint64(b[28:], uint64(a.SenderSent))
	binary.BigEndian.PutUint16(b[36:], uint16(a.SenderError))
	b[38], b[39], b[40] = 0, 0, a.SenderTTL
	b[41], b[42], b[43] = 0, 0, 0
}

// ParseAnswer reads the base of an answer.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) < BaseSize {
		return Answer{}, ErrShort
	}
	return Answer{
		Seq: binary.BigEndian.Uint32(b), Sent: Timestamp(binary.BigEndian.Uint64(b[4:])),
		Error: ErrorEstimate(binary.BigEndian.Uint16(b[12:])), SSID: binary.BigEndian.Uint16(b[14:]),
		Received: Timestamp(binary.BigEndian.Uint64(b[16:])), SenderSeq: binary.BigEndian.Uint32(b[24:]),
		SenderSent: Timestamp(binary.BigEndian.Uint64(b[28:])), SenderError: ErrorEstimate(binary.BigEndian.Uint16(b[36:])),
		SenderTTL: b[40],
	}, nil
}

// Extensions that are understood (RFC 8972, table 3).
const (
	tlvPadding = 1 // section 4.1
	tlvCoS     = 4 // section 4.4
	tlvDirect  = 5 // section 4.5

	cosLength    = 4
	directLength = 12
)

// Flags of an extension (RFC 8972, section 4).
const (
	flagUnrecognized = 0x80
	flagMalformed    = 0x40
	flagIntegrity    = 0x20
)

// maxTLVs bounds the work for one packet: zero padding parses as extensions of length zero.
const maxTLVs = 16

// tlv is one extension; value is a part of the packet.
type tlv struct {
	flags *byte
	kind  byte
	value []byte
}

// nextTLV splits the first extension off b. ok is false if b does not hold a whole one; then flags, if not
// nil, is where to report it.
func nextTLV(b []byte) (t tlv, rest []byte, ok bool) {
	if len(b) < tlvHeader {
		return tlv{}, nil, false
	}
	t = tlv{flags: &b[0], kind: b[1]}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b)-tlvHeader {
		return t, nil, false
	}
	t.value = b[tlvHeader : tlvHeader+n]
	return t, b[tlvHeader+n:], true
}

// appendTLV appends an extension as a sender does: with U set, for the reflector to clear (RFC 8972,
// section 4).
func appendTLV(b []byte, kind byte, value []byte) []byte {
	b = append(b, flagUnrecognized, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// layout is which extensions a question of a given size carries.
type layout struct {
	direct, cos bool
	padding     int // bytes of the padding's value; -1: no padding
}

// layoutOf fits as much as goes into size. The far end's counters come before its view of the code point,
// padding takes the rest; a rest of 1 to 3 bytes is no extension and must not be.
func layoutOf(size int) (layout, error) {
	for _, l := range []layout{{true, true, 0}, {true, false, 0}, {false, false, 0}} {
		rest := size - BaseSize
		if l.direct {
			rest -= tlvHeader + directLength
		}
		if l.cos {
			rest -= tlvHeader + cosLength
		}
		if rest == 0 || rest >= tlvHeader {
			l.padding = rest - tlvHeader
			if rest == 0 {
				l.padding = -1
			}
			return l, nil
		}
	}
	return layout{}, fmt.Errorf(
		"%d bytes is not a possible size of a test packet (allowed: %d, or %d to %d)", size, BaseSize,
		BaseSize+tlvHeader, MaxSize,
	)
}

// MaxSize is the largest probe: it fits a tunnel MTU of 1420 over IPv6 without fragmentation.
const MaxSize = 1420 - 40 - 8

// extensions appends the extensions of l. Padding is zeros: nothing on the path compresses ciphertext.
func (l layout) extensions(b []byte, dscp uint8, sent uint32) []byte {
	if l.direct {
		var v [directLength]byte
		binary.BigEndian.PutUint32(v[:], sent)
		b = appendTLV(b, tlvDirect, v[:])
	}
	if l.cos {
		b = appendTLV(b, tlvCoS, []byte{dscp << 2, 0, 0, 0})
	}
	if l.padding >= 0 {
		b = appendTLV(b, tlvPadding, make([]byte, l.padding))
	}
	return b
}

// Far is what the extensions of an answer report of the far end.
type Far struct {
	Counted  bool // RxCount and TxCount are the far end's
	RxCount  uint32
	TxCount  uint32
	SawDSCP  bool
	DSCP     uint8 // of the question as it arrived there
	ECN      uint8
	BadReply bool // an extension is flagged malformed, or is truncated
}

// parseFar reads the extensions of an answer.
func parseFar(b []byte) (f Far) {
	for range maxTLVs {
		if len(b) == 0 {
			return f
		}
		t, rest, ok := nextTLV(b)
		if !ok || *t.flags&flagMalformed != 0 {
			f.BadReply = true
			return f
		}
		if *t.flags&flagUnrecognized == 0 {
			switch {
			case t.kind == tlvDirect && len(t.value) == directLength:
				f.Counted = true
				f.RxCount, f.TxCount = binary.BigEndian.Uint32(t.value[4:]), binary.BigEndian.Uint32(t.value[8:])
			case t.kind == tlvCoS && len(t.value) == cosLength:
				f.SawDSCP = true
				f.DSCP = (t.value[0]&0x03)<<4 | t.value[1]>>4
				f.ECN = t.value[1] >> 2 & 0x03
			}
		}
		b = rest
	}
	return f
}
