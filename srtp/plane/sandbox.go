package plane

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/process/priority"
)

const (
	maxOpenFiles = 128
	memoryHard   = 1 << 30
	memorySoft   = 192 << 20
)

func sandbox() process.Sandbox {
	what, resource, soft, hard := priority.Limit()
	return process.Sandbox{
		OpenFiles: maxOpenFiles, Memory: memoryHard, SoftMemory: memorySoft,
		Limits: []process.Limit{{What: what, Resource: resource, Soft: soft, Max: hard}},
		// A forwarding thread lowers itself and comes back; by RLIMIT_RTPRIO no higher than it was.
		Calls: []process.Call{
			{Number: unix.SYS_SCHED_GETATTR, Args: []process.Arg{process.Only(0, 0)}},
			{Number: unix.SYS_SCHED_SETATTR, Args: []process.Arg{process.Only(0, 0)}},
		},
	}
}

// lockMemory keeps keys out of swap: every page that the process touches stays in memory.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}
