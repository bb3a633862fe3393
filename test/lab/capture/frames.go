package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/quality"
)

// Kind is what a frame on the WAN is, as far as an observer without keys can tell.
type Kind string

// The kinds.
const (
	WireGuard Kind = "wireguard" // by message type and length, whatever the port
	ARP       Kind = "arp"
	ND        Kind = "nd"   // IPv6 neighbour and router discovery, multicast listener reports
	ICMP      Kind = "icmp" // all other ICMP
	SIP       Kind = "sip"  // UDP or TCP whose payload begins as a SIP message does
	RTP       Kind = "rtp"  // UDP with an RTP or RTCP header
	DNS       Kind = "dns"
	TCP       Kind = "tcp"
	UDP       Kind = "udp"
	Other     Kind = "other"
)

// Frame is one frame that crossed an interface.
type Frame struct {
	At quality.Timestamp
	// with the Ethernet header, without checksum and preamble: 1514 for a full packet; above that it is a super-
	// packet
	Bytes               int
	Outgoing            bool
	Kind                Kind
	Type                uint8 // WireGuard: 1 initiation, 2 response, 3 cookie, 4 data
	DSCP                uint8
	Protocol            uint8
	Source, Destination netip.AddrPort
}

// Frames is a recording of everything that passes an interface.
type Frames struct {
	tap *tap
	mu  sync.Mutex
	out []Frame
}

// StartFrames starts to record everything that passes iface in the namespace.
func StartFrames(ns, iface string) (*Frames, error) {
	t, err := open(ns, iface, unix.SOCK_RAW, nil)
	if err != nil {
		return nil, err
	}
	f := &Frames{tap: t}
	t.start(func(data []byte, length int, from *unix.RawSockaddrLinklayer, at quality.Timestamp) {
		frame := parseFrame(data)
		frame.At, frame.Bytes, frame.Outgoing = at, length, from.Pkttype == unix.PACKET_OUTGOING
		f.mu.Lock()
		f.out = append(f.out, frame)
		f.mu.Unlock()
	})
	return f, nil
}

// Stop ends the recording; frames are in order of time. With ErrDropped the frames are returned, too.
func (f *Frames) Stop() ([]Frame, error) {
	drops, err := f.tap.close()
	if err == nil && drops > 0 {
		err = fmt.Errorf("%w: the kernel dropped %d that were meant for it", ErrDropped, drops)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out, err
}

// Spacing is the time from each frame to the next, among those that keep passes (nil: all).
func Spacing(frames []Frame, keep func(Frame) bool) []time.Duration {
	var gaps []time.Duration
	var last quality.Timestamp
	for _, f := range frames {
		if keep != nil && !keep(f) {
			continue
		}
		if last != 0 {
			gaps = append(gaps, f.At.Sub(last))
		}
		last = f.At
	}
	return gaps
}

// Kinds counts frames by kind.
func Kinds(frames []Frame) map[Kind]int {
	n := map[Kind]int{}
	for _, f := range frames {
		n[f.Kind]++
	}
	return n
}

func parseFrame(b []byte) Frame {
	f := Frame{Kind: Other}
	if len(b) < 14 {
		return f
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_ARP:
		f.Kind = ARP
		return f
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
	default:
		return f
	}
	h, ok := parseIP(b[14:])
	if !ok {
		return f
	}
	f.DSCP, f.Protocol, f.Source, f.Destination = h.dscp, h.protocol, h.source, h.destination
	switch h.protocol {
	case unix.IPPROTO_ICMP:
		f.Kind = ICMP
	case unix.IPPROTO_ICMPV6:
		f.Kind = ICMP
		if len(h.payload) > 0 {
			switch t := h.payload[0]; {
			case t >= 133 && t <= 137, t == 143, t >= 130 && t <= 132: // RFC 4861, 3810, 2710
				f.Kind = ND
			}
		}
	case unix.IPPROTO_TCP:
		f.Kind = TCP
		if len(h.payload) > 12 {
			if off := int(h.payload[12]>>4) * 4; off < len(h.payload) && looksLikeSIP(h.payload[off:]) {
				f.Kind = SIP
			}
		}
	case unix.IPPROTO_UDP:
		f.Kind, f.Type = classifyUDP(h)
	}
	return f
}

func classifyUDP(h ipHeader) (Kind, uint8) {
	b := h.payload
	switch {
	case isWireGuard(b, h.length):
		return WireGuard, b[0]
	case looksLikeSIP(b):
		return SIP, 0
	case h.source.Port() == 53 || h.destination.Port() == 53:
		return DNS, 0
	case len(b) >= 8 && b[0]>>6 == 2:
		return RTP, 0
	}
	return UDP, 0
}

// isWireGuard recognizes the four messages by type, reserved zeros and length (WireGuard paper, section 5.4):
// handshake messages have one length each, data is 32 octets and a multiple of 16 (wireguard-go and the
// kernel pad it so, but cut the padding at the MTU).
func isWireGuard(b []byte, length int) bool {
	if len(b) < 4 || b[1] != 0 || b[2] != 0 || b[3] != 0 {
		return false
	}
	switch b[0] {
	case 1:
		return length == 148
	case 2:
		return length == 92
	case 3:
		return length == 64
	case 4:
		return length >= 32
	}
	return false
}

func looksLikeSIP(b []byte) bool {
	for _, w := range []string{"SIP/2.0 ", "INVITE ", "ACK ", "BYE ", "CANCEL ", "REGISTER ", "OPTIONS ",
		"PRACK ", "UPDATE ",
		"SUBSCRIBE ", "NOTIFY ", "REFER ", "INFO ", "MESSAGE ", "PUBLISH "} {
		if len(b) >= len(w) && string(b[:len(w)]) == w {
			return true
		}
	}
	return false
}

// ipHeader is what both kinds of capture read of a packet.
type ipHeader struct {
	protocol            uint8
	dscp                uint8
	source, destination netip.AddrPort
	payload             []byte // UDP: behind its header; else: behind the IP header; cut at the snap length
	length              int    // UDP: of the whole payload, from its header
}

func parseIP(b []byte) (ipHeader, bool) {
	var h ipHeader
	if len(b) < 1 {
		return h, false
	}
	var src, dst netip.Addr
	rest := b
	switch b[0] >> 4 {
	case 4:
		ihl := int(b[0]&15) * 4
		if ihl < 20 || len(b) < ihl {
			return h, false
		}
		h.dscp, h.protocol = b[1]>>2, b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		rest = b[ihl:]
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment: no transport header
			h.source, h.destination = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
			h.protocol = 0
			return h, true
		}
	case 6:
		if len(b) < 40 {
			return h, false
		}
		h.dscp, h.protocol = uint8(binary.BigEndian.Uint16(b)>>6)&0x3f, b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		rest = b[40:]
		if h.protocol == 0 && len(rest) >= 8 { // hop-by-hop options stand before multicast listener reports
			h.protocol = rest[0]
			rest = rest[min(len(rest), 8+int(rest[1])*8):]
		}
	default:
		return h, false
	}
	var sport, dport uint16
	if (h.protocol == unix.IPPROTO_UDP || h.protocol == unix.IPPROTO_TCP) && len(rest) >= 8 {
		sport, dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	h.source, h.destination, h.payload = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), rest
	if h.protocol == unix.IPPROTO_UDP {
		if len(rest) < 8 {
			return h, false
		}
		h.length = int(binary.BigEndian.Uint16(rest[4:])) - 8
		h.payload = rest[8:]
	}
	return h, true
}
