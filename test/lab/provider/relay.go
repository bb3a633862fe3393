package provider

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/quality"
	"ringway/test/lab/inside"
)

// The path of a packet through a relay, all on one locked thread:
//
//  1. run waits for a packet at the TUN, for the time of the next release, or for the stop
//  2. take reads what is there, draws the losses, and computes when each packet leaves
//  3. release writes due packets back to the TUN; the kernel then routes them on
//
// The delay is the same for all, so the first in is the first out: a ring buffer, no timer wheel.

// slots bounds the packets in flight in one direction: at 1500 bytes a packet 10 ms of 19 Gbit/s or 2 s of 98
// Mbit/s.
const slots = 16384

// batch bounds how many packets are read before due packets are released.
const batch = 32

type relay struct {
	fd, wake int
	delay    time.Duration
	bits     float64       // a second on the wire; 0: there is none
	limit    float64       // bytes that may wait for it
	free     time.Duration // when the last packet taken has left the wire
	loss     float64
	dice     *rand.Rand
	start    time.Time // of the clock that due counts from

	slot       int    // bytes a packet may have
	memory     []byte // slots × slot
	size       [slots]uint16
	due        [slots]time.Duration
	head, tail uint32 // taken from head, put at tail; both count on and wrap by themselves

	// What Queues reads, without a lock: no packet may wait for a reader.
	taken, refused atomic.Uint64 // bytes that the wire took, of frames; packets that found the FIFO full
	until          atomic.Int64  // when the wire is free, as free

	mu       sync.Mutex
	relayed  uint64
	lost     uint64
	overflow uint64
	dropped  uint64 // found the buffer full
	lateness *quality.Distribution
}

func newRelay(ns, device string, mtu int, c Config, direction uint64) (*relay, error) {
	r := &relay{
		fd: -1, wake: -1, delay: c.Delay, loss: c.Loss, dice: rand.New(rand.NewPCG(c.Seed, direction)), start: time.Now(),
		slot: mtu, memory: make([]byte, slots*mtu), lateness: quality.NewDistribution(),
	}
	if c.Wire {
		r.bits, r.limit = float64(c.RateBits), float64(c.BufferBytes)
	}
	err := inside.Do(ns, func() error {
		var err error
		if r.fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		// Without IFF_VNET_HDR the device offers no offloads: the kernel cuts every super-packet before it
		// comes here.
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(r.fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("make device %s: %w", device, err)
		}
		return nil
	})
	if err == nil {
		r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *relay) close() error {
	var errs []error
	for _, fd := range []int{r.fd, r.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	r.fd, r.wake = -1, -1
	return errors.Join(errs...)
}

func (r *relay) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: its scheduling must not become another goroutine's
		done <- r.loop()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	if _, err := unix.Write(r.wake, one[:]); err != nil {
		return fmt.Errorf("stop relay: %w", err)
	}
	return <-done
}

func (r *relay) loop() error {
	if err := realTime(); err != nil {
		return fmt.Errorf("schedule relay: %w", err)
	}
	// Timers of this thread are exact: by default the kernel may let them wait another 50 us.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	fds := [2]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}}
	for {
		var timeout *unix.Timespec
		if r.head != r.tail {
			wait := unix.NsecToTimespec(int64(max(0, r.due[r.head%slots]-time.Since(r.start))))
			timeout = &wait
		}
		if _, err := unix.Ppoll(fds[:], timeout, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for packets: %w", err)
		}
		if fds[1].Revents != 0 {
			return nil
		}
		if err := r.release(); err != nil {
			return err
		}
		if fds[0].Revents != 0 {
			if err := r.take(); err != nil {
				return err
			}
		}
	}
}

// take reads the packets that wait at the device.
func (r *relay) take() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range batch {
		at := r.tail % slots
		slot := r.memory[int(at)*r.slot:][:r.slot]
		n, errno := readFD(r.fd, slot)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return nil
		case unix.EINTR:
			continue
		default:
			return fmt.Errorf("read relay device: %w", errno)
		}
		if slot[0]>>4 == 6 && n > 24 && slot[24] == 0xff {
			continue // the device's own multicast
		}
		if r.loss > 0 && r.dice.Float64() < r.loss {
			r.lost++
			continue
		}
		if r.tail-r.head == slots-1 {
			r.overflow++
			continue
		}
		now := time.Since(r.start)
		arrives := now
		if r.bits > 0 {
			var room bool
			if arrives, room = r.serialize(now, n+ethernetHeader); !room {
				r.dropped++
				r.refused.Add(1)
				continue
			}
			r.taken.Add(uint64(n + ethernetHeader))
			r.until.Store(int64(r.free))
		}
		r.size[at], r.due[at] = uint16(n), arrives+r.delay
		r.tail++
	}
	return nil
}

// ethernetHeader is what a packet has on the wire beyond layer 3, as TBF counts.
const ethernetHeader = 14

// serialize puts a frame on the wire behind those that wait, and returns when its last bit has left; false if
// the FIFO is full.
func (r *relay) serialize(now time.Duration, frame int) (time.Duration, bool) {
	begin := max(now, r.free)
	if waiting := (begin - now).Seconds() * r.bits / 8; waiting+float64(frame) > r.limit {
		return 0, false
	}
	r.free = begin + time.Duration(float64(frame)*8/r.bits*float64(time.Second))
	return r.free, true
}

// release writes the packets that are due.
func (r *relay) release() error {
	if r.head == r.tail {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.head != r.tail {
		at := r.head % slots
		late := time.Since(r.start) - r.due[at]
		if late < 0 {
			return nil
		}
		packet := r.memory[int(at)*r.slot:][:r.size[at]]
		for {
			_, errno := writeFD(r.fd, packet)
			if errno == unix.EINTR {
				continue
			}
			// EIO: the device is down; EINVAL: not an IP packet. Neither happens in a namespace that Build
			// set up.
			if errno != 0 {
				return fmt.Errorf("write relay device: %w", errno)
			}
			break
		}
		r.head++
		r.relayed++
		r.lateness.Record(late)
	}
	return nil
}

// queue is the backlog before the wire.
func (r *relay) queue() Queue {
	q := Queue{Sent: r.taken.Load(), Drops: r.refused.Load()}
	if wait := time.Duration(r.until.Load()) - time.Since(r.start); wait > 0 {
		q.Backlog = min(uint64(wait.Seconds()*r.bits/8), q.Sent)
		q.Sent -= q.Backlog
	}
	return q
}

func (r *relay) stats(d *DirectionStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.Relayed, d.Lost, d.Overflow, d.Dropped = r.relayed, r.lost, r.overflow, r.dropped
	d.LateP50, d.LateP99, d.LateP999 = r.lateness.Percentile(50), r.lateness.Percentile(99), r.lateness.Percentile(99.9)
	d.LateMax = r.lateness.Max()
}

// Reading and writing a TUN never blocks here, so the runtime need not be told (RawSyscall): it would hand
// this thread's processor to another goroutine and make the packet wait to get it back.
func readFD(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

func writeFD(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}
