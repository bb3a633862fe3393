package plane

import (
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/process/priority"
	"ringway/tunnel"
)

const (
	maxOpenFiles = 256
	// memoryHard is the most private memory a plane may have. Engines bound themselves far below; this keeps
	// a fault in one from taking the machine with it (the plane dies, and is restarted).
	memoryHard = 1 << 30
	memorySoft = 192 << 20
)

// sandboxOf is what a class's plane keeps.
func sandboxOf(c tunnel.Class) process.Sandbox {
	s := process.Sandbox{OpenFiles: maxOpenFiles, Memory: memoryHard, SoftMemory: memorySoft, Calls: engineCalls}
	if c == tunnel.Voice {
		what, resource, soft, hard := priority.Limit()
		s.Limits = []process.Limit{{What: what, Resource: resource, Soft: soft, Max: hard}}
	}
	return s
}

// engineCalls are what an engine needs beyond what every process does.
var engineCalls = []process.Call{
	{Number: unix.SYS_IOCTL, Args: []process.Arg{
		process.Only(1, unix.TUNGETIFF, unix.TUNSETOFFLOAD, unix.SIOCGIFMTU),
	}},
	// Its own thread alone, and by RLIMIT_RTPRIO no higher than it was: a thread that took a core for too
	// long lowers itself, and comes back.
	{Number: unix.SYS_SCHED_GETATTR, Args: []process.Arg{process.Only(0, 0)}},
	{Number: unix.SYS_SCHED_SETATTR, Args: []process.Arg{process.Only(0, 0)}},
	{Number: unix.SYS_SCHED_SETSCHEDULER, Args: []process.Arg{process.Only(0, 0)}},
}

// limitRuntime sets the collector and how many threads run at once. A voice plane allocates almost nothing
// and collects seldom: each collection costs its forwarding threads time. It carries single packets, each of
// which an engine hands from goroutine to goroutine: with one processor that is a function call; with several
// a thread is woken for each hand-over, which takes longer than the work, and takes a core away from data. A
// realtime engine hands nothing over, and sets what it needs.
func limitRuntime(c tunnel.Class, e tunnel.EngineName) {
	if c == tunnel.Voice && e != tunnel.EngineRealtime {
		debug.SetGCPercent(400)
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/4))
	}
}
