package appliance

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/control"
	"ringway/appliance/lock"
	"ringway/test/netnstest"
)

// systemd makes and mounts the folder for what it runs after the daemon: who asked for the stop must not take
// it away then.
func TestAStopThatTheDaemonDidLeavesTheFolderAlone(t *testing.T) {
	netnstest.Root(t)
	dir, err := os.MkdirTemp("", "rw") // the path of t.TempDir is too long for a socket
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	p := Paths{Run: dir}
	held := make(chan func(), 1)
	server := &control.Server{
		Path: p.Socket(), Log: slog.New(slog.DiscardHandler), Group: func() int { return 0 },
		Stop: func() {
			assert.NoError(t, os.Remove(p.lock()))
			(<-held)()
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- server.Run(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		assert.NoError(t, <-done)
	}()
	<-ready
	release, err := lock.Take(p.lock(), true)
	require.NoError(t, err)
	held <- release
	require.NoError(t, Stop(t.Context(), p, slog.New(slog.DiscardHandler)))
	left, err := os.ReadDir(p.Run)
	require.NoError(t, err, "the folder is there")
	require.Len(t, left, 1)
	assert.Equal(t, filepath.Base(p.Socket()), left[0].Name(), "nothing was put there, nothing taken")
}
