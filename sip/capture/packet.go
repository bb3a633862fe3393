package capture

import (
	"bytes"
	"encoding/binary"
	"strconv"
)

const (
	protoTCP = 6
	protoUDP = 17
)

// enough of a packet's payload tells it from others: of RTP the header, of RTCP a report.
const enough = 64

// Cleaner decides what is kept of each packet.
type Cleaner struct {
	Sound bool // payloads of RTP are kept, but for dialled digits

	events [128]bool // payload types of telephone events (RFC 4733) and of what may carry them
	recent [4096][]byte
	known  map[string]bool // what is in recent
	next   int
}

// Describe reads a SIP message for payload types whose packets have dialled digits in them: those are blanked
// whatever is asked for.
func (c *Cleaner) Describe(text []byte) {
	for line := range bytes.Lines(text) {
		value, is := bytes.CutPrefix(bytes.TrimSpace(line), []byte("a=rtpmap:"))
		if !is {
			continue
		}
		number, name, _ := bytes.Cut(value, []byte(" "))
		name, _, _ = bytes.Cut(bytes.TrimSpace(name), []byte("/"))
		n, err := strconv.Atoi(string(number))
		if err != nil || n < 0 || n > 127 {
			continue
		}
		for _, event := range []string{"telephone-event", "tone", "red"} {
			if bytes.EqualFold(name, []byte(event)) {
				c.events[n] = true
			}
		}
	}
}

// Clean gives what is kept of a packet that begins with its IP header, in place, and how long it was. ok is false for
// one that is nothing of UDP, or that was seen on another interface a moment ago.
func (c *Cleaner) Clean(b []byte) (kept []byte, length int, ok bool) {
	at, length := udpIn(b)
	if at == 0 || len(b) < at+udpHeader {
		return nil, 0, false
	}
	b = b[:min(len(b), length)]
	if len(b) < at+udpHeader || c.seen(b[:min(len(b), at+udpHeader+enough)], at) {
		return nil, 0, false
	}
	payload := b[at+udpHeader:]
	return b[:at+udpHeader+c.keeps(payload)], length, true
}

// udpIn is where UDP begins in a packet, 0 if it does not, and how long the packet was before it was cut.
func udpIn(b []byte) (at, length int) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == protoUDP:
		at, length = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if at < 20 || length < at+udpHeader {
			return 0, 0
		}
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == protoUDP:
		at, length = 40, 40+int(binary.BigEndian.Uint16(b[4:]))
	}
	return at, length
}

// keeps is how much of what UDP carries stays. Digits are overwritten.
func (c *Cleaner) keeps(payload []byte) int {
	switch {
	case len(payload) < rtpHeader || payload[0]>>6 != 2: // of STUN and DTLS, what they are
		return min(len(payload), 8)
	case payload[1] >= firstRTCP && payload[1] <= lastRTCP:
		return reports(payload)
	case !c.Sound:
		return rtpHeader
	}
	header := rtpHeader + 4*int(payload[0]&15)
	if payload[0]&0x10 != 0 {
		if len(payload) < header+4 {
			return rtpHeader
		}
		header += 4 + 4*int(binary.BigEndian.Uint16(payload[header+2:]))
	}
	if header > len(payload) {
		return rtpHeader
	}
	if c.digits(payload[1]&127, len(payload)-header) {
		clear(payload[header:])
	}
	return len(payload)
}

// digits reports whether a payload may be a telephone event: by its type, or, while no description of it was seen, by
// its length.
func (c *Cleaner) digits(payloadType byte, length int) bool {
	const event, fewEvents = 4, 16
	return c.events[payloadType] || payloadType >= 96 && length%event == 0 && length <= fewEvents
}

// reports is how much of a compound packet of RTCP are reports of senders and receivers. Behind them may be names
// (SDES).
func reports(b []byte) int {
	at := 0
	for len(b) >= at+8 && (b[at+1] == 200 || b[at+1] == 201) {
		end := at + 4 + 4*int(binary.BigEndian.Uint16(b[at+2:]))
		if end > len(b) {
			break
		}
		at = end
	}
	return max(at, min(len(b), 8))
}

// seen reports whether a packet with these headers came a moment ago: each one crosses two interfaces of the box. What
// differs between the two (hop limit, DSCP, checksums) is no part of it.
func (c *Cleaner) seen(b []byte, at int) bool {
	addresses := b[12:20]
	if at == 40 && b[0]>>4 == 6 {
		addresses = b[8:40]
	}
	key := append(append([]byte{}, addresses...), b[at:at+4]...)
	key = append(key, b[at+udpHeader:]...)
	if c.known == nil {
		c.known = map[string]bool{}
	}
	if c.known[string(key)] {
		return true
	}
	delete(c.known, string(c.recent[c.next]))
	c.known[string(key)], c.recent[c.next] = true, key
	c.next = (c.next + 1) % len(c.recent)
	return false
}
