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

// A realtime engine's forwarding threads run under SCHED_FIFO and nothing else of its process does: the collector of a Go process
// that is real-time as a whole spins against itself for good (golang/go#76353). What keeps such a thread from taking a core:
//
//   - RLIMIT_RTTIME: CPU time without a call that blocks. Long before, the engine has the thread lower itself; at the hard limit the
//     kernel kills the plane, and the supervisor starts another.
//   - SCHED_FLAG_RESET_ON_FORK: what such a thread starts is not real-time.
//   - RLIMIT_RTPRIO lets a thread that lowered itself come back, and no higher.
const (
	realtimePriority = 10
	realtimeSoft     = 200_000 // us
	realtimeHard     = 500_000 // us
)

// forwardingThreads are the names (comm) by which a realtime engine shows which of its threads forward packets. An
// engine returns from its start when they have their names.
var forwardingThreads = []string{"rw-fwd-out", "rw-fwd-in"}

// realtimeLimits sets the limits of a plane whose threads are to be real-time. It says whether a thread has to be brought back
// from outside once it lowered itself.
func realtimeLimits(pid int) (lift bool, missing []string) {
	// The plane has set it itself (sandbox.go), this is for one of an older build; whether it holds is seen in realtimeThreads.
	_ = unix.Prlimit(pid, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: realtimeSoft, Max: realtimeHard}, nil)
	if err := unix.Prlimit(pid, unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: realtimePriority, Max: realtimePriority}, nil); err != nil {
		return true, []string{fmt.Sprintf("coming back to real-time by itself: %v; a forwarding thread that gave way after %d ms of CPU "+
			"waits for the daemon's next look, up to %v (give the daemon CAP_SYS_RESOURCE)", err, realtimeSoft/1000, healthEvery)}
	}
	return false, nil
}

// realtimeThreads makes the forwarding threads real-time. Where that is refused they get what a wireguard-go plane's threads have.
func realtimeThreads(pid int) (missing []string) {
	tids, err := threadsNamed(pid, forwardingThreads)
	if err != nil {
		return []string{fmt.Sprintf("real-time: %v", err)}
	}
	if len(tids) == 0 {
		return []string{fmt.Sprintf("real-time: the engine shows no thread named %s", strings.Join(forwardingThreads, " or "))}
	}
	refused := bounded(pid)
	for _, tid := range tids {
		if gaveWay(tid) {
			continue
		}
		if refused == nil {
			a := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: realtimePriority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
			if refused = unix.SchedSetAttr(tid, &a, 0); refused == nil {
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
		missing = append(missing, fmt.Sprintf("real-time: %s; the forwarding threads run at nice %d, and calls wait longer while other programs are busy",
			whyRefused(pid, refused), voiceNice))
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// Threads is how the running plane's forwarding threads are scheduled at this moment; none for an engine that has no such threads.
func (s *Supervisor) Threads() (out []tunnel.ThreadStatus) {
	cur := s.current()
	if cur == nil || cur.hello.Engine != tunnel.EngineRealtime {
		return nil
	}
	for _, name := range forwardingThreads {
		tids, _ := threadsNamed(cur.proc.pid, []string{name}) // a plane that has just ended has none
		for _, tid := range tids {
			a, err := unix.SchedGetAttr(tid, 0)
			out = append(out, tunnel.ThreadStatus{Name: name, TID: tid, Realtime: err == nil && a.Policy == unix.SCHED_FIFO})
		}
	}
	return out
}

// gaveWay says whether a thread is real-time no more by its own doing: it took a core for too long. It keeps what it starts from
// being real-time, by which it is known.
func gaveWay(tid int) bool {
	a, err := unix.SchedGetAttr(tid, 0)
	return err == nil && a.Policy == unix.SCHED_NORMAL && a.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0
}

// A thread that gave way is brought back when it hardly runs. To bring it back while it takes a core would be its end (RLIMIT_RTTIME):
// it does not know that it is real-time again.
const (
	idleFor  = 100 * time.Millisecond
	idleMost = 10 * time.Millisecond // of CPU in that time
)

// bringBack makes forwarding threads real-time again that gave way, and may not do so themselves.
func bringBack(ctx context.Context, pid int) {
	tids, _ := threadsNamed(pid, forwardingThreads) // without any there is nothing to do
	ran := map[int]time.Duration{}
	for _, tid := range tids {
		if gaveWay(tid) {
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
		if cpuTime(pid, tid)-before <= idleMost {
			a := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: realtimePriority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
			_ = unix.SchedSetAttr(tid, &a, 0) // what is wrong with it was said at its start
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
			continue // it ended, or is another
		}
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

var errUnbounded = errors.New("nothing bounds how long a thread of this plane may take a core (ringway upgrade-planes voice)")

// bounded says whether RLIMIT_RTTIME holds for pid. It is read from the process's limits, as anybody may.
func bounded(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Max realtime timeout"); ok && !strings.Contains(rest, "unlimited") {
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
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil {
		var mounts []byte
		mounts, err = os.ReadFile("/proc/self/mountinfo")
		if file := cpuBudget(string(groups), string(mounts)); err == nil && file != "" {
			if budget, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(budget)) == "0" {
				return fmt.Sprintf("the cpu cgroup gives no real-time budget (write one to %s, such as 500000, and to the groups above it, or run ringway in the root group)", file)
			}
		}
	}
	return fmt.Sprintf("%v (give the daemon CAP_SYS_NICE; a container's runtime may have to allow it)", refused)
}

// cpuBudget is the file that holds the real-time budget of the cpu cgroup (RT_GROUP_SCHED) which /proc/PID/cgroup names, by the
// mounts of /proc/self/mountinfo; empty where there is no such thing. Only version 1 has it: in version 2 a kernel
// with RT_GROUP_SCHED keeps real-time threads in the root group.
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

// tune sets what goes by process and thread: who goes first for a core (an adopted plane may be of a daemon that could not), and who
// goes first when memory runs out. Threads of a realtime engine that do not forward stay as they are:
// shaking hands with a flood must not compete with calls.
func tune(pid int, c tunnel.Class, e tunnel.EngineName) (missing []string) {
	if c != tunnel.Voice {
		return nil
	}
	if e != tunnel.EngineRealtime {
		missing = everyThreadFirst(pid)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-900"), 0); err != nil {
		missing = append(missing, fmt.Sprintf("memory shortage: %v", err))
	}
	return missing
}

func everyThreadFirst(pid int) (missing []string) {
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
