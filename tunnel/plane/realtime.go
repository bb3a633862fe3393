package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// A realtime engine's forwarding threads run under SCHED_FIFO, and no other thread of its process does: in a
// Go process that is real-time as a whole, the collector spins forever against itself (golang/go#76353).
// Three things keep such a thread from monopolising a core:
//
//   - RLIMIT_RTTIME limits its CPU time without a blocking call. Well before, the engine makes the thread lower itself;
//     at the hard limit the kernel kills the plane, and the supervisor starts another.
//   - SCHED_FLAG_RESET_ON_FORK: a thread that it starts is not real-time.
//   - RLIMIT_RTPRIO allows a thread that lowered itself to raise itself again, and no higher.
const (
	realtimePriority = 10
	realtimeSoft     = 200_000 // us
	realtimeHard     = 500_000 // us
)

// forwardingThreads are the names (comm) of the threads of a realtime engine that forward packets. They have
// their names when NewEngine returns.
var forwardingThreads = []string{"rw-fwd-out", "rw-fwd-in"}

// realtimeLimits sets the limits of a plane whose forwarding threads are to be real-time. lift is whether a
// thread that lowered itself has to be raised from outside.
func realtimeLimits(pid int, healthEvery time.Duration) (lift bool, missing []string) {
	// A plane sets this itself (sandbox.go), but not one of an older build. realtimeThreads checks the
	// result.
	_ = unix.Prlimit(pid, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: realtimeSoft, Max: realtimeHard}, nil)
	limit := &unix.Rlimit{Cur: realtimePriority, Max: realtimePriority}
	if err := unix.Prlimit(pid, unix.RLIMIT_RTPRIO, limit, nil); err != nil {
		return true, []string{fmt.Sprintf("coming back to real-time by itself: %v; a forwarding thread that "+
			"lowered itself after %d ms of CPU is not raised before the next health check, up to %v later "+
			"(give the daemon CAP_SYS_RESOURCE)", err, realtimeSoft/1000, healthEvery)}
	}
	return false, nil
}

// makeRealtime puts a thread under SCHED_FIFO.
func makeRealtime(tid int) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{
		Policy: unix.SCHED_FIFO, Priority: realtimePriority, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
}

// realtimeThreads makes the forwarding threads real-time. Where that is refused they get what a wireguard-go
// plane's threads have.
func realtimeThreads(pid int) (missing []string) {
	tids, err := threadsNamed(pid, forwardingThreads)
	if err != nil {
		return []string{fmt.Sprintf("real-time: %v", err)}
	}
	if len(tids) == 0 {
		names := strings.Join(forwardingThreads, " or ")
		return []string{fmt.Sprintf("real-time: the engine has no thread named %s", names)}
	}
	refused := checkBounded(pid)
	for _, tid := range tids {
		if lowered(tid) {
			continue
		}
		if refused == nil {
			if refused = makeRealtime(tid); refused == nil {
				continue
			}
		}
		if errors.Is(refused, unix.ESRCH) {
			refused = nil
			continue
		}
		if err := setPriority(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			missing = append(missing, err.Error())
		}
	}
	if refused != nil {
		missing = append(missing, fmt.Sprintf("real-time: %s; the forwarding threads run at nice %d, "+
			"and calls wait longer while other programs are busy", whyRefused(pid, refused), voiceNice))
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// Threads is how the running plane's forwarding threads are scheduled at this moment; none for an engine that
// has no such threads.
func (s *Supervisor) Threads() (out []tunnel.ThreadStatus) {
	cur := s.current()
	if cur == nil || cur.about.Engine != tunnel.EngineRealtime {
		return nil
	}
	for _, name := range forwardingThreads {
		tids, _ := threadsNamed(cur.PID(), []string{name}) // a plane that has just ended has none
		for _, tid := range tids {
			a, err := unix.SchedGetAttr(tid, 0)
			realtime := err == nil && a.Policy == unix.SCHED_FIFO
			out = append(out, tunnel.ThreadStatus{Name: name, TID: tid, Realtime: realtime})
		}
	}
	return out
}

// lowered says whether a thread lowered itself because it had used a core for too long. Such a thread still
// has the reset-on-fork flag; one that never was real-time does not.
func lowered(tid int) bool {
	a, err := unix.SchedGetAttr(tid, 0)
	return err == nil && a.Policy == unix.SCHED_NORMAL && a.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0
}

// A thread that lowered itself is raised once it is almost idle. Raised while it still uses a whole core, it
// would be killed by RLIMIT_RTTIME: it does not know that it is real-time again.
const (
	idleFor    = 100 * time.Millisecond
	maxIdleCPU = 10 * time.Millisecond // CPU time within idleFor
)

// raiseLowered makes forwarding threads real-time again that lowered themselves and may not raise themselves.
func raiseLowered(ctx context.Context, pid int) {
	tids, _ := threadsNamed(pid, forwardingThreads) // none: nothing to do
	ran := map[int]time.Duration{}
	for _, tid := range tids {
		if lowered(tid) {
			ran[tid] = cpuTime(pid, tid)
		}
	}
	if len(ran) == 0 {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(idleFor):
	}
	for tid, before := range ran {
		if cpuTime(pid, tid)-before <= maxIdleCPU {
			_ = makeRealtime(tid) // why it cannot be was reported at its start
		}
	}
}

// cpuTime is how long a thread ran in its life.
func cpuTime(pid, tid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, tid))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	ns, _ := strconv.ParseInt(first, 10, 64)
	return time.Duration(ns)
}

// threadsNamed are the threads of pid whose name is one of names.
func threadsNamed(pid int, names []string) (tids []int, err error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		comm, err := os.ReadFile(filepath.Join(dir, t.Name(), "comm"))
		if err != nil || !slices.Contains(names, strings.TrimSpace(string(comm))) {
			continue // it has ended, or has another name
		}
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

var errUnbounded = errors.New("no limit on how long a thread of this plane may use a core " +
	"(replace the plane: ringway upgrade-planes voice)")

// checkBounded says whether RLIMIT_RTTIME holds for pid. Reading /proc/PID/limits needs no privilege.
func checkBounded(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		limit, found := strings.CutPrefix(line, "Max realtime timeout")
		if found && !strings.Contains(limit, "unlimited") {
			return nil
		}
	}
	return errUnbounded
}

// whyRefused says why a thread of pid cannot be real-time, and what helps.
func whyRefused(pid int, refused error) string {
	if !errors.Is(refused, unix.EPERM) {
		return refused.Error()
	}
	if file := emptyBudget(pid); file != "" {
		return fmt.Sprintf("the cpu cgroup gives no real-time budget (write one to %s, such as 500000, "+
			"and to the groups above it, or run ringway in the root group)", file)
	}
	return fmt.Sprintf("%v (give the daemon CAP_SYS_NICE; a container's runtime may have to allow it)", refused)
}

// emptyBudget is the file of the cgroup that gives pid no real-time budget; empty if there is none.
func emptyBudget(pid int) string {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	file := cpuBudget(string(groups), string(mounts))
	if file == "" {
		return ""
	}
	budget, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(budget)) != "0" {
		return ""
	}
	return file
}

// cpuBudget is the file with the real-time budget (RT_GROUP_SCHED) of the cpu cgroup in groups, the text of
// /proc/PID/cgroup. mounts is that of /proc/self/mountinfo. It is empty where there is none: only cgroup
// version 1 has it; under version 2 a kernel with RT_GROUP_SCHED keeps real-time threads in the root group.
func cpuBudget(groups, mounts string) string {
	has := func(list string) bool { return slices.Contains(strings.Split(list, ","), "cpu") }
	group, found := "", false
	for line := range strings.Lines(groups) { // 4:cpu,cpuacct:/system.slice
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && has(f[1]) {
			group, found = f[2], true
		}
	}
	if !found {
		return ""
	}
	for line := range strings.Lines(mounts) { // 32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
		place, kind, _ := strings.Cut(strings.TrimSpace(line), " - ")
		p, k := strings.Fields(place), strings.Fields(kind)
		if len(p) < 5 || len(k) < 3 || k[0] != "cgroup" || !has(k[2]) {
			continue
		}
		below, ok := strings.CutPrefix(group, strings.TrimSuffix(p[3], "/"))
		if ok {
			return filepath.Join(p[4], below, "cpu.rt_runtime_us")
		}
	}
	return ""
}
