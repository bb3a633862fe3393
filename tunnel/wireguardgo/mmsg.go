package wireguardgo

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendmmsg(2) and recvmmsg(2) as they are: x/net's batches allocate an address per packet and
// know no scattered buffers, which spare us a copy for each segment of a super-packet.

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4 * (unsafe.Sizeof(uintptr(0)) / 8)]byte
}

func sendmmsg(fd uintptr, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func recvmmsg(fd uintptr, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// controlSize holds one IPv6 packet information and one segment size, or what a receiver gets.
const controlSize = 128

// putSource appends the control message that sets the source address, and leaves the interface open.
func putSource(control []byte, n int, src netip.Addr) int {
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

// putSegment appends the control message that has the kernel cut a payload into datagrams of size.
func putSegment(control []byte, n, size int) int {
	data := putHeader(control[n:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	binary.NativeEndian.PutUint16(data, uint16(size))
	return n + unix.CmsgSpace(2)
}

func putHeader(b []byte, level, typ int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	return b[unix.CmsgLen(0):][:size:size]
}

// readControl takes our address and the segment size (0: a single datagram) from control messages.
func readControl(b []byte) (src netip.Addr, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return src, segment
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			src = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			src = netip.AddrFrom16([16]byte(data[:16]))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			segment = int(binary.NativeEndian.Uint16(data))
		}
		b = rest
	}
	return src, segment
}
