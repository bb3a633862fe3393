package media

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/test/bench/cost"
	"ringway/test/lab/host"
)

const (
	buffer = 64 << 20 // of a socket of the ends, so that what is lost is not lost by them
	// lookEvery is how long a receiver waits until it looks whether the trial is over.
	lookEvery = 20_000 // microseconds
	atOnce    = 64     // packets of a system call
	control   = 64     // bytes of a timestamp and a counter
)

// message is struct mmsghdr of recvmmsg(2).
type message struct {
	header unix.Msghdr
	size   uint32
	_      [4]byte
}

// socket is one end's. One thread sends by it, another receives.
type socket struct {
	fd  int
	out vector
	in  vector
}

// vector is the memory of a system call.
type vector struct {
	messages [atOnce]message
	vectors  [atOnce]unix.Iovec
	names    [atOnce]unix.RawSockaddrInet4
	controls [atOnce][control]byte
	memory   [atOnce][2048]byte
}

// open opens an end's socket on its host.
func open(h *host.Host, local netip.AddrPort) (s *socket, err error) {
	s = &socket{fd: -1}
	err = h.Do(func() error {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: lookEvery}),
			unix.Bind(s.fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}),
		)
	})
	if err != nil {
		return s, fmt.Errorf("open a socket on %s: %w", h.Name, err)
	}
	return s, nil
}

func (s *socket) close() {
	if s != nil && s.fd >= 0 {
		unix.Close(s.fd)
	}
}

// send sends packets, each to its port of an address.
func (s *socket) send(packets [][]byte, to [4]byte, ports []uint16) error {
	v := &s.out
	for i, b := range packets {
		v.names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to, Port: ports[i]<<8 | ports[i]>>8}
		v.vectors[i] = unix.Iovec{Base: unsafe.SliceData(b)}
		v.vectors[i].SetLen(len(b))
		h := &v.messages[i].header
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&v.names[i])), Namelen: unix.SizeofSockaddrInet4, Iov: &v.vectors[i]}
		h.SetIovlen(1)
	}
	for done := 0; done < len(packets); {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd),
			uintptr(unsafe.Pointer(&v.messages[done])), uintptr(len(packets)-done), 0, 0, 0)
		switch {
		case errno == unix.EINTR, errno == unix.ECONNREFUSED:
			continue
		case errno != 0:
			return fmt.Errorf("send media: %w", errno)
		}
		done += int(n)
	}
	return nil
}

// receive waits for packets a moment, and returns how many there are.
func (s *socket) receive() (int, error) {
	v := &s.in
	for i := range v.messages {
		v.vectors[i] = unix.Iovec{Base: &v.memory[i][0]}
		v.vectors[i].SetLen(len(v.memory[i]))
		h := &v.messages[i].header
		*h = unix.Msghdr{Iov: &v.vectors[i], Control: &v.controls[i][0]}
		h.SetIovlen(1)
		h.SetControllen(control)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&v.messages[0])), atOnce,
		unix.MSG_WAITFORONE, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED:
		return 0, nil
	}
	return 0, fmt.Errorf("receive media: %w", errno)
}

// received is packet i of the last receive, when the kernel got it, and how many it had dropped before.
func (s *socket) received(i int) (b []byte, at int64, dropped uint32) {
	v := &s.in
	m := &v.messages[i]
	for rest := v.controls[i][:m.header.Controllen]; len(rest) >= unix.SizeofCmsghdr; {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16:
			at = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			dropped = *(*uint32)(unsafe.Pointer(&data[0]))
		}
		rest = next
	}
	return v.memory[i][:m.size], at, dropped
}

// ends send the packets of a batch, and note when each was sent and when it came.
type ends struct {
	sockets [2]*socket // of the caller and the callee
	to      [2][4]byte // the box's address towards each
	batch   *batch
	gap     time.Duration // between two packets
	keep    bool          // what arrives is opened and compared

	sent    []int64 // on the kernel's clock of the day; 0: not yet
	came    []int64
	wrong   []error // of the two receivers
	late    time.Duration
	twice   [2]int
	strange [2]int
	dropped [2]uint32
	over    atomic.Bool
}

// Flows alternate: the caller sends those with an even number.
func direction(flow int) int { return flow % 2 }

// send sends all packets by the schedule.
func (e *ends) send() error {
	var packets [2][][]byte
	var ports [2][]uint16
	start, n := cost.Monotonic()+5*time.Millisecond, e.batch.len()
	for next := 0; next < n && !e.over.Load(); {
		now := cost.Monotonic()
		due := min(n, int((now-start)/e.gap)+1)
		if now < start || due <= next {
			cost.Until(start + time.Duration(next)*e.gap)
			continue
		}
		e.late = max(e.late, now-start-time.Duration(next)*e.gap)
		due = min(due, next+atOnce)
		for d := range packets {
			packets[d], ports[d] = packets[d][:0], ports[d][:0]
		}
		for i := next; i < due; i++ {
			f := i % len(e.batch.flows)
			d := direction(f)
			packets[d] = append(packets[d], e.batch.at(i))
			ports[d] = append(ports[d], e.batch.flows[f].to)
		}
		for d, all := range packets {
			if len(all) == 0 {
				continue
			}
			at := today()
			for i := next; i < due; i++ {
				if direction(i%len(e.batch.flows)) == d {
					e.sent[i] = at
				}
			}
			if err := e.sockets[d].send(all, e.to[d], ports[d]); err != nil {
				return err
			}
		}
		next = due
	}
	return nil
}

// today is the clock of the kernel's timestamps.
func today() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return ts.Nano()
}

// receive takes what arrives at an end, until over is set.
func (e *ends) receive(end int) error {
	s := e.sockets[end]
	for !e.over.Load() {
		n, err := s.receive()
		if err != nil {
			return err
		}
		for i := range n {
			b, at, dropped := s.received(i)
			e.dropped[end] = max(e.dropped[end], dropped)
			k := e.batch.place(b)
			switch {
			case k < 0 || direction(k%len(e.batch.flows)) == end:
				e.strange[end]++
				continue
			case e.came[k] != 0:
				e.twice[end]++
				continue
			}
			e.came[k] = at
			if f := k % len(e.batch.flows); e.keep && e.wrong[end] == nil {
				number := e.batch.first[f] + uint16(k/len(e.batch.flows))
				if err := e.batch.flows[f].same(b, number); err != nil {
					e.wrong[end] = fmt.Errorf("packet %d of flow %d: %w", number, f, err)
				}
			}
		}
	}
	return nil
}
