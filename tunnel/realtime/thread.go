package realtime

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of the forwarding threads: by them the daemon knows which threads it makes real-time.
const (
	threadOut = "rw-fwd-out"
	threadIn  = "rw-fwd-in"
)

// thread is what both forwarding threads have in common: they sleep in ppoll until there is something to forward, or until
// somebody calls them.
type thread struct {
	name  string
	clock func() int64
	alone bool // the process is the engine's: pin

	pinned bool        // this thread alone
	free   atomic.Bool // asked to let go of its P, for the collector
	held   atomic.Bool // has its P
	stop   atomic.Bool

	polls  []unix.PollFd // the first is wake
	wake   int           // eventfd
	wakes  [8]byte
	called bool // somebody called since the last sleep

	// round is even while the thread sleeps, and grows with every round: what was taken away before a thread slept, or
	// before its round grew, is not in its hands any more.
	round atomic.Uint64

	watch load
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
		if t.alone {
			t.pin()
		}
		defer t.unpin()
		close(ready)
		t.round.Add(1)
		loop()
		t.round.Add(1)
	}()
	<-ready
}

func setThreadName(name string) {
	b := append([]byte(name), 0)
	_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0, 0)
	runtime.KeepAlive(b)
}

// call wakes the thread, from any goroutine.
func (t *thread) ring() {
	one := [8]byte{}
	*(*uint64)(unsafe.Pointer(&one[0])) = 1
	_, _ = unix.Write(t.wake, one[:])
}

// next ends a round. With sleep it waits until something is ready; without it goes on at once. False: the engine ends.
func (t *thread) next(sleep bool) bool {
	if t.free.Load() == t.pinned {
		if t.pinned {
			t.unpin()
		} else if t.alone {
			t.pin()
		}
	}
	if t.stop.Load() {
		return false
	}
	if !sleep {
		t.round.Add(2)
		t.watch.spin(t.clock())
		return true
	}
	t.watch.sleep(t.clock())
	t.round.Add(1)
	n, errno := t.call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&t.polls[0])), uintptr(len(t.polls)), 0, 0, 0)
	t.round.Add(1)
	t.watch.awake(t.clock())
	t.called = false
	if errno != 0 || n <= 0 { // EINTR: a signal that was not blocked
		for i := range t.polls {
			t.polls[i].Revents = 0
		}
		return !t.stop.Load()
	}
	if t.polls[0].Revents != 0 {
		t.called = true
		_, _ = t.call(unix.SYS_READ, uintptr(t.wake), uintptr(unsafe.Pointer(&t.wakes[0])), 8, 0, 0)
	}
	return !t.stop.Load()
}

// waitWritable waits at most ms milliseconds until fd takes more.
func (t *thread) waitWritable(p *unix.PollFd, ts *unix.Timespec, fd, ms int) {
	*p = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	*ts = unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
	_, _ = t.call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(ts)), 0, 0)
}

func (t *thread) close() { unix.Close(t.wake) }

// load keeps a real-time thread from taking a core for itself: one that hardly sleeps for a while lowers itself to ordinary
// scheduling, and comes back when it sleeps again. A trickle of voice is far below; a flood is above, and then fairness towards
// the rest of the machine (the data class, whoever is logged in) is worth more than a microsecond.
type load struct {
	since   int64 // begin of the window
	busy    int64 // ns awake in it
	woke    int64
	lowered bool
	saved   unix.SchedAttr
	lowers  atomic.Uint64 // how often
}

// A window's length, and the shares at which a thread goes down and comes up again. RLIMIT_RTTIME, which kills, is several windows.
const (
	loadWindow = int64(50 * time.Millisecond)
	loadHigh   = 0.9
	loadLow    = 0.6
)

func (l *load) awake(now int64) { l.woke = now }

func (l *load) sleep(now int64) {
	l.busy += now - l.woke
	l.woke = now
	l.look(now)
}

func (l *load) spin(now int64) {
	l.busy += now - l.woke
	l.woke = now
	l.look(now)
}

func (l *load) look(now int64) {
	length := now - l.since
	if length < loadWindow {
		return
	}
	share := float64(l.busy) / float64(length)
	l.since, l.busy = now, 0
	switch {
	case !l.lowered && share > loadHigh:
		l.lower()
	case l.lowered && share < loadLow:
		l.raise()
	}
}

// lower takes the calling thread out of real-time scheduling, if it is in it.
func (l *load) lower() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_FIFO && a.Policy != unix.SCHED_RR {
		return
	}
	fair := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Flags: a.Flags & unix.SCHED_FLAG_RESET_ON_FORK}
	if unix.SchedSetAttr(0, &fair, 0) == nil {
		l.saved, l.lowered = *a, true
		l.lowers.Add(1)
	}
}

// raise takes it back; RLIMIT_RTPRIO, which the daemon has set, allows it.
func (l *load) raise() {
	l.lowered = false
	_ = unix.SchedSetAttr(0, &l.saved, 0)
}
