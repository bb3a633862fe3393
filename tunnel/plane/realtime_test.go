package plane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process/priority"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// scheduling is what the kernel says of each thread of pid: forwarding threads apart from the others.
func scheduling(t *testing.T, pid int) (forwarding, others []*unix.SchedAttr) {
	t.Helper()
	isForwarding := map[string]bool{}
	for _, thread := range scheduled(pid).Scheduled() {
		isForwarding[strconv.Itoa(thread.TID)] = true
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		require.NoError(t, err)
		a, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			continue // it ended
		}
		if isForwarding[task.Name()] {
			forwarding = append(forwarding, a)
		} else {
			others = append(others, a)
		}
	}
	return forwarding, others
}

func requireRealtime(t *testing.T, pid int) {
	t.Helper()
	forwarding, others := scheduling(t, pid)
	require.Len(t, forwarding, len(forwardingThreads))
	for _, a := range forwarding {
		assert.EqualValues(t, unix.SCHED_FIFO, a.Policy)
		assert.EqualValues(t, priority.Realtime, a.Priority)
		assert.EqualValues(t, unix.SCHED_FLAG_RESET_ON_FORK, a.Flags&unix.SCHED_FLAG_RESET_ON_FORK)
	}
	require.NotEmpty(t, others)
	for _, a := range others {
		assert.EqualValues(t, unix.SCHED_NORMAL, a.Policy)
		assert.Zero(t, a.Nice, "handshakes do not compete with calls")
	}
}

// mayBeRealtime skips a test on a machine that refuses real-time to root.
func mayBeRealtime(t *testing.T) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		done <- unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	}()
	if err := <-done; err != nil {
		t.Skipf("this machine gives root no real-time: %v", err)
	}
}

func realtimePlane(b *bench) (*Supervisor, func()) {
	cfg := b.config(tunnel.Voice)
	cfg.Engine, cfg.Timing.HealthEvery = tunnel.EngineRealtime, 20*time.Millisecond
	s, release := b.supervise(cfg)
	require.NoError(b.t, s.Configure(context.Background(), device(tunnel.Voice)))
	return s, release
}

func TestForwardingThreadsAloneAreRealTime(t *testing.T) {
	mayBeRealtime(t)
	b := newBench(t)
	s, release := realtimePlane(b)
	first := status(t, s)
	requireRealtime(t, first.PlanePID)
	assert.EqualValues(t, runtime.NumCPU(), first.Drops["processors"], "the engine sets what it needs")
	_, missing := s.Sandbox()
	for _, m := range missing { // a container's root
		assert.Regexp(t, "^(memory shortage|coming back to real-time by itself): ", m)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", first.PlanePID))
	require.NoError(t, err)
	assert.Regexp(t, `Max realtime timeout +200000 +500000 +us`, string(limits))

	kill9(t, s)
	requireRealtime(t, status(t, s).PlanePID)

	// A daemon that comes back gives what an earlier one could not.
	release()
	pid := b.recordedPID(tunnel.Voice)
	lower(t, pid, 0)
	s, _ = realtimePlane(b)
	require.Equal(t, pid, status(t, s).PlanePID)
	requireRealtime(t, pid)
}

// lower takes real-time from the forwarding threads. With SCHED_FLAG_RESET_ON_FORK it is what such a thread
// does itself, that took a core for too long.
func lower(t *testing.T, pid int, flags uint64) {
	t.Helper()
	for _, thread := range scheduled(pid).Scheduled() {
		require.NoError(t, unix.SchedSetAttr(thread.TID, &unix.SchedAttr{Policy: unix.SCHED_NORMAL, Flags: flags}, 0))
	}
}

func TestAThreadThatCannotComeBackIsBroughtBack(t *testing.T) {
	mayBeRealtime(t)
	b := newBench(t)
	s, _ := realtimePlane(b)
	pid := status(t, s).PlanePID
	if !s.current().lift {
		t.Skip("the daemon may raise RLIMIT_RTPRIO here: threads come back by themselves")
	}
	lower(t, pid, unix.SCHED_FLAG_RESET_ON_FORK)
	assert.Empty(t, scheduled(pid).Raise(), "a start of the daemon leaves it alone")
	polltest.Require(t, func() bool {
		forwarding, _ := scheduling(t, pid)
		for _, a := range forwarding {
			if a.Policy != unix.SCHED_FIFO {
				return false
			}
		}
		return true
	}, patience, time.Millisecond)
}

func TestAThreadThatRunsAwayEndsItsPlaneAndNotTheMachine(t *testing.T) {
	mayBeRealtime(t)
	b := newBench(t)
	s, _ := realtimePlane(b)
	pid, began := status(t, s).PlanePID, time.Now()
	_ = tellEngine(s, "x_spin=\n")
	polltest.Require(t, func() bool {
		d, err := s.Status(context.Background())
		return err == nil && d.PlanePID != pid
	}, patience, 10*time.Millisecond)
	t.Logf("another plane after %v", time.Since(began))
	assert.Contains(t, b.log.String(), "signal: killed")
}

func TestWhereRealTimeIsRefusedTheForwardingThreadsGoFirst(t *testing.T) {
	const budgets = "/sys/fs/cgroup/cpu"
	if _, err := os.Stat(filepath.Join(budgets, "cpu.rt_runtime_us")); err != nil {
		t.Skipf("no kernel that divides real-time between groups: %v", err)
	}
	b := newBench(t)
	s, release := realtimePlane(b)
	pid := status(t, s).PlanePID
	release()
	group := filepath.Join(budgets, fmt.Sprintf("ringway-test-%d", os.Getpid()))
	require.NoError(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(budgets, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		assert.NoError(t, os.Remove(group))
	})
	lower(t, pid, 0)
	require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))

	s, _ = realtimePlane(b)
	require.Equal(t, pid, status(t, s).PlanePID)
	forwarding, others := scheduling(t, pid)
	require.Len(t, forwarding, len(forwardingThreads))
	for _, a := range forwarding {
		assert.EqualValues(t, unix.SCHED_NORMAL, a.Policy)
		assert.EqualValues(t, -20, a.Nice)
		assert.EqualValues(t, 100_000, a.Runtime)
	}
	for _, a := range others {
		assert.Zero(t, a.Nice)
	}
	_, missing := s.Sandbox()
	want := fmt.Sprintf("real-time: the cpu cgroup gives no real-time budget (write one to %s/cpu.rt_runtime_us, "+
		"such as 500000, and to the groups above it, or run ringway in the root group); "+
		"the forwarding threads run at nice -20, and calls wait longer while other programs are busy", group)
	assert.Contains(t, missing, want)

	// With a budget it is real-time at the next start of the daemon.
	require.NoError(t, os.WriteFile(filepath.Join(group, "cpu.rt_runtime_us"), []byte("100000"), 0))
	missing = scheduled(pid).Raise()
	assert.Empty(t, missing)
	requireRealtime(t, pid)
	lower(t, pid, 0)
}

func TestAForwarderOfAnotherKindKeepsItsTreatment(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Voice))
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Voice)))
	assert.EqualValues(t, max(1, runtime.NumCPU()/4), status(t, s).Drops["processors"])
}

func TestThreadsSayHowTheyAreScheduled(t *testing.T) {
	mayBeRealtime(t)
	b := newBench(t)
	cfg := b.config(tunnel.Voice)
	cfg.Engine, cfg.Timing.HealthEvery = tunnel.EngineRealtime, time.Hour // nobody brings a thread back
	s, _ := b.supervise(cfg)
	assert.Empty(t, s.Threads(), "no plane")
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Voice)))
	pid := status(t, s).PlanePID
	for _, realtime := range []bool{true, false} {
		threads := s.Threads()
		require.Len(t, threads, 2)
		for i, th := range threads {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", pid, th.TID))
			require.NoError(t, err)
			assert.Equal(t, forwardingThreads[i]+"\n", string(comm))
			assert.Equal(t, tunnel.ThreadStatus{Name: forwardingThreads[i], TID: th.TID, Realtime: realtime}, th)
		}
		lower(t, pid, unix.SCHED_FLAG_RESET_ON_FORK)
	}
}
