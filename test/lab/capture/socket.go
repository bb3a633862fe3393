// Package capture records packets in the lab's networks with the kernel's timestamps: the calls' own RTP at
// both phones' interfaces (Start, Match) and everything that crosses the WAN (Frames). It needs root and
// packet sockets.
//
// Where the clock is read: a packet that leaves is stamped by the tap in the transmit path, after the
// interface's queue and before its driver; one that arrives is stamped when the driver hands it to the
// kernel, before any queue of the receiver. Both stamps are CLOCK_REALTIME of one machine. So the delay of
// the sending, the receiving and the capturing program is not measured as the network's.
package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ringway/quality"
	"ringway/test/lab/inside"
)

// receiveBuffer is what the kernel may hold for one capture: it bridges some 50,000 packets between two
// drains.
const receiveBuffer = 64 << 20

// drainEvery is how often a capture empties its socket. Timestamps are the kernel's, so a lazy reader costs
// no accuracy, and one that wakes 50 times a second instead of per packet leaves the processors to what is
// measured.
const drainEvery = 20 * time.Millisecond

// Errors that callers tell apart.
var (
	ErrDropped = errors.New("the capture missed packets")
	ErrStopped = errors.New("capture is already stopped")
)

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// tap is a packet socket with a goroutine that drains it.
type tap struct {
	fd      int
	stop    chan struct{}
	done    chan error
	handle  func(data []byte, length int, from *unix.RawSockaddrLinklayer, at quality.Timestamp)
	stopped bool
}

// open makes a socket inside ns that taps iface. kind is unix.SOCK_RAW (link-layer header kept) or
// unix.SOCK_DGRAM.
func open(ns, iface string, kind int, filter []bpf.Instruction) (*tap, error) {
	t := &tap{fd: -1, stop: make(chan struct{}), done: make(chan error, 1)}
	err := inside.Do(ns, func() error {
		link, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		// Protocol 0: nothing arrives before the filter is on and bind names the interface.
		if t.fd, err = unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if filter != nil {
			if err := attach(t.fd, filter); err != nil {
				return fmt.Errorf("attach filter: %w", err)
			}
		}
		if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
			return fmt.Errorf("receive buffer: %w", err)
		}
		if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return fmt.Errorf("kernel timestamps: %w", err)
		}
		if err := unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Index}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		return nil
	})
	if err != nil {
		if t.fd >= 0 {
			unix.Close(t.fd)
		}
		return nil, fmt.Errorf("capture on %s: %w", iface, err)
	}
	return t, nil
}

func attach(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// start begins to drain; handle gets every packet, borrowed until it returns.
func (t *tap) start(handle func(data []byte, length int, from *unix.RawSockaddrLinklayer, at quality.Timestamp)) {
	t.handle = handle
	go func() {
		tick := time.NewTicker(drainEvery)
		defer tick.Stop()
		d := newDrain(t)
		for {
			select {
			case <-t.stop:
				// What the kernel has stamped until now is still counted.
				t.done <- d.empty()
				return
			case <-tick.C:
				if err := d.empty(); err != nil {
					t.done <- err
					return
				}
			}
		}
	}()
}

// close ends the capture and says how many packets the kernel could not keep.
func (t *tap) close() (drops uint32, err error) {
	if t.stopped {
		return 0, ErrStopped
	}
	t.stopped = true
	close(t.stop)
	err = <-t.done
	stats, statErr := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if statErr == nil {
		drops = stats.Drops
	}
	return drops, errors.Join(err, statErr, unix.Close(t.fd))
}

// snap is how much of a packet is read: headers are all that anybody looks at.
const snap = 256

// drain holds the buffers of one reader, used again for every packet.
type drain struct {
	t    *tap
	data [snap]byte
	oob  [128]byte
	from unix.RawSockaddrLinklayer
	iov  unix.Iovec
	msg  unix.Msghdr
}

func newDrain(t *tap) *drain {
	d := &drain{t: t}
	d.iov.Base = &d.data[0]
	d.iov.SetLen(len(d.data))
	d.msg.Iov = &d.iov
	d.msg.SetIovlen(1)
	d.msg.Control = &d.oob[0]
	d.msg.Name = (*byte)(unsafe.Pointer(&d.from))
	return d
}

func (d *drain) empty() error {
	for {
		d.msg.Namelen = uint32(unsafe.Sizeof(d.from))
		d.msg.SetControllen(len(d.oob))
		// MSG_TRUNC: the answer is the packet's whole length, also where only its head was read.
		n, _, errno := unix.Syscall(
			unix.SYS_RECVMSG,
			uintptr(d.t.fd),
			uintptr(unsafe.Pointer(&d.msg)),
			unix.MSG_TRUNC|unix.MSG_DONTWAIT,
		)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return nil
		case unix.EINTR:
			continue
		default:
			return fmt.Errorf("read packet socket: %w", errno)
		}
		at, err := stamp(d.oob[:d.msg.Controllen])
		if err != nil {
			return err
		}
		d.t.handle(d.data[:min(int(n), snap)], int(n), &d.from, at)
	}
}

// stamp finds the kernel's timestamp among the control messages.
func stamp(oob []byte) (quality.Timestamp, error) {
	const header = unix.SizeofCmsghdr
	for len(oob) >= header {
		size := binary.NativeEndian.Uint64(oob)
		level, kind := int32(binary.NativeEndian.Uint32(oob[8:])), int32(binary.NativeEndian.Uint32(oob[12:]))
		if size < header || size > uint64(len(oob)) {
			break
		}
		if level == unix.SOL_SOCKET && kind == unix.SCM_TIMESTAMPNS && size >= header+16 {
			sec, nsec := binary.NativeEndian.Uint64(oob[header:]), binary.NativeEndian.Uint64(oob[header+8:])
			return quality.Timestamp(sec*1e9 + nsec), nil
		}
		oob = oob[min(uint64(len(oob)), (size+7)&^7):]
	}
	return 0, errors.New("a captured packet bears no kernel timestamp")
}
