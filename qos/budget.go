package qos

import (
	"time"

	"ringway/units"
)

// Codec is what the sound of a call becomes: a packet every Interval, with so much payload.
type Codec struct {
	Name     string
	Payload  ByteCount     // bytes of sound in an RTP packet
	Interval time.Duration // from packet to packet
}

// The codecs that plans speak of, with packets of 20 ms, the default of RFC 3551 (section 4.2).
var (
	G711 = Codec{"G.711", 160, 20 * time.Millisecond} // ITU-T G.711: 64 kbit/s
	G722 = Codec{"G.722", 160, 20 * time.Millisecond} // ITU-T G.722, mode 1: 64 kbit/s
	G729 = Codec{
		"G.729",
		20,
		20 * time.Millisecond,
	} // ITU-T G.729: 8 kbit/s, frames of 10 bytes for 10 ms, two in a packet
	Opus = OpusAt(
		32 * Kbit,
	) // of the 28 to 40 kbit/s that RFC 6716 (section 2.1.1) has for speech in full band
)

// Codecs lists them in the order in which they are printed.
var Codecs = []Codec{G711, G722, G729, Opus}

// OpusAt is Opus with packets of 20 ms at a constant bit rate (RFC 6716 allows 6 to 510 kbit/s). With a
// variable one (its default) rate is what an average says, and single packets are longer.
func OpusAt(rate BitRate) Codec {
	const interval = 20 * time.Millisecond
	return Codec{
		"Opus",
		ByteCount((uint64(rate)*uint64(interval) + 8*uint64(time.Second) - 1) / (8 * uint64(time.Second))),
		interval,
	}
}

// Bytes of headers and tags.
const (
	rtpHeader       = 12 // RFC 3550, section 5.1, without CSRC and extensions
	udpHeader       = 8  // RFC 768
	ipv4Header      = 20 // RFC 791, without options
	ipv6Header      = 40 // RFC 8200
	wireguardHeader = 16 // WireGuard paper, section 5.4.6: type, receiver, counter
	wireguardTag    = 16 // the same: Poly1305
	wireguardPad    = 16 // the same: what is inside is padded to a multiple of it, but never beyond the tunnel's MTU

	// SRTPTag is what SRTP adds to a packet: the 80 bits of AES_CM_128_HMAC_SHA1_80, which every implementation
	// has (RFC 3711, section 5.2). AEAD_AES_128_GCM adds 16 (RFC 7714), an MKI its own length.
	SRTPTag = 10
)

// Wire says how many bytes an IP packet counts on the provider's meter. It never counts a longer packet less.
type Wire func(packet ByteCount) ByteCount

// Envelope is all that stands around the packets of one tunnel on one WAN.
type Envelope struct {
	IPv6  bool      // of the outer packet
	PadTo ByteCount // as in tunnel.Outer: shorter packets inside are padded to it
	MTU   ByteCount // largest packet inside; 0 = no bound on padding
	Wire  Wire      // of the WAN; nil: IP packets are what is counted
}

// Padded is how long a packet inside becomes before it is encrypted.
func (e Envelope) Padded(inner ByteCount) ByteCount {
	n := (max(inner, e.PadTo) + wireguardPad - 1) / wireguardPad * wireguardPad
	if e.MTU > 0 {
		n = max(min(n, e.MTU), inner)
	}
	return n
}

// OnWire is what a packet inside the tunnel counts on the meter, all told.
func (e Envelope) OnWire(inner ByteCount) ByteCount {
	return e.wire(e.Padded(inner) + wireguardHeader + wireguardTag + udpHeader + ipHeader(e.IPv6))
}

func (e Envelope) wire(packet ByteCount) ByteCount {
	if e.Wire == nil {
		return packet
	}
	return e.Wire(packet)
}

func ipHeader(v6 bool) ByteCount {
	if v6 {
		return ipv6Header
	}
	return ipv4Header
}

func ipName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// Step is one addition on the way from a codec's payload to the wire.
type Step struct {
	Name  string    `json:"name"`
	Bytes int       `json:"bytes"` // that it adds; a meter that counts less than the kernel takes some away
	Total ByteCount `json:"total"` // up to here
}

// Budget is what the calls over one tunnel and one WAN may take, each direction for itself.
type Budget struct {
	Rate BitRate // of the class media, on the provider's meter: its rate and ceiling
	Envelope
	CallIPv6 bool      // the call's own packets are IPv6
	SRTP     ByteCount // that the phones add to each packet: 0, or SRTPTag
}

// Steps is the way of one packet of c from its payload to the wire.
func (b Budget) Steps(c Codec) []Step {
	steps := []Step{{"payload", int(c.Payload), c.Payload}}
	add := func(name string, total ByteCount) {
		last := steps[len(steps)-1].Total
		steps = append(steps, Step{name, int(total) - int(last), total})
	}
	plus := func(name string, n ByteCount) { add(name, steps[len(steps)-1].Total+n) }
	plus("RTP", rtpHeader)
	if b.SRTP > 0 {
		plus("SRTP", b.SRTP)
	}
	plus("UDP", udpHeader)
	plus(ipName(b.CallIPv6), ipHeader(b.CallIPv6))
	add("padding", b.Padded(steps[len(steps)-1].Total))
	plus("WireGuard", wireguardHeader+wireguardTag)
	plus("UDP", udpHeader)
	plus(ipName(b.IPv6), ipHeader(b.IPv6))
	if b.Wire != nil {
		add("link", b.wire(steps[len(steps)-1].Total))
	}
	return steps
}

// Packet is how many bytes a packet of c counts on the provider's meter.
func (b Budget) Packet(c Codec) ByteCount {
	s := b.Steps(c)
	return s[len(s)-1].Total
}

// Call is what the RTP of one call takes in one direction, in bits a second on the provider's meter.
func (b Budget) Call(c Codec) BitRate {
	second, interval := uint64(time.Second), uint64(c.Interval)
	return BitRate((uint64(b.Packet(c))*8*second + interval - 1) / interval)
}

// RTP is what is left of the budget when RTCP has its share.
func (b Budget) RTP() BitRate { return b.Rate * 100 / (100 + units.RTCPShare) }

// Calls is how many calls of c the budget carries at once, RTCP beside them.
func (b Budget) Calls(c Codec) int { return int(b.RTP() / b.Call(c)) }

// MinRate is the smallest rate of media, in bits a second, that carries n calls of c.
func (b Budget) MinRate(c Codec, n int) BitRate {
	return (b.Call(c)*BitRate(n)*(100+units.RTCPShare) + 99) / 100
}

// FitMTU is the longest IP packet, from least to most bytes, that occupies a link of rate for no longer than
// bound, size being what it counts there; least, where even that takes longer. Without a rate or a bound it
// is most. A link is busy with one packet at a time, so this is how long a call's packet may have to wait
// behind a packet of data, whatever the queues do: link fragmentation and interleaving (RFC 2686) by packets
// that are short from the start.
func FitMTU(rate BitRate, bound time.Duration, least, most ByteCount, size Wire) ByteCount {
	if rate == 0 || bound <= 0 {
		return most
	}
	for n := most; n > least; n-- {
		if rate.Serialization(size(n)) <= bound {
			return n
		}
	}
	return least
}
