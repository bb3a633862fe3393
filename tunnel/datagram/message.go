// Package datagram is UDP as the userspace engines send and receive it: the raw socket addresses, messages and control messages of
// sendmmsg(2) and recvmmsg(2). x/net's batches allocate an address per packet and know no scattered buffers. Nothing here makes a
// system call, and nothing allocates, but for an address with a zone.
//
// The engines import it; it imports nothing of Ringway's.
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

// ControlSize holds a source address, a TOS octet, a segment size and a request for a time stamp, or what a receiver gets: these, and a
// time that nobody asked for (while any program on the machine takes time stamps the kernel adds it for who reads those of what left).
const ControlSize = 192

// PutSource appends the control message that sets the source address, and leaves the interface open.
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

// PutSegment appends the control message that has the kernel cut a payload into datagrams of size.
func PutSegment(control []byte, n, size int) int {
	binary.NativeEndian.PutUint16(putHeader(control[n:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(size))
	return n + unix.CmsgSpace(2)
}

// PutTimestamp appends the control message that has the kernel say when the packet left for the wire (ReadSent).
func PutTimestamp(control []byte, n int) int {
	binary.NativeEndian.PutUint32(putHeader(control[n:], unix.SOL_SOCKET, unix.SO_TIMESTAMPING, 4), unix.SOF_TIMESTAMPING_TX_SOFTWARE)
	return n + unix.CmsgSpace(4)
}

// SentControlSize holds what comes with a message of the error queue, for either family.
const SentControlSize = 256

// ReadSent reads what comes with a message of the error queue of a socket with SOF_TIMESTAMPING_OPT_ID: the number of the packet that
// left, and when, in nanoseconds of the wall clock. It takes any bytes and allocates nothing.
func ReadSent(b []byte) (id uint32, at int64, ok bool) {
	const (
		originAt, infoAt, dataAt, size = 4, 8, 12, 16 // struct sock_extended_err
		originTimestamping             = 4            // SO_EE_ORIGIN_TIMESTAMPING
	)
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			return id, at, ok
		}
		data := b[unix.SizeofCmsghdr:n]
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPING && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case (h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR) && len(data) >= size:
			ok = data[originAt] == originTimestamping && binary.NativeEndian.Uint32(data[infoAt:]) == 0 // SCM_TSTAMP_SND
			id = binary.NativeEndian.Uint32(data[dataAt:])
		}
		next := (n + cmsgAlign - 1) &^ (cmsgAlign - 1)
		if next >= len(b) {
			return id, at, ok
		}
		b = b[next:]
	}
	return id, at, ok
}

func putHeader(b []byte, level, kind int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b[unix.CmsgLen(0):][:size:size]
}

// Arrival is what the kernel says beside a message.
type Arrival struct {
	Source  netip.Addr // our address
	Segment int        // size of the datagrams that were joined; 0: a single one
	TOS     uint8      // outer TOS octet
}

// ReadControl reads control messages. It takes any bytes and allocates nothing.
func ReadControl(b []byte) (a Arrival) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return a
		}
		data := b[unix.SizeofCmsghdr:size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			a.Source = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a.Source = netip.AddrFrom16([16]byte(data[:16]))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			a.Segment = int(binary.NativeEndian.Uint16(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			a.TOS = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			a.TOS = uint8(binary.NativeEndian.Uint32(data))
		}
		next := (size + cmsgAlign - 1) &^ (cmsgAlign - 1)
		if next >= len(b) {
			return a
		}
		b = b[next:]
	}
	return a
}

const cmsgAlign = int(unsafe.Sizeof(uintptr(0)))
