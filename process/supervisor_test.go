package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func TestAProcessStartsConfinedAndSaysWhoItIs(t *testing.T) {
	netnstest.Root(t)
	h := newHouse(t)
	k, _ := h.supervise()
	<-k.Ready()
	i := k.Current()
	assert.Equal(t, 3, i.Hello.Major)
	assert.Equal(t, "of the test", i.Hello.Build)
	assert.Equal(t, i.PID(), i.Hello.PID)
	var own workings
	require.NoError(t, i.DecodeHello(&own))
	assert.True(t, own.Working, "the kind's own fields")
	assert.Empty(t, i.Missing)
	assert.Empty(t, i.Hello.Missing)
	for _, x := range []string{
		"landlock", "seccomp", "no capabilities", "no new privileges", "user 61899", "at most 64 files",
	} {
		assert.Contains(t, i.Hello.Sandbox, x)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", i.PID()))
	require.NoError(t, err)
	assert.Equal(t, "rw-tester\n", string(comm))
	polltest.Require(t, func() bool {
		return strings.Contains(h.log.String(), "msg=works process=tester how=well")
	}, patience, time.Millisecond, "its log is the daemon's")
}

func TestASandboxHoldsWhatItsKindDoesNotName(t *testing.T) {
	h := newHouse(t)
	k, _ := h.supervise()
	secret := filepath.Join(h.run, "secret")
	require.NoError(t, os.WriteFile(secret, nil, 0o644))
	require.NoError(t, os.Chmod(h.run, 0o755))

	got, err := k.ask("try", "read "+filepath.Join(h.readable, "certificate"))
	require.NoError(t, err)
	assert.Equal(t, "readable", got)
	_, err = k.ask("try", "priority")
	require.NoError(t, err)

	for what, want := range map[string]string{
		"read " + secret:   "permission denied", // landlock: file modes would allow it
		"read /etc/passwd": "permission denied", // landlock
		"write " + filepath.Join(h.readable, "new"): "operation not permitted", // seccomp
		"socket":              "operation not permitted",
		"exec":                "operation not permitted",
		"priority-of-another": "operation not permitted", // an argument that its kind did not name
	} {
		_, err := k.ask("try", what)
		assert.ErrorContains(t, err, want, what)
	}
}

func TestAProcessThatHangsIsReplaced(t *testing.T) {
	h := newHouse(t)
	h.timing = quick
	k, _ := h.supervise()
	pid := k.Current().PID()
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	second := k.pidOtherThan(t, pid)
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH, "killed and reaped")
	assert.Contains(t, h.log.String(), "hangs: ")

	// A handler that never returns hangs the process, although the process answers others.
	_, err := k.Current().Call(context.Background(), Request{Type: "hang", Within: time.Millisecond})
	require.ErrorIs(t, err, ErrNoAnswer)
	k.pidOtherThan(t, second)
	assert.GreaterOrEqual(t, k.Restarts(), 2)
}

func TestAProcessThatDiesIsReplacedLaterAndLater(t *testing.T) {
	h := newHouse(t)
	k, _ := h.supervise()
	for range 3 {
		pid := k.Current().PID()
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		k.pidOtherThan(t, pid)
		assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH, "reaped, no zombie")
	}
	pid := k.Current().PID()
	_, err := k.ask("exit", "")
	require.ErrorIs(t, err, ErrLost)
	k.pidOtherThan(t, pid)
	assert.Equal(t, 4, k.Restarts())
	assert.Contains(t, h.log.String(), "signal: killed")
	assert.Contains(t, h.log.String(), "exit status 7")

	var last time.Duration
	for failures := 1; failures < 20; failures++ {
		wait := backoff(failures)
		assert.GreaterOrEqual(t, wait, last)
		assert.LessOrEqual(t, wait, backoffLast)
		last = wait
	}
	assert.Equal(t, backoffLast, last)
}

// What a process says at last is heard before another one takes its place, however slowly it is heard.
func TestTheLastWordsOfAProcessAreHeard(t *testing.T) {
	const words = 50
	h := newHouse(t)
	heard, revived := 0, -1
	var mu sync.Mutex
	h.events = map[string]func(*Message){"said": func(*Message) {
		<-time.After(time.Millisecond) // a daemon that is busy
		mu.Lock()
		defer mu.Unlock()
		heard++
	}}
	h.revived = func() {
		mu.Lock()
		defer mu.Unlock()
		revived = heard
	}
	k, _ := h.supervise()
	pid := k.Current().PID()
	_, err := k.Current().Call(context.Background(),
		Request{Type: "last-words", Body: word{Count: words}, Within: patience})
	require.ErrorIs(t, err, ErrLost)
	k.pidOtherThan(t, pid)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, words, revived)
}

// A process that lives, and has lost its connection, can be asked before it is killed.
func TestAProcessThatIsLostCanBeAskedBeforeItIsKilled(t *testing.T) {
	h := newHouse(t)
	var answer word
	h.last = func() {
		c, err := Dial(testKind(h.readable), h.run)
		if !assert.NoError(t, err) {
			return
		}
		defer c.Close()
		m, err := c.Call(context.Background(), Request{Type: "echo", Body: word{Word: "what else"}})
		if assert.NoError(t, err) {
			assert.NoError(t, m.Decode(&answer))
			m.Close()
		}
	}
	k, _ := h.supervise()
	pid := k.Current().PID()
	require.NoError(t, k.Current().conn.w.c.CloseRead())
	k.pidOtherThan(t, pid)
	assert.Equal(t, "what else", answer.Word)
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
}

func TestANextSupervisorAdopts(t *testing.T) {
	h := newHouse(t)
	says := func(w string) map[string]Handler {
		return map[string]Handler{"hole": func(context.Context, *Message) (Reply, error) {
			return Reply{Body: word{Word: w}}, nil
		}}
	}
	h.requests = says("first")
	k, release := h.supervise()
	pid := k.Current().PID()
	release()
	require.NoError(t, unix.Kill(pid, 0), "it works on")

	h.requests = says("second")
	k, release = h.supervise()
	require.Equal(t, pid, k.Current().PID())
	assert.True(t, k.Current().Adopted)
	got, err := k.ask("relay", "hole")
	require.NoError(t, err)
	assert.Equal(t, "second", got, "it asks the daemon that is there")

	k.Lock()
	files, err := k.takeBack(context.Background(), k.Current())
	k.Unlock()
	require.NoError(t, err)
	require.Len(t, files, 1)
	assert.Equal(t, "in", files[0].Name)
	CloseFiles(files...)

	// An adopted one that dies is seen, too, although it is nobody's child here.
	release()
	k, _ = h.supervise()
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	k.pidOtherThan(t, pid)
}

// A process may stop at any moment of its adoption. It is replaced whether it stops before the first hello,
// between the two, or when it is to hand its descriptors back.
func TestAProcessThatStopsWhileItIsAdoptedIsReplaced(t *testing.T) {
	for hellos, when := range []string{"before the first hello", "between the two hellos"} {
		t.Run(when, func(t *testing.T) {
			h := newHouse(t)
			h.timing = quick
			h.timing.HealthEvery = time.Hour
			k, release := h.supervise()
			pid := k.Current().PID()
			stop := Request{Type: "stop-at-hello", Body: word{Count: hellos + 1}}
			require.NoError(t, k.Current().Ask(context.Background(), stop, nil))
			release()

			k, _ = h.supervise()
			assert.NotEqual(t, pid, k.Current().PID())
			assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
			assert.Contains(t, h.log.String(), "a process of an earlier daemon hangs and is replaced")
		})
		t.Run(when+", without a supervisor", func(t *testing.T) {
			h := newHouse(t)
			h.timing = quick
			h.timing.HealthEvery = time.Hour
			k, release := h.supervise()
			i := k.Current()
			stop := Request{Type: "stop-at-hello", Body: word{Count: hellos + 1}}
			require.NoError(t, i.Ask(context.Background(), stop, nil))
			release()
			_, err := Quit(context.Background(), testKind(h.readable), h.run, h.timing)
			require.NoError(t, err)
			polltest.Require(t, func() bool { // it is this test's child, which nobody watches any more
				got, err := unix.Wait4(i.PID(), nil, unix.WNOHANG, nil)
				return got == i.PID() || err != nil
			}, patience, time.Millisecond)
			left, err := os.ReadDir(h.run)
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

func TestARecordOfAnotherProcessKillsNobody(t *testing.T) {
	h := newHouse(t)
	require.NoError(t, os.MkdirAll(h.run, 0o700))
	k := testKind(h.readable)
	other := exec.Command("sleep", "1000")
	require.NoError(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()

	require.NoError(t, os.WriteFile(k.pidPath(h.run), []byte(strconv.Itoa(other.Process.Pid)+" 1\n"), 0o600))
	require.NoError(t, killRecorded(k, h.run, defaultTiming), "the number is somebody else's by now")
	require.NoError(t, other.Process.Signal(syscall.Signal(0)))
	for _, bad := range []string{"", "1 1\n", "x y\n", "7\n"} {
		require.NoError(t, os.WriteFile(k.pidPath(h.run), []byte(bad), 0o600))
		assert.Error(t, killRecorded(k, h.run, defaultTiming), bad)
	}
	require.NoError(t, os.Remove(k.pidPath(h.run)))
	assert.ErrorIs(t, killRecorded(k, h.run, defaultTiming), ErrHung)
}

func TestOnlyRootAndTheDaemonControlAProcess(t *testing.T) {
	netnstest.Root(t)
	h := newHouse(t)
	k, _ := h.supervise()
	path := testKind(h.readable).controlPath(h.run)
	st, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	// Even where files and directories let others in, the process does not.
	require.NoError(t, os.Chmod(h.run, 0o755))
	require.NoError(t, os.Chmod(path, 0o666))
	self, err := os.Executable()
	require.NoError(t, err)
	program, err := os.Open(self)
	require.NoError(t, err)
	defer program.Close()
	cmd := exec.Command("/proc/self/fd/3", "stranger", path)
	cmd.ExtraFiles = []*os.File{program}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "uid 65534 may not control this process (allowed: root, the daemon's user)")
	got, err := k.ask("echo", "still there")
	require.NoError(t, err)
	assert.Equal(t, "still there", got)
}

func TestAFloodOfLogLinesIsLimitedAndCounted(t *testing.T) {
	h := newHouse(t)
	k, _ := h.supervise()
	const lines = 5000
	flood := func(count int) {
		r := Request{Type: "flood", Body: word{Count: count}, Within: patience}
		require.NoError(t, k.Current().Ask(context.Background(), r, nil))
	}
	flood(lines)

	// Once the flood is over, a record that gets through carries the counts of all that did not.
	logged := func() int { return strings.Count(h.log.String(), "msg=flood") }
	polltest.Require(t, func() bool {
		flood(1)
		return int(k.LogDropped())+logged() >= lines
	}, patience, 20*time.Millisecond)
	t.Logf("%d of %d lines were logged, %d dropped", logged(), lines, k.LogDropped())
	assert.Less(t, logged(), lines/4)
	polltest.Require(t, func() bool {
		flood(1)
		return strings.Contains(h.log.String(), "log lines of the process were dropped: too many")
	}, patience, 20*time.Millisecond)
}

func TestALongLogRecordIsCut(t *testing.T) {
	log := &testLog{}
	k := &Supervisor{limit: newLogLimit(), log: newTestLogger(log)}
	attrs := map[string]any{}
	for i := range 1000 {
		attrs[fmt.Sprint("key", i)] = strings.Repeat("v", 1<<16)
	}
	k.logRecord(&logRecord{Message: strings.Repeat("m", 1<<20), Attrs: attrs})
	assert.Contains(t, log.String(), strings.Repeat("m", logTextMax)+"...")
	assert.Less(t, len(log.String()), (logAttrs+2)*(logTextMax+100))
}

func TestOutputOnStderrThatIsTooLongIsCut(t *testing.T) {
	var log bytes.Buffer
	h := &house{log: &testLog{}}
	k := &Supervisor{limit: newLogLimit(), cfg: Config{Kind: testKind("")}}
	k.log = newTestLogger(h.log)
	for i := range 100 {
		fmt.Fprintf(&log, "line %d\n", i)
	}
	log.WriteString(strings.Repeat("x", 3*stderrLineMax))
	k.forwardStderr(&log, 1)
	assert.Equal(t, stderrLines, strings.Count(h.log.String(), "process wrote to stderr"))
	assert.EqualValues(t, 100-stderrLines+3, k.LogDropped())
}

func TestAProcessWhoseDaemonDiesBeforeItWorksEnds(t *testing.T) {
	h := newHouse(t)
	k, release := h.supervise()
	k.Lock()
	i, err := k.Launch(context.Background(), k.files, nil)
	k.Unlock()
	require.NoError(t, err)
	i.conn.close()
	<-i.Exited()
	assert.Equal(t, "exit status 0", i.proc.reason)
	k.Release(i)
	release()
}

func TestSignalsForTheDaemonAreIgnored(t *testing.T) {
	h := newHouse(t)
	k, release := h.supervise()
	pid := k.Current().PID()
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1} {
		require.NoError(t, unix.Kill(pid, sig))
		_, err := k.ask("echo", "")
		require.NoError(t, err, sig)
	}
	assert.Equal(t, pid, k.Current().PID())

	// SIGTERM comes at the shutdown of the machine, when nobody brings the process back.
	release()
	p, err := watchStranger(pid)
	require.NoError(t, err)
	defer p.release()
	require.NoError(t, unix.Kill(pid, unix.SIGTERM))
	<-p.exited
	assert.Equal(t, "exit status 0", p.reason)
}

func TestTheCommandByHandSaysSo(t *testing.T) {
	_, err := NewChild(ChildOptions{})
	assert.EqualError(t, err, "this command is started by ringway run, not by hand")
}
