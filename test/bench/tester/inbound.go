package tester

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	receiveBuffer = 64 << 20 // a quarter of a second and more of the smallest packets
	controlSize   = 64       // a control message of 4 bytes with its header, and room
	// The receiver polls by the clock and reads everything that is there: a wake-up for each packet would be
	// load that the path under test does not cause.
	lookEvery = 2 * time.Millisecond
	// After the last packet was sent, the rest has this long (RFC 2544, section 23 waits two seconds), and a
	// silence this long means that there is no rest.
	restTime = 2 * time.Second
	silence  = 200 * time.Millisecond
)

// receiver counts on a thread of its own; do and the thread share state under the mutex once in each poll.
type receiver struct {
	fd       int
	small    error // why the buffer is smaller than wanted
	messages [batch]mmsghdr
	vectors  [batch]unix.Iovec
	buffers  [batch][headerSize]byte // truncated: copying the rest of a packet would only cost time
	control  [batch][controlSize]byte

	mu       sync.Mutex
	trial    uint32
	seen     []uint64 // bits
	count    Received
	overflow uint32 // the socket's total count
	before   uint32 // at the beginning of the trial
	last     time.Duration
	failed   error
	stop     bool
	ended    chan struct{}
}

func newReceiver(c Config) (*receiver, error) {
	r := &receiver{ended: make(chan struct{})}
	for i := range r.messages {
		r.vectors[i].Base = &r.buffers[i][0]
		r.vectors[i].SetLen(headerSize)
		r.messages[i].hdr.Iov, r.messages[i].hdr.Iovlen = &r.vectors[i], 1
		r.messages[i].hdr.Control = &r.control[i][0]
	}
	family, _, local, err := sockaddr(c.Local, c.Port)
	if err != nil {
		return nil, fmt.Errorf("open the receiving socket: %w", err)
	}
	if r.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("open the receiving socket: %w", err)
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		r.small = fmt.Errorf("the tester a receive buffer of %d bytes: %w", receiveBuffer, err)
		_ = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := errors.Join(unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
		unix.Bind(r.fd, local)); err != nil {
		unix.Close(r.fd)
		return nil, fmt.Errorf("open the receiving socket on %s port %d: %w", c.Local, c.Port, err)
	}
	go r.run()
	return r, nil
}

func (r *receiver) close() {
	r.mu.Lock()
	r.stop = true
	r.mu.Unlock()
	<-r.ended
	unix.Close(r.fd)
}

func (r *receiver) run() {
	defer close(r.ended)
	for next := monotonic(); ; next = max(next+lookEvery, monotonic()) {
		sleepUntil(next)
		r.mu.Lock()
		err := r.drain()
		if err != nil && r.failed == nil {
			r.failed = err
		}
		stop := r.stop || err != nil
		r.mu.Unlock()
		if stop {
			return
		}
	}
}

// drain reads what is there.
func (r *receiver) drain() error {
	for {
		for i := range r.messages {
			r.messages[i].hdr.SetControllen(controlSize)
		}
		n, _, errno := unix.Syscall6(
			unix.SYS_RECVMMSG,
			uintptr(r.fd),
			uintptr(unsafe.Pointer(&r.messages[0])),
			batch,
			unix.MSG_DONTWAIT,
			0,
			0,
		)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return nil
		case unix.EINTR:
			continue
		default:
			return fmt.Errorf("receive packets: %w", errno)
		}
		for i := range int(n) {
			m := &r.messages[i]
			r.overflow = max(r.overflow, dropped(r.control[i][:m.hdr.Controllen]))
			r.note(r.buffers[i][:m.len])
		}
		r.last = monotonic()
		if int(n) < batch {
			return nil
		}
	}
}

func (r *receiver) note(b []byte) {
	trial, number, ok := parse(b)
	if !ok || trial != r.trial || number >= uint64(64*len(r.seen)) {
		r.count.Strangers++
		return
	}
	word, bit := &r.seen[number/64], uint64(1)<<(number%64)
	if *word&bit != 0 {
		r.count.Duplicates++
		return
	}
	*word |= bit
	r.count.Packets++
}

// dropped reads the kernel's count of packets that overflowed the buffer from the control messages.
func dropped(b []byte) uint32 {
	if len(b) < unix.SizeofCmsghdr+4 {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SO_RXQ_OVFL {
		return 0
	}
	return binary.NativeEndian.Uint32(b[unix.SizeofCmsghdr:])
}

// do prepares for a trial, or waits until everything that was sent has arrived or no more arrives.
func (r *receiver) do(q request) (answer, error) {
	if q.Sent == nil {
		seen := make([]uint64, (q.Trial.Packets()+63)/64)
		for i := range seen { // page faults now, not during the measurement
			seen[i] = 0
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.trial, r.seen, r.count, r.before = q.Trial.Number, seen, Received{}, r.overflow
		return answer{}, r.failed
	}
	begin := monotonic()
	for next := begin + lookEvery; ; next += lookEvery {
		sleepUntil(next)
		r.mu.Lock()
		done := r.count.Packets >= *q.Sent || next-begin > restTime || next-max(begin, r.last) > silence ||
			r.failed != nil
		if done {
			out := r.count
			out.Overflow = r.overflow - r.before
			if r.small != nil {
				out.Denied = r.small.Error()
			}
			err := r.failed
			r.mu.Unlock()
			return answer{Received: &out}, err
		}
		r.mu.Unlock()
	}
}
