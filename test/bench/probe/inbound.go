package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/quality"
)

const (
	batch             = 64
	controlSize       = 64      // two control messages: a timestamp of 16 bytes, a counter of 4, each with its header
	receiveBuffer     = 8 << 20 // some 8,000 packets: a second and a half of six paths with ten streams
	lookUp            = 100 * time.Millisecond
	duplicateCapacity = 2 // capacity for arrivals, in multiples of what is expected
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// receiver records every arrival on one socket for all paths.
type receiver struct {
	fd       int
	run32    uint32
	messages [batch]mmsghdr
	vectors  [batch]unix.Iovec
	buffers  [batch][MaxSize + 100]byte
	control  [batch][controlSize]byte

	expected  int
	seen      int
	arrivals  []quality.Sighting[Key]
	overflow  uint32
	strangers int
	tooMany   int
	small     error // why the buffer is smaller than wanted

	complete chan struct{} // closed when all expected packets have arrived
	stop     atomic.Bool
}

func newReceiver(c Config) (*receiver, error) {
	r := &receiver{run32: c.Run, expected: c.Shape.Total(), complete: make(chan struct{})}
	r.arrivals = make([]quality.Sighting[Key], r.expected*duplicateCapacity)
	for i := range r.arrivals { // page faults now, not during the measurement
		r.arrivals[i].At = -1
	}
	r.arrivals = r.arrivals[:0]
	for i := range r.messages {
		r.vectors[i].Base = &r.buffers[i][0]
		r.vectors[i].SetLen(len(r.buffers[i]))
		r.messages[i].hdr.Iov, r.messages[i].hdr.Iovlen = &r.vectors[i], 1
		r.messages[i].hdr.Control = &r.control[i][0]
	}
	// All paths have one family (oneFamily).
	any := netip.IPv4Unspecified()
	local, err := netip.ParseAddr(c.Paths[0].Local)
	if err != nil {
		return nil, fmt.Errorf("open the receiving socket: %w", err)
	}
	if !local.Is4() {
		any = netip.IPv6Unspecified()
	}
	family, at := sockaddr(any, c.Port)
	if r.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the receiving socket: %w", err)
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		r.small = fmt.Errorf("a receive buffer of %d bytes: %w", receiveBuffer, err)
		_ = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	look := unix.NsecToTimeval(int64(lookUp))
	err = errors.Join(
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
		unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &look),
		unix.Bind(r.fd, at))
	if err != nil {
		r.close()
		return nil, fmt.Errorf("open the receiving socket on port %d: %w", c.Port, err)
	}
	return r, nil
}

// run receives until stop is set; it allocates nothing.
func (r *receiver) run() error {
	for !r.stop.Load() {
		for i := range r.messages {
			r.messages[i].hdr.SetControllen(controlSize)
			r.messages[i].len = 0
		}
		n, _, errno := unix.Syscall6(
			unix.SYS_RECVMMSG,
			uintptr(r.fd),
			uintptr(unsafe.Pointer(&r.messages[0])),
			batch,
			unix.MSG_WAITFORONE,
			0,
			0,
		)
		switch errno {
		case 0:
		case unix.EAGAIN, unix.EINTR:
			continue
		default:
			return fmt.Errorf("receive voice: %w", errno)
		}
		for i := range int(n) {
			m := &r.messages[i]
			r.note(r.buffers[i][:m.len], r.control[i][:m.hdr.Controllen])
		}
	}
	return nil
}

func (r *receiver) note(packet, control []byte) {
	at, lost := stamps(control)
	r.overflow = max(r.overflow, lost)
	h, ok := parse(packet)
	if !ok || h.run != r.run32 {
		r.strangers++
		return
	}
	if len(r.arrivals) == cap(r.arrivals) {
		r.tooMany++
		return
	}
	r.arrivals = append(
		r.arrivals,
		quality.Sighting[Key]{
			Key:   Key{h.path, h.stream},
			Seq:   uint16(h.seq),
			Media: h.seq,
			At:    quality.Timestamp(at),
		},
	)
	if r.seen++; r.seen == r.expected {
		close(r.complete)
	}
}

// stamps reads the kernel's timestamp and its count of packets that overflowed the buffer from control
// messages.
func stamps(b []byte) (at int64, lost uint32) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			return at, lost
		}
		data := b[unix.SizeofCmsghdr:n]
		if h.Level == unix.SOL_SOCKET {
			switch {
			case h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16: // struct timespec
				at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
			case h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
				lost = binary.NativeEndian.Uint32(data)
			}
		}
		b = b[min(len(b), unix.CmsgSpace(n-unix.SizeofCmsghdr)):]
	}
	return at, lost
}

func (r *receiver) close() { unix.Close(r.fd) }
