package transparent

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What the privileged daemon does for a relay: IP_TRANSPARENT and SO_MARK take CAP_NET_RAW.

// Marking is what packets of a socket bear. What came in is not asked: a phone may set any code point.
type Marking struct {
	Mark uint32 // SO_MARK
	TOS  uint8  // the octet; IPv6: the traffic class
}

// listenBuffer is the receive buffer of a UDP listener in bytes, which all senders share: some 2,800 messages of 1 KB
// with their overhead, or 200 ms of 2,000 calls a second. What waits longer passes unread.
const listenBuffer = 4 << 20

// Listen opens a listener. Give it a loopback address, and name that in the rule (tproxy to 127.0.0.1:5280): then
// nothing but TPROXY reaches it, and TCP connections from the same port as the listener's can be carried. Accepted
// connections inherit the marking, and the relay cannot change it: LANs, tunnels and WANs want a listener each.
func Listen(t Transport, at netip.AddrPort, m Marking) (fd int, err error) {
	fd, err = openSocket(SocketKind{Transport: t, V6: at.Addr().Is6()}, m)
	if err != nil {
		return -1, fmt.Errorf("open %s listener on %s: %w", t, at, err)
	}
	fail := func(what string, err error) (int, error) {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s listener on %s: %s: %w", t, at, what, err)
	}

	if t == UDP {
		// Without SO_REUSEADDR: nothing else can bind the port, so nothing can take datagrams from it.
		level, option := unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR
		if at.Addr().Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return fail("ask for original destinations", err)
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, listenBuffer)
		}
	} else if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fail("set SO_REUSEADDR", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return fail("bind", err)
	}
	if t == TCP {
		if err := unix.Listen(fd, 1024); err != nil {
			return fail("listen", err)
		}
	}
	return fd, nil
}

// OpenEgress makes a fresh socket for Config.Open. It is transparent, marked and not bound.
func OpenEgress(kind SocketKind, m Marking) (fd int, err error) {
	fd, err = openSocket(kind, m)
	if err != nil {
		return -1, fmt.Errorf("open egress socket %s: %w", kind, err)
	}
	return fd, nil
}

func openSocket(kind SocketKind, m Marking) (int, error) {
	domain, socketType := unix.AF_INET, unix.SOCK_DGRAM
	if kind.V6 {
		domain = unix.AF_INET6
	}
	if kind.Transport == TCP {
		socketType = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(domain, socketType|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}

	if err := setOptions(fd, kind.V6, m); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setOptions(fd int, v6 bool, m Marking) error {
	type option struct {
		name              string
		level, opt, value int
	}
	options := []option{
		{"IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1},
		{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, int(m.TOS)},
	}
	if v6 {
		options = []option{
			{"IPV6_TRANSPARENT", unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1},
			{"IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(m.TOS)},
			{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
		}
	}
	if m.Mark != 0 {
		options = append(options, option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(m.Mark)})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return fmt.Errorf("set %s to %d: %w", o.name, o.value, err)
		}
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
