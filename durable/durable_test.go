package durable_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/durable"
	"ringway/test/netnstest"
)

const (
	oldText = "the old content\n"
	newText = "the new content, which is longer than the old\n"
)

func TestReplaceSetsContentModeAndOwner(t *testing.T) {
	netnstest.Root(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(oldText), 0o600))

	want := durable.File{Data: []byte(newText), Mode: 0o664, UID: 1234, GID: 5678}
	require.NoError(t, want.Replace(path))
	got, err := durable.Read(path)
	require.NoError(t, err)
	assert.True(t, got.Equal(want), "%+v", got)

	require.NoError(t, durable.WriteFile(path, []byte(oldText), 0o640))
	got, err = durable.Read(path)
	require.NoError(t, err)
	assert.Equal(t, durable.File{Data: []byte(oldText), Mode: 0o640, UID: os.Geteuid(), GID: os.Getegid()}, got)
	assertNothingElse(t, path)
}

func TestAFailedReplaceLeavesTheOldFileAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "file")
	require.ErrorContains(t, durable.WriteFile(path, nil, 0o600), "write "+path+": ")

	// A directory cannot be replaced by a file: the rename fails, after everything else was done.
	require.NoError(t, os.MkdirAll(filepath.Join(path, "inside"), 0o755))
	require.ErrorContains(t, durable.WriteFile(path, []byte(newText), 0o600), "write "+path+": rename ")
	assert.DirExists(t, filepath.Join(path, "inside"))
	assertNothingElse(t, path)
}

// A service may be confined to its own directories, so that a temporary file anywhere else cannot be made.
func TestReplaceNeedsNoTemporaryDirectory(t *testing.T) {
	elsewhere := t.TempDir()
	t.Setenv("TMPDIR", elsewhere)
	path := filepath.Join(t.TempDir(), "file")
	calls := trace(t, path, neverKill)

	assert.Equal(t, newText, read(t, path))
	for _, c := range calls {
		assert.NotContains(t, c, elsewhere)
	}
}

func TestCreateReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, durable.Create(path, []byte(oldText), 0o600))
	require.ErrorIs(t, durable.Create(path, []byte(newText), 0o644), os.ErrExist)

	got, err := durable.Read(path)
	require.NoError(t, err)
	assert.Equal(t, durable.File{Data: []byte(oldText), Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()}, got)
	assertNothingElse(t, path)
	require.ErrorContains(t, durable.Create(filepath.Join(path, "below"), nil, 0o600), "create "+path+"/below: ")
}

func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, durable.Remove(path))
	assert.NoFileExists(t, path)
	require.NoError(t, durable.Remove(path), "a file that is not there")
	require.ErrorIs(t, durable.Remove(filepath.Join(path, "below")), os.ErrNotExist)
}

// After a power cut, the disk holds what was synced before it. So the content is synced before the name
// points to it, and the name before the caller goes on.
func TestContentIsSyncedBeforeTheNameAndTheNameBeforeReturn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	dir := filepath.Dir(path)
	var calls []string
	for _, c := range trace(t, path, neverKill) {
		calls = append(calls, strings.ReplaceAll(c, dir, "DIR"))
	}
	require.Len(t, calls, 8, "%q", calls)

	temporary := strings.TrimPrefix(calls[0], "create ")
	assert.Regexp(t, `^DIR/\.file[0-9]+$`, temporary)
	assert.Equal(t, []string{
		"create " + temporary,
		"chmod " + temporary,
		"chown " + temporary,
		"write " + temporary,
		"sync " + temporary,
		"rename " + temporary + " DIR/file",
		"open DIR",
		"sync DIR",
	}, calls)
}

// The process is killed before each of its system calls on files: whoever reads the file afterwards finds the
// old one or the new one, and can replace it.
func TestKilledAtAnyStep(t *testing.T) {
	netnstest.Root(t)
	path := filepath.Join(t.TempDir(), "file")
	steps := len(trace(t, path, neverKill))
	require.Positive(t, steps)
	seen := map[string]int{}

	for kill := range steps {
		was := durable.File{Data: []byte(oldText), Mode: 0o640, UID: 1, GID: 2}
		require.NoError(t, was.Replace(path))
		calls := trace(t, path, kill)
		require.Len(t, calls, kill+1)

		got, err := durable.Read(path)
		require.NoError(t, err)
		name := "old"
		if !got.Equal(was) {
			name = "new"
			assert.Equal(t, testFile.Mode, got.Mode, "before %s", calls[kill])
			assert.Equal(t, newText, string(got.Data), "before %s", calls[kill])
		}
		seen[name]++
		require.NoError(t, testFile.Replace(path), "after a kill before %s", calls[kill])
	}
	assert.Equal(t, map[string]int{"old": 6, "new": 2}, seen, "the rename is the sixth step")
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// assertNothingElse demands that nothing lies beside path.
func assertNothingElse(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, fmt.Sprint(entries))
}
