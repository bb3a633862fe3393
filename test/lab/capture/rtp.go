package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ringway/quality"
)

// Ports is a range of UDP ports; a packet is looked at when its source or its destination lies inside.
type Ports struct{ Low, High uint16 }

// Key names an RTP stream as the network sees it.
type Key struct {
	Source, Destination netip.AddrPort
	SSRC                uint32
}

// String is the text form: 10.1.10.10:6000 > 10.2.10.10:6000 1a2b3c4d.
func (k Key) String() string { return fmt.Sprintf("%s > %s %08x", k.Source, k.Destination, k.SSRC) }

// Packet is one RTP packet seen at an interface.
type Packet struct {
	quality.Sighting[Key]
	DSCP     uint8
	Payload  uint8 // RTP payload type
	Outgoing bool  // it left through the interface; else it came in
}

// Packets is what one capture saw.
type Packets struct {
	Packets []Packet // in order of time
	Drops   uint32   // packets that the kernel could not keep for us: above zero, loss figures are worthless
	Other   int      // UDP packets in the port range that are no RTP (RTCP, STUN, ...)
}

// Capture records the RTP that passes an interface.
type Capture struct {
	tap *tap
	mu  sync.Mutex
	out Packets
}

// Start begins to record in the namespace (see package inside for its path) what passes iface within ports.
// When it returns the capture sees every packet.
func Start(ns, iface string, ports Ports) (*Capture, error) {
	t, err := open(ns, iface, unix.SOCK_DGRAM, rtpFilter(ports))
	if err != nil {
		return nil, err
	}
	c := &Capture{tap: t}
	t.start(c.handle)
	return c, nil
}

// Count is how many RTP packets were read so far, for progress and for tests that wait.
func (c *Capture) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out.Packets)
}

// Streams is how many streams, of either direction, had at least so many packets so far.
func (c *Capture) Streams(packets int) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[Key]int{}
	for _, p := range c.out.Packets {
		if seen[p.Key]++; seen[p.Key] == packets {
			n++
		}
	}
	return n
}

// Stop ends the recording and gives all of it. With ErrDropped the packets come too, incomplete as they are.
func (c *Capture) Stop() (Packets, error) {
	drops, err := c.tap.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Drops = drops
	if err == nil && drops > 0 {
		err = fmt.Errorf("%w: the kernel dropped %d that were meant for it", ErrDropped, drops)
	}
	return c.out, err
}

func (c *Capture) handle(data []byte, _ int, from *unix.RawSockaddrLinklayer, at quality.Timestamp) {
	h, ok := parseIP(data)
	c.mu.Lock()
	defer c.mu.Unlock()
	p, isRTP := parseRTP(h.payload)
	if !ok || !isRTP {
		c.out.Other++
		return
	}
	p.Key.Source, p.Key.Destination = h.source, h.destination
	p.At, p.DSCP = at, h.dscp
	p.Outgoing = from.Pkttype == unix.PACKET_OUTGOING
	c.out.Packets = append(c.out.Packets, p)
}

// parseRTP reads the fixed header (RFC 3550 section 5.1). What shares the port is told apart by the first two
// octets as RFC 5761 section 4 and RFC 7983 do it: RTCP has packet types 192-223 there, STUN and DTLS another
// version.
func parseRTP(b []byte) (Packet, bool) {
	if len(b) < 12 || b[0]>>6 != 2 {
		return Packet{}, false
	}
	if b[1] >= 192 && b[1] <= 223 {
		return Packet{}, false
	}
	var p Packet
	p.Payload = b[1] & 0x7f
	p.Seq = binary.BigEndian.Uint16(b[2:])
	p.Media = binary.BigEndian.Uint32(b[4:])
	p.Key.SSRC = binary.BigEndian.Uint32(b[8:])
	return p, true
}

// rtpFilter passes UDP over IPv4 and IPv6 with a port in range, before a copy is made for us. Fragments that
// do not carry the UDP header are not seen (RTP is far smaller than any MTU).
func rtpFilter(p Ports) []bpf.Instruction {
	// Jumps are counted from the next instruction; the last two are keep and drop.
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 16},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 14},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 12},
		bpf.LoadMemShift{Off: 0},
		bpf.Jump{Skip: 3},
		// IPv6: extension headers do not occur in front of RTP
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 8},
		bpf.LoadConstant{Dst: bpf.RegX, Val: 40},
		// 12: X is where UDP begins
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(p.Low), SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: uint32(p.High), SkipTrue: 3},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(p.Low), SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(p.High), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	}
}
