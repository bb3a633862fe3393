package appliance

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// serve runs a control server of fakes until the test ends.
func serve(t *testing.T, s *controlServer) (Paths, *Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rw") // t.TempDir's path is too long for a socket's name, and closed to others
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	p := Paths{Run: dir}
	s.path, s.log = p.socket(), slog.New(slog.DiscardHandler)
	if s.group == nil {
		s.group = func() int { return 0 }
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		require.NoError(t, err)
	}
	c := NewClient(p)
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		cancel()
		assert.NoError(t, <-done)
	})
	return p, c
}

func fakeStatus(context.Context) (Status, error) { return Status{Site: "berlin"}, nil }

func TestRootAsksAndIsAnswered(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		stopped := make(chan struct{})
		_, c := serve(t, &controlServer{status: fakeStatus, stop: func() { close(stopped) },
			reload: func(context.Context) (ReloadResult, error) {
				return ReloadResult{}, errors.New("ringway.yaml:3: wan: wrong")
			}})
		st, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "berlin", st.Site)
		_, err = c.Reload(t.Context())
		assert.EqualError(t, err, "ringway.yaml:3: wan: wrong", "the daemon's own words, whole")
		require.NoError(t, c.Stop(t.Context()))
		<-stopped
	})
}

// Whoever is not root gets nothing, a member of the group the status alone. What counts is the kernel's word.
func TestTheSocketChecksWhoAsks(t *testing.T) {
	fakeQueues := func(context.Context) (QueuesNow, error) { return QueuesNow{FlowDrops: 7}, nil }
	metrics := metricsHandler(slog.New(slog.DiscardHandler), &collector{status: fakeStatus, now: time.Now})
	p, c := serve(t, &controlServer{status: fakeStatus, queues: fakeQueues, metrics: metrics, group: func() int { return 4711 }, stop: func() { t.Error("a stranger stopped the daemon") }})
	ask := func(gid uint32, method, path string) string {
		cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "--unix-socket", p.socket(), "http://x"+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: gid, NoSetGroups: false}}
		out, err := cmd.Output()
		require.NoError(t, err)
		return string(out)
	}
	assert.Equal(t, "403", ask(65534, http.MethodGet, "/v1/status"))
	assert.Equal(t, "200", ask(4711, http.MethodGet, "/v1/status"))
	assert.Equal(t, "403", ask(65534, http.MethodGet, "/v1/metrics"))
	assert.Equal(t, "200", ask(4711, http.MethodGet, "/v1/metrics"))
	assert.Equal(t, "403", ask(65534, http.MethodGet, "/v1/queues"))
	assert.Equal(t, "200", ask(4711, http.MethodGet, "/v1/queues"))
	queues, err := c.Queues(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 7, queues.FlowDrops)
	text, err := c.Metrics(t.Context())
	require.NoError(t, err)
	assert.Contains(t, string(text), `ringway_box_info{box="berlin"} 1`)
	for _, path := range []string{"/v1/stop", "/v1/reload", "/v1/upgrade", "/v1/apply", "/v1/confirm", "/v1/undo"} {
		assert.Equal(t, "403", ask(4711, http.MethodPost, path), path)
	}
}

func TestAConfigIsHandedOverWhole(t *testing.T) {
	type given struct {
		text, name string
		wait       time.Duration
	}
	var got []given
	_, c := serve(t, &controlServer{
		apply: func(_ context.Context, text []byte, name string, wait time.Duration) (ReloadResult, error) {
			got = append(got, given{string(text), name, wait})
			return ReloadResult{Changes: []string{"tc"}}, nil
		},
		confirm: func() error { return errors.New("too late") },
		undo:    func(context.Context) error { return nil },
	})
	long := strings.Repeat("# a comment\n", 80_000)
	res, err := c.Apply(t.Context(), []byte(long), "a & b.yaml", 90*time.Second)
	require.NoError(t, err)
	assert.Equal(t, []string{"tc"}, res.Changes)
	_, err = c.Apply(t.Context(), []byte("site: x\n"), "", 0)
	require.NoError(t, err)
	assert.Equal(t, []given{{long, "a & b.yaml", 90 * time.Second}, {"site: x\n", "", 0}}, got)
	assert.EqualError(t, c.Confirm(t.Context()), "too late")
	assert.NoError(t, c.Undo(t.Context()))
	_, err = c.Apply(t.Context(), make([]byte, maxApply+1), "", 0)
	assert.ErrorContains(t, err, "the config did not come whole")
	_, err = c.Apply(t.Context(), nil, "", -time.Second)
	assert.EqualError(t, err, `confirm: "-1s" is no time to wait for a confirmation (allowed: 5s to 24h0m0s)`)
	assert.Len(t, got, 2)
}

func TestNoDaemonIsSaidPlainly(t *testing.T) {
	_, err := NewClient(Paths{Run: t.TempDir()}).Status(t.Context())
	assert.ErrorIs(t, err, ErrNotRunning)
	dead := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Chdir(dead) // a relative name, for it must be short
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "ringway.sock"}))
	require.NoError(t, unix.Close(fd))
	_, err = NewClient(Paths{Run: "."}).Status(t.Context())
	assert.ErrorIs(t, err, ErrNotRunning, "a socket that a dead daemon left")
}

func TestASecondDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := takeLock(path, os.O_RDWR|os.O_CREATE)
	require.NoError(t, err)
	_, err = takeLock(path, os.O_RDWR|os.O_CREATE)
	assert.ErrorContains(t, err, "another ringway daemon runs here")
	release()
	release, err = takeLock(path, os.O_RDWR|os.O_CREATE)
	require.NoError(t, err, "the lock goes with its holder")
	release()
}

// systemd makes and mounts the folder for what it runs after the daemon: who asked for the stop must not take it away then.
func TestAStopThatTheDaemonDidLeavesTheFolderAlone(t *testing.T) {
	var p Paths
	held := make(chan func(), 1)
	p, _ = serve(t, &controlServer{stop: func() {
		assert.NoError(t, os.Remove(p.lock()))
		(<-held)()
	}})
	release, err := takeLock(p.lock(), os.O_RDWR|os.O_CREATE)
	require.NoError(t, err)
	held <- release
	require.NoError(t, Stop(t.Context(), p, slog.New(slog.DiscardHandler)))
	left, err := os.ReadDir(p.Run)
	require.NoError(t, err, "the folder is there")
	require.Len(t, left, 1)
	assert.Equal(t, filepath.Base(p.socket()), left[0].Name(), "nothing was put there, nothing taken")
}
