package plane

import (
	"ringway/process/priority"
	"ringway/tunnel"
)

// forwardingThreads are the names (comm) of the threads of a realtime engine that forward packets. They have
// their names when NewEngine returns.
var forwardingThreads = []string{"rw-fwd-out", "rw-fwd-in"}

// scheduled is a plane with a realtime engine.
func scheduled(pid int) priority.Process {
	return priority.Process{PID: pid, Threads: forwardingThreads, Replace: "ringway upgrade-planes voice"}
}

// beforeExec is what the thread does from which a plane is made: all threads of the plane inherit its
// scheduling. A realtime engine's forwarding threads alone get a priority, once they exist (package process/priority).
func beforeExec(c tunnel.Class, e tunnel.EngineName) func() []string {
	if c != tunnel.Voice || e == tunnel.EngineRealtime {
		return nil
	}
	return func() []string {
		if err := priority.First(0); err != nil {
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
		missing = priority.AllFirst(pid)
	}
	return append(missing, priority.KillLast(pid)...)
}

// Threads is how the running plane's forwarding threads are scheduled at this moment; none for an engine that
// has no such threads.
func (s *Supervisor) Threads() (out []tunnel.ThreadStatus) {
	cur := s.current()
	if cur == nil || cur.about.Engine != tunnel.EngineRealtime {
		return nil
	}
	for _, t := range scheduled(cur.PID()).Scheduled() {
		out = append(out, tunnel.ThreadStatus(t))
	}
	return out
}
