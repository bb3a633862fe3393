package media

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ringway/srtp/media"
	"ringway/test/bench/cost"
)

// priority is that of the forwarding threads, and of rtpengine's.
const priority = 10

// realtime gives the forwarding threads of this process the scheduling that the daemon gives them, and the process no
// huge pages, as a sandbox does.
func realtime() error {
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) // a kernel without them refuses
	tasks, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil {
		return err
	}
	for _, file := range tasks {
		name, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if n := strings.TrimSpace(string(name)); n != media.ThreadLAN && n != media.ThreadTunnel {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return err
		}
		a := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: priority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
			return fmt.Errorf("real-time scheduling: %w", err)
		}
	}
	return nil
}

// noteMemory writes down what this process holds before it has calls.
func noteMemory() error {
	n, err := cost.Memory([]int{os.Getpid()})
	if err != nil {
		return err
	}
	return os.WriteFile(bareFile, []byte(strconv.Itoa(n)), 0o644)
}
