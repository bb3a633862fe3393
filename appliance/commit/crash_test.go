package commit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// scene is one life of a daemon, in a process of its own that kills itself after a given step.
type scene struct {
	Dir, Boot, Do string
	Now, Wait     time.Duration
	KillAt        int // the number of the step; 0: never
}

const sceneEnv = "TEST_SCENE"

// TestMain is also the process of a scene.
func TestMain(m *testing.M) {
	env := os.Getenv(sceneEnv)
	if env == "" {
		os.Exit(m.Run())
	}
	var s scene
	require.NoError(process{}, json.Unmarshal([]byte(env), &s))
	s.run()
}

// process is what a scene has in place of a *testing.T.
type process struct{}

func (process) Helper()                  {}
func (process) Context() context.Context { return context.Background() }
func (process) FailNow()                 { os.Exit(1) }
func (process) Errorf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

func (s scene) run() {
	b := &bench{tester: process{}, dir: s.Dir, boot: s.Boot, now: s.Now}
	steps := 0
	c := b.committer(func(string) {
		if steps++; steps == s.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	l, err := c.Load()
	require.NoError(b, err)
	require.NoError(b, c.Start(b.Context(), l))

	switch s.Do {
	case "edit and apply":
		b.write("etc/ringway.yaml", newText)
		require.NoError(b, b.apply(c, newText, s.Wait))
	case "apply":
		require.NoError(b, b.apply(c, newText, s.Wait))
	case "apply what is refused":
		require.Error(b, b.apply(c, "refused: x\n", s.Wait))
	case "confirm":
		require.NoError(b, c.Confirm())
	}
}

// play runs the scene and reports whether it came to its end.
func (s scene) play(t *testing.T) (ended bool) {
	t.Helper()
	env, err := json.Marshal(s)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sceneEnv+"="+string(env))
	out, err := cmd.CombinedOutput()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() && st.Signal() == syscall.SIGKILL {
		return false
	}
	require.NoError(t, err, "%s", out)
	return true
}

// The daemon is killed after each step of everything it does, and again after each step of the start that
// follows. Whatever is left, one more start ends in the old config or the new one: in the kernel, on disk and
// in memory.
func TestKilledAfterAnyStep(t *testing.T) {
	const wait = time.Minute
	started := func(b *bench) { b.start() }
	unconfirmed := func(b *bench) { require.NoError(b, b.apply(b.start(), newText, wait)) }
	either, old := []string{oldText, newText}, []string{oldText}

	for _, c := range []struct {
		name   string
		before func(*bench)
		scene  scene
		early  []string // what may run before the deadline
		late   []string // what may run after it
	}{
		{"applied until confirmed", started, scene{Do: "apply", Wait: wait}, either, old},
		{"edited and applied until confirmed", started, scene{Do: "edit and apply", Wait: wait}, either, old},
		{"applied for good", started, scene{Do: "apply"}, either, either},
		{"applied and refused", started, scene{Do: "apply what is refused", Wait: wait}, old, old},
		{"confirmed", unconfirmed, scene{Do: "confirm"}, []string{newText}, either},
		{"started before the deadline", unconfirmed, scene{}, []string{newText}, old},
		{"started after the deadline", unconfirmed, scene{Now: wait}, old, old},
		{"rebooted", unconfirmed, scene{Boot: "second"}, old, old},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.before(b)
			s := c.scene
			s.Dir, s.Now = b.dir, s.Now+b.now
			if s.Boot == "" {
				s.Boot = b.boot
			}
			kills := s.playKilledAfterEachStep(t, b, func() {
				late := c.late
				if s.Do == "edit and apply" && b.read("state/trial.json") == "-" {
					late = either // nobody has applied the edited file yet, so a start takes it as it is
				}
				b.startsAfter(t, s, wait, c.early, late)
			})
			assert.Positive(t, kills)
		})
	}
}

// playKilledAfterEachStep plays the scene from the same disk again and again, killed one step later each
// time, and calls check after each.
func (s scene) playKilledAfterEachStep(t *testing.T, b *bench, check func()) (kills int) {
	first := b.disk()
	for ended := false; !ended; {
		s.KillAt++
		b.insert(first)
		if ended = s.play(t); !ended {
			kills++
		}
		check()
	}
	return kills
}

// startsAfter kills the start after the scene after each of its steps, too, and then starts for good: at
// once, after the deadline, and after a reboot.
func (b *bench) startsAfter(t *testing.T, s scene, wait time.Duration, early, late []string) {
	next := scene{Dir: s.Dir, Boot: s.Boot, Now: s.Now}
	next.playKilledAfterEachStep(t, b, func() {
		left := b.disk()
		for _, end := range []struct {
			boot string
			now  time.Duration
			may  []string
		}{
			{s.Boot, s.Now, early},
			{s.Boot, s.Now + wait, late},
			{"next", time.Second, late},
		} {
			b.insert(left)
			b.boot, b.now = end.boot, end.now
			b.start()
			b.runs(b.read("kernel"))
			assert.Contains(t, end.may, b.read("kernel"))
		}
	})
}
