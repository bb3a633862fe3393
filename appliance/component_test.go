package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/control"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
	"ringway/tunnel/plane"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
)

// daemonDir names the folder of a daemon that this binary is to run instead of its tests.
const daemonDir = "RINGWAY_TEST_DAEMON"

// TestMain also runs the daemon of a test in a namespace of its own, and the planes that it starts.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "plane":
		err = plane.Main(plane.Options{Build: "test", Engines: map[tunnel.EngineName]plane.NewEngine{
			tunnel.EngineWireGuardGo: func(s plane.Start) (plane.Engine, error) {
				return wireguardgo.New(wireguardgo.Files(s.Files), s.Class, s.Bounds, s.MTU, s.Log)
			},
			tunnel.EngineRealtime: func(s plane.Start) (plane.Engine, error) {
				return realtime.New(realtime.Options{
					TUN: s.Files.TUN, UDP4: s.Files.UDP4, UDP6: s.Files.UDP6, Class: s.Class, Bounds: s.Bounds, MTU: s.MTU,
					Log: s.Log,
				})
			},
		}})
	case os.Getenv(daemonDir) != "":
		err = runWithCounter(os.Getenv(daemonDir))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runWithCounter runs a daemon to whose list one component is added, and nothing else.
func runWithCounter(dir string) error {
	d, err := New(Options{
		ConfigPath: filepath.Join(dir, "ringway.yaml"), Paths: pathsIn(dir), Build: "test",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	d.components = append(d.components, newCounter(dir))
	return d.Run(context.Background())
}

func pathsIn(dir string) Paths {
	return Paths{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), UAPI: filepath.Join(dir, "uapi")}
}

// counter is a component made up for the test. Its status says what was asked of it.
type counter struct {
	dir string

	mu sync.Mutex
	st counterStatus
}

type counterStatus struct {
	Site    string `json:"site"`
	Running bool   `json:"running"`
	Follows int    `json:"follows"`
}

func (s counterStatus) String() string { return "Counter of " + s.Site }

func newCounter(dir string) *counter { return &counter{dir: dir} }

func (c *counter) Name() string { return "counter" }

func (c *counter) Run(ctx context.Context, ready func()) error {
	c.change(func(s *counterStatus) { s.Running = true })
	ready()
	<-ctx.Done()
	return os.WriteFile(filepath.Join(c.dir, "stopped"), nil, 0o600)
}

func (c *counter) Follow(cfg *config.Config) {
	c.change(func(s *counterStatus) {
		s.Site = cfg.Site
		s.Follows++
	})
}

func (c *counter) change(f func(*counterStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.st)
}

func (c *counter) Status() fmt.Stringer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st
}

func (c *counter) Problems() []problem.Problem {
	return []problem.Problem{{Subject: "test", Severity: problem.Warning, Text: "it is made up", Action: "do nothing"}}
}

var (
	counterFamilies exposition.Families
	counterFollows  = counterFamilies.Counter("ringway_counter_follows_total", "Configs followed.")
)

func (c *counter) Families() exposition.Families { return counterFamilies }

func (c *counter) Collect(st status.Status, to exposition.Sink) {
	if s, ok := status.Section[counterStatus](st, "counter"); ok {
		to.Put(counterFollows, float64(s.Follows))
	}
}

// A component that is added to the list is run, follows every config, is stopped, and appears in status, problems and
// metrics, with nothing else changed.
func TestAComponentIsOneEntryOfTheList(t *testing.T) {
	dir, err := os.MkdirTemp("", "rw") // the path of t.TempDir is too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	key, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "private.key"), []byte(key.Base64()), 0o600))
	writeConfig := func(site string) {
		text := fmt.Sprintf(`site: %s
key_file: private.key
wan: [{interface: wan0, address: 198.51.100.2/24, gateway: 198.51.100.1}]
voice: [{interface: voice0, address: 10.0.10.1/24}]
`, site)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "ringway.yaml"), []byte(text), 0o600))
	}
	writeConfig("berlin")

	daemon := startDaemon(t, dir)
	client := control.NewClient(pathsIn(dir).Socket())
	defer client.Close()
	st := waitReady(t, client)

	counted, ok := status.Section[counterStatus](st, "counter")
	require.True(t, ok, "it has a section in the status")
	assert.True(t, counted.Running)
	assert.Equal(t, "berlin", counted.Site)
	assert.Positive(t, counted.Follows)
	var text strings.Builder
	require.NoError(t, st.Print(&text, time.Now()))
	assert.Contains(t, text.String(), "\nCounter of berlin\n")
	assert.Contains(t, text.String(), "PROBLEM: counter test: it is made up\n")
	assert.Contains(t, text.String(), "(warning for ")

	since := problemOf(t, st, "counter").Since
	assert.False(t, since.IsZero())

	metrics, err := client.Metrics(t.Context())
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^ringway_counter_follows_total [1-9]`, string(metrics))

	// What earlier releases had is a field of the same name.
	asJSON, err := json.Marshal(st)
	require.NoError(t, err)
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(asJSON, &fields))
	for _, name := range []string{"site", "build", "config", "pid", "since", "ready", "tunnels", "queues",
		"queue_features",
		"drops", "classes", "reflector", "reconcile", "metrics", "features", "problems"} {
		assert.Contains(t, fields, name)
	}

	writeConfig("munich")
	_, err = client.Reload(t.Context())
	require.NoError(t, err)
	st, err = client.Status(t.Context())
	require.NoError(t, err)
	counted, _ = status.Section[counterStatus](st, "counter")
	assert.Equal(t, "munich", counted.Site)
	assert.Equal(t, since, problemOf(t, st, "counter").Since, "the problem lasts")

	require.NoError(t, client.Stop(t.Context()))
	require.NoError(t, daemon.Wait())
	assert.FileExists(t, filepath.Join(dir, "stopped"))
}

// startDaemon runs this binary as a daemon in a network namespace of its own.
func startDaemon(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := netnstest.New(t).Command(self)
	cmd.Env = append(os.Environ(), daemonDir+"="+dir)
	cmd.Stderr = t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

func waitReady(t *testing.T, client *control.Client) (st status.Status) {
	t.Helper()
	polltest.Require(t, func() bool {
		var err error
		st, err = client.Status(t.Context())
		return err == nil && st.Ready
	}, 20*time.Second, 20*time.Millisecond)
	return st
}

func problemOf(t *testing.T, st status.Status, component string) problem.Problem {
	t.Helper()
	for _, p := range st.Problems {
		if p.Component == component {
			return p
		}
	}
	require.Fail(t, "no problem", "of %s among %v", component, st.Problems)
	return problem.Problem{}
}

// A panic while the status is read is recovered for a scrape. It must not leave the daemon's lock held.
func TestAPanicInTheStatusLeavesNoLockHeld(t *testing.T) {
	d := &Daemon{problems: problem.NewSet(time.Now)} // without a config, its own part of the status panics
	assert.Panics(t, func() { _, _ = d.Status(t.Context()) })
	require.True(t, d.mu.TryLock(), "the lock is still held")
	d.mu.Unlock()
}
