package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
)

// fakeMachine runs configs in a file, which outlives the process as the kernel's state does. A text that
// begins with "bad" is not a config, one that begins with "refused" cannot be applied, one that begins with
// "mute" leaves nothing running.
type fakeMachine struct {
	kernel  string
	step    func(string)
	running config.Loaded
	bad     string // this text no longer loads
}

func (m *fakeMachine) Load(text []byte, name string) (config.Loaded, error) {
	if strings.HasPrefix(string(text), "bad") || m.bad != "" && string(text) == m.bad {
		return config.Loaded{}, fmt.Errorf("%s: bad", name)
	}
	return config.Loaded{Text: text, Config: &config.Config{}}, nil
}

func (m *fakeMachine) Running() config.Loaded { return m.running }

func (m *fakeMachine) Switch(_ context.Context, l config.Loaded) ([]string, error) {
	m.running = l
	if err := os.WriteFile(m.kernel, l.Text[:len(l.Text)/2], 0o600); err != nil {
		return nil, err
	}
	m.step("half")
	if strings.HasPrefix(string(l.Text), "mute") {
		return nil, errors.New("no firewall")
	}
	return []string{"changed"}, os.WriteFile(m.kernel, l.Text, 0o600)
}

func (m *fakeMachine) TrySwitch(ctx context.Context, l config.Loaded) ([]string, error) {
	changes, err := m.Switch(ctx, l)
	if strings.HasPrefix(string(l.Text), "refused") {
		err = errors.New("no such device")
	}
	return changes, err
}

// tester is a *testing.T, or the process of a scene.
type tester interface {
	require.TestingT
	Helper()
	Context() context.Context
}

// bench is the disk, the kernel and the clock of a machine.
type bench struct {
	tester
	dir     string
	boot    string
	now     time.Duration
	machine *fakeMachine
}

const (
	oldText = "site: old\n"
	newText = "site: brand-new\n"
)

func newBench(t *testing.T) *bench {
	b := &bench{tester: t, dir: t.TempDir(), boot: "first", now: time.Hour}
	b.write("etc/ringway.yaml", oldText)
	require.NoError(t, os.MkdirAll(b.path("state"), 0o700))
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
func (b *bench) file() string            { return b.path("etc/ringway.yaml") }

func (b *bench) write(name, text string) {
	b.Helper()
	require.NoError(b, os.MkdirAll(filepath.Dir(b.path(name)), 0o755))
	require.NoError(b, os.WriteFile(b.path(name), []byte(text), 0o640))
}

func (b *bench) read(name string) string {
	b.Helper()
	text, err := os.ReadFile(b.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	require.NoError(b, err)
	return string(text)
}

// committer belongs to a daemon that is about to start, after whatever became of the one before.
func (b *bench) committer(step func(string)) *Committer {
	b.machine = &fakeMachine{kernel: b.path("kernel"), step: step}
	files := Files{Config: b.file(), Record: b.path("state/trial.json"), Refused: b.path("state/refused.yaml")}
	c := New(b.machine, files, slog.New(slog.DiscardHandler))
	c.boot = func() (string, error) { return b.boot, nil }
	c.now = func() time.Duration { return b.now }
	c.step = step
	return c
}

// start starts a daemon.
func (b *bench) start() *Committer {
	b.Helper()
	c := b.committer(func(string) {})
	l, err := c.Load()
	require.NoError(b, err)
	require.NoError(b, c.Start(b.Context(), l))
	return c
}

// runs asserts that text is the config in the kernel, on disk and in memory.
func (b *bench) runs(text string) {
	b.Helper()
	assert.Equal(b, text, b.read("kernel"), "what runs")
	assert.Equal(b, text, b.read("etc/ringway.yaml"), "the file")
	assert.Equal(b, text, string(b.machine.running.Text), "what the daemon believes")
}

func (b *bench) apply(c *Committer, text string, wait time.Duration) error {
	_, err := c.Apply(b.Context(), []byte(text), "new.yaml", wait)
	return err
}

// disk returns all files, for insert.
func (b *bench) disk() map[string]string {
	b.Helper()
	files := map[string]string{}
	require.NoError(b, filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[path] = string(text)
		return err
	}))
	return files
}

func (b *bench) insert(files map[string]string) {
	b.Helper()
	for path := range b.disk() {
		require.NoError(b, os.Remove(path))
	}
	for path, text := range files {
		require.NoError(b, os.WriteFile(path, []byte(text), 0o640))
	}
}

func (b *bench) record(change func(*record)) {
	r, err := readRecord(b.path("state/trial.json"))
	require.NoError(b, err)
	change(r)
	text, err := json.Marshal(r)
	require.NoError(b, err)
	b.write("state/trial.json", string(text))
}
