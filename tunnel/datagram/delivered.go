package datagram

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Delivered is what the kernel says about a datagram that TPROXY brought to a socket with IP_RECVORIGDSTADDR (of IPv6:
// IPV6_RECVORIGDSTADDR) and SO_TIMESTAMPNS.
type Delivered struct {
	From, To netip.AddrPort // without zones
	At       int64          // when it arrived, in ns of the wall clock; 0: the kernel did not say
	Payload  []byte         // borrowed until the next Reset
	Whole    bool           // false: it was longer than the batch's messages
}

// Delivered returns message i. ok is false if it lacks an address.
func (b *Batch) Delivered(i int) (d Delivered, ok bool) {
	m, from := &b.Messages[i], &b.from[i]
	from.N = m.Header.Namelen
	if from.N != unix.SizeofSockaddrInet4 && from.N != unix.SizeofSockaddrInet6 {
		return d, false
	}
	d.From = from.BareAddrPort()
	d.To, d.At = ReadDelivered(b.control[i][:min(int(m.Header.Controllen), ControlSize)])
	d.Payload = b.memory[i*b.size:][:min(int(m.N), b.size)]
	d.Whole = m.Header.Flags&unix.MSG_TRUNC == 0
	return d, d.To.IsValid()
}

// ReadDelivered reads the control messages of a datagram for Delivered. to is not valid if they do not have it. It
// accepts any bytes and allocates nothing.
func ReadDelivered(b []byte) (to netip.AddrPort, at int64) {
	for {
		m, rest, found := nextControl(b)
		if !found {
			return to, at
		}
		b = rest

		switch {
		case m.is(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS) && len(m.data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&m.data[0])).Nano()
		case m.is(unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR) && len(m.data) >= 8: // struct sockaddr_in
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.data[4:8])), binary.BigEndian.Uint16(m.data[2:]))
		case m.is(unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR) && len(m.data) >= 24: // struct sockaddr_in6
			to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.data[8:24])), binary.BigEndian.Uint16(m.data[2:]))
		}
	}
}
