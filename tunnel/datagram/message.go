// Package datagram is UDP as the userspace engines send and receive it: raw socket addresses, messages and
// control messages of sendmmsg(2) and recvmmsg(2), segmentation (UDP GSO and GRO), and what an error of the
// socket means. x/net's batches allocate an address per packet and have no scattered buffers.
//
// The engines make the system calls that send and receive, since a pinned forwarding thread must use raw
// ones. Nothing on the packet path allocates, except an address with a zone.
package datagram

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is struct mmsghdr.
type Message struct {
	Header unix.Msghdr
	N      uint32 // bytes sent or received
	_      [4 * (unsafe.Sizeof(uintptr(0)) / 8)]byte
}

// ControlSize is enough for a source address, a TOS octet, a segment size or PutWhole, and a timestamp's request. It
// is also enough for what a receiver gets: the first three, and a timestamp that nobody requested (the kernel
// adds one to a socket with transmit timestamps while any program on the machine uses receive timestamps).
const ControlSize = 192

// PutSource appends the control message that sets the source address. It leaves the interface to the kernel.
func PutSource(control []byte, n int, src netip.Addr) int {
	if src.Is4() {
		ip := src.As4()
		data := putHeader(control[n:], unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		clear(data)
		copy(data[4:], ip[:]) // Spec_dst
		return n + unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	ip := src.As16()
	data := putHeader(control[n:], unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	clear(data)
	copy(data, ip[:])
	return n + unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// PutTOS appends the control message that sets the TOS octet (IPv6: the traffic class) of one packet.
func PutTOS(control []byte, n int, v6 bool, tos uint8) int {
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
	if v6 {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	binary.NativeEndian.PutUint32(putHeader(control[n:], level, kind, 4), uint32(tos))
	return n + unix.CmsgSpace(4)
}

// PutWhole appends the control message that keeps a packet of IPv6 from being sent in fragments (RFC 3542, section
// 11.2): one that is longer than its link takes is refused with EMSGSIZE.
func PutWhole(control []byte, n int) int {
	binary.NativeEndian.PutUint32(putHeader(control[n:], unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 4), 1)
	return n + unix.CmsgSpace(4)
}

// PutSegment appends the control message by which the kernel splits a payload into datagrams of size bytes
// (UDP GSO).
func PutSegment(control []byte, n, size int) int {
	binary.NativeEndian.PutUint16(putHeader(control[n:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(size))
	return n + unix.CmsgSpace(2)
}

// PutTimestamp appends the control message that requests a timestamp when the packet leaves for the wire.
// ReadSent reads it.
func PutTimestamp(control []byte, n int) int {
	data := putHeader(control[n:], unix.SOL_SOCKET, unix.SO_TIMESTAMPING, 4)
	binary.NativeEndian.PutUint32(data, unix.SOF_TIMESTAMPING_TX_SOFTWARE)
	return n + unix.CmsgSpace(4)
}

// SentControlSize is enough for the control messages of one message of the error queue, for either family.
const SentControlSize = 256

// ReadSent reads the control messages of one message of the error queue of a socket with
// SOF_TIMESTAMPING_OPT_ID: the number of the packet that left, and when it left, in nanoseconds of the wall
// clock. It accepts any bytes and allocates nothing.
func ReadSent(b []byte) (id uint32, at int64, ok bool) {
	const (
		originAt, infoAt, dataAt, size = 4, 8, 12, 16 // struct sock_extended_err
		originTimestamping             = 4            // SO_EE_ORIGIN_TIMESTAMPING
	)

	for {
		m, rest, found := nextControl(b)
		if !found {
			return id, at, ok
		}
		b = rest

		switch {
		case m.is(unix.SOL_SOCKET, unix.SO_TIMESTAMPING) && len(m.data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&m.data[0])).Nano()
		case (m.is(unix.IPPROTO_IP, unix.IP_RECVERR) || m.is(unix.IPPROTO_IPV6, unix.IPV6_RECVERR)) && len(m.data) >= size:
			ok = m.data[originAt] == originTimestamping && binary.NativeEndian.Uint32(m.data[infoAt:]) == 0 // SCM_TSTAMP_SND
			id = binary.NativeEndian.Uint32(m.data[dataAt:])
		}
	}
}

func putHeader(b []byte, level, kind int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b[unix.CmsgLen(0):][:size:size]
}

// Arrival is what the kernel says about a message that arrived.
type Arrival struct {
	Source  netip.Addr // our address that it was sent to; not set unless packets can be sent from it
	Segment int        // size of the datagrams that were joined; 0: a single one
	TOS     uint8      // outer TOS octet
}

// ReadControl reads the control messages of a message that arrived. It accepts any bytes and allocates nothing.
func ReadControl(b []byte) (a Arrival) {
	for {
		m, rest, found := nextControl(b)
		if !found {
			break
		}
		b = rest

		switch {
		case m.is(unix.IPPROTO_IP, unix.IP_PKTINFO) && len(m.data) >= unix.SizeofInet4Pktinfo:
			a.Source = netip.AddrFrom4([4]byte(m.data[4:8]))
		case m.is(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO) && len(m.data) >= unix.SizeofInet6Pktinfo:
			a.Source = netip.AddrFrom16([16]byte(m.data[:16]))
		case m.is(unix.IPPROTO_UDP, unix.UDP_GRO) && len(m.data) >= 2:
			a.Segment = int(binary.NativeEndian.Uint16(m.data))
		case m.is(unix.IPPROTO_IP, unix.IP_TOS) && len(m.data) >= 1:
			a.TOS = m.data[0]
		case m.is(unix.IPPROTO_IPV6, unix.IPV6_TCLASS) && len(m.data) >= 4:
			a.TOS = uint8(binary.NativeEndian.Uint32(m.data))
		}
	}

	if a.Source.IsUnspecified() || a.Source.IsMulticast() {
		a.Source = netip.Addr{}
	}
	return a
}

// control is one control message.
type control struct {
	level, kind int32
	data        []byte
}

func (c *control) is(level, kind int32) bool { return c.level == level && c.kind == kind }

// nextControl splits off the first control message. found is false where there is none, or one that is cut short.
func nextControl(b []byte) (c control, rest []byte, found bool) {
	if len(b) < unix.SizeofCmsghdr {
		return c, nil, false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	size := int(h.Len)
	if size < unix.SizeofCmsghdr || size > len(b) {
		return c, nil, false
	}

	const align = int(unsafe.Sizeof(uintptr(0)))
	next := (size + align - 1) &^ (align - 1)
	return control{h.Level, h.Type, b[unix.SizeofCmsghdr:size]}, b[min(next, len(b)):], true
}
