package control

import (
	"context"
	"errors"
	"io"
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

	"ringway/appliance/plan"
	"ringway/appliance/status"
	"ringway/test/netnstest"
)

// serve runs s until the test ends.
func serve(t *testing.T, s *Server) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "rw") // the path of t.TempDir is too long for a socket, and closed to other users
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))

	s.Path, s.Log = filepath.Join(dir, "ringway.sock"), slog.New(slog.DiscardHandler)
	if s.Group == nil {
		s.Group = func() int { return 0 }
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		require.NoError(t, err)
	}

	c := NewClient(s.Path)
	t.Cleanup(func() {
		c.Close()
		cancel()
		assert.NoError(t, <-done)
	})
	return c
}

func fakeStatus(context.Context) (status.Status, error) { return status.Status{Site: "berlin"}, nil }

func TestRootAsksAndIsAnswered(t *testing.T) {
	netnstest.Root(t)
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		stopped := make(chan struct{})
		c := serve(t, &Server{Status: fakeStatus, Stop: func() { close(stopped) },
			Reload: func(context.Context) (ReloadResult, error) {
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
	netnstest.Root(t)
	fakeQueues := func(context.Context) (status.Queues, error) { return status.Queues{FlowDrops: 7}, nil }
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ringway_up 1\n")
	})
	s := &Server{
		Status: fakeStatus, Queues: fakeQueues, Metrics: metrics,
		Plan: func(_ context.Context, text []byte, name string, o plan.Options) (plan.Plan, error) {
			return plan.Plan{Build: string(text) + name + o.Only}, nil
		},
		Group: func() int { return 4711 },
		Stop:  func() { t.Error("a stranger stopped the daemon") },
	}
	c := serve(t, s)
	ask := func(gid uint32, method, path string) string {
		cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "--unix-socket", s.Path, "http://x"+path)
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
	assert.Equal(t, "403", ask(65534, http.MethodPost, "/v1/plan"))
	assert.Equal(t, "200", ask(4711, http.MethodPost, "/v1/plan"), "it changes nothing")
	planned, err := c.Plan(t.Context(), []byte("text of "), "new.yaml ", plan.Options{Only: "tc"})
	require.NoError(t, err)
	assert.Equal(t, "text of new.yaml tc", planned.Build)
	queues, err := c.Queues(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 7, queues.FlowDrops)
	text, err := c.Metrics(t.Context())
	require.NoError(t, err)
	assert.Contains(t, string(text), "ringway_up 1")
	for _, path := range []string{"/v1/stop", "/v1/reload", "/v1/upgrade", "/v1/apply", "/v1/confirm", "/v1/undo"} {
		assert.Equal(t, "403", ask(4711, http.MethodPost, path), path)
	}
}

func TestAConfigIsHandedOverWhole(t *testing.T) {
	netnstest.Root(t)
	type given struct {
		text, name string
		wait       time.Duration
	}
	var got []given
	c := serve(t, &Server{
		Apply: func(_ context.Context, text []byte, name string, wait time.Duration) (ReloadResult, error) {
			got = append(got, given{string(text), name, wait})
			return ReloadResult{Changes: []string{"tc"}}, nil
		},
		Confirm: func() error { return errors.New("too late") },
		Undo:    func(context.Context) error { return nil },
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
	_, err = c.Apply(t.Context(), make([]byte, maxConfig+1), "", 0)
	assert.ErrorContains(t, err, "read the request body: http: request body too large")
	_, err = c.Apply(t.Context(), nil, "", -time.Second)
	assert.EqualError(t, err, `confirm: "-1s" is not a positive duration (example: 2m)`)
	assert.Len(t, got, 2)
}

func TestNoDaemonIsSaidPlainly(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "ringway.sock")).Status(t.Context())
	assert.ErrorIs(t, err, ErrNotRunning)
	dead := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Chdir(dead) // a relative name, for it must be short
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "ringway.sock"}))
	require.NoError(t, unix.Close(fd))
	_, err = NewClient("ringway.sock").Status(t.Context())
	assert.ErrorIs(t, err, ErrNotRunning, "a socket that a dead daemon left")
}
