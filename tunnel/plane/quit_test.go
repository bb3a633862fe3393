package plane

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/polltest"
	"ringway/tunnel"
)

func TestPlanesAreFoundAndEndedWithoutADaemon(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	for _, c := range tunnel.Classes {
		s, release := b.supervise(b.config(c))
		d := device(c)
		if c == tunnel.Data {
			d.Settings.ListenPort++
		}
		require.NoError(t, s.Configure(ctx, d))
		release()
	}
	for _, c := range tunnel.Classes {
		pid := b.recordedPID(c)
		require.NoError(t, Quit(ctx, b.run, b.dir, c))
		polltest.Assert(t, func() bool { return unix.Kill(pid, 0) != nil }, patience, time.Millisecond)
	}
	for _, d := range []string{b.run, b.dir} {
		left, err := os.ReadDir(d)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
	require.NoError(t, Quit(ctx, b.run, b.dir, tunnel.Voice), "none is not an error")
}

// A plane that died or hangs with no daemon there leaves nothing either, once the interface is named.
func TestWhatACrashLeftIsTakenAway(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	for _, how := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
		s, release := b.supervise(b.config(tunnel.Data))
		require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
		pid := status(t, s).PlanePID
		polltest.Require(t, func() bool {
			_, err := os.Stat(uapiPath(b.dir, "rw-data"))
			return err == nil
		}, patience, time.Millisecond, "wg(8) finds the interface")
		release()
		require.NoError(t, unix.Kill(pid, how))
		if how == unix.SIGKILL {
			_, err := unix.Wait4(pid, nil, 0, nil)
			require.NoError(t, err)
		}
		require.NoError(t, quit(ctx, b.run, b.dir, tunnel.Data, quick))
		require.FileExists(t, uapiPath(b.dir, "rw-data"))
		require.NoError(t, RemoveUAPI(b.dir, "rw-data"))
		for _, d := range []string{b.run, b.dir} {
			left, err := os.ReadDir(d)
			require.NoError(t, err)
			assert.Empty(t, left, how)
		}
	}
}

func TestOnlyAStaleUAPISocketIsRemoved(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "rwu") // short, as newBench's
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, RemoveUAPI(dir, "rw-data"), "none is not an error")
	require.NoError(t, RemoveUAPI(dir+"/none", "rw-data"))
	for _, name := range []string{"", "../x", "a/b"} {
		assert.Error(t, RemoveUAPI(dir, name), name)
	}
	path := uapiPath(dir, "rw-data")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, RemoveUAPI(dir, "rw-data"))
	assert.FileExists(t, path, "somebody answers there")
	l.Close()
	require.NoError(t, RemoveUAPI(dir, "rw-data"))
	assert.NoFileExists(t, path)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, RemoveUAPI(dir, "rw-data"))
	assert.FileExists(t, path, "no socket")
}
