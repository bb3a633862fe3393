package tester

import (
	"fmt"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How packets leave: bursts as long as burstTime at the requested rate, of at most one batch. A longer burst
// would ask the path for more buffer than for speed; a shorter one would have the tester's own sleep be what
// is measured.
const (
	burstTime  = 100 * time.Microsecond
	sendBuffer = 4 << 20
	startIn    = time.Millisecond
	// A sender that is so far behind at the end of a trial cannot send at this rate.
	overtime = 0.05
)

type sender struct {
	fd       int
	headers  int // of IP and UDP
	load     bool
	denied   error
	messages [batch]mmsghdr
	vectors  [batch]unix.Iovec
	buffers  [batch][MaxSize]byte
}

func newSender(c Config) (*sender, error) {
	s := &sender{load: c.Load}
	family, headers, local, err := sockaddr(c.Local, 0)
	if err != nil {
		return nil, fmt.Errorf("open the sending socket: %w", err)
	}
	_, _, remote, err := sockaddr(c.Remote, c.Port)
	if err != nil {
		return nil, fmt.Errorf("open the sending socket: %w", err)
	}
	s.headers = headers
	if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the sending socket: %w", err)
	}
	_ = unix.SetsockoptInt(
		s.fd,
		unix.SOL_SOCKET,
		unix.SO_SNDBUFFORCE,
		sendBuffer,
	) // a small one shows as packets that were refused
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_TOS, c.TOS)
	} else {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, c.TOS)
	}
	if err == nil {
		err = unix.Bind(s.fd, local)
	}
	if err == nil {
		err = unix.Connect(s.fd, remote)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open the sending socket from %s to %s: %w", c.Local, c.Remote, err)
	}
	for i := range s.messages {
		s.vectors[i].Base = &s.buffers[i][0]
		s.messages[i].hdr.Iov, s.messages[i].hdr.Iovlen = &s.vectors[i], 1
	}
	return s, nil
}

func (s *sender) close() { unix.Close(s.fd) }

// do sends one trial by a schedule of absolute times: what one burst is late, the next ones are not.
func (s *sender) do(q request) (answer, error) {
	t := q.Trial
	if short := slices.Min(t.Sizes); short < s.headers+headerSize {
		return answer{}, fmt.Errorf("packets of %d bytes (allowed: %d-%d)", short, s.headers+headerSize, MaxSize)
	}
	if s.denied == nil && !s.load {
		s.denied = realTime()
	}
	// Between trials the thread waits as everybody does.
	defer func() { _ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0) }()
	out := Sent{}
	if s.denied != nil {
		out.Denied = s.denied.Error()
	}
	burst := max(1, min(batch, int(t.Rate*burstTime.Seconds())))
	total := t.Packets()
	start := monotonic() + startIn
	end := start + time.Duration((1+overtime)*float64(t.Length))
	number := 0
	for number < total {
		due := start + time.Duration(float64(number)/t.Rate*float64(time.Second))
		if now := monotonic(); now < due {
			sleepUntil(due)
		} else if out.Late = max(out.Late, now-due); now > end {
			break
		}
		n := min(burst, total-number)
		for i := range n {
			putHeader(s.buffers[i][:], t.Number, uint64(number+i))
			s.vectors[i].SetLen(t.Sizes[(number+i)%len(t.Sizes)] - s.headers)
		}
		s.burst(n, &out)
		number += n
	}
	out.Took = monotonic() - start
	return answer{Sent: &out}, nil
}

// burst sends the first n messages; what the kernel refuses is counted and left behind.
func (s *sender) burst(n int, out *Sent) {
	for at := 0; at < n; {
		// Raw: entering and leaving Go's scheduler is none of the path's time. It never blocks.
		sent, _, errno := unix.RawSyscall6(
			unix.SYS_SENDMMSG,
			uintptr(s.fd),
			uintptr(unsafe.Pointer(&s.messages[at])),
			uintptr(n-at),
			unix.MSG_DONTWAIT,
			0,
			0,
		)
		if errno == 0 {
			out.Packets += int(sent)
			at += int(sent)
			continue
		}
		if errno == unix.EINTR ||
			errno == unix.ECONNREFUSED { // the latter: an ICMP error about an earlier packet, told now
			continue
		}
		if out.Refused++; out.Error == "" {
			out.Error = errno.Error()
		}
		at++
	}
}
