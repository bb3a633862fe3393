package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/test/polltest"
)

// patience bounds what must happen.
const patience = 20 * time.Second

// The test binary is the supervised process, too: a supervisor executes its own program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "child":
			if err := childMain(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "stranger": // another user that requests a process's descriptors
			fmt.Println(strangerMain(os.Args[2]))
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// testKind is a kind of process that does nothing but what the tests ask of it.
func testKind(readable string) Kind {
	return Kind{
		Name: "tester", Protocol: Protocol{Major: 3, Minor: 4}, Args: []string{"child", readable}, EnvPrefix: "TESTER",
		Env:  []string{"GORACE=" + os.Getenv("GORACE")},
		User: "ringway-no-such-user", UserID: 61899,
	}
}

// word is the body of all requests and answers of the test kind.
type word struct {
	Word  string `json:"word,omitempty"`
	Count int    `json:"count,omitempty"`
}

// workings are the test kind's own fields of hello.
type workings struct {
	Working bool `json:"working"`
}

// tester is the state of the test kind's process.
type tester struct {
	child *Child

	mu        sync.Mutex
	working   bool
	kept      int // a descriptor that was handed over later
	stopAfter int // stop this process before it answers one more hello than that; 0: never
}

func childMain(readable string) error {
	t := &tester{kept: NoFD}
	o := ChildOptions{
		Protocol: Protocol{Major: 3, Minor: 4}, EnvPrefix: "TESTER", Build: "of the test", Hello: t.hello, MaxRequests: 4,
		Sandbox: Sandbox{OpenFiles: 64, Memory: 1 << 30, // less is too little for the race detector
			ReadPaths: []string{readable},
			Calls:     []Call{{Number: unix.SYS_SCHED_GETATTR, Args: []Arg{Only(0, 0)}}}},
		Handlers: map[string]Handler{
			"work": t.work, "echo": t.echo, "keep": t.keep, "give": t.give, "relay": t.relay, "flood": t.flood,
			"try": t.try, "stop-at-hello": t.stopAtHello, "relay-many": t.relayMany,
			"exit": func(context.Context, *Message) (Reply, error) { os.Exit(7); return Reply{}, nil },
			"hang": func(context.Context, *Message) (Reply, error) { select {} },
			"fill": t.fill, "last-words": t.lastWords,
		},
	}
	c, err := NewChild(o)
	if err != nil {
		return err
	}
	t.child = c
	return c.Run(nil)
}

func (t *tester) hello() any {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopAfter > 0 {
		if t.stopAfter--; t.stopAfter == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
			select {} // another thread may be the first to stop
		}
	}
	return workings{t.working}
}

func (t *tester) stopAtHello(_ context.Context, m *Message) (Reply, error) {
	var w word
	err := m.Decode(&w)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopAfter = w.Count
	return Reply{}, err
}

func (t *tester) work(context.Context, *Message) (Reply, error) {
	t.mu.Lock()
	t.working = true
	t.mu.Unlock()
	t.child.Log().Info("works", "how", "well")
	return Reply{}, t.child.Open()
}

func (t *tester) echo(_ context.Context, m *Message) (Reply, error) {
	var w word
	if err := m.Decode(&w); err != nil {
		return Reply{}, err
	}
	if w.Word == "refuse me" {
		return Reply{}, errors.New("refused as asked")
	}
	return Reply{Body: w}, nil
}

// keep holds on to a descriptor and says what can be read from it.
func (t *tester) keep(_ context.Context, m *Message) (Reply, error) {
	files := m.TakeFiles()
	if len(files) != 1 {
		CloseFiles(files...)
		return Reply{}, fmt.Errorf("%d descriptors", len(files))
	}
	t.kept = files[0].FD
	b := make([]byte, 100)
	n, err := unix.Read(t.kept, b)
	return Reply{Body: word{Word: files[0].Name + " holds " + string(b[:max(n, 0)])}}, err
}

func (t *tester) give(context.Context, *Message) (Reply, error) {
	return Reply{Files: []File{{"kept", t.kept}}}, nil
}

// relay asks the daemon what it was asked, with a descriptor.
func (t *tester) relay(ctx context.Context, m *Message) (Reply, error) {
	var w word
	if err := m.Decode(&w); err != nil {
		return Reply{}, err
	}
	r := Request{Type: w.Word, Body: word{Word: "from the process"}, Within: 500 * time.Millisecond}
	if t.kept != NoFD {
		r.Files = []File{{"kept", t.kept}}
	}
	a, err := t.child.Ask(ctx, r)
	if err != nil {
		return Reply{}, err
	}
	defer a.Close()
	if err := a.Decode(&w); err != nil {
		return Reply{}, err
	}
	if len(a.Files()) == 1 {
		b := make([]byte, 100)
		n, err := unix.Read(a.Files()[0].FD, b)
		if err != nil {
			return Reply{}, err
		}
		w.Word += " with " + string(b[:n])
	}
	return Reply{Body: w}, nil
}

// relayMany asks the daemon more at once than may be in flight, and counts what was refused at once.
func (t *tester) relayMany(ctx context.Context, m *Message) (Reply, error) {
	var w word
	if err := m.Decode(&w); err != nil {
		return Reply{}, err
	}
	results := make(chan error, w.Count)
	for range w.Count {
		go func() {
			a, err := t.child.Ask(ctx, Request{Type: w.Word, Within: 500 * time.Millisecond})
			if err == nil {
				a.Close()
			}
			results <- err
		}()
	}
	busy := 0
	for range w.Count {
		if errors.Is(<-results, ErrBusy) {
			busy++
		}
	}
	return Reply{Body: word{Count: busy}}, nil
}

func (t *tester) flood(_ context.Context, m *Message) (Reply, error) {
	var w word
	err := m.Decode(&w)
	for i := range w.Count {
		t.child.Log().Info("flood", "line", i)
		if i%100 == 0 { // let some of them out
			time.Sleep(time.Millisecond)
		}
	}
	return Reply{}, err
}

// fill uses up the descriptors that the process may have.
func (t *tester) fill(context.Context, *Message) (Reply, error) {
	for {
		if _, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return Reply{Body: word{Word: err.Error()}}, nil
		}
	}
}

// try does what a process must not be able to do, and what its kind may.
func (t *tester) try(_ context.Context, m *Message) (Reply, error) {
	var w word
	if err := m.Decode(&w); err != nil {
		return Reply{}, err
	}
	what, path, _ := strings.Cut(w.Word, " ")
	switch what {
	case "read":
		b, err := os.ReadFile(path)
		return Reply{Body: word{Word: string(b)}}, err
	case "write":
		return Reply{}, os.WriteFile(path, nil, 0o600)
	case "socket":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		return Reply{}, err
	case "exec":
		return Reply{}, unix.Exec("/bin/true", []string{"true"}, nil)
	case "priority": // what the kind added
		_, err := unix.SchedGetAttr(0, 0)
		return Reply{}, err
	case "priority-of-another":
		_, err := unix.SchedGetAttr(os.Getpid(), 0)
		return Reply{}, err
	}
	return Reply{}, fmt.Errorf("nothing known about %q", what)
}

func strangerMain(path string) error {
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	k, err := newConn(c, connOptions{peer: "tester", daemon: true, timing: defaultTiming})
	if err != nil {
		return err
	}
	k.start()
	_, err = k.Call(context.Background(), Request{Type: typeFiles})
	return err
}

// quick are times for tests of processes that hang. A start may take as long as ever: this machine may be
// busy.
var quick = Timing{
	Answer: 200 * time.Millisecond, Quit: 200 * time.Millisecond, HealthEvery: 20 * time.Millisecond, HealthTries: 2,
}

// house is a daemon of the test kind.
type house struct {
	t        *testing.T
	run      string
	readable string // a directory that the process may read
	log      *testLog
	timing   Timing
	requests map[string]Handler
	pipe     [2]int // handed over at the start

	events  map[string]func(*Message)
	last    func()
	revived func() // before another process is started
}

// testLog collects what is logged; it outlives the test's own log.
type testLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newHouse(t *testing.T) *house {
	t.Helper()
	var ignored goleak.Option
	before := openFiles(t)
	t.Cleanup(func() { // registered first, runs last
		assert.NoError(t, goleak.Find(ignored))
		polltest.Assert(t, func() bool { return openFiles(t) <= before }, patience, time.Millisecond,
			"descriptors are left open")
	})
	ignored = goleak.IgnoreCurrent()
	d, err := os.MkdirTemp("/tmp", "rwproc") // short: a unix socket's path has 108 bytes
	require.NoError(t, err)
	h := &house{t: t, run: filepath.Join(d, "run"), readable: filepath.Join(d, "readable"), log: &testLog{},
		timing: Timing{HealthEvery: time.Hour}}
	require.NoError(t, os.MkdirAll(h.readable, 0o755))
	require.NoError(t, os.Chmod(d, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(h.readable, "certificate"), []byte("readable"), 0o644))
	require.NoError(t, unix.Pipe2(h.pipe[:], unix.O_CLOEXEC))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := Quit(ctx, testKind(h.readable), h.run, h.timing)
		assert.NoError(t, err)
		Close(h.pipe[0], h.pipe[1])
		if t.Failed() {
			t.Log(h.log.String())
		}
		os.RemoveAll(d)
	})
	return h
}

func openFiles(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, fd := range fds {
		// The runtime's own (epoll, eventfd, cgroup files) come when first needed and stay.
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		own := func(prefix string) bool { return strings.HasPrefix(to, prefix) }
		if err == nil && !own("anon_inode:[event") && !own("/sys/") && !own("/proc/") {
			n++
		}
	}
	return n
}

// lastWords pushes so many words and ends.
func (t *tester) lastWords(_ context.Context, m *Message) (Reply, error) {
	var w word
	if err := m.Decode(&w); err != nil {
		return Reply{}, err
	}
	for n := range w.Count {
		t.child.Push("said", word{Count: n + 1})
	}
	os.Exit(7)
	return Reply{}, nil
}

// keeper is what a package of a kind is: it says what its process works on, and how it begins.
type keeper struct {
	*Supervisor
	files []File
}

// ensure has a process work: an earlier daemon's, or a new one.
func (k *keeper) ensure(ctx context.Context) error {
	k.Lock()
	defer k.Unlock()
	k.Want(true)
	i, files, err := k.Adopt(ctx)
	if err != nil || i == nil {
		return errors.Join(err, k.bringUp(ctx))
	}
	CloseFiles(files...) // this test's daemon has its own still
	k.Watch(i)
	return nil
}

func (k *keeper) bringUp(ctx context.Context) error {
	i, err := k.Launch(ctx, k.files, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(i.Ask(ctx, Request{Type: "work", Long: true}, nil), k.Refresh(ctx, i), k.Record(i)); err != nil {
		k.End(i)
		return err
	}
	k.Watch(i)
	return nil
}

// supervise runs a supervisor with a process; the returned function lets it go, as a daemon that ends.
func (h *house) supervise() (*keeper, func()) {
	h.t.Helper()
	k := &keeper{files: []File{{"in", h.pipe[0]}}}
	var err error
	k.Supervisor, err = New(Config{
		Kind: testKind(h.readable), RunDir: h.run, Timing: h.timing, Log: newTestLogger(h.log),
		Requests: h.requests, MaxRequests: 4, Events: h.events, Last: h.last,
		Revive: func(ctx context.Context) error {
			if h.revived != nil {
				h.revived()
			}
			return k.bringUp(ctx)
		},
		Check: func(ctx context.Context, i *Instance) error { return i.Ask(ctx, Request{Type: "echo"}, nil) },
	})
	require.NoError(h.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	var once sync.Once
	release := func() { once.Do(func() { cancel(); assert.NoError(h.t, <-done) }) }
	h.t.Cleanup(release)
	require.NoError(h.t, k.ensure(ctx))
	return k, release
}

// ask sends a word and returns the one that comes back.
func (k *keeper) ask(request, w string) (string, error) {
	var out word
	i := k.Current()
	if i == nil {
		return "", ErrNotRunning
	}
	err := i.Ask(context.Background(), Request{Type: request, Body: word{Word: w}, Within: patience}, &out)
	return out.Word, err
}

// pidOf waits until a process other than old is watched.
func (k *keeper) pidOtherThan(t *testing.T, old int) int {
	t.Helper()
	var pid int
	polltest.Require(t, func() bool {
		i := k.Current()
		if i == nil || i.PID() == old {
			return false
		}
		pid = i.PID()
		return true
	}, patience, time.Millisecond)
	return pid
}

// pipeHolding is the read end of a pipe with text in it.
func pipeHolding(t *testing.T, text string) int {
	t.Helper()
	var p [2]int
	require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	_, err := unix.Write(p[1], []byte(text))
	require.NoError(t, err)
	Close(p[1])
	return p[0]
}
