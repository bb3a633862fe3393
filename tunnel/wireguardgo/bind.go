package wireguardgo

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"ringway/tunnel/datagram"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/uapi"
)

// bindBatch is how many packets the device takes from the socket at once. Each receiver holds a 64 KiB buffer
// for each of them, and one worker decrypts them all.
const bindBatch = 64

// bind is the class's sockets as the device package uses them. The daemon's sockets stay open: each Open
// works on duplicates, which Close closes.
type bind struct {
	base [2]*os.File // IPv4, IPv6; nil where there is none
	port uint16
	hub  *hub

	mu    sync.Mutex
	socks [2]atomic.Pointer[socket]

	superPacket atomic.Int64 // largest payload of a GSO message
	blocked     atomic.Int32 // senders that wait for the kernel to take a packet
	states      sync.Pool

	bounded chan struct{} // closed when the device's memory is bounded
}

// socket is one open duplicate.
type socket struct {
	f      *os.File
	rc     syscall.RawConn
	noGSO  atomic.Bool // the kernel or the network card cannot segment
	gro    bool
	family int
	which  int // 0: IPv4, 1: IPv6
}

func newBind(files Files, h *hub) (*bind, error) {
	b := &bind{hub: h, bounded: make(chan struct{})}
	b.states.New = func() any { return newSendState() }
	for i, f := range []*os.File{files.UDP4, files.UDP6} {
		if f == nil {
			continue
		}
		fd, err := descriptor.Duplicate(f)
		if err != nil {
			b.release()
			return nil, fmt.Errorf("duplicate the UDP socket: %w", err)
		}
		b.base[i] = os.NewFile(uintptr(fd), f.Name())
		if b.port, err = descriptor.Port(fd); err != nil {
			b.release()
			return nil, err
		}
	}
	if b.base[0] == nil && b.base[1] == nil {
		return nil, errors.New("no UDP socket was handed over")
	}
	return b, nil
}

// release closes the duplicates that Open is made from.
func (b *bind) release() {
	for _, f := range b.base {
		if f != nil {
			f.Close()
		}
	}
}

// Open starts receiving. The port is the sockets' own, whatever the device asks for.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socks[0].Load() != nil || b.socks[1].Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	var fns []conn.ReceiveFunc
	for i, base := range b.base {
		if base == nil {
			continue
		}
		s, err := openSocket(base, []int{unix.AF_INET, unix.AF_INET6}[i])
		if err != nil {
			b.closeLocked()
			return nil, 0, err
		}
		b.socks[i].Store(s)
		r := newReceiver(s, b.hub)
		fns = append(fns, r.receive)
	}
	return fns, b.port, nil
}

func openSocket(base *os.File, family int) (*socket, error) {
	fd, err := descriptor.Duplicate(base)
	if err != nil {
		return nil, fmt.Errorf("duplicate the UDP socket: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // os.NewFile polls only what does not block
		unix.Close(fd)
		return nil, fmt.Errorf("make the UDP socket non-blocking: %w", err)
	}
	s := &socket{family: family}
	if family == unix.AF_INET6 {
		s.which = 1
	}
	if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err != nil {
		s.noGSO.Store(true)
	}
	gro, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	s.gro = err == nil && gro != 0
	s.f = os.NewFile(uintptr(fd), base.Name())
	if s.rc, err = s.f.SyscallConn(); err != nil {
		s.f.Close()
		return nil, err
	}
	return s, nil
}

// Close ends receiving and sending; Open may follow.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closeLocked()
}

func (b *bind) closeLocked() (err error) {
	for i := range b.socks {
		if s := b.socks[i].Swap(nil); s != nil {
			err = errors.Join(err, s.f.Close())
		}
	}
	return err
}

// SetMark is the daemon's: the sockets came with their mark, and setting one needs privilege.
func (b *bind) SetMark(uint32) error { return uapi.ErrFwMark }

// BatchSize is called by the device before it takes buffers. It waits until their number is bounded.
func (b *bind) BatchSize() int {
	<-b.bounded
	return bindBatch
}

func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	if a.Addr().IsUnspecified() || a.Port() == 0 {
		return nil, fmt.Errorf("endpoint %s: cannot send to an unspecified address or port 0", a)
	}
	return newEndpoint(a), nil
}

// mark is the sockets' mark, for status.
func (b *bind) mark() (mark uint32) {
	b.control(func(fd int) {
		if m, err := datagram.Mark(fd); err == nil {
			mark = m
		}
	})
	return mark
}

// overflow is how many packets the kernel dropped because a socket's buffer was full.
func (b *bind) overflow() (n uint64) {
	b.control(func(fd int) { n += datagram.Overflow(fd) })
	return n
}

func (b *bind) control(f func(fd int)) {
	for _, base := range b.base {
		if base == nil {
			continue
		}
		if c, err := base.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}

// interrupt ends the wait of senders for the kernel, so that the device can close.
func (b *bind) interrupt() {
	for i := range b.socks {
		if s := b.socks[i].Load(); s != nil {
			_ = s.f.SetWriteDeadline(time.Unix(1, 0))
		}
	}
}

// wake makes the receivers read what was held back.
func (b *bind) wake() {
	for i := range b.socks {
		if s := b.socks[i].Load(); s != nil {
			_ = s.f.SetReadDeadline(time.Unix(1, 0)) // the receiver resets it
		}
	}
}
