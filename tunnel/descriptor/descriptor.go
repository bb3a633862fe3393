// Package descriptor opens what a userspace engine works on: the tunnel device and the class's UDP sockets.
// The privileged daemon opens them and keeps them, so that a plane that dies is replaced by another on the
// same descriptors; engines duplicate what they need.
//
// O_NONBLOCK belongs to the open file, not to the descriptor, and os.File.Fd may clear it for every process
// that shares the file. Use SyscallConn to get at the number.
package descriptor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

const cloneDevice = "/dev/net/tun"

// OpenTUN makes (or takes again) the tunnel device of that name in this network namespace. The device lives
// as long as a descriptor of it. It is not up, and its address, MTU and queue length are package routing's.
func OpenTUN(name string) (*os.File, error) {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("open tunnel device %q: the name must have 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cloneDevice, err)
	}
	if err := setTUN(fd, name); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tunnel device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), cloneDevice), nil
}

func setTUN(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	return nil
}

// OpenUDP opens the sockets of one class on one port, one for each family; udp6 is nil where the kernel has
// no IPv6. Mark and forced buffer sizes need CAP_NET_ADMIN. Port 0 lets the kernel choose one.
func OpenUDP(port uint16, mark uint32, tos uint8, b tunnel.Bounds) (udp4, udp6 *os.File, err error) {
	for range 100 { // a port that the kernel chose may be taken in the other family
		udp4, udp6, err = openUDP(port, mark, tos, b)
		if err == nil || port != 0 || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return udp4, udp6, err
}

func openUDP(port uint16, mark uint32, tos uint8, b tunnel.Bounds) (_, _ *os.File, err error) {
	fd4, err := boundSocket(&unix.SockaddrInet4{Port: int(port)}, mark, tos, b)
	if err != nil {
		return nil, nil, fmt.Errorf("open UDP socket on port %d: %w", port, err)
	}
	f4 := os.NewFile(uintptr(fd4), "udp4")
	if port == 0 {
		port, _ = Port(fd4)
	}
	fd6, err := boundSocket(&unix.SockaddrInet6{Port: int(port)}, mark, tos, b)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return f4, nil, nil // no IPv6, or switched off
	}
	if err != nil {
		f4.Close()
		return nil, nil, fmt.Errorf("open UDP socket on port %d (IPv6): %w", port, err)
	}
	return f4, os.NewFile(uintptr(fd6), "udp6"), nil
}

func boundSocket(addr unix.Sockaddr, mark uint32, tos uint8, b tunnel.Bounds) (int, error) {
	family := unix.AF_INET
	if _, ok := addr.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := setSocket(fd, family, mark, tos, b); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := unix.Bind(fd, addr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}

type socketOption struct {
	name              string
	level, opt, value int
	skip, optional    bool
}

// setSocket sets a socket's options.
//
// Path MTU discovery is off, unlike in stock wireguard-go: anybody on the internet can send an ICMP message that
// quotes a tunnel's addresses and ports, and the kernel believes it for ten minutes. With one of MTU 68 for a port
// nearly all outer packets would be fragments. So the interface's MTU alone counts, and IPv4 packets go without DF:
// a router whose link is smaller makes fragments of them. What a path takes is decided inside, by the MTU of routes.
func setSocket(fd, family int, mark uint32, tos uint8, b tunnel.Bounds) error {
	tosInt := int(tos &^ 3) // the ECN bits are the kernel's
	options := []socketOption{
		{name: "SO_MARK", level: unix.SOL_SOCKET, opt: unix.SO_MARK, value: int(mark), skip: mark == 0},
		{name: "SO_RCVBUFFORCE", level: unix.SOL_SOCKET, opt: unix.SO_RCVBUFFORCE, value: b.ReceiveBuffer,
			skip: b.ReceiveBuffer == 0},
		{name: "SO_SNDBUFFORCE", level: unix.SOL_SOCKET, opt: unix.SO_SNDBUFFORCE, value: b.SendBuffer,
			skip: b.SendBuffer == 0},
		// One system call receives up to 64 packets; a single packet is not delayed.
		{name: "UDP_GRO", level: unix.IPPROTO_UDP, opt: unix.UDP_GRO, value: 1, optional: true},
	}
	if family == unix.AF_INET6 {
		options = append(options,
			socketOption{name: "IPV6_V6ONLY", level: unix.IPPROTO_IPV6, opt: unix.IPV6_V6ONLY, value: 1},
			socketOption{name: "IPV6_MTU_DISCOVER", level: unix.IPPROTO_IPV6, opt: unix.IPV6_MTU_DISCOVER,
				value: unix.IPV6_PMTUDISC_OMIT},
			socketOption{name: "IPV6_TCLASS", level: unix.IPPROTO_IPV6, opt: unix.IPV6_TCLASS, value: tosInt},
			socketOption{name: "IPV6_RECVPKTINFO", level: unix.IPPROTO_IPV6, opt: unix.IPV6_RECVPKTINFO, value: 1})
	} else {
		options = append(options,
			socketOption{name: "IP_MTU_DISCOVER", level: unix.IPPROTO_IP, opt: unix.IP_MTU_DISCOVER,
				value: unix.IP_PMTUDISC_OMIT},
			socketOption{name: "IP_TOS", level: unix.IPPROTO_IP, opt: unix.IP_TOS, value: tosInt},
			socketOption{name: "IP_PKTINFO", level: unix.IPPROTO_IP, opt: unix.IP_PKTINFO, value: 1})
	}
	for _, o := range options {
		if o.skip {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil && !o.optional {
			return fmt.Errorf("set %s to %d: %w", o.name, o.value, err)
		}
	}
	return nil
}

// Port is the port that a socket is bound to.
func Port(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("read a socket's port: %w", err)
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, fmt.Errorf("read a socket's port: family %T is not IP", sa)
}

// Duplicate makes another descriptor of the open file behind f, without changing f.
func Duplicate(f *os.File) (fd int, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	e := c.Control(func(raw uintptr) { fd, err = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0) })
	if e != nil {
		return -1, e
	}
	return fd, err
}
