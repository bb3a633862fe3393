package plane

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// halt stops a process and waits until each thread of it stands still: one that runs may answer for a moment
// yet.
func halt(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	polltest.Require(t, func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		require.NoError(t, err)
		for _, path := range stats {
			stat, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(stat, []byte(") T ")) {
				return false
			}
		}
		return len(stats) > 0
	}, patience, time.Millisecond)
}

// quick are times for tests of planes that hang. A start may take as long as ever: this machine may be busy.
var quick = process.Timing{
	Answer: 300 * time.Millisecond, Change: 500 * time.Millisecond, Quit: 300 * time.Millisecond,
}

func TestAPlaneThatHangsIsReplaced(t *testing.T) {
	b := newBench(t)
	cfg := b.config(tunnel.Data)
	cfg.Timing = quick
	cfg.Timing.HealthEvery = 50 * time.Millisecond
	s, release := b.supervise(cfg)
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	pid := status(t, s).PlanePID
	halt(t, pid)
	polltest.Require(t, func() bool {
		d, err := s.Status(ctx)
		return err == nil && d.PlanePID != pid
	}, patience, 10*time.Millisecond)

	// Also one that hangs while no daemon is there.
	pid = status(t, s).PlanePID
	release()
	halt(t, pid)
	s, _ = b.supervise(cfg)
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.NotEqual(t, pid, status(t, s).PlanePID)
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
}

// No caller sets a deadline here, and no health check helps: whatever is asked of a plane that hangs ends,
// and cures it.
func TestWhateverIsAskedOfAPlaneThatHangsCuresIt(t *testing.T) {
	b := newBench(t)
	cfg := b.config(tunnel.Data)
	cfg.Timing = quick
	cfg.Timing.HealthEvery = time.Hour
	s, _ := b.supervise(cfg)
	ctx := context.Background()
	d := device(tunnel.Data)
	require.NoError(t, s.Configure(ctx, d))

	hung := func(what string, f func()) {
		t.Helper()
		pid := status(t, s).PlanePID
		halt(t, pid)
		began := time.Now()
		f()
		took := time.Since(began)
		t.Logf("%-40s took %v", what, took.Round(time.Millisecond))
		assert.Less(t, took, patience, what)
		assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH, what)
	}
	hung("a reload, by a caller in a hurry first", func() {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, s.Configure(short, d), context.DeadlineExceeded)
		d.Peers = d.Peers[:1]
		waiting := make(chan error, 1)
		go func() { waiting <- s.Configure(ctx, d) }()
		_, err := s.Status(ctx)
		assert.ErrorIs(t, err, process.ErrNoAnswer, "status says so and does not wait for the reload")
		require.NoError(t, <-waiting)
	})
	st := status(t, s)
	assert.Len(t, st.Peers, 1, "the new plane has what was to be told to the one that hung")
	assert.Equal(t, 1, st.Restarts)
	hung("a reload that needs a new plane", func() {
		d.Settings.ListenPort++
		require.NoError(t, s.Configure(ctx, d))
	})
	hung("upgrade", func() { require.NoError(t, s.Upgrade(ctx)) })
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.Len(t, status(t, s).Peers, 2)
	hung("stop", func() { require.NoError(t, s.Stop(ctx)) })
}

// An engine that hangs in what it is told, while its process answers others.
func TestAnEngineThatHangsInAChangeIsReplaced(t *testing.T) {
	b := newBench(t)
	cfg := b.config(tunnel.Data)
	cfg.Timing = quick
	cfg.Timing.HealthEvery = time.Hour
	s, _ := b.supervise(cfg)
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	pid := status(t, s).PlanePID
	require.ErrorIs(t, tellEngine(s, "x_hang=1\n"), process.ErrNoAnswer)
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.NotEqual(t, pid, status(t, s).PlanePID)
}
