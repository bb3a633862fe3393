package priority

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
)

// Forwarding threads run under SCHED_FIFO, and no other thread of their process does: in a Go process that is
// real-time as a whole, the collector spins forever against itself (golang/go#76353).
// Three things keep such a thread from monopolising a core:
//
//   - RLIMIT_RTTIME limits its CPU time without a blocking call. Well before, the thread lowers itself (package
//     tunnel/turn); at the hard limit the kernel kills the process, and the supervisor starts another.
//   - SCHED_FLAG_RESET_ON_FORK: a thread that it starts is not real-time.
//   - RLIMIT_RTPRIO allows a thread that lowered itself to raise itself again, and no higher.
const (
	Realtime = 10      // of forwarding threads
	Soft     = 200_000 // us of CPU time without a blocking call
	Hard     = 500_000 // us
)

// Process is one whose forwarding threads are to be real-time.
type Process struct {
	PID     int
	Threads []string // names (comm) of its forwarding threads
	Replace string   // what an operator does about one of an older build
}

// Limit is RLIMIT_RTTIME, which the process sets itself. It counts for real-time threads alone. Lowering it from inside
// needs no right, while from outside it does.
func Limit() (what string, resource int, soft, hard uint64) {
	return fmt.Sprintf("at most %d ms of real-time without a pause", Hard/1000), unix.RLIMIT_RTTIME, Soft, Hard
}

// SetLimits sets the limits of the process. lift is whether a thread that lowered itself has to be raised from outside.
func (p Process) SetLimits(healthEvery time.Duration) (lift bool, missing []string) {
	// A process sets this itself (Limit), but not one of an older build. Raise checks the result.
	_ = unix.Prlimit(p.PID, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: Soft, Max: Hard}, nil)
	limit := &unix.Rlimit{Cur: Realtime, Max: Realtime}
	if err := unix.Prlimit(p.PID, unix.RLIMIT_RTPRIO, limit, nil); err != nil {
		return true, []string{fmt.Sprintf("coming back to real-time by itself: %v; a forwarding thread that "+
			"lowered itself after %d ms of CPU is not raised before the next health check, up to %v later "+
			"(give the daemon CAP_SYS_RESOURCE)", err, Soft/1000, healthEvery)}
	}
	return false, nil
}

// makeRealtime puts a thread under SCHED_FIFO.
func makeRealtime(tid int) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{
		Policy: unix.SCHED_FIFO, Priority: Realtime, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
}

// Raise makes the forwarding threads real-time. Where that is refused they go first among ordinary threads.
func (p Process) Raise() (missing []string) {
	tids, err := p.find(p.Threads)
	if err != nil {
		return []string{fmt.Sprintf("real-time: %v", err)}
	}
	if len(tids) == 0 {
		names := strings.Join(p.Threads, " or ")
		return []string{fmt.Sprintf("real-time: the process has no thread named %s", names)}
	}
	refused := p.checkBounded()
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
		if err := First(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			missing = append(missing, err.Error())
		}
	}
	if refused != nil {
		missing = append(missing, fmt.Sprintf("real-time: %s; the forwarding threads run at nice %d, "+
			"and calls wait longer while other programs are busy", whyRefused(p.PID, refused), nice))
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// Thread is how a forwarding thread is scheduled.
type Thread struct {
	Name     string `json:"name"`
	TID      int    `json:"tid"`
	Realtime bool   `json:"realtime"` // or else the machine refused that, or the thread lowered itself
}

// Scheduled is how the forwarding threads are scheduled at this moment. A process that has just ended has none.
func (p Process) Scheduled() (all []Thread) {
	for _, name := range p.Threads {
		tids, _ := p.find([]string{name})
		for _, tid := range tids {
			a, err := unix.SchedGetAttr(tid, 0)
			all = append(all, Thread{Name: name, TID: tid, Realtime: err == nil && a.Policy == unix.SCHED_FIFO})
		}
	}
	return all
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

// RaiseLowered makes forwarding threads real-time again that lowered themselves and may not raise themselves.
func (p Process) RaiseLowered(ctx context.Context) {
	tids, _ := p.find(p.Threads) // none: nothing to do
	ran := map[int]time.Duration{}
	for _, tid := range tids {
		if lowered(tid) {
			ran[tid] = cpuTime(p.PID, tid)
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
		if cpuTime(p.PID, tid)-before <= maxIdleCPU {
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

// find returns the threads whose name is one of names.
func (p Process) find(names []string) (tids []int, err error) {
	dir := fmt.Sprintf("/proc/%d/task", p.PID)
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

// checkBounded says whether RLIMIT_RTTIME holds. Reading /proc/PID/limits needs no privilege.
func (p Process) checkBounded() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		limit, found := strings.CutPrefix(line, "Max realtime timeout")
		if found && !strings.Contains(limit, "unlimited") {
			return nil
		}
	}
	return fmt.Errorf("no limit on how long a thread of this process may use a core (replace it: %s)", p.Replace)
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
