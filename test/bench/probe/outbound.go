package probe

import (
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/quality"
)

// sender sends all streams of one direction, on all paths, from one thread.
type sender struct {
	sockets []int // of each stream on each path, connected: each is a flow of its own, like a call
	streams int
	slots   []slot
	offset  time.Duration
	packet  []byte

	sent       []quality.Sighting[Key]
	late       []time.Duration
	unsent     int
	firstError unix.Errno
}

func newSender(c Config) (_ *sender, err error) {
	s := &sender{
		slots:   c.Shape.slots(),
		streams: c.Shape.Streams,
		offset:  c.Offset,
		packet:  make([]byte, c.Shape.Size),
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	template(s.packet, c.Run)
	// Allocated and touched now: a page fault while sending would add delay.
	s.sent, s.late = make([]quality.Sighting[Key], len(s.slots)), make([]time.Duration, len(s.slots))
	for i := range s.slots {
		s.sent[i].At, s.late[i] = -1, -1
	}
	s.sent, s.late = s.sent[:0], s.late[:0]
	for _, p := range c.Paths {
		for range s.streams {
			fd, err := connected(p, c)
			if err != nil {
				return nil, fmt.Errorf("open a voice socket from %s to %s: %w", p.Local, p.Remote, err)
			}
			s.sockets = append(s.sockets, fd)
		}
	}
	return s, nil
}

func connected(p Ends, c Config) (int, error) {
	local, err := netip.ParseAddr(p.Local)
	if err != nil {
		return -1, err
	}
	remote, err := netip.ParseAddr(p.Remote)
	if err != nil {
		return -1, err
	}
	family, from := sockaddr(local, 0)
	_, to := sockaddr(remote, c.Port)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, c.TOS)
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, c.TOS)
	}
	if err == nil {
		err = unix.Bind(fd, from)
	}
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sockaddr converts an address for a socket of its family.
func sockaddr(a netip.Addr, port int) (family int, s unix.Sockaddr) {
	if a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// run sends every packet at its time; it allocates nothing.
func (s *sender) run(start time.Duration, stop <-chan struct{}) error {
	start += s.offset
	base := unsafe.Pointer(unsafe.SliceData(s.packet))
	for i := range s.slots {
		sl := &s.slots[i]
		due := start + sl.at
		sleepUntil(due)
		if i%64 == 0 {
			select {
			case <-stop:
				return nil
			default:
			}
		}
		late := Monotonic() - due
		now := time.Now().UnixNano()
		put(s.packet, sl, now)
		fd := uintptr(s.sockets[int(sl.path)*s.streams+int(sl.stream)])
		// RawSyscall: entering and leaving Go's scheduler would add to the delay. It never blocks.
		_, _, errno := unix.RawSyscall6(
			unix.SYS_SENDTO,
			fd,
			uintptr(base),
			uintptr(len(s.packet)),
			unix.MSG_DONTWAIT,
			0,
			0,
		)
		if errno == unix.ECONNREFUSED { // an ICMP error about an earlier packet; this one was not sent
			_, _, errno = unix.RawSyscall6(
				unix.SYS_SENDTO,
				fd,
				uintptr(base),
				uintptr(len(s.packet)),
				unix.MSG_DONTWAIT,
				0,
				0,
			)
		}
		if errno != 0 {
			s.unsent++
			if s.firstError == 0 {
				s.firstError = errno
			}
			continue
		}
		s.sent = append(
			s.sent,
			quality.Sighting[Key]{
				Key:   Key{sl.path, sl.stream},
				Seq:   uint16(sl.seq),
				Media: sl.seq,
				At:    quality.Timestamp(now),
			},
		)
		s.late = append(s.late, late)
	}
	return nil
}

func (s *sender) close() {
	for _, fd := range s.sockets {
		unix.Close(fd)
	}
	s.sockets = nil
}
