package enginetest

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ForgeTooBig sends victim an ICMP message that says that a packet of its tunnel to the address end was too big for a
// link of so many bytes. Whoever knows addresses and ports can send it, from anywhere.
func (b *Box) ForgeTooBig(victim *Box, end netip.AddrPort, mtu int) {
	b.T.Helper()
	from := netip.MustParseAddr("192.0.2." + strconv.Itoa(victim.N))
	if end.Addr().Is6() {
		from = netip.MustParseAddr("2001:db8::" + strconv.Itoa(victim.N))
	}
	require.NoError(b.T, b.NS.Do(func() error { return SendTooBig(from, end, mtu) }))
}

// SendTooBig sends such a message from the namespace of the calling thread: victim's socket of port 51820 is told
// that its packets to end were too big.
func SendTooBig(victim netip.Addr, end netip.AddrPort, mtu int) error {
	ports := make([]byte, 8)
	binary.BigEndian.PutUint16(ports, 51820)
	binary.BigEndian.PutUint16(ports[2:], end.Port())
	binary.BigEndian.PutUint16(ports[4:], 1400)

	if victim.Is4() {
		quoted := make([]byte, 20)
		quoted[0], quoted[8], quoted[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(quoted[2:], 1420)
		copy(quoted[12:], victim.AsSlice())
		copy(quoted[16:], end.Addr().AsSlice())
		m := []byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)} // RFC 1191, section 4
		m = append(append(m, quoted...), ports...)
		binary.BigEndian.PutUint16(m[2:], checksum(m))
		return sendRaw(unix.AF_INET, unix.IPPROTO_ICMP, m, &unix.SockaddrInet4{Addr: victim.As4()})
	}
	quoted := make([]byte, 40)
	quoted[0], quoted[6], quoted[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(quoted[4:], 1400)
	copy(quoted[8:], victim.AsSlice())
	copy(quoted[24:], end.Addr().AsSlice())
	m := []byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)} // RFC 4443, section 3.2; the kernel adds the checksum
	m = append(append(m, quoted...), ports...)
	return sendRaw(unix.AF_INET6, unix.IPPROTO_ICMPV6, m, &unix.SockaddrInet6{Addr: victim.As16()})
}

func sendRaw(family, protocol int, m []byte, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, m, 0, to)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Fragments is how many fragments the box has made of packets that it sends, in both families.
func (b *Box) Fragments() int {
	b.T.Helper()
	return b.counter("snmp", "Ip", "FragCreates") + b.counter("snmp6", "", "Ip6FragCreates")
}

// tooBigHeard is how many ICMP messages about packets that are too big the box has received; of IPv4, all that say that
// a destination is unreachable.
func (b *Box) tooBigHeard() int {
	b.T.Helper()
	return b.counter("snmp", "Icmp", "InDestUnreachs") + b.counter("snmp6", "", "Icmp6InPktTooBigs")
}

// counter reads a counter of the box's network. A file of /proc/net has a line of names and one of values for each
// protocol; with an empty protocol, a name and a value on each line.
func (b *Box) counter(file, protocol, name string) (value int) {
	b.T.Helper()
	var names []string
	for line := range strings.Lines(b.NS.Run("cat", "/proc/self/net/"+file)) {
		f := strings.Fields(line)
		switch {
		case protocol == "" && len(f) == 2 && f[0] == name:
			n, err := strconv.Atoi(f[1])
			require.NoError(b.T, err)
			return n
		case protocol == "" || len(f) == 0 || f[0] != protocol+":":
		case names == nil:
			names = f
		default:
			for i := range names {
				if names[i] == name {
					n, err := strconv.Atoi(f[i])
					require.NoError(b.T, err)
					return n
				}
			}
		}
	}
	require.Fail(b.T, "no such counter", "%s %s %s", file, protocol, name)
	return 0
}

// discover sets whether a socket of the box believes in ICMP about the path's MTU. The engine's own are duplicates and
// share its options.
func (b *Box) discover(f *os.File, level, opt, mode int) {
	b.T.Helper()
	c, err := f.SyscallConn()
	require.NoError(b.T, err)
	require.NoError(b.T, c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, mode) }))
	require.NoError(b.T, err)
}
