package stamp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control is the ancillary data of a received packet.
type control struct {
	at       int64 // CLOCK_REALTIME when the packet came in, ns; 0: not said
	tos, ttl uint8
	to       netip.Addr // where it was sent to
	overflow uint32     // packets that this socket dropped so far
	mark     uint32     // of the packet, as the firewall left it
	marked   bool       // the kernel reports marks
}

// controlSpace holds all ancillary messages of either family.
const controlSpace = 256

// parse reads ancillary data. Unknown messages are skipped; a truncated one ends it.
func (c *control) parse(oob []byte) {
	*c = control{}
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		oob = rest
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			c.at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) == 8: // 32-bit machines
			c.at = int64(int32(binary.NativeEndian.Uint32(data)))*1e9 + int64(int32(binary.NativeEndian.Uint32(data[4:])))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			c.overflow = binary.NativeEndian.Uint32(data)
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_MARK && len(data) >= 4:
			c.mark, c.marked = binary.NativeEndian.Uint32(data), true
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			c.tos = data[0]
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL && len(data) >= 4:
			c.ttl = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.to = netip.AddrFrom4([4]byte(data[8:12])) // ipi_addr
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			c.tos = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			c.ttl = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			c.to = netip.AddrFrom16([16]byte(data[:16])) // ipi6_addr
		}
	}
}

// appendControl appends an ancillary message.
func appendControl(oob []byte, level, typ int, data []byte) []byte {
	n := len(oob)
	oob = append(oob, make([]byte, unix.CmsgSpace(len(data)))...)
	// struct cmsghdr: a length as wide as a pointer, then level and type.
	if unix.SizeofCmsghdr == 16 {
		binary.NativeEndian.PutUint64(oob[n:], uint64(unix.CmsgLen(len(data))))
	} else {
		binary.NativeEndian.PutUint32(oob[n:], uint32(unix.CmsgLen(len(data))))
	}
	binary.NativeEndian.PutUint32(oob[n+unix.SizeofCmsghdr-8:], uint32(level))
	binary.NativeEndian.PutUint32(oob[n+unix.SizeofCmsghdr-4:], uint32(typ))
	copy(oob[n+unix.CmsgLen(0):], data)
	return oob
}

func int32Bytes(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// replyControl makes an answer leave from the address that was asked, with the question's code point and
// the mark of the tunnel that it came through.
func replyControl(oob []byte, from netip.Addr, tos uint8, mark uint32) []byte {
	if from.Is4() {
		info := make([]byte, unix.SizeofInet4Pktinfo)
		a := from.As4()
		copy(info[4:], a[:]) // ipi_spec_dst
		oob = appendControl(oob, unix.IPPROTO_IP, unix.IP_PKTINFO, info)
		oob = appendControl(oob, unix.IPPROTO_IP, unix.IP_TOS, int32Bytes(uint32(tos)))
	} else if from.Is6() {
		info := make([]byte, unix.SizeofInet6Pktinfo)
		a := from.As16()
		copy(info, a[:])
		oob = appendControl(oob, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info)
		oob = appendControl(oob, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int32Bytes(uint32(tos)))
	}
	if mark != 0 {
		oob = appendControl(oob, unix.SOL_SOCKET, unix.SO_MARK, int32Bytes(mark))
	}
	return oob
}

// receiveBuffer holds some 2,000 probes of voice, each counted with its descriptor.
const receiveBuffer = 1 << 20

type option struct {
	level, name, value int
	what               string
}

// options are the socket options of both ends.
func options(network string) []option {
	o := []option{
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1, "kernel timestamps"},
		{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1, "count of drops"},
	}
	if network == "udp4" {
		return append(o, option{unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "received code point"},
			option{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "received TTL"},
			option{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "received destination"},
			option{unix.IPPROTO_IP, unix.IP_TTL, senderTTL, "TTL"})
	}
	return append(o, option{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "received code point"},
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "received hop limit"},
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "received destination"},
		option{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, senderTTL, "hop limit"})
}

// setUp returns the Control function of a net.ListenConfig or net.Dialer.
func setUp(network, device string, more ...option) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			for _, o := range append(options(network), more...) {
				if err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
					err = fmt.Errorf("set %s: %w", o.what, err)
					return
				}
			}
			// A pause of this program must not be measured as the network's loss. Only root may have more
			// than the system's most.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
			// Since Linux 5.19, and for the privileged; who has it not is told by what it does not hear.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVMARK, 1)
			if device != "" {
				if err = unix.BindToDevice(int(fd), device); err != nil {
					err = fmt.Errorf("bind to %s: %w", device, err)
				}
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
}

func listen(network, device string, port uint16) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: setUp(network, device)}
	c, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// dial connects, so that only the one that was asked is heard, and an ICMP error is.
func dial(to netip.AddrPort, tos uint8) (*net.UDPConn, error) {
	network, level, name := "udp4", unix.IPPROTO_IP, unix.IP_TOS
	if to.Addr().Is6() {
		network, level, name = "udp6", unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	d := net.Dialer{
		Control: setUp(network, "", option{level, name, int(tos), "code point"}), Timeout: time.Second,
	}
	c, err := d.Dial(network, to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
