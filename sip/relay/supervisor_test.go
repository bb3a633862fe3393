package relay

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/sip/transparent"
)

// T17: what waits in the sockets of a process that is dead or silent for more than a second would arrive late. The
// next process gets new sockets; one that comes in time gets those that are there, and loses nothing.
func TestSocketsOfASilentProcessAreNotKept(t *testing.T) {
	var opened []int
	listen := func() ([]process.File, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		opened = append(opened, fd)
		return []process.File{{Name: "udp4-near", FD: fd}}, err
	}
	s, err := NewSupervisor(Config{
		RunDir: t.TempDir(), Program: "/bin/false", Listen: listen,
		Open:        func(transparent.SocketKind) (int, error) { return -1, unix.ENOSYS },
		Flows:       func(context.Context, []Change, bool) error { return nil },
		Reports:     func([]Report, []Ended) {},
		Unreachable: func(netip.AddrPort) {},
		Timing:      process.Timing{Ready: time.Hour}, // that the program ends is noticed, not its silence
	})
	require.NoError(t, err)
	t.Cleanup(s.close)
	clock := 10 * time.Second
	s.now = func() time.Duration { return clock }
	start := func() {
		t.Helper()
		require.Error(t, s.Configure(t.Context(), Settings{}), "the program only fails")
	}
	isOpen := func(fd int) bool {
		var st unix.Stat_t
		return unix.Fstat(fd, &st) == nil
	}

	start()
	require.Len(t, opened, 1)
	clock += maxKept
	start()
	assert.Len(t, opened, 1, "the next process comes in time")
	assert.True(t, isOpen(opened[0]))

	s.noteBeat()
	clock += maxKept
	start()
	assert.Len(t, opened, 1, "a second since the last beat")

	inode := func(fd int) uint64 {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		return st.Ino
	}
	before := inode(opened[0])
	clock += time.Millisecond
	start()
	require.Len(t, opened, 2)
	assert.NotEqual(t, before, inode(opened[1]), "another socket, in which nothing waits")

	clock += maxKept + time.Millisecond
	s.procs.Lock()
	s.closeStale()
	s.procs.Unlock()
	assert.False(t, isOpen(opened[1]), "nobody came")
	_, err = os.Stat(journalPath(s.cfg.RunDir))
	assert.NoError(t, err, "calls that were up are known still")
	start()
	assert.Len(t, opened, 3)
}
