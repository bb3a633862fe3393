package lock

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestASecondDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Take(path, true)
	require.NoError(t, err)
	_, err = Take(path, true)
	assert.ErrorIs(t, err, HeldError{path})
	assert.ErrorContains(t, err, "another ringway daemon runs here ("+path+" is locked)")

	release()
	release, err = Take(path, true)
	require.NoError(t, err, "the lock goes with its holder")
	release()
}

// A stop removes the file: a lock on what is left of it excludes nobody, so the next one takes a new file.
func TestALockOnARemovedFileIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Take(path, true)
	require.NoError(t, err)
	defer release()

	require.NoError(t, os.Remove(path))
	_, err = Take(path, false)
	require.ErrorIs(t, err, os.ErrNotExist)
	second, err := Take(path, true)
	require.NoError(t, err)
	second()
}

func TestWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Take(path, true)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Wait(ctx, path, true)
	require.ErrorIs(t, err, HeldError{path})

	got := make(chan error)
	go func() {
		_, err := Wait(t.Context(), path, true)
		got <- err
	}()
	release()
	require.NoError(t, <-got)
}
