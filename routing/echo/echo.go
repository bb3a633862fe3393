// Package echo asks hosts for an echo (ping) by one interface: RFC 792 for IPv4, RFC 4443, section 4, for IPv6. The
// socket is bound to the interface, so that a question leaves by it and an answer counts only if it came in there.
package echo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Message is what identifies an echo. The answer has all of it again.
type Message struct {
	ID, Seq uint16
	Cookie  uint64 // random, so that nobody who does not see the question can answer it
}

// Size is the length of a message, without the IP header, in bytes.
const Size = 8 + 8

// Types of ICMP and ICMPv6.
const (
	request4, reply4 = 8, 0
	request6, reply6 = 128, 129
)

// ErrOther says that a message is no echo reply of ours: another program's, an error, or garbage.
var ErrOther = errors.New("not an echo reply")

// encode makes the question. ICMPv6's checksum is the kernel's.
func (m Message) encode(ipv6 bool) []byte {
	b := make([]byte, Size)
	b[0] = request4
	if ipv6 {
		b[0] = request6
	}
	binary.BigEndian.PutUint16(b[4:], m.ID)
	binary.BigEndian.PutUint16(b[6:], m.Seq)
	binary.BigEndian.PutUint64(b[8:], m.Cookie)
	if !ipv6 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// Parse reads an answer, without its IP header. Whoever made it may have written anything.
func Parse(b []byte, ipv6 bool) (m Message, err error) {
	kind := byte(reply4)
	if ipv6 {
		kind = reply6
	}
	if len(b) != Size || b[0] != kind || b[1] != 0 || !ipv6 && checksum(b) != 0 {
		return m, ErrOther
	}
	return Message{
		ID: binary.BigEndian.Uint16(b[4:]), Seq: binary.BigEndian.Uint16(b[6:]), Cookie: binary.BigEndian.Uint64(b[8:]),
	}, nil
}

// checksum is RFC 1071's; that of a message with a right one is 0.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Conn is a socket on one interface, for one family.
type Conn struct {
	conn   *net.IPConn
	device string
	ipv6   bool
}

// Open opens a socket. It needs CAP_NET_RAW.
func Open(device string, ipv6 bool) (*Conn, error) {
	network, wildcard := "ip4:icmp", "0.0.0.0"
	if ipv6 {
		network, wildcard = "ip6:ipv6-icmp", "::"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) {
			err = errors.Join(unix.BindToDevice(int(fd), device), repliesOnly(int(fd), ipv6))
		})
		return errors.Join(e, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), network, wildcard)
	if err != nil {
		return nil, fmt.Errorf("open a socket for pings on %s: %w", device, err)
	}
	return &Conn{conn.(*net.IPConn), device, ipv6}, nil
}

// repliesOnly has the kernel leave out everything but echo replies, so that a flood of others does not fill the buffer.
func repliesOnly(fd int, ipv6 bool) error {
	if !ipv6 {
		const icmpFilter, blocked = 1, ^(1 << reply4) // ICMP_FILTER, raw(7)
		return unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, blocked)
	}
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[reply6/32] &^= 1 << (reply6 % 32)
	return unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f)
}

// Stale reports whether the interface is not the one any more that c was opened on: it has gone, or one of its name was
// made again. IPv4 says so itself by ENODEV when something is sent, IPv6 just has no route.
func (c *Conn) Stale() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	stale := true
	err = raw.Control(func(fd uintptr) {
		bound, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
		if err != nil {
			return
		}
		ifr, err := unix.NewIfreq(c.device)
		if err != nil || unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, ifr) != nil {
			return
		}
		stale = int(ifr.Uint32()) != bound
	})
	return err != nil || stale
}

// Send asks a host, which may be link-local with a zone.
func (c *Conn) Send(to netip.Addr, m Message) error {
	_, err := c.conn.WriteTo(m.encode(c.ipv6), &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()})
	return err
}

// Receive waits for the next message. ErrOther is one that is to be ignored; after any other error c is of no use.
func (c *Conn) Receive() (from netip.Addr, m Message, err error) {
	var b [60 + Size + 1]byte // with IPv4's header; a longer message is cut, and none of ours
	n, addr, err := c.conn.ReadFromIP(b[:])
	if err != nil {
		return from, m, fmt.Errorf("read an answer to a ping: %w", err)
	}
	from, _ = netip.AddrFromSlice(addr.IP)
	m, err = Parse(b[:n], c.ipv6)
	return from.Unmap(), m, err
}

// Close ends a Receive that waits.
func (c *Conn) Close() error { return c.conn.Close() }
