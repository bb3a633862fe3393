// Package priority schedules the threads of supervised processes: which of them are real-time, and which go first among
// those that are not. The daemon does it from outside; the processes have no right to.
package priority

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// slice is the EEVDF slice of threads that go first, in nanoseconds: the shortest that the kernel takes. A short slice
// gives a woken thread an early deadline, so that it preempts the ones that use the core up.
const slice = 100_000

const nice = -20

// First has one thread (0: the calling one) go first among ordinary threads.
func First(tid int) error {
	a := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: nice, Runtime: slice}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("nice %d and a slice of %d us: %w", nice, slice/1000, err)
	}
	got, err := unix.SchedGetAttr(tid, 0)
	if err == nil && got.Runtime != slice {
		return fmt.Errorf("slice of %d us: the kernel keeps %d us (needs Linux 6.12)", slice/1000, got.Runtime/1000)
	}
	return nil
}

// AllFirst has all threads of a process go first.
func AllFirst(pid int) (missing []string) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return []string{fmt.Sprintf("priority: %v", err)}
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := First(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return []string{err.Error()}
		}
	}
	return nil
}

// KillLast has the kernel kill other processes first when memory runs out.
func KillLast(pid int) (missing []string) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-900"), 0); err != nil {
		missing = append(missing, fmt.Sprintf("memory shortage: %v", err))
	}
	return missing
}
