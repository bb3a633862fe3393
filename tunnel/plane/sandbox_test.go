package plane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// Every attempt is made by a plane's own code, inside its sandbox; see try.
func TestASandboxedPlaneCanDoNothingElse(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	holds, missing := s.Sandbox()
	t.Logf("holds: %q, missing: %q", holds, missing)
	assert.Empty(t, missing)
	pid := status(t, s).PlanePID
	for _, what := range []string{
		"exec", "fork", "open", "create", "stat", "socket", "udp", "ptrace", "kill", "setuid", "mount", "unshare",
		"exec-memory", "bpf", "io_uring", "limit", "dumpable", "priority", "priority-of-another", "ioctl-tun-persist",
	} {
		err := tellEngine(s, "x_try="+what+"\n")
		assert.ErrorContains(t, err, "operation not permitted", what)
	}
	assert.Equal(t, pid, status(t, s).PlanePID, "and it lives")
	err := tellEngine(s, "x_try=give-way\n")
	assert.ErrorContains(t, err, "give-way worked", "a thread of a realtime engine that took a core for too long")
	_, err = os.Stat("/tmp/plane-was-here")
	assert.ErrorIs(t, err, os.ErrNotExist)

	// What the kernel says of it from outside.
	proc := func(name string) string {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
		require.NoError(t, err)
		return string(b)
	}
	st := proc("status")
	for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2",
		"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "Groups:\t \n"} {
		assert.Contains(t, st, line)
	}
	uid, _ := kindOf(tunnel.Data, nil, nil).IDs()
	assert.Contains(t, st, fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", uid))
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	require.NoError(t, err)
	for _, task := range tasks { // the filter is on every thread
		assert.Contains(t, proc("task/"+task.Name()+"/status"), "Seccomp:\t2")
	}
	assert.Equal(t, "rw-plane-data", strings.TrimSpace(proc("comm")))
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	require.NoError(t, err)
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "fd", fd.Name()))
		require.NoError(t, err)
		switch kind, _, _ := strings.Cut(to, ":"); kind {
		case "socket", "pipe", "anon_inode", "/dev/null", "/dev/net/tun":
		default:
			runtimes := strings.HasPrefix(to, "/sys/fs/cgroup") || strings.HasPrefix(to, "/proc")
			assert.True(t, runtimes, "descriptor %s is %s", fd.Name(), to)
		}
	}
	group, err := unix.Getpgid(pid)
	require.NoError(t, err)
	assert.Equal(t, pid, group, "a process group of its own: a terminal's Ctrl-C does not reach it")
	own, err := unix.Getsid(0)
	require.NoError(t, err)
	session, err := unix.Getsid(pid)
	require.NoError(t, err)
	assert.Equal(t, own, session, "the daemon's session, and so one scheduling group with the other plane")
}

func TestTheVoicePlanesThreadsGoFirst(t *testing.T) {
	b := newBench(t)
	v, _ := b.supervise(b.config(tunnel.Voice))
	require.NoError(t, v.Configure(context.Background(), device(tunnel.Voice)))
	_, missing := v.Sandbox()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &caps[0]))
	if caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 { // a container's root: said in words, not fatal
		require.Len(t, missing, 1)
		assert.Contains(t, missing[0], "memory shortage: ")
	} else {
		assert.Empty(t, missing)
	}
	pid := status(t, v).PlanePID
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	require.NoError(t, err)
	require.NotEmpty(t, tasks)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		require.NoError(t, err)
		a, err := unix.SchedGetAttr(tid, 0)
		require.NoError(t, err)
		assert.EqualValues(t, -20, a.Nice)
		assert.EqualValues(t, 100_000, a.Runtime)
		assert.EqualValues(t, unix.SCHED_NORMAL, a.Policy)
	}
	// None of it stuck to the daemon.
	own, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	for _, task := range own {
		tid, _ := strconv.Atoi(task.Name())
		if a, err := unix.SchedGetAttr(tid, 0); err == nil {
			assert.Zero(t, a.Nice)
		}
		if st, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status"); err == nil {
			assert.Contains(t, string(st), "NoNewPrivs:\t0")
		}
	}
}

func TestAProgramThatOthersMayNotExecuteIsCopied(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	st, err := os.Stat(self)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(self, 0o700))
	t.Cleanup(func() { _ = os.Chmod(self, st.Mode()) })
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Data)))
	_, missing := s.Sandbox()
	assert.Empty(t, missing)
}
