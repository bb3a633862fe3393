package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
)

// fakeBox runs configs in a file, which outlives the program as the kernel's state does. A text that begins with "bad" is
// no config, one that begins with "refused" cannot be applied, one that begins with "mute" leaves nothing running.
type fakeBox struct {
	kernel  string
	step    func(string)
	running loaded
	bad     string // no config any more
}

func (b *fakeBox) load(text []byte, name string) (loaded, error) {
	if strings.HasPrefix(string(text), "bad") || b.bad != "" && string(text) == b.bad {
		return loaded{}, fmt.Errorf("%s: bad", name)
	}
	return loaded{text: text, cfg: &config.Config{}}, nil
}

func (b *fakeBox) runningLocked() loaded { return b.running }

func (b *fakeBox) takeLocked(_ context.Context, l loaded) ([]string, error) {
	b.running = l
	if err := os.WriteFile(b.kernel, l.text[:len(l.text)/2], 0o600); err != nil {
		return nil, err
	}
	b.step("half")
	if strings.HasPrefix(string(l.text), "mute") {
		return nil, errors.New("no firewall")
	}
	return []string{"changed"}, os.WriteFile(b.kernel, l.text, 0o600)
}

func (b *fakeBox) tryLocked(ctx context.Context, l loaded) ([]string, error) {
	lines, err := b.takeLocked(ctx, l)
	if strings.HasPrefix(string(l.text), "refused") {
		err = errors.New("no such device")
	}
	return lines, err
}

// bench is a box's disk, its kernel and its clock.
type bench struct {
	*testing.T
	dir  string
	boot string
	now  time.Duration
	box  *fakeBox
}

const (
	oldText = "site: old\n"
	newText = "site: brand-new\n"
)

func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: t.TempDir(), boot: "first", now: time.Hour}
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

// trial is the part of a daemon that is about to start, after whatever became of the one before.
func (b *bench) trial(step func(string)) *trial {
	b.box = &fakeBox{kernel: b.path("kernel"), step: step}
	tr := newTrial(b.box, Paths{State: b.path("state")}, b.file(), slog.New(slog.DiscardHandler))
	tr.boot, tr.now, tr.step = func() (string, error) { return b.boot, nil }, func() time.Duration { return b.now }, step
	return tr
}

// start is a daemon that starts.
func (b *bench) start() *trial {
	b.Helper()
	tr := b.trial(func(string) {})
	l, err := tr.begin()
	require.NoError(b, err)
	require.NoError(b, tr.startLocked(b.Context(), l))
	return tr
}

// runs demands that text is the config, in the kernel, on the disk, and in memory.
func (b *bench) runs(text string) {
	b.Helper()
	assert.Equal(b, text, b.read("kernel"), "what runs")
	assert.Equal(b, text, b.read("etc/ringway.yaml"), "the file")
	assert.Equal(b, text, string(b.box.running.text), "what the daemon believes")
}

func (b *bench) apply(tr *trial, text string, wait time.Duration) error {
	_, err := tr.applyLocked(b.Context(), []byte(text), "new.yaml", wait)
	return err
}

func TestAConfigOnTrialGoesBackAtTheDeadline(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	assert.Nil(t, tr.status())
	require.NoError(t, b.apply(tr, newText, 2*time.Minute))
	b.runs(newText)
	b.now += 30 * time.Second
	tr.lookLocked(t.Context())
	b.runs(newText)
	assert.Equal(t, &ConfirmationStatus{State: "waiting", LeftS: 90}, tr.status())
	assert.Equal(t, "NOT CONFIRMED: the config before comes back in 1m30s unless `ringway confirm` is given", tr.status().String())
	fi, err := os.Stat(b.path("state/trial.json"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), fi.Mode().Perm())

	b.now += 90 * time.Second
	tr.lookLocked(t.Context())
	b.runs(oldText)
	fi, err = os.Stat(b.file())
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), fi.Mode().Perm(), "the file's own rights")
	assert.Equal(t, &ConfirmationStatus{State: "undone", Reason: "it was not confirmed in time", Kept: b.path("state/refused.yaml")}, tr.status())
	assert.Equal(t, newText, b.read("state/refused.yaml"))
	assert.ErrorContains(t, tr.confirmLocked(), "too late: the config was undone (it was not confirmed in time); it is kept in "+b.path("state/refused.yaml"))
	assert.NoFileExists(t, b.path("state/trial.json"))

	require.NoError(t, b.apply(tr, newText, 0), "and nothing stands in the way of the next")
	assert.Nil(t, tr.status())
	b.runs(newText)
}

func TestAConfirmedConfigStays(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	assert.EqualError(t, tr.confirmLocked(), "no config waits for a confirmation")
	require.NoError(t, b.apply(tr, newText, time.Minute))
	require.NoError(t, tr.confirmLocked())
	assert.Nil(t, tr.status())
	b.now += time.Hour
	tr.lookLocked(t.Context())
	b.runs(newText)
	b.boot = "second"
	b.start()
	b.runs(newText)
	assert.NoFileExists(t, b.path("state/refused.yaml"))
}

func TestAConfigOnTrialIsTakenBackOnDemand(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	assert.ErrorContains(t, tr.undoAskedLocked(t.Context()), "nothing is to be undone")
	require.NoError(t, b.apply(tr, newText, time.Minute))
	require.NoError(t, tr.undoAskedLocked(t.Context()))
	b.runs(oldText)
}

// While one waits, whatever else would change the config is refused, and says what to do.
func TestOneTrialAtATime(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	require.NoError(t, b.apply(tr, newText, time.Minute))
	const busy = "a config waits for its confirmation, 1m0s are left: first keep it (`ringway confirm`) or take it back (`ringway confirm --undo`)"
	assert.EqualError(t, b.apply(tr, "site: third\n", time.Minute), busy)
	assert.EqualError(t, b.apply(tr, "site: third\n", 0), busy)
	assert.EqualError(t, tr.busy(), busy)
	b.runs(newText)
}

func TestAWrongConfigOrTimeChangesNothing(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	for want, err := range map[string]error{
		"new.yaml: bad": b.apply(tr, "bad\n", time.Minute),
		"a confirmation within 1s cannot be waited for (allowed: 5s to 24h0m0s)":      b.apply(tr, newText, time.Second),
		"a confirmation within 48h0m0s cannot be waited for (allowed: 5s to 24h0m0s)": b.apply(tr, newText, 48*time.Hour),
	} {
		assert.EqualError(t, err, want)
	}
	b.runs(oldText)
	assert.Nil(t, tr.status())
}

// With and without a trial: what cannot be applied is undone at once.
func TestAConfigThatCannotBeAppliedIsUndoneAtOnce(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		for _, text := range []string{"refused: no such device\n", "mute: everything\n"} {
			b := newBench(t)
			tr := b.start()
			err := b.apply(tr, text, wait)
			require.ErrorContains(t, err, "what ran before runs on: ")
			require.ErrorContains(t, err, "(the config is kept in "+b.path("state/refused.yaml")+")")
			b.runs(oldText)
			assert.Equal(t, "undone", tr.status().State)
			assert.NoFileExists(t, b.path("state/trial.json"))
			assert.Equal(t, text, b.read("state/refused.yaml"))
		}
	}
}

// The operator edited the file in its place: what ran is what the daemon has loaded, not what the file says.
func TestAFileThatWasEditedInItsPlaceGoesBackToWhatRan(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	b.write("etc/ringway.yaml", newText)
	require.NoError(t, b.apply(tr, newText, time.Minute))
	b.runs(newText)
	b.write("etc/ringway.yaml", "site: edited meanwhile\n")
	b.now += time.Minute
	tr.lookLocked(t.Context())
	b.runs(oldText)
	assert.Equal(t, "site: edited meanwhile\n", b.read("state/refused.yaml"), "nobody's work is lost")
}

func TestAConfigBehindALinkStaysBehindIt(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Rename(b.file(), b.path("etc/real.yaml")))
	require.NoError(t, os.Symlink("real.yaml", b.file()))
	tr := b.start()
	require.NoError(t, b.apply(tr, newText, 0))
	assert.Equal(t, newText, b.read("etc/real.yaml"))
	to, err := os.Readlink(b.file())
	require.NoError(t, err)
	assert.Equal(t, "real.yaml", to)
}

// What a start makes of what the daemon before it left.
func TestAStartFindsATrial(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*bench)
		want   string
		reason string // empty: it waits on
	}{
		{"a daemon that died", func(b *bench) { b.now += 59 * time.Second }, newText, ""},
		{"a daemon that died, started late", func(b *bench) { b.now += 61 * time.Second }, oldText, "it was not confirmed in time"},
		{"a reboot", func(b *bench) { b.boot, b.now = "second", time.Second }, oldText, "the machine was booted before it was confirmed"},
		{"a reboot with a broken file", func(b *bench) { b.boot = "second"; b.write("etc/ringway.yaml", "bad\n") }, oldText, "the machine was booted before it was confirmed"},
		{"a daemon that died while it applied", func(b *bench) { b.record(func(r *record) { r.Phase = applying }) }, oldText, "the daemon ended while it was being applied"},
		{"a daemon that died while it went back", func(b *bench) { b.record(func(r *record) { r.Phase, r.Reason = undoing, "it was taken back" }) }, oldText, "it was taken back"},
		{"a new config that cannot be applied any more", func(b *bench) { b.record(func(r *record) { r.New.Text = []byte("mute: x\n") }) }, oldText, "it cannot be applied: no firewall"},
		{"a new config that does not load any more", func(b *bench) { b.record(func(r *record) { r.New.Text = []byte("bad: x\n") }) }, oldText, "it does not load any more: : bad"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			require.NoError(t, b.apply(b.start(), newText, time.Minute))
			c.change(b)
			tr := b.start()
			b.runs(c.want)
			require.NotNil(t, tr.status())
			assert.Equal(t, c.reason, tr.status().Reason)
			if c.reason != "" {
				assert.Equal(t, "undone", tr.status().State)
				return
			}
			assert.Equal(t, &ConfirmationStatus{State: "waiting", LeftS: 1}, tr.status(), "the time goes on")
			b.now += time.Second
			tr.lookLocked(t.Context())
			b.runs(oldText)
		})
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

// The file cannot be put back (here: its folder is gone; at a box, its disk is read-only): the old config runs, the
// record stays, and it is tried again.
func TestAFileThatCannotBePutBackIsTriedAgain(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	require.NoError(t, b.apply(tr, newText, time.Minute))
	require.NoError(t, os.Rename(b.path("etc"), b.path("elsewhere")))
	b.now += time.Minute
	tr.lookLocked(t.Context())
	assert.Equal(t, oldText, b.read("kernel"))
	assert.Equal(t, "undoing", tr.status().State)
	assert.Contains(t, tr.status().String(), "it was not confirmed in time: write "+b.file())
	assert.ErrorContains(t, tr.confirmLocked(), "too late")
	assert.ErrorContains(t, b.apply(tr, newText, 0), "a config is being undone")

	tr = b.start() // it is not what a start fails at
	assert.Equal(t, oldText, b.read("kernel"))
	assert.Equal(t, "undoing", tr.status().State)

	require.NoError(t, os.Rename(b.path("elsewhere"), b.path("etc")))
	tr.lookLocked(t.Context())
	assert.Equal(t, newText, b.read("etc/ringway.yaml"), "not at once")
	b.now += undoAgainIn
	tr.lookLocked(t.Context())
	b.runs(oldText)
	assert.Equal(t, "undone", tr.status().State)
}

// The config before does not load any more (a key file that is gone): what runs runs on, says so, and may be kept.
func TestNoWayBack(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.apply(b.start(), newText, time.Minute))
	for _, boot := range []string{"first", "second"} {
		b.boot = boot
		tr := b.trial(func(string) {})
		b.box.bad = oldText
		l, err := tr.begin()
		require.NoError(t, err)
		require.NoError(t, tr.startLocked(t.Context(), l))
		b.runs(newText)
		b.now += time.Minute
		tr.lookLocked(t.Context())
		b.runs(newText)
		assert.Equal(t, "undoing", tr.status().State)
		assert.Contains(t, tr.status().Reason, "the config before: ")
		if boot == "second" {
			require.NoError(t, tr.confirmLocked())
			assert.Nil(t, tr.status())
		}
	}
}

func TestARecordThatCannotBeReadKeepsNothingFromStarting(t *testing.T) {
	for _, text := range []string{"{", "{}", `{"phase": "later"}`, ""} {
		b := newBench(t)
		b.write("state/trial.json", text)
		tr := b.start()
		b.runs(oldText)
		assert.NoError(t, tr.busy())
	}
}

func TestAFolderThatCannotBeWrittenIsSaidBefore(t *testing.T) {
	b := newBench(t)
	tr := b.start()
	require.NoError(t, os.RemoveAll(b.path("etc")))
	assert.ErrorContains(t, b.apply(tr, newText, time.Minute), "cannot write "+b.path("etc")+": no such file or directory (a unit of systemd's wants ReadWritePaths="+b.path("etc")+")")
	assert.Equal(t, oldText, b.read("kernel"))
}

// scene is one life of a daemon, in a process of its own that ends itself by SIGKILL after so many steps.
type scene struct {
	Dir, Boot, Do string
	Now, Wait     time.Duration
	KillAt        int // steps; 0: never
}

const sceneEnv = "RINGWAY_TEST_TRIAL"

// TestTrialInAProcess is that process.
func TestTrialInAProcess(t *testing.T) {
	env := os.Getenv(sceneEnv)
	if env == "" {
		t.Skip("is run by TestKilledAtAnyStep")
	}
	var s scene
	require.NoError(t, json.Unmarshal([]byte(env), &s))
	b := &bench{T: t, dir: s.Dir, boot: s.Boot, now: s.Now}
	n := 0
	tr := b.trial(func(string) {
		if n++; n == s.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	l, err := tr.begin()
	require.NoError(t, err)
	require.NoError(t, tr.startLocked(t.Context(), l))
	switch s.Do {
	case "edit and apply":
		b.write("etc/ringway.yaml", newText)
		fallthrough
	case "apply":
		require.NoError(t, b.apply(tr, newText, s.Wait))
	case "apply what is refused":
		require.Error(t, b.apply(tr, "refused: x\n", s.Wait))
	case "confirm":
		require.NoError(t, tr.confirmLocked())
	}
}

// play says whether the process came to its end.
func (s scene) play(t *testing.T) (ended bool) {
	t.Helper()
	env, err := json.Marshal(s)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestTrialInAProcess$")
	cmd.Env = append(os.Environ(), sceneEnv+"="+string(env))
	out, err := cmd.CombinedOutput()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() && st.Signal() == syscall.SIGKILL {
		return false
	}
	require.NoError(t, err, "%s", out)
	return true
}

// The daemon is killed after each step of each thing that it does, and again after each step of the start that follows. Whatever
// is left, one start more ends in the old config or the new one: in the kernel, on the disk and in memory.
func TestKilledAtAnyStep(t *testing.T) {
	const wait = time.Minute
	onTrial := func(b *bench) { require.NoError(b, b.apply(b.start(), newText, wait)) }
	for _, c := range []struct {
		name   string
		before func(*bench)
		scene  scene
		early  []string // what may run within the time
		late   []string // when it is over
	}{
		{"applied on trial", func(b *bench) { b.start() }, scene{Do: "apply", Wait: wait}, []string{oldText, newText}, []string{oldText}},
		{"edited and applied on trial", func(b *bench) { b.start() }, scene{Do: "edit and apply", Wait: wait}, []string{oldText, newText}, []string{oldText}},
		{"applied for good", func(b *bench) { b.start() }, scene{Do: "apply"}, []string{oldText, newText}, []string{oldText, newText}},
		{"applied and refused", func(b *bench) { b.start() }, scene{Do: "apply what is refused", Wait: wait}, []string{oldText}, []string{oldText}},
		{"confirmed", onTrial, scene{Do: "confirm"}, []string{newText}, []string{oldText, newText}},
		{"started in time", onTrial, scene{}, []string{newText}, []string{oldText}},
		{"started too late", onTrial, scene{Now: wait}, []string{oldText}, []string{oldText}},
		{"booted", onTrial, scene{Boot: "second"}, []string{oldText}, []string{oldText}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.before(b)
			first := b.disk()
			s := c.scene
			s.Dir, s.Now = b.dir, s.Now+b.now
			if s.Boot == "" {
				s.Boot = b.boot
			}
			kills := 0
			for ended := false; !ended; {
				s.KillAt++
				b.insert(first)
				if ended = s.play(t); !ended {
					kills++
				}
				left := b.disk()
				late := c.late
				if _, recorded := left[b.path("state/trial.json")]; !recorded && s.Do == "edit and apply" {
					late = []string{oldText, newText} // an edited file is what a start takes, as ever; nobody has applied it yet
				}
				next := scene{Dir: s.Dir, Boot: s.Boot, Now: s.Now} // the start that follows
				for done := false; !done; {
					next.KillAt++
					b.insert(left)
					done = next.play(t)
					last := b.disk()
					for _, end := range []struct {
						boot string
						now  time.Duration
						may  []string
					}{{s.Boot, s.Now, c.early}, {s.Boot, s.Now + wait, late}, {"next", time.Second, late}} {
						b.insert(last)
						b.boot, b.now = end.boot, end.now
						b.start()
						b.runs(b.read("kernel"))
						assert.Contains(t, end.may, b.read("kernel"), "killed after step %d, and after step %d of the start", s.KillAt, next.KillAt)
					}
				}
			}
			t.Logf("%d kills", kills)
			assert.Positive(t, kills)
		})
	}
}

// disk is all files of the bench, to be inserted again.
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
