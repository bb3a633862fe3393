package realtime

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of the forwarding threads, all of a way alike: by them the daemon knows which threads it makes real-time.
const (
	threadOut = "rw-fwd-out"
	threadIn  = "rw-fwd-in"
)

// thread is what all forwarding threads have in common: they sleep in ppoll until there is something to forward, or until
// somebody calls them.
type thread struct {
	name  string
	clock func() int64
	alone bool // the process is the engine's: pin

	pinned bool        // this thread alone
	free   atomic.Bool // asked to let go of its P, for the collector
	held   atomic.Bool // has its P
	aside  bool        // lowered itself for the collector

	mayRaise atomic.Bool // may make itself real-time again
	stop     atomic.Bool

	polls  []unix.PollFd // the first is wake
	wake   int           // eventfd
	wakes  [8]byte
	called bool // somebody called since the last sleep

	way      *way
	first    bool // of its way's threads
	affinity affinity
	cpuClock atomic.Uintptr // the thread's, for any thread of the process (clock_gettime(2)); 0: not yet

	// round is even while the thread sleeps, and grows with every round: what was taken away before a thread slept, or
	// before its round grew, is not in its hands any more.
	round atomic.Uint64

	watch load
	attr  unix.SchedAttr // memory for a system call
}

func newThread(name string, clock func() int64, alone bool, fds ...int) (*thread, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	t := &thread{name: name, clock: clock, alone: alone, wake: wake, polls: []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}}
	for _, fd := range fds {
		t.polls = append(t.polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return t, nil
}

// start runs the loop on a thread of its own and returns when that thread has its name.
func (t *thread) start(loop func(), ended func()) {
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
		t.settle(false)
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

// ring wakes the thread, from any goroutine, and from a pinned one.
func (t *thread) ring() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(t.wake), uintptr(unsafe.Pointer(&oneKnock)), 8)
}

// heed does what the thread was asked for, and says whether it goes on.
func (t *thread) heed() bool {
	if t.free.Load() == t.pinned {
		if t.pinned {
			t.unpin()
		} else if t.alone {
			t.pin()
		}
	}
	return !t.stop.Load()
}

// next ends a round. With sleep it waits until something is ready and it is the thread's turn; without it goes on at once. False: the engine
// ends, and the thread has no turn any more.
func (t *thread) next(sleep bool) bool {
	now := t.clock()
	t.watchLoad(now)
	t.way.watchCrowd(now)
	t.settle(t.first && t.way.crowd.on.Load() || t.watch.lowered)
	if !t.heed() {
		t.giveTurn()
		return false
	}
	t.called = false
	if !sleep {
		t.round.Add(2)
		return true
	}
	t.giveTurn()
	for tries := 0; ; tries++ {
		if !t.sleep() {
			return false
		}
		// Who has the turn most likely has the packet, too, and looks again before it sleeps: no need to stand in line at once. A call
		// is for this thread alone.
		if tries >= turnTries || t.called {
			return t.takeTurn()
		}
		if t.tryTurn() {
			return true
		}
	}
}

// sleep waits until something is ready. False: the engine ends.
func (t *thread) sleep() bool {
	n := len(t.polls)
	if !t.first && t.way.crowd.on.Load() {
		n = 1 // nothing but a call
	}
	ready, errno := t.call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&t.polls[0])), uintptr(n), 0, 0, 0)
	if errno != 0 || ready <= 0 { // EINTR: a signal that was not blocked
		n = 0
	}
	for i := n; i < len(t.polls); i++ {
		t.polls[i].Revents = 0
	}
	if t.polls[0].Revents != 0 {
		t.called = true
		_, _ = t.call(unix.SYS_READ, uintptr(t.wake), uintptr(unsafe.Pointer(&t.wakes[0])), 8, 0, 0)
	}
	return t.heed()
}

// waitWritable waits at most ms milliseconds until fd takes more.
func (t *thread) waitWritable(p *unix.PollFd, ts *unix.Timespec, fd, ms int) {
	*p = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	*ts = unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
	_, _ = t.call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(ts)), 0, 0)
}

func (t *thread) close() { unix.Close(t.wake) }

// load keeps a real-time thread from taking a core for itself: one that uses much of a core for a while lowers itself to ordinary
// scheduling, and comes back when it uses less. A trickle of voice is far below; a flood is above, and then fairness towards
// the rest of the machine (the kernel's own threads, the data class, whoever is logged in) is worth more than a microsecond. What counts is
// the thread's CPU time, by the kernel's count: a thread that hardly ever finds nothing to do sleeps often, for no time at all.
type load struct {
	since   int64         // begin of the window
	used    int64         // CPU time of the thread at its begin, ns
	spec    unix.Timespec // memory for a system call
	lowered bool
	saved   unix.SchedAttr
}

// A window's length, and the shares of a core at which a thread goes down and comes up again. RLIMIT_RTTIME, which kills, is
// several windows.
const (
	loadWindow = int64(50 * time.Millisecond)
	loadHigh   = 0.6
	loadLow    = 0.4
)

// looksAt says whether the window that now ends makes the thread go down (-1) or come up (+1).
func (l *load) looksAt(now, used int64) int {
	share := float64(used-l.used) / float64(now-l.since)
	l.since, l.used = now, used
	switch {
	case share > loadHigh: // also when it is lowered, as far as it knows: somebody may have raised it
		return -1
	case l.lowered && share < loadLow:
		return 1
	}
	return 0
}

// watchLoad looks at the thread's load at the end of each window.
func (t *thread) watchLoad(now int64) {
	if now-t.watch.since < loadWindow {
		return
	}
	if _, errno := t.call(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t.watch.spec)), 0, 0, 0); errno == 0 {
		t.shift(t.watch.looksAt(now, t.watch.spec.Nano()))
	}
}

// shift takes the calling thread out of real-time scheduling, if it is in it, or back; RLIMIT_RTPRIO, which the daemon has set, allows that.
// Where it does not, the daemon brings it back.
func (t *thread) shift(by int) {
	const self = 0
	switch {
	case by < 0:
		_, errno := t.call(unix.SYS_SCHED_GETATTR, self, uintptr(unsafe.Pointer(&t.attr)), unix.SizeofSchedAttr, 0, 0)
		if errno != 0 || t.attr.Policy != unix.SCHED_FIFO && t.attr.Policy != unix.SCHED_RR {
			return
		}
		t.watch.saved = t.attr
		t.attr = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Flags: t.watch.saved.Flags & unix.SCHED_FLAG_RESET_ON_FORK}
		_, errno = t.call(unix.SYS_SCHED_SETATTR, self, uintptr(unsafe.Pointer(&t.attr)), 0, 0, 0)
		t.watch.lowered = errno == 0
	case by > 0:
		t.watch.lowered = false
		t.attr = t.watch.saved
		_, _ = t.call(unix.SYS_SCHED_SETATTR, self, uintptr(unsafe.Pointer(&t.attr)), 0, 0, 0)
	}
}
