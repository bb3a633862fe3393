// Package hep encodes SIP messages for a Homer server: HEP version 3, the Homer encapsulation protocol
// (sipcapture/HEP, "HEP3 Network Protocol Specification", revision 12 and later). A packet is a head and chunks,
// each with a vendor, a type and its length; all numbers are big-endian. It takes only what package privacy has
// made safe to keep. It is pure.
package hep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"ringway/sip/privacy"
)

// Port is the UDP and TCP port of a Homer server.
const Port = 9060

// Types of chunks of vendor 0, the generic ones.
const (
	family      = 1  // uint8
	protocol    = 2  // uint8, of IP
	source4     = 3  // 4 bytes
	target4     = 4  // 4 bytes
	source6     = 5  // 16 bytes
	target6     = 6  // 16 bytes
	sourcePort  = 7  // uint16
	targetPort  = 8  // uint16
	seconds     = 9  // uint32, since 1970
	micros      = 10 // uint32, of the second
	kind        = 11 // uint8
	agent       = 12 // uint32
	authKey     = 14 // text
	payload     = 15 // bytes
	correlation = 17 // text
)

// Values of chunks.
const (
	familyIPv4 = 2  // AF_INET
	familyIPv6 = 10 // AF_INET6 of Linux
	kindSIP    = 1

	protocolTCP = 6
	protocolUDP = 17
)

const (
	magic     = "HEP3"
	chunkSize = 6    // of vendor, type and length
	maxKey    = 256  // bytes, of ours
	maxID     = 1024 // bytes of a correlation ID that are sent; of ours
)

// MaxSize is the longest packet in bytes. One to be sent in a datagram has at most 65,507 (65,487 over IPv6).
const MaxSize = math.MaxUint16

// Errors of Append.
var (
	ErrTooLong = errors.New("HEP packet is longer than 65535 bytes")
	ErrAddress = errors.New("addresses of a HEP packet are not of one family")
)

// Encoder makes packets.
type Encoder struct {
	Agent uint32 // capture agent ID, by which the server tells senders apart
	key   string
}

// NewEncoder makes an Encoder. key is what the server asks for; empty: nothing.
func NewEncoder(agent uint32, key string) (*Encoder, error) {
	if len(key) > maxKey {
		return nil, fmt.Errorf("HEP key has %d bytes (at most %d)", len(key), maxKey)
	}
	return &Encoder{Agent: agent, key: key}, nil
}

// Packet is one SIP message as it passed.
type Packet struct {
	At       time.Time
	From, To netip.AddrPort
	Stream   bool   // it came over TCP or TLS, not UDP
	Call     string // what correlates messages of one call: its Call-ID
	Text     privacy.Text
}

// Append appends a packet to dst. After an error dst is as it was.
func (e *Encoder) Append(dst []byte, p *Packet) ([]byte, error) {
	from, to := p.From.Addr().Unmap(), p.To.Addr().Unmap()
	if !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() {
		return dst, ErrAddress
	}
	start := len(dst)
	b := append(dst, magic...)
	b = append(b, 0, 0) // the length, when it is known

	number := byte(protocolUDP)
	if p.Stream {
		number = protocolTCP
	}
	if from.Is4() {
		b = append8(b, family, familyIPv4)
		b = append8(b, protocol, number)
		b = appendChunk(b, source4, from.AsSlice())
		b = appendChunk(b, target4, to.AsSlice())
	} else {
		b = append8(b, family, familyIPv6)
		b = append8(b, protocol, number)
		b = appendChunk(b, source6, from.AsSlice())
		b = appendChunk(b, target6, to.AsSlice())
	}
	b = append16(b, sourcePort, p.From.Port())
	b = append16(b, targetPort, p.To.Port())
	b = append32(b, seconds, uint32(p.At.Unix()))
	b = append32(b, micros, uint32(p.At.Nanosecond()/1000))
	b = append8(b, kind, kindSIP)
	b = append32(b, agent, e.Agent)
	if e.key != "" {
		b = appendChunk(b, authKey, []byte(e.key))
	}
	if id := p.Call[:min(len(p.Call), maxID)]; id != "" {
		b = appendChunk(b, correlation, []byte(id))
	}

	text := p.Text.Bytes()
	size := len(b) - start + chunkSize + len(text)
	if size > MaxSize {
		return dst, ErrTooLong
	}
	b = appendChunk(b, payload, text)
	binary.BigEndian.PutUint16(b[start+len(magic):], uint16(size))
	return b, nil
}

// appendHead writes vendor 0, the type and the length of a chunk, its own six bytes included.
func appendHead(b []byte, kind uint16, size int) []byte {
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint16(b, uint16(chunkSize+size))
}

func appendChunk(b []byte, kind uint16, value []byte) []byte {
	return append(appendHead(b, kind, len(value)), value...)
}

func append8(b []byte, kind uint16, v byte) []byte { return append(appendHead(b, kind, 1), v) }

func append16(b []byte, kind, v uint16) []byte {
	return binary.BigEndian.AppendUint16(appendHead(b, kind, 2), v)
}

func append32(b []byte, kind uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, kind, 4), v)
}
