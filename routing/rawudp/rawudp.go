// Package rawudp sends and receives UDP over IPv4 on one interface, by a packet socket: no route, rule or firewall
// decides where a datagram leaves, and the interface needs no address. It is for the few servers that a WAN's own
// network names (DHCP, DNS). Their addresses are that network's choice, and routes to the same addresses may lead to
// a site.
package rawudp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Options say where datagrams leave, and from which address.
type Options struct {
	Interface string
	Local     netip.AddrPort // source; port 0: one is chosen. With the zero address only broadcasts can be sent.
	Network   netip.Prefix   // whose addresses are on the link; those of others are behind Gateway
	Gateway   netip.Addr     // zero: there is none
}

const (
	headerLength = 20 + 8 // IPv4 without options, UDP
	timeToLive   = 64
	firstPort    = 49152 // of the ports that are chosen (RFC 6335, section 6)
)

// Conn is a socket. It is safe for concurrent use.
type Conn struct {
	options   Options
	ifc       *net.Interface
	socket    *packet.Conn
	remote    netip.AddrPort // set by Dial: the only peer
	nextHopMu sync.Mutex
	nextHops  map[netip.Addr]net.HardwareAddr
}

// Listen returns a socket that sends to any peer and receives from any, whatever address they send to.
func Listen(o Options) (*Conn, error) {
	ifc, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Interface, err)
	}
	if len(ifc.HardwareAddr) != 6 && ifc.Flags&net.FlagPointToPoint == 0 {
		return nil, fmt.Errorf("%s is not an Ethernet interface", o.Interface)
	}
	if o.Local.Port() == 0 {
		o.Local = netip.AddrPortFrom(o.Local.Addr(), uint16(firstPort+rand.N(65536-firstPort)))
	}

	filter, err := bpf.Assemble(datagramsTo(o.Local.Port()))
	if err != nil {
		return nil, err
	}
	socket, err := packet.Listen(ifc, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", o.Interface, err)
	}
	return &Conn{options: o, ifc: ifc, socket: socket, nextHops: map[netip.Addr]net.HardwareAddr{}}, nil
}

// Dial returns a socket for one peer. It fails if the link does not answer for the peer or its gateway.
func Dial(ctx context.Context, o Options, to netip.AddrPort) (*Conn, error) {
	c, err := Listen(o)
	if err != nil {
		return nil, err
	}
	c.remote = to
	if _, err := c.nextHop(ctx, to.Addr()); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// datagramsTo keeps everything else on a busy WAN from being copied to the socket.
func datagramsTo(port uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 3}, // a fragment
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 0xffff},
	}
}

// ReadFrom returns the next datagram to the local port, from the peer if there is one.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	frame := make([]byte, 60+8+len(b))
	for {
		n, _, err := c.socket.ReadFrom(frame)
		if err != nil {
			return 0, nil, err
		}
		from, to, payload, ok := parse(frame[:n])
		if !ok || to.Port() != c.options.Local.Port() {
			continue
		}
		if c.remote.IsValid() && (from != c.remote || to.Addr() != c.options.Local.Addr()) {
			continue
		}
		return copy(b, payload), net.UDPAddrFromAddrPort(from), nil
	}
}

// parse reads an IPv4 packet with a UDP datagram. The checksum of UDP is not looked at: a packet from the same
// machine has none yet, and protocols above have identifiers of their own.
func parse(p []byte) (from, to netip.AddrPort, payload []byte, ok bool) {
	if len(p) < headerLength || p[0]>>4 != 4 || p[9] != unix.IPPROTO_UDP {
		return from, to, nil, false
	}
	header, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
	fragment := binary.BigEndian.Uint16(p[6:])&0x3fff != 0
	if header < 20 || fragment || total > len(p) || total < header+8 {
		return from, to, nil, false
	}

	udp := p[header:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < 8 || length > len(udp) {
		return from, to, nil, false
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(udp))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), binary.BigEndian.Uint16(udp[2:]))
	return from, to, udp[8:length], true
}

// WriteTo sends a datagram.
func (c *Conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	a, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("send to %s: not a UDP address", addr)
	}
	to := netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	if !to.Addr().Is4() {
		return 0, fmt.Errorf("send to %s: not an IPv4 address", addr)
	}

	ctx, cancel := context.WithTimeout(context.Background(), arpTries*arpTimeout)
	defer cancel()
	mac, err := c.nextHop(ctx, to.Addr())
	if err != nil {
		return 0, err
	}
	if _, err := c.socket.WriteTo(build(c.options.Local, to, b), &packet.Addr{HardwareAddr: mac}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// build makes an IPv4 packet with a UDP datagram.
func build(from, to netip.AddrPort, payload []byte) []byte {
	p := make([]byte, headerLength, headerLength+len(payload))
	source, destination := [4]byte{}, to.Addr().As4()
	if from.Addr().Is4() {
		source = from.Addr().As4()
	}
	p[0], p[8], p[9] = 0x45, timeToLive, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(headerLength+len(payload)))
	copy(p[12:], source[:])
	copy(p[16:], destination[:])
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:20]))

	udp := p[20:28]
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	p = append(p, payload...)

	// The checksum covers a pseudo header: addresses, protocol, length (RFC 768).
	sum := sum16(unix.IPPROTO_UDP+uint32(8+len(payload)), p[12:20])
	if s := checksum(sum, p[20:]); s != 0 {
		binary.BigEndian.PutUint16(p[26:], s)
	} else {
		binary.BigEndian.PutUint16(p[26:], 0xffff) // 0 would mean that there is none
	}
	return p
}

func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(start uint32, b []byte) uint16 {
	sum := sum16(start, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

var broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}

// ErrNoGateway says that a peer is not on the link and there is no gateway.
var ErrNoGateway = errors.New("it is not on the link, and there is no gateway")

// nextHop returns the link address that a packet goes to.
func (c *Conn) nextHop(ctx context.Context, to netip.Addr) (net.HardwareAddr, error) {
	if to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return broadcast, nil
	}
	if len(c.ifc.HardwareAddr) == 0 {
		return broadcast, nil // a PPP device: there is one other end, and no header to be written
	}
	via := to
	if !c.options.Network.Contains(to) {
		via = c.options.Gateway
	}
	if !via.Is4() || !c.options.Local.Addr().Is4() {
		return nil, fmt.Errorf("send to %s by %s: %w", to, c.options.Interface, ErrNoGateway)
	}

	c.nextHopMu.Lock()
	defer c.nextHopMu.Unlock()
	if mac, ok := c.nextHops[via]; ok {
		return mac, nil
	}
	mac, err := c.resolve(ctx, via)
	if err != nil {
		return nil, fmt.Errorf("look for %s on %s: %w", via, c.options.Interface, err)
	}
	c.nextHops[via] = mac
	return mac, nil
}

// Read receives from the peer of Dial.
func (c *Conn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// Write sends to the peer of Dial.
func (c *Conn) Write(b []byte) (int, error) { return c.WriteTo(b, net.UDPAddrFromAddrPort(c.remote)) }

// Close closes the socket and wakes its readers.
func (c *Conn) Close() error { return c.socket.Close() }

// LocalAddr is the source of what is sent.
func (c *Conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.options.Local) }

// RemoteAddr is the peer of Dial.
func (c *Conn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error { return c.socket.SetDeadline(t) }

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.socket.SetReadDeadline(t) }

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.socket.SetWriteDeadline(t) }
