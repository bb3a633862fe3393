// Package fifo gives single threads of a Go process real-time priority, so that a busy machine does not look
// like a network with jitter.
package fifo

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// RealTime puts the calling thread, which has to be locked, under SCHED_FIFO. Only threads that sleep or send
// are, never the whole process: Go's collector livelocks under SCHED_FIFO (golang/go#76353). Threads it
// starts do not inherit it.
//
// The runtime's monitor thread comes before it. It looks at every thread that is in a system call, and one
// that comes back meanwhile spins until it has looked (runtime.retake, setBlockOnExitSyscall, Go 1.26). Were
// the monitor an ordinary thread, and kept from the processor by the very one that spins, only the kernel's
// bound on real-time threads would end that, after a second: seen on a machine with one processor.
func RealTime() error {
	if monitor != 0 {
		_ = set(monitor, 2) // if the machine refuses it, it refuses the next as well
	}
	if err := set(0, 1); err != nil {
		return fmt.Errorf("real-time scheduling (SCHED_FIFO): %w", err)
	}
	return nil
}

// set takes the lowest of priorities: a sender that is kept waiting by the box under test is part of the
// test, the other way round it would not be.
func set(tid int, priority uint32) error {
	return unix.SchedSetAttr(
		tid,
		&unix.SchedAttr{
			Size:     unix.SizeofSchedAttr,
			Policy:   unix.SCHED_FIFO,
			Priority: priority,
			Flags:    unix.SCHED_FLAG_RESET_ON_FORK,
		},
		0,
	)
}

// monitor is the thread of the runtime's monitor (sysmon): the first that a program starts, before any
// package's variables are set. 0: not found.
var monitor = first()

func first() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	self, found := os.Getpid(), 0
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil && tid > self && (found == 0 || tid < found) {
			found = tid
		}
	}
	return found
}
