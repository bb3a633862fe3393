package media

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Buffers of sockets in bytes, as the kernel counts them. That of arrivals holds more than 20 ms of any load that we
// can forward; what waited longer is dropped by its age, not by its place.
const (
	receiveBuffer = 4 << 20
	sendBuffer    = 4 << 20
)

// Sockets are those of one side, by address family: IPv4, IPv6. One that is nil is not used.
type Sockets struct {
	In  [2]*os.File // of ListenIn
	Out [2]*os.File // of OpenOut
}

// ListenIn opens a socket that TPROXY brings a side's packets to, on that port or any (0), and says which it has. It is
// bound to loopback: nothing but TPROXY reaches it. Needs CAP_NET_ADMIN, as OpenOut does with CAP_NET_RAW; what uses
// the sockets needs neither.
func ListenIn(v6 bool, wanted uint16) (*os.File, uint16, error) {
	fd, err := unix.Socket(family(v6), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return nil, 0, fmt.Errorf("open a UDP socket: %w", err)
	}
	port, err := setUpIn(fd, v6, wanted)
	if err != nil {
		unix.Close(fd)
		return nil, 0, fmt.Errorf("media socket for TPROXY: %w", err)
	}
	return os.NewFile(uintptr(fd), "media in"), port, nil
}

func setUpIn(fd int, v6 bool, wanted uint16) (port uint16, err error) {
	options := []struct{ level, option, value int }{
		{unix.SOL_IP, unix.IP_TRANSPARENT, 1},
		{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer},
	}
	var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(wanted), Addr: [4]byte{127, 0, 0, 1}}
	if v6 {
		options[0].level, options[0].option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		options[1].level, options[1].option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
		to = &unix.SockaddrInet6{Port: int(wanted), Addr: netip.IPv6Loopback().As16()}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return 0, fmt.Errorf("set option %d: %w", o.option, err)
		}
	}
	if err := unix.Bind(fd, to); err != nil {
		return 0, fmt.Errorf("bind to loopback: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("read its port: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(name.Port), nil
	case *unix.SockaddrInet6:
		return uint16(name.Port), nil
	}
	return 0, errors.New("its address is of no known family")
}

// OpenOut opens a raw socket that a side's packets leave by, with a mark: routing finds the side by it, and the
// firewall bounds what may leave. Without CAP_NET_ADMIN nobody can change it.
func OpenOut(v6 bool, mark uint32) (*os.File, error) {
	// IPPROTO_RAW implies IP_HDRINCL, and IPV6_HDRINCL (raw(7)).
	fd, err := unix.Socket(family(v6), unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	for _, o := range []struct{ option, value int }{
		{unix.SO_MARK, int(mark)}, {unix.SO_SNDBUFFORCE, sendBuffer},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.option, o.value); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("raw media socket: set option %d: %w", o.option, err)
		}
	}
	return os.NewFile(uintptr(fd), "media out"), nil
}

func family(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// duplicate is a descriptor of our own for a file; -1 for none.
func duplicate(f *os.File) (int, error) {
	if f == nil {
		return -1, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if failed := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); failed != nil {
		return -1, failed
	}
	if err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return fd, unix.SetNonblock(fd, true)
}
