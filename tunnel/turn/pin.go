package turn

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pinning: a forwarding thread that Go's scheduler leaves alone. An ordinary goroutine that blocks in a
// system call gives up its P and has to win one back when it returns, which takes the scheduler's lock, may
// find no P, and wakes the monitor thread. And every ten milliseconds the monitor has a running goroutine
// yield, after which a locked one is resumed by way of another thread. Each of these waits for threads that
// are not real-time. So a forwarding thread keeps its P for good (its system calls are raw), is not preempted
// (procPin) and gets no preemption signal (blocked).
//
// A pinned goroutine may allocate, which is rare, but must not wait for anything of Go's: no mutex, channel
// or ordinary system call. One of those might find its P taken, and then the runtime stops the process.
//
// The price: the world cannot be stopped while a thread is pinned. Only an engine that is alone in its
// process may do that, and it must see to it that nothing stops the world unasked: the collector is off, and
// collect.go runs it when the threads have let go. In any other process (tests) threads are not pinned and
// use ordinary system calls.

//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

// pin keeps the calling thread, which must be locked, for the calling goroutine.
func (t *Thread) pin() {
	maskPreemption(unix.SIG_BLOCK)
	procPin()
	t.pinned = true
	t.holdsP.Store(true)
	if t.loweredForGC {
		t.loweredForGC = false
		t.changePriority(1)
	}
}

// unpin lets go. If an ordinary goroutine is real-time, it may spin for a lock of the collector that is held
// by a thread which it keeps from running. So a thread that may raise itself again is not real-time in the
// meantime.
func (t *Thread) unpin() {
	if !t.pinned {
		return
	}
	if t.mayRaise.Load() && !t.load.lowered {
		t.changePriority(-1)
		t.loweredForGC = t.load.lowered
	}
	t.pinned = false
	procUnpin()
	maskPreemption(unix.SIG_UNBLOCK)
	t.holdsP.Store(false)
}

// maskPreemption blocks or unblocks the signal by which Go's runtime preempts (SIGURG).
func maskPreemption(how int) {
	set := new(uint64)
	*set = 1 << (unix.SIGURG - 1)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how), uintptr(unsafe.Pointer(set)), 0, 8, 0, 0)
	runtime.KeepAlive(set)
}

// Call makes a system call of a forwarding thread.
func (t *Thread) Call(trap, a, b, c, d, e uintptr) (int, unix.Errno) {
	var n uintptr
	var errno unix.Errno
	if t.pinned {
		n, _, errno = unix.RawSyscall6(trap, a, b, c, d, e, 0)
	} else {
		n, _, errno = unix.Syscall6(trap, a, b, c, d, e, 0)
	}
	return int(n), errno
}
