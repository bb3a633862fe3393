package stream

import (
	"encoding/binary"
	"sync/atomic"
)

// shift is by how much the sequence numbers of a source were changed. One thread writes it, others read it.
type shift struct{ word atomic.Uint64 } // the SSRC, and what has to be added to an index

func (s *shift) store(ssrc, back uint32) {
	if word := uint64(ssrc)<<32 | uint64(back); s.word.Load() != word {
		s.word.Store(word)
	}
}

func (s *shift) clear() { s.word.Store(0) }

// Types of packets of RTCP, formats of feedback and types of blocks of XR that have sequence numbers in them.
const (
	senderReport   = 200 // RFC 3550 section 6.4
	receiverReport = 201
	rtpFeedback    = 205 // RFC 4585 section 6.1
	extendedReport = 207 // RFC 3611

	genericNACK        = 1  // RFC 4585 section 6.2.1
	congestionFeedback = 11 // RFC 8888 section 3.1

	lossRLE       = 1 // RFC 3611 section 4
	duplicateRLE  = 2
	receiptTimes  = 3
	statistics    = 6
	senderInfo    = 20
	reportBlock   = 24
	feedbackMedia = 8 // where the SSRC of the media source is
)

// Translate changes the sequence numbers in a compound packet of RTCP which the far end has sent in answer to what this
// Sender sends it: the source knows its packets by the numbers that it gave. It is called with an RTCP packet in clear,
// whole or not, by any thread.
//
// Numbers that are counted by transport (the feedback of transport-wide congestion control) are in a header extension,
// which is never changed. Not translated are payloads that name packets of another source: retransmissions (RFC 4588)
// and forward error correction (RFC 5109, RFC 8627). Nor is what is said of packets before a source counted again.
func (s *Sender) Translate(compound []byte) {
	for len(compound) >= 4 {
		n := (int(binary.BigEndian.Uint16(compound[2:])) + 1) * 4
		if n > len(compound) || compound[0]>>6 != 2 {
			return
		}
		s.translateOne(compound[:n])
		compound = compound[n:]
	}
}

func (s *Sender) translateOne(p []byte) {
	count := int(p[0] & 0x1f)
	switch p[1] {
	case senderReport:
		s.translateBlocks(after(p, rtcpHeader+senderInfo), count)
	case receiverReport:
		s.translateBlocks(after(p, rtcpHeader), count)
	case rtpFeedback:
		switch {
		case count == genericNACK && len(p) >= feedbackMedia+4:
			back := s.back(p[feedbackMedia:])
			for item := p[feedbackMedia+4:]; len(item) >= 4; item = item[4:] {
				move(item, back)
			}
		case count == congestionFeedback:
			s.translateCongestion(after(p, rtcpHeader))
		}
	case extendedReport:
		s.translateExtended(after(p, rtcpHeader))
	}
}

// translateBlocks translates the extended highest sequence number of report blocks.
func (s *Sender) translateBlocks(b []byte, count int) {
	for ; count > 0 && len(b) >= reportBlock; count, b = count-1, b[reportBlock:] {
		highest := b[8:]
		binary.BigEndian.PutUint32(highest, binary.BigEndian.Uint32(highest)+s.back(b))
	}
}

// translateExtended translates where the intervals of blocks of XR begin and end.
func (s *Sender) translateExtended(b []byte) {
	for len(b) >= 4 {
		n := (int(binary.BigEndian.Uint16(b[2:])) + 1) * 4
		if n > len(b) {
			return
		}
		switch b[0] {
		case lossRLE, duplicateRLE, receiptTimes, statistics:
			if n >= 12 {
				back := s.back(b[4:])
				move(b[8:], back)
				move(b[10:], back)
			}
		}
		b = b[n:]
	}
}

// translateCongestion translates where the reports of each source begin. Behind them is a timestamp of 4 bytes.
func (s *Sender) translateCongestion(b []byte) {
	for len(b) >= 12 {
		move(b[4:], s.back(b))
		reports := int(binary.BigEndian.Uint16(b[6:]))
		n := 8 + (reports*2+3)/4*4
		if n > len(b) {
			return
		}
		b = b[n:]
	}
}

// back is what has to be added to a number of the source with that SSRC.
func (s *Sender) back(ssrc []byte) uint32 {
	want := binary.BigEndian.Uint32(ssrc)
	for i := range s.shifts {
		if word := s.shifts[i].word.Load(); uint32(word>>32) == want {
			return uint32(word)
		}
	}
	return 0
}

// move moves the sequence number at the beginning of a slice.
func move(at []byte, back uint32) {
	binary.BigEndian.PutUint16(at, binary.BigEndian.Uint16(at)+uint16(back))
}

// after is what is behind n bytes, if there are so many.
func after(p []byte, n int) []byte { return p[min(n, len(p)):] }
