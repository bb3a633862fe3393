// Package turn runs the forwarding threads of a realtime process: what arrives wakes all threads of a direction, one
// takes the turn and works on the direction's state alone, and none waits for Go's scheduler (pin.go) or takes a core
// for itself (threadLoad). The voice plane's engine and the media plane forward with it.
package turn

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Thread is what all forwarding threads have in common. They sleep in ppoll until there is something to
// forward, or until somebody wakes them.
type Thread struct {
	name  string
	clock func() int64
	alone bool // the process is the engine's: the thread is pinned

	direction *Direction
	first     bool // of its direction's threads
	affinity  affinity
	cpuClock  atomic.Uintptr // of the thread, for any thread of the process (clock_gettime(2)); 0: not known yet

	// Flags that others set (checkFlags).
	stop     atomic.Bool
	releaseP atomic.Bool // release the P, for the garbage collector
	mayRaise atomic.Bool // may make itself real-time again

	pinned       bool        // read by this thread alone
	holdsP       atomic.Bool // what others see of pinned
	loweredForGC bool        // has lowered itself while it is not pinned

	Polls  []unix.PollFd // the first is wakeFD
	wakeFD int           // eventfd
	wakes  [8]byte
	Woken  bool // somebody called wake since the last sleep

	// round is even while the thread sleeps, and grows with every round. What was taken away before the thread
	// slept, or before its round grew, is no longer in its hands.
	round atomic.Uint64

	load threadLoad
	attr unix.SchedAttr // memory for a system call
}

func newThread(name string, clock func() int64, alone bool, fds ...int) (*Thread, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	t := &Thread{name: name, clock: clock, alone: alone, wakeFD: wake}
	for _, fd := range append([]int{wake}, fds...) {
		t.Polls = append(t.Polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return t, nil
}

// Start runs the loop on a thread of its own, and returns when that thread has its name.
func (t *Thread) Start(loop func(), ended func()) {
	ready := make(chan struct{})
	go func() {
		defer ended()
		runtime.LockOSThread() // never unlocked: the thread, with its name and priority, ends with the loop
		setThreadName(t.name)

		const ofThread, scheduled = 4, 2 // MAKE_THREAD_CPUCLOCK in the kernel's posix-timers
		t.cpuClock.Store(uintptr(uint32(^unix.Gettid())<<3 | ofThread | scheduled))

		if t.alone {
			t.pin()
		}
		defer t.unpin()
		t.setAffinity(false)
		close(ready)
		if t.takeTurn() {
			loop()
		}
	}()
	<-ready
}

func setThreadName(name string) {
	b := append([]byte(name), 0)
	_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0, 0)
	runtime.KeepAlive(b)
}

// Wake wakes the thread, from any goroutine, pinned or not.
func (t *Thread) Wake() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(t.wakeFD), uintptr(unsafe.Pointer(&eventfdOne)), 8)
}

// checkFlags does what the thread's flags ask for. It returns false when the thread has to end.
func (t *Thread) checkFlags() bool {
	if t.releaseP.Load() == t.pinned {
		if t.pinned {
			t.unpin()
		} else if t.alone {
			t.pin()
		}
	}
	return !t.stop.Load()
}

// Next ends a round. With sleep it waits until something is ready and the thread has the turn; without, it
// goes on at once. It returns false when the engine ends; then the thread no longer has the turn.
func (t *Thread) Next(sleep bool) bool {
	now := t.clock()
	t.checkLoad(now)
	t.direction.measureBusy(now)
	t.setAffinity(t.first && t.direction.busy.on.Load() || t.load.lowered)

	if !t.checkFlags() {
		t.giveTurn()
		return false
	}
	t.Woken = false
	if !sleep {
		t.round.Add(2)
		return true
	}
	t.giveTurn()

	for tries := 0; ; tries++ {
		if !t.sleep() {
			return false
		}
		// Whoever has the turn most likely has the packet, too, and looks again before it sleeps: there is no need
		// to wait for the turn at once. But wake is meant for this thread alone.
		if tries >= turnTries || t.Woken {
			return t.takeTurn()
		}
		if t.tryTurn() {
			return true
		}
	}
}

// sleep waits until something is ready. It returns false when the engine ends.
func (t *Thread) sleep() bool {
	n := len(t.Polls)
	if !t.first && t.direction.busy.on.Load() {
		n = 1 // nothing but wake
	}
	ready, errno := t.Call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&t.Polls[0])), uintptr(n), 0, 0, 0)
	if errno != 0 || ready <= 0 { // EINTR: a signal that was not blocked
		n = 0
	}
	for i := n; i < len(t.Polls); i++ {
		t.Polls[i].Revents = 0
	}
	if t.Polls[0].Revents != 0 {
		t.Woken = true
		_, _ = t.Call(unix.SYS_READ, uintptr(t.wakeFD), uintptr(unsafe.Pointer(&t.wakes[0])), 8, 0, 0)
	}
	return t.checkFlags()
}

// WaitWritable waits at most ms milliseconds until fd takes more. p and ts are memory for the system call.
func (t *Thread) WaitWritable(p *unix.PollFd, ts *unix.Timespec, fd, ms int) {
	*p = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	*ts = unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
	_, _ = t.Call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(ts)), 0, 0)
}

// End has the thread end after its round. It may be called by the thread itself.
func (t *Thread) End() { t.stop.Store(true) }

var eventfdOne uint64 = 1

func (t *Thread) Close() { unix.Close(t.wakeFD) }

// threadLoad keeps a real-time thread from taking a core for itself: one that uses much of a core for a while
// lowers itself to ordinary scheduling, and raises itself again when it uses less. A trickle of voice is far
// below. A flood is above, and then fairness towards the rest of the machine (the kernel's own threads, the
// data class, whoever is logged in) is worth more than a microsecond. The thread's CPU time as the kernel
// counts it is what matters: a thread that hardly ever finds nothing to do sleeps often, but for no time at
// all.
type threadLoad struct {
	since   int64         // begin of the period
	used    int64         // CPU time of the thread at its begin, ns
	spec    unix.Timespec // memory for a system call
	lowered bool
	saved   unix.SchedAttr // before it was lowered
}

// The length of a period, and the shares of a core at which a thread lowers and raises itself. RLIMIT_RTTIME,
// which kills, is several periods.
const (
	loadPeriod = int64(50 * time.Millisecond)
	highLoad   = 0.6
	lowLoad    = 0.4
)

// update says whether the thread is to be lowered (-1) or raised (+1) after the period that now ends.
func (l *threadLoad) update(now, used int64) int {
	share := float64(used-l.used) / float64(now-l.since)
	l.since, l.used = now, used
	switch {
	case share > highLoad: // also when it is lowered, as far as it knows: somebody may have raised it
		return -1
	case l.lowered && share < lowLoad:
		return 1
	}
	return 0
}

// checkLoad measures the thread's load at the end of each period.
func (t *Thread) checkLoad(now int64) {
	if now-t.load.since < loadPeriod {
		return
	}
	_, errno := t.Call(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t.load.spec)),
		0, 0, 0)
	if errno == 0 {
		t.changePriority(t.load.update(now, t.load.spec.Nano()))
	}
}

// changePriority takes the calling thread out of real-time scheduling, if it is in it (by below 0), or back
// (above 0). RLIMIT_RTPRIO, which the daemon has set, allows that. Where it does not, the daemon raises the
// thread again.
func (t *Thread) changePriority(by int) {
	const self = 0
	switch {
	case by < 0:
		_, errno := t.Call(unix.SYS_SCHED_GETATTR, self, uintptr(unsafe.Pointer(&t.attr)), unix.SizeofSchedAttr, 0, 0)
		if errno != 0 || t.attr.Policy != unix.SCHED_FIFO && t.attr.Policy != unix.SCHED_RR {
			return
		}
		t.load.saved = t.attr
		t.attr = unix.SchedAttr{
			Size:   unix.SizeofSchedAttr,
			Policy: unix.SCHED_NORMAL,
			Flags:  t.load.saved.Flags & unix.SCHED_FLAG_RESET_ON_FORK,
		}
		_, errno = t.Call(unix.SYS_SCHED_SETATTR, self, uintptr(unsafe.Pointer(&t.attr)), 0, 0, 0)
		t.load.lowered = errno == 0

	case by > 0:
		t.load.lowered = false
		t.attr = t.load.saved
		_, _ = t.Call(unix.SYS_SCHED_SETATTR, self, uintptr(unsafe.Pointer(&t.attr)), 0, 0, 0)
	}
}
