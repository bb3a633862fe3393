package plane

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// voiceSlice is the EEVDF slice of a voice plane's threads in nanoseconds: the shortest that the kernel
// takes. A short slice gives a woken thread an early deadline, so that it preempts the ones that use the core
// up.
const voiceSlice = 100_000

const voiceNice = -20

// setPriority gives one thread (0: the calling one) the scheduling of voice.
func setPriority(tid int) error {
	a := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: voiceNice, Runtime: voiceSlice}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("nice %d and a slice of %d us: %w", voiceNice, voiceSlice/1000, err)
	}
	got, err := unix.SchedGetAttr(tid, 0)
	if err == nil && got.Runtime != voiceSlice {
		return fmt.Errorf("slice of %d us: the kernel keeps %d us (needs Linux 6.12)",
			voiceSlice/1000, got.Runtime/1000)
	}
	return nil
}

// beforeExec is what the thread does from which a plane is made: all threads of the plane inherit its
// scheduling. A realtime engine's forwarding threads alone get a priority, once they exist (realtime.go).
func beforeExec(c tunnel.Class, e tunnel.EngineName) func() []string {
	if c != tunnel.Voice || e == tunnel.EngineRealtime {
		return nil
	}
	return func() []string {
		if err := setPriority(0); err != nil {
			return []string{err.Error()}
		}
		return nil
	}
}

// tune sets what goes by process and thread: which threads get a core first (an adopted plane may be from a
// daemon that could not set it), and which process the kernel kills last when memory runs out. Threads of a
// realtime engine that do not forward stay as they are: handshakes of a flood must not compete with calls.
func tune(pid int, c tunnel.Class, e tunnel.EngineName) (missing []string) {
	if c != tunnel.Voice {
		return nil
	}
	if e != tunnel.EngineRealtime {
		missing = raiseAllThreads(pid)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-900"), 0); err != nil {
		missing = append(missing, fmt.Sprintf("memory shortage: %v", err))
	}
	return missing
}

func raiseAllThreads(pid int) (missing []string) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return []string{fmt.Sprintf("priority: %v", err)}
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := setPriority(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return []string{err.Error()}
		}
	}
	return nil
}
