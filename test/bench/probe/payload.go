package probe

import "encoding/binary"

// A probe's packet is RTP to whoever looks at it (RFC 3550 section 5.1: version 2, payload type 8, G.711
// A-law), with this in front of the audio, all of it big-endian:
//
//	magic 4 | run 4 | sequence 4 | sent, CLOCK_REALTIME ns 8 | stream 2 | path 1 | pad 1
const (
	rtpHeader    = 12
	headerSize   = rtpHeader + 24
	magic        = 0x52575642 // "RWVB"
	rtpVersion2  = 0x80
	payloadPCMA  = 8
	samples20ms  = 160
	silencePCMA  = 0xd5
	offRun       = rtpHeader + 4
	offSequence  = rtpHeader + 8
	offSent      = rtpHeader + 12
	offStream    = rtpHeader + 20
	offPath      = rtpHeader + 22
	ssrcOfStream = 0x52570000
)

// header is the content of a packet.
type header struct {
	run    uint32
	seq    uint32
	sent   int64
	stream uint16
	path   uint8
}

// template fills in what is the same in every packet.
func template(b []byte, run uint32) {
	b[0], b[1] = rtpVersion2, payloadPCMA
	binary.BigEndian.PutUint32(b[rtpHeader:], magic)
	binary.BigEndian.PutUint32(b[offRun:], run)
	for i := headerSize; i < len(b); i++ {
		b[i] = silencePCMA
	}
}

// put writes what differs between packets.
func put(b []byte, s *slot, sent int64) {
	binary.BigEndian.PutUint16(b[2:], uint16(s.seq))
	binary.BigEndian.PutUint32(b[4:], s.seq*samples20ms)
	binary.BigEndian.PutUint32(b[8:], ssrcOfStream|uint32(s.stream))
	binary.BigEndian.PutUint32(b[offSequence:], s.seq)
	binary.BigEndian.PutUint64(b[offSent:], uint64(sent))
	binary.BigEndian.PutUint16(b[offStream:], s.stream)
	b[offPath] = s.path
}

func parse(b []byte) (h header, ok bool) {
	if len(b) < headerSize || b[0] != rtpVersion2 || binary.BigEndian.Uint32(b[rtpHeader:]) != magic {
		return h, false
	}
	return header{
		run:    binary.BigEndian.Uint32(b[offRun:]),
		seq:    binary.BigEndian.Uint32(b[offSequence:]),
		sent:   int64(binary.BigEndian.Uint64(b[offSent:])),
		stream: binary.BigEndian.Uint16(b[offStream:]),
		path:   b[offPath],
	}, true
}
