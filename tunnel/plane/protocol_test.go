package plane

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// A plane of another major version, played by this test, with real descriptors.
func TestAnIncompatiblePlaneIsReplacedOnItsDevices(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, release := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	pid := status(t, s).PlanePID
	release()
	link := b.ns.Run("ip", "-o", "link", "show", "rw-data")

	s, _ = b.supervise(b.config(tunnel.Data))
	s.procs.Lock()
	s.major = ProtocolMajor + 1 // this daemon is the newer one
	s.procs.Unlock()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.NotEqual(t, pid, s.current().PID())
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
	assert.Equal(t, link, b.ns.Run("ip", "-o", "link", "show", "rw-data"), "the device was kept")
	assert.Contains(t, b.log.String(), "does not fit")
}
