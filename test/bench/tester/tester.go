// Package tester is what RFC 2544 calls the tester: one end sends packets of given sizes at a given rate, the
// other counts what arrives. Each end runs in a process of its own (Main) for many trials; before a trial
// everything is allocated, the garbage collector is off, and the loop has a locked thread.
//
// A path is a pair of addresses; the package knows nothing of tunnels.
package tester

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config is what a tester is told first, as a line of JSON.
type Config struct {
	Receive bool   `json:"receive"`
	Local   string `json:"local"`
	Remote  string `json:"remote"`
	Port    int    `json:"port"`
	TOS     int    `json:"tos"`
	Load    bool   `json:"load"` // beside what is measured, and not a measure itself: scheduled as everybody is
}

// Trial is one trial: both ends are told the same.
type Trial struct {
	Number uint32        `json:"number"`
	Sizes  []int         `json:"sizes"` // of IP packets, in this order, again and again
	Rate   float64       `json:"rate"`  // packets a second
	Length time.Duration `json:"length"`
}

// Packets is how many packets a trial has.
func (t Trial) Packets() int { return int(t.Rate * t.Length.Seconds()) }

// Limits of a trial.
const (
	MinSize = ipHeaders + headerSize
	MaxSize = 1500
	MaxRate = 5e6
	maxBits = 1 << 28 // packets of a trial: 32 MB of memory for those that were seen
)

// Check says what is wrong with a trial.
func (t Trial) Check() error {
	switch {
	case len(t.Sizes) == 0:
		return errors.New("a trial without a packet size")
	case t.Rate < 1 || t.Rate > MaxRate:
		return fmt.Errorf("%.0f packets a second (allowed: 1-%.0f)", t.Rate, float64(MaxRate))
	case t.Packets() < 1 || t.Packets() > maxBits:
		return fmt.Errorf("%d packets in a trial (allowed: 1-%d)", t.Packets(), maxBits)
	}
	for _, s := range t.Sizes {
		if s < MinSize || s > MaxSize {
			return fmt.Errorf("packets of %d bytes (allowed: %d-%d)", s, MinSize, MaxSize)
		}
	}
	return nil
}

// Sent is what a sender did.
type Sent struct {
	Packets int           `json:"packets"`
	Refused int           `json:"refused"` // by the kernel; they are not in Packets
	Error   string        `json:"error"`   // the first refusal
	Took    time.Duration `json:"took"`
	Late    time.Duration `json:"late"` // how far behind its schedule it was at worst
	Denied  string        `json:"denied"`
}

// Received is what a receiver saw.
type Received struct {
	Packets    int    `json:"packets"` // each once
	Duplicates int    `json:"duplicates"`
	Strangers  int    `json:"strangers"` // of no trial, or of another
	Overflow   uint32 `json:"overflow"`  // arrived and found the tester's own buffer full (SO_RXQ_OVFL)
	Denied     string `json:"denied"`
}

// request is a line to a tester: a sender sends the trial; a receiver prepares for it or, with Sent, waits
// for the rest of it.
type request struct {
	Trial Trial `json:"trial"`
	Sent  *int  `json:"sent,omitempty"`
}

// answer is a line from a tester.
type answer struct {
	Error    string    `json:"error,omitempty"`
	Sent     *Sent     `json:"sent,omitempty"`
	Received *Received `json:"received,omitempty"`
}

// A packet's payload begins with this, big-endian: magic 4 | trial 4 | number 8.
const (
	headerSize = 16
	ipHeaders  = 20 + 8 // IPv4 and UDP
	ip6Headers = 40 + 8
	magic      = 0x52575446
)

// Main is the life of a tester: it ends when its standard input does.
func Main(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the tester's configuration: %w (only `ringway bench` starts the tester)", err)
	}
	var c Config
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("read the tester's configuration: %w", err)
	}
	debug.SetGCPercent(-1) // no collection in a trial; there is one between two
	runtime.GOMAXPROCS(max(8, runtime.GOMAXPROCS(0)))
	var do func(request) (answer, error)
	if c.Receive {
		r, err := newReceiver(c)
		if err != nil {
			return err
		}
		defer r.close()
		do = r.do
	} else {
		s, err := newSender(c)
		if err != nil {
			return err
		}
		defer s.close()
		do = s.do
	}
	// The lines are answered by one goroutine and thread: it is the one that sends.
	runtime.LockOSThread()
	out := json.NewEncoder(stdout)
	if err := out.Encode(answer{}); err != nil { // sockets are open
		return err
	}
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what the tester is to do: %w", err)
		}
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("read what the tester is to do: %w", err)
		}
		a, err := answer{}, q.Trial.Check()
		if err == nil {
			a, err = do(q)
		}
		if err != nil {
			a = answer{Error: err.Error()}
		}
		if err := out.Encode(a); err != nil {
			return err
		}
		runtime.GC()
	}
}

func putHeader(b []byte, trial uint32, number uint64) {
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], trial)
	binary.BigEndian.PutUint64(b[8:], number)
}

func parse(b []byte) (trial uint32, number uint64, ok bool) {
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != magic {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), true
}

// sockaddr is an address as a socket of its family takes it, and how long the headers of a UDP packet are
// then.
func sockaddr(s string, port int) (family, headers int, to unix.Sockaddr, err error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return 0, 0, nil, err
	case a.Is4():
		return unix.AF_INET, ipHeaders, &unix.SockaddrInet4{Addr: a.As4(), Port: port}, nil
	}
	return unix.AF_INET6, ip6Headers, &unix.SockaddrInet6{Addr: a.As16(), Port: port}, nil
}

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

const batch = 64

// priority is above that of the engines under test: the tester represents another machine, which no load of
// this one delays. Its threads alone have it, never its process: Go's collector livelocks under SCHED_FIFO
// (golang/go#76353).
const priority = 30

func realTime() error {
	attr := unix.SchedAttr{
		Size:     unix.SizeofSchedAttr,
		Policy:   unix.SCHED_FIFO,
		Priority: priority,
		Flags:    unix.SCHED_FLAG_RESET_ON_FORK,
	}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("real-time scheduling (SCHED_FIFO) to the tester: %w", err)
	}
	return nil
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with this clock
	return time.Duration(ts.Nano())
}

// sleepUntil returns when CLOCK_MONOTONIC has reached at. Raw: a thread that came back from Go's system call
// would have to wait for one of the scheduler's processors, which a thread of ordinary priority may hold.
func sleepUntil(at time.Duration) {
	ts := unix.NsecToTimespec(int64(at))
	for {
		_, _, errno := unix.RawSyscall6(
			unix.SYS_CLOCK_NANOSLEEP,
			unix.CLOCK_MONOTONIC,
			unix.TIMER_ABSTIME,
			uintptr(unsafe.Pointer(&ts)),
			0,
			0,
			0,
		)
		if errno != unix.EINTR {
			return
		}
	}
}
