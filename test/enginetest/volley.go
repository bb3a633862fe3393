package enginetest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// From says where the datagrams of a volley come from.
type From int

// Sources of a volley.
const (
	OneSource From = iota // one socket, a datagram a message
	// one socket; the kernel joins datagrams on their way, as a network card does (UDP GSO, GRO at the receiver)
	OneFlow
	ManySources // an address of 10.0.0.0/8 and a port of its own for each
)

// Fired is what a volley came to.
type Fired struct {
	Sent    int
	Took    time.Duration
	Worked  time.Duration // CPU time of the sending thread
	Waited  time.Duration // in which it could have worked and was given no processor
	Refused int           // by the kernel, with an error
}

// Rate is in datagrams a second.
func (f Fired) Rate() float64 { return float64(f.Sent) / f.Took.Seconds() }

func (f Fired) String() string {
	return fmt.Sprintf(
		"%d datagrams in %v, %.0f/s (the sender worked for %.0f %%, waited for a processor for %.0f %% of that "+
			"time; %d refused)", f.Sent,
		f.Took.Round(
			time.Millisecond), f.Rate(), 100*f.Worked.Seconds()/f.Took.Seconds(),
		100*f.Waited.Seconds()/f.Took.Seconds(), f.Refused)
}

const (
	volleyBatch = 32 // messages of a system call
	// so short are its bursts, while it is given a processor: 13 datagrams at 50,000 a second
	volleySleep = 250 * time.Microsecond
	// datagrams that are later than this are left out: a burst would not be a rate
	volleyLate = 5 * time.Millisecond
	volleyJoin = 8 // datagrams of a joined message
)

// Volley sends prepared datagrams, all of one size, again and again from inside the box, at rate a second as
// evenly as one thread of ordinary priority can, until stop. All that it does for a datagram while it runs is
// one thirty-second of a system call.
func (b *Box) Volley(to netip.AddrPort, datagrams [][]byte, rate int, from From) (stop func() Fired) {
	b.T.Helper()
	require.Zero(b.T, len(datagrams)%(volleyBatch*volleyJoin), "a volley is sent in whole batches")
	var fd int
	require.NoError(b.T, b.NS.Do(func() (err error) {
		kind, protocol := unix.SOCK_DGRAM, 0
		if from == ManySources {
			kind, protocol = unix.SOCK_RAW, unix.IPPROTO_RAW
		}
		if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}))
	require.NoError(b.T, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20))
	each := 1
	if from == OneFlow {
		each = volleyJoin
		require.NoError(b.T, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(datagrams[0])))
	}
	if from == ManySources {
		for i, d := range datagrams {
			datagrams[i] = spoofed(uint32(i), to, d)
		}
	}
	messages, iovs := make([]datagram.Message, len(datagrams)/each), make([]unix.Iovec, len(datagrams))
	for i, d := range datagrams {
		iovs[i].Base = &d[0]
		iovs[i].SetLen(len(d))
	}
	for i := range messages {
		messages[i].Header.Iov = &iovs[i*each]
		messages[i].Header.SetIovlen(each)
	}
	var stopped atomic.Bool
	var fired Fired
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // thrown away with the goroutine: its times are the volley's
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		_, waited := threadTimes()
		began := time.Now()
		next, due := 0, 0 // of messages; due counts what is given up as well
		for sent := 0; !stopped.Load(); {
			due = int(time.Since(began).Seconds() * float64(rate) / float64(each))
			sent = max(sent, due-int(volleyLate.Seconds()*float64(rate))/each)
			if sent == due {
				ts := unix.NsecToTimespec(int64(volleySleep))
				_ = unix.Nanosleep(&ts, nil)
				continue
			}
			n := min(due-sent, volleyBatch, len(messages)-next)
			done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[next])),
				uintptr(n), 0, 0, 0)
			if errno != 0 {
				done = 1
				fired.Refused += each
			} else {
				fired.Sent += int(done) * each
			}
			sent += int(done)
			next = (next + int(done)) % len(messages)
		}
		fired.Took = time.Since(began)
		worked, waitedNow := threadTimes()
		fired.Worked, fired.Waited = worked, waitedNow-waited
		runtime.KeepAlive(datagrams)
	})
	return func() Fired { stopped.Store(true); wg.Wait(); unix.Close(fd); return fired }
}

// spoofed is an IPv4 packet around a datagram. The kernel fills in length, identification and checksum
// (raw(7)); UDP's may be 0.
func spoofed(i uint32, to netip.AddrPort, d []byte) []byte {
	p := make([]byte, 28+len(d))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint32(p[12:], 10<<24|i*2654435761>>8)
	dst := to.Addr().As4()
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[20:], uint16(1024+i%50000))
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(d)))
	copy(p[28:], d)
	return p
}

// threadTimes is how long the calling thread has run, and how long it was ready to run and another did.
func threadTimes() (ran, waited time.Duration) {
	if b, err := os.ReadFile("/proc/thread-self/schedstat"); err == nil {
		_, _ = fmt.Sscan(string(b), (*int64)(&ran), (*int64)(&waited))
	}
	return ran, waited
}
