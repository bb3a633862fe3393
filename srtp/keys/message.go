package keys

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"ringway/srtp/suite"
)

// Errors of ParseMessage. Both end the connection.
var (
	ErrMalformed   = errors.New("malformed message of the key channel")
	ErrUnknownKind = errors.New("message of a kind that must be understood, and is not")
)

// MaxMessage is the length of the longest message in bytes, those of later versions included.
const MaxMessage = 1024

// Kind is a message's first byte. A receiver ignores a kind that it does not know, unless mustUnderstand is set in it:
// a later version has new kinds, and never changes what a kind carries.
type Kind byte

// Kinds of messages. Those from KindChannel up to KindChannelEnd belong to the channel itself.
const (
	KindOffer      Kind = 0x01
	KindAck        Kind = 0x02
	KindRefuse     Kind = 0x03
	KindEnded      Kind = 0x04
	KindSynced     Kind = 0x05
	KindIdle       Kind = 0x06
	KindChannel    Kind = 0x40
	KindChannelEnd Kind = 0x4f

	mustUnderstand Kind = 0x80
)

// Lengths of what messages carry, in bytes.
const (
	legLen   = 16
	lifeLen  = 4
	mkiLen   = 4
	suiteLen = 2
	maxKey   = 32 // AES-256
	maxSalt  = 14 // counter mode
)

// Leg names the media between two boxes that belongs together: both directions of one m-line. Whoever sets up a call
// draws it at random and tells the far end in signalling. It is no secret.
type Leg [legLen]byte

// String is the leg in hexadecimal digits.
func (l Leg) String() string { return hex.EncodeToString(l[:]) }

// MKI names a key in every packet that is protected with it (RFC 3711 section 3.1).
type MKI [mkiLen]byte

// Key is a master key and salt of one direction of a leg.
type Key struct {
	MKI    MKI
	Suite  suite.Suite
	secret [maxKey + maxSalt]byte // the key, and behind it the salt
}

// Master returns the master key. It is the Key's own memory.
func (k *Key) Master() []byte { return k.secret[:k.Suite.KeyLen()] }

// Salt returns the master salt. It is the Key's own memory.
func (k *Key) Salt() []byte { return k.secret[k.Suite.KeyLen():k.length()] }

func (k *Key) length() int { return k.Suite.KeyLen() + k.Suite.SaltLen() }

// Wipe overwrites the secret.
func (k *Key) Wipe() { clear(k.secret[:]) }

// Format prints the suite and the MKI, and nothing of the secret, whatever the verb.
func (k Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "key %x of %s", k.MKI[:], k.Suite) }

var _ fmt.Formatter = Key{}

// Refusal is why a key is not taken.
type Refusal byte

// Reasons to refuse a key.
const (
	RefusedLeg    Refusal = 1 // no such leg was begun within 32 s
	RefusedSuite  Refusal = 2 // policy does not allow it, or the leg has another
	RefusedMKI    Refusal = 3 // the leg has another key with that MKI
	RefusedReused Refusal = 4 // the same key protects something else
	RefusedBound  Refusal = 5 // too many legs, or too many keys of the leg
	RefusedMedia  Refusal = 6 // the media plane could not take it
)

var refusals = map[Refusal]string{
	RefusedLeg: "unknown leg", RefusedSuite: "suite not allowed", RefusedMKI: "MKI in use", RefusedReused: "key in use",
	RefusedBound: "too many legs or keys", RefusedMedia: "media plane did not take it",
}

// String is the reason in words. One of a later version is a number.
func (r Refusal) String() string {
	if text, ok := refusals[r]; ok {
		return text
	}
	return fmt.Sprintf("reason %d", byte(r))
}

// message is one message of any kind. Fields that its kind does not have are zero.
type message struct {
	kind Kind
	leg  Leg
	// life tells a leg from an earlier one of the same name: the sender draws it when it begins the leg. 0 is none.
	life uint32
	// farLife is the receiver's life as the sender of the message knows it; 0 if it has heard nothing of the leg.
	farLife uint32
	key     Key // KindOffer; of KindAck and KindRefuse the MKI only
	reason  Refusal
}

// Format prints the key as Key does: fmt calls no method of an unexported field, and would print its bytes.
func (m message) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "kind %d, leg %s, %v", m.kind, m.leg, m.key)
}

// append encodes the message behind b. Numbers are big-endian.
func (m *message) append(b []byte) []byte {
	b = append(b, byte(m.kind))
	switch m.kind {
	case KindOffer:
		b = append(b, m.leg[:]...)
		b = binary.BigEndian.AppendUint32(b, m.life)
		b = append(b, m.key.MKI[:]...)
		b = binary.BigEndian.AppendUint16(b, uint16(m.key.Suite))
		b = append(b, m.key.secret[:m.key.length()]...)
	case KindAck:
		b = append(b, m.leg[:]...)
		b = append(b, m.key.MKI[:]...)
	case KindRefuse:
		b = append(b, m.leg[:]...)
		b = append(b, m.key.MKI[:]...)
		b = append(b, byte(m.reason))
	case KindEnded:
		b = append(b, m.leg[:]...)
		b = binary.BigEndian.AppendUint32(b, m.life)
		b = binary.BigEndian.AppendUint32(b, m.farLife)
	case KindIdle:
		b = append(b, m.leg[:]...)
		b = binary.BigEndian.AppendUint32(b, m.life)
	}
	return b
}

// bodies are the lengths behind the first byte; of an offer that without the key and the salt.
var bodies = map[Kind]int{
	KindOffer: legLen + lifeLen + mkiLen + suiteLen, KindAck: legLen + mkiLen, KindRefuse: legLen + mkiLen + 1,
	KindEnded: legLen + 2*lifeLen, KindSynced: 0, KindIdle: legLen + lifeLen,
}

// parse decodes a message. known is false where the message is to be ignored.
func parse(b []byte) (m message, known bool, err error) {
	if len(b) == 0 || len(b) > MaxMessage {
		return m, false, ErrMalformed
	}
	m.kind = Kind(b[0])
	b = b[1:]
	body, known := bodies[m.kind]
	switch {
	case !known && m.kind&mustUnderstand != 0:
		return m, false, ErrUnknownKind
	case !known:
		return m, false, nil
	case len(b) < body || m.kind != KindOffer && len(b) > body:
		return m, false, ErrMalformed
	case m.kind == KindSynced:
		return m, true, nil
	}
	m.leg, b = Leg(b[:legLen]), b[legLen:]
	switch m.kind {
	case KindOffer:
		m.life, b = binary.BigEndian.Uint32(b), b[lifeLen:]
		m.key.MKI, b = MKI(b[:mkiLen]), b[mkiLen:]
		m.key.Suite, b = suite.Suite(binary.BigEndian.Uint16(b)), b[suiteLen:]
		if m.life == 0 {
			return m, false, ErrMalformed
		}
		// Of a suite of a later version we cannot know the lengths. It is refused, and the connection stays.
		if m.key.Suite.Valid() {
			if len(b) != m.key.length() {
				return m, false, ErrMalformed
			}
			copy(m.key.secret[:], b)
		}
	case KindAck:
		m.key.MKI = MKI(b)
	case KindRefuse:
		m.key.MKI, m.reason = MKI(b[:mkiLen]), Refusal(b[mkiLen])
	case KindIdle:
		m.life = binary.BigEndian.Uint32(b)
	case KindEnded:
		m.life, m.farLife = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[lifeLen:])
	}
	return m, true, nil
}
