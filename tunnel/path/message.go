// Package path decides by which of its lines a box sends to a far end, and finds out which of them deliver. It is
// pure: the engine tells it what was heard and when, and does what it says.
//
// A path is an address of ours and one of the far end's. While calls are up, and either end has
// several lines, both ends send something at least every SendEvery: media, or a message of this package where there
// is none. So silence means something: an end that receives nothing for Silence sends by another line, and the far
// end follows, as it follows any peer that is heard elsewhere. Each message reports for how long its sender has
// received nothing, which finds a path that fails in one direction. Paths that are not used are probed; probes and
// their answers do not move the far end.
//
// A message is the whole content of a message in the tunnel, authentic and of a known peer. Its first four bits are
// no version of IP, so that an end that does not know it drops it; only an end that has sent one is sent probes.
package path

import (
	"encoding/binary"
	"math"
	"math/bits"
	"time"
)

// Size is the length of a message in bytes. What follows is padding.
const Size = 32

const magic = 0x02_72_77_70

// Flags of a message.
const (
	flagPromise = 1 << iota // the sender sends something at least every SendEvery
	flagProbe               // is to be answered where it came from
	flagAnswer              // of a probe
	flagLines               // the sender has several lines
)

// slowShift is where in the pace Slow begins.
const slowShift = 5

const (
	never       = math.MaxUint16 // ms: longer, or never
	unknownLoss = math.MaxUint16
)

// Message is what both ends tell each other.
//
//	magic (4 bytes), flags (1), pace (1), heard ago (2, ms; 65535: longer, or never),
//	stamp (8, ns of the sender's clock), echo (8, the stamp of the probe that is answered),
//	loss (2, per mille; 65535: not known), copies (2), elsewhere (4)
//
// The upper four flags are those of copies. The pace has Every in its lower five bits (20 ms; 0: SendEvery, of a sender
// that does not know any pace), and in its upper three which power of two Slow is.
type Message struct {
	Promise, Probe, Answer, Lines bool
	HeardAgo                      time.Duration // since the sender has received something by the path that is used
	Stamp, Echo                   uint64
	Loss                          int    // per mille of what was sent to the sender in a second; -1: not known
	Elsewhere                     uint32 // probes and answers that the sender has sent in the session
	// Every is how often the sender sends something, if it promises that; 0: it does not know any pace, and means
	// SendEvery. Slow is by how much slower than usual it wants to be probed; 0: as usual.
	Every     time.Duration
	Slow      int
	CopyFlags uint8  // what the sender says of copies; 0: it does not know them
	Copies    uint16 // that the sender has sent by the path that is used, modulo 2^16
}

// Append appends the message.
func (m Message) Append(b []byte) []byte {
	flags := m.CopyFlags << 4
	for i, on := range []bool{m.Promise, m.Probe, m.Answer, m.Lines} {
		if on {
			flags |= 1 << i
		}
	}
	ago := uint16(never)
	if ms := m.HeardAgo.Milliseconds(); ms >= 0 && ms < never {
		ago = uint16(ms)
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	slow := bits.Len(uint(min(max(m.Slow, 1), maxSlow) - 1))
	b = append(b, flags, uint8(slow)<<slowShift|uint8(min(max(m.Every, 0), maxEvery)/everyUnit))
	b = binary.BigEndian.AppendUint16(b, ago)
	b = binary.BigEndian.AppendUint64(b, m.Stamp)
	b = binary.BigEndian.AppendUint64(b, m.Echo)
	loss := uint16(unknownLoss)
	if m.Loss >= 0 && m.Loss <= 1000 {
		loss = uint16(m.Loss)
	}
	b = binary.BigEndian.AppendUint16(b, loss)
	b = binary.BigEndian.AppendUint16(b, m.Copies)
	return binary.BigEndian.AppendUint32(b, m.Elsewhere)
}

// Is reports whether the content of a message of the tunnel is one of paths.
func Is(p []byte) bool { return len(p) >= Size && binary.BigEndian.Uint32(p) == magic }

// Stays reports whether a message that Is one leaves it open where its sender is to be sent to.
func Stays(p []byte) bool { return p[4]&(flagProbe|flagAnswer) != 0 }

// Read reads what Is a message.
func Read(p []byte) Message {
	loss := int(binary.BigEndian.Uint16(p[24:]))
	if loss > 1000 {
		loss = -1
	}
	var slow int
	if power := p[5] >> slowShift; power > 0 {
		slow = 1 << power
	}
	return Message{
		Loss: loss, Elsewhere: binary.BigEndian.Uint32(p[28:]),
		Promise: p[4]&flagPromise != 0, Probe: p[4]&flagProbe != 0, Answer: p[4]&flagAnswer != 0,
		Lines: p[4]&flagLines != 0, CopyFlags: p[4] >> 4, Copies: binary.BigEndian.Uint16(p[26:]),
		Every: time.Duration(p[5]&(1<<slowShift-1)) * everyUnit, Slow: slow,
		HeardAgo: time.Duration(binary.BigEndian.Uint16(p[6:])) * time.Millisecond,
		Stamp:    binary.BigEndian.Uint64(p[8:]), Echo: binary.BigEndian.Uint64(p[16:]),
	}
}
