package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
)

// voicePcap is SIPp's recording of a G.711 A-law conversation (sip-tester): 7 s in packets of 30 ms.
const voicePcap = "/usr/share/sip-tester/g711a.pcap"

// The stream that phones send: G.711 A-law (RFC 3551, payload type 8), 20 ms a packet, 50 packets a second.
const (
	frameTime    = 20 * time.Millisecond
	frameSamples = 160 // 8,000 a second, one byte each
	payloadPCMA  = 8
	rtpHeader    = 12
)

// Lengths and magic numbers of the pcap format and of the headers below RTP.
const (
	pcapHeader     = 24
	pcapRecord     = 16
	pcapMagic      = 0xa1b2c3d4
	pcapMagicNanos = 0xa1b23c4d
	linkEthernet   = 1
	ethernetHeader = 14
	ipv4Header     = 20
	udpHeader      = 8
)

// voiceFile creates the file that SIPp plays: audio of the given length, the recording repeated as often as
// needed, in packets of 20 ms with sequence numbers and timestamps that continue through the whole call. SIPp
// takes ports and addresses from the SDP and ignores the ones in the file.
func voiceFile(recording []byte, length time.Duration, ssrc uint32) ([]byte, error) {
	audio, err := readAudio(recording)
	if err != nil {
		return nil, err
	}
	if len(audio) < frameSamples {
		return nil, errors.New("the recording holds no G.711 A-law audio")
	}
	packets := int((length + frameTime - 1) / frameTime)
	const onWire = ethernetHeader + ipv4Header + udpHeader + rtpHeader + frameSamples
	out := make([]byte, 0, pcapHeader+packets*(pcapRecord+onWire))
	le := binary.LittleEndian
	out = le.AppendUint32(out, pcapMagic)
	out = le.AppendUint16(out, 2)
	out = le.AppendUint16(out, 4)
	out = append(out, make([]byte, 8)...) // time zone and accuracy: always zero
	out = le.AppendUint32(out, 65535)
	out = le.AppendUint32(out, linkEthernet)
	at := 0
	for i := range packets {
		t := time.Duration(i) * frameTime
		out = le.AppendUint32(out, uint32(t/time.Second))
		out = le.AppendUint32(out, uint32(t%time.Second/time.Microsecond))
		out = le.AppendUint32(out, onWire)
		out = le.AppendUint32(out, onWire)
		out = appendHeaders(out, rtpHeader+frameSamples)
		marker := byte(0)
		if i == 0 {
			marker = 0x80 // the first packet of a talkspurt (RFC 3551, section 4.1)
		}
		out = append(out, 0x80, marker|payloadPCMA)
		out = binary.BigEndian.AppendUint16(out, uint16(i+1))
		out = binary.BigEndian.AppendUint32(out, uint32(i*frameSamples))
		out = binary.BigEndian.AppendUint32(out, ssrc)
		for n := 0; n < frameSamples; {
			took := copy(out[len(out):len(out)+frameSamples-n], audio[at:])
			out = out[:len(out)+took]
			n += took
			at = (at + took) % len(audio)
		}
	}
	return out, nil
}

// appendHeaders appends Ethernet, IPv4 and UDP headers for a payload of n bytes.
func appendHeaders(out []byte, n int) []byte {
	out = append(out, make([]byte, 12)...)
	out = append(out, 0x08, 0x00)
	ip := make([]byte, ipv4Header)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+udpHeader+n))
	copy(ip[12:], []byte{127, 0, 0, 1, 127, 0, 0, 1})
	var sum uint32
	for i := 0; i < ipv4Header; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	out = append(out, ip...)
	out = binary.BigEndian.AppendUint16(out, mediaPort)
	out = binary.BigEndian.AppendUint16(out, mediaPort)
	out = binary.BigEndian.AppendUint16(out, uint16(udpHeader+n))
	return binary.BigEndian.AppendUint16(out, 0) // no checksum; SIPp computes it for the real addresses
}

// readAudio joins the audio of a recording's RTP packets.
func readAudio(pcap []byte) ([]byte, error) {
	if len(pcap) < pcapHeader {
		return nil, errors.New("not a pcap file: too short")
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch magic := order.Uint32(pcap); magic {
	case pcapMagic, pcapMagicNanos:
	default:
		order = binary.BigEndian
		if m := order.Uint32(pcap); m != pcapMagic && m != pcapMagicNanos {
			return nil, fmt.Errorf("not a pcap file: magic number %#x", magic)
		}
	}
	if link := order.Uint32(pcap[20:]); link != linkEthernet {
		return nil, fmt.Errorf("a pcap file of link type %d (want %d, Ethernet)", link, linkEthernet)
	}
	var audio bytes.Buffer
	for rest := pcap[pcapHeader:]; len(rest) >= pcapRecord; {
		n := int(order.Uint32(rest[8:]))
		if n > len(rest)-pcapRecord {
			return nil, errors.New("the pcap file is cut off")
		}
		frame := rest[pcapRecord : pcapRecord+n]
		rest = rest[pcapRecord+n:]
		if len(frame) < ethernetHeader+ipv4Header || frame[ethernetHeader]>>4 != 4 || frame[ethernetHeader+9] != 17 {
			continue
		}
		rtp := ethernetHeader + int(frame[ethernetHeader]&15)*4 + udpHeader
		if len(frame) < rtp+rtpHeader || frame[rtp]>>6 != 2 || frame[rtp+1]&0x7f != payloadPCMA {
			continue
		}
		audio.Write(frame[min(len(frame), rtp+rtpHeader+int(frame[rtp]&15)*4):])
	}
	return audio.Bytes(), nil
}

func readRecording() ([]byte, error) {
	b, err := os.ReadFile(voicePcap)
	if err != nil {
		return nil, fmt.Errorf("read SIPp's recording: %w", err)
	}
	return b, nil
}
