package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Tap is a packet socket that sees what crosses the box, on all interfaces, through a filter. It is not for several
// goroutines at once.
type Tap struct {
	fd   int
	buf  []byte
	oob  []byte
	lost uint64
}

// received is how many bytes may wait: a second of a hundred calls with their sound.
const received = 4 << 20

// Open makes a tap that sees nothing until it has flows. It needs CAP_NET_RAW.
func Open() (*Tap, error) {
	// Protocol 0: nothing arrives before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	t := &Tap{fd: fd, buf: make([]byte, wholeFrame+40), oob: make([]byte, 128)}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, received) // without, packets may be lost: counted
	err = errors.Join(
		t.Watch(nil, false),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	return t, nil
}

// Watch has the tap see these flows from now on, and nothing else.
func (t *Tap) Watch(flows []Flow, sound bool) error {
	raw, err := bpf.Assemble(Filter(flows, sound))
	if err != nil {
		return fmt.Errorf("assemble the filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// Read waits for a packet, and gives it until the next call. It is nil when none came in time.
func (t *Tap) Read(patience time.Duration) (packet []byte, at time.Time, err error) {
	poll := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(patience.Milliseconds())); n == 0 || errors.Is(err, unix.EINTR) {
		return nil, at, nil
	}
	n, oobn, _, _, err := unix.Recvmsg(t.fd, t.buf, t.oob, 0)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // an interface went
		return nil, at, nil
	case err != nil:
		return nil, at, fmt.Errorf("read a packet: %w", err)
	}
	return t.buf[:n], timeIn(t.oob[:oobn]), nil
}

// timeIn is when the kernel had a packet.
func timeIn(oob []byte) time.Time {
	all, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range all {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

// Lost is how many packets the socket had no room for.
func (t *Tap) Lost() uint64 {
	if s, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		t.lost += uint64(s.Drops) // reading it sets it to zero
	}
	return t.lost
}

// Close ends the tap.
func (t *Tap) Close() error { return unix.Close(t.fd) }
