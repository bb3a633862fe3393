package series

import (
	"encoding/binary"
	"math/bits"
)

// What a far phone reports of the packets that it got (RTCP, in clear), less what both boxes know to be lost before:
// that was lost in the far LAN. A report says how many packets are lost up to a sequence number. Between two of them
// the boxes know which were, once they have compared those words: else nothing is claimed.

// RFC 3550, section 6.4.
const (
	typeSR, typeRR  = 200, 201
	headerReport    = 8  // with the SSRC of who reports
	senderInfo      = 20 // of an SR
	reportBlock     = 24
	settledKept     = 64 // words: the longest time between two reports that count
	maxLostDecrease = 16 // copies are counted as negative losses; a phone that begins again shows more of them
)

// IsReceptionReport reports whether an IP packet begins like a report of a receiver, or of a sender that receives, too.
// It accepts what Arrive does.
func IsReceptionReport(p []byte) bool {
	at := headerIPv6
	if p[0]>>4 == 4 {
		if len(p) < headerIPv4 || p[9] != protocolUDP || p[6]&0x3f != 0 || p[7] != 0 {
			return false
		}
		at = int(p[0]&15) * 4
	} else if len(p) < headerIPv6 || p[6] != protocolUDP {
		return false
	}
	at += headerUDP
	return len(p) >= at+headerReport+reportBlock && p[at]>>6 == versionRTP && (p[at+1] == typeSR || p[at+1] == typeRR)
}

// origin is a source of media between two hosts, whatever its ports.
type origin struct {
	v6        bool
	addresses [32]byte // from, to
	source    uint32
}

func originOf(n *name) origin { return origin{n.v6, n.addresses, n.source} }

// receiver is what is known of the one that reports on a series.
type receiver struct {
	told, waiting reception // the report up to which losses are known, and the next one; none: nothing
	settled       [settledKept]settled
	lost          int64 // in the far LAN; a packet that is late for one report is there in the next
}

// reception is how many packets the receiver had lost up to a sequence number.
type reception struct {
	highest uint32 // extended, in this end's terms
	lost    int32
}

// settled is what both ends know of a word: which packets did not come out of the far box.
type settled struct {
	number      uint32
	known, lost uint64
}

// HearRTCP takes an IP packet of RTCP that came from a peer.
func (c *Comparer) HearRTCP(peer uint32, p []byte) {
	if !IsReceptionReport(p) {
		return
	}
	o := origin{v6: p[0]>>4 == 6}
	at := headerIPv6
	if o.v6 { // the media goes the other way
		copy(o.addresses[:], p[24:40])
		copy(o.addresses[16:], p[8:24])
	} else {
		at = int(p[0]&15) * 4
		copy(o.addresses[:], p[16:20])
		copy(o.addresses[16:], p[12:16])
	}
	for p = p[at+headerUDP:]; len(p) >= headerReport && p[0]>>6 == versionRTP; { // of a compound packet
		size := 4 * (int(binary.BigEndian.Uint16(p[2:])) + 1)
		if size > len(p) {
			return
		}
		body, blocks := p[min(headerReport, size):size], int(p[0]&31)
		switch p[1] {
		case typeSR:
			body = body[min(senderInfo, len(body)):]
		case typeRR:
		default:
			blocks = 0
		}
		for ; blocks > 0 && len(body) >= reportBlock; blocks-- {
			o.source = binary.BigEndian.Uint32(body)
			if w := c.origins[o]; w != nil && w.peer == peer {
				lost := int32(binary.BigEndian.Uint32(body[4:])<<8) >> 8
				w.report(uint16(binary.BigEndian.Uint32(body[8:])), lost)
			}
			body = body[reportBlock:]
		}
		p = p[size:]
	}
}

// report takes a block of a report. While an earlier one waits it does not count: the next one covers it.
func (w *watched) report(highest uint16, lost int32) {
	now := w.latest[looks-1]
	if now == 0 {
		return
	}
	// The last look may be a second old: some numbers are ahead of it.
	r := reception{now + uint32(int32(int16(highest-uint16(now)))), lost}
	switch x := w.receiver; {
	case x == nil:
		w.receiver = &receiver{told: r}
	case x.told == reception{}:
		x.told = r
	case x.waiting == reception{} && r.highest > x.told.highest:
		x.waiting = r
	}
}

// settle remembers which packets of a word did not come out of the far box.
func (x *receiver) settle(number uint32, known, passed uint64) {
	s := &x.settled[number%settledKept]
	if s.number != number {
		*s = settled{number: number}
	}
	s.known |= known
	s.lost |= known &^ passed
	for x.waiting != (reception{}) && number > x.waiting.highest>>6 {
		x.count()
	}
}

// count counts what was lost in the far LAN up to the report that waits, when a later word is settled: by then all
// words between the reports are, or will never be. Then nothing is claimed.
func (x *receiver) count() {
	from, to := x.told.highest+1, x.waiting.highest
	lost, whole := int64(x.waiting.lost)-int64(x.told.lost), to>>6-from>>6 < settledKept
	x.told, x.waiting = x.waiting, reception{}
	if whole = whole && lost >= -maxLostDecrease && lost <= int64(to-from)+1; !whole {
		return
	}
	before := int64(0)
	for n := from >> 6; n <= to>>6; n++ {
		in := ^uint64(0)
		if n == from>>6 {
			in <<= from & 63
		}
		if n == to>>6 {
			in &= ^uint64(0) >> (63 - to&63)
		}
		s := &x.settled[n%settledKept]
		if s.number != n || s.known&in != in {
			return
		}
		before += int64(bits.OnesCount64(s.lost & in))
	}
	x.lost += lost - before
}
