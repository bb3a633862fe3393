package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config is what a Supervisor needs to know. Kind, RunDir, Check and Revive must be given.
type Config struct {
	Kind    Kind
	Program string // file to run; empty: this process's own binary
	RunDir  string // of control socket and pid file; made 0700
	Timing  Timing
	Log     *slog.Logger

	// Check is a health check. It is best a request that goes through the locks of what the process is there
	// for.
	Check func(ctx context.Context, i *Instance) error
	// Revive brings a process up after the last one ended. It is called with the supervisor locked.
	Revive func(ctx context.Context) error
	// Last is called with the supervisor locked before a process is killed that lives and is lost or hangs: what only it
	// knows can be asked for, on another connection (Dial). nil: nothing is.
	Last func()

	// Requests is what the process may ask of the daemon, by type: each is answered in a goroutine of its
	// own, at most MaxRequests at once (default 64).
	Requests    map[string]Handler
	MaxRequests int
	Large       []string // types of Requests that may be longer than 512 KiB; the others are refused then
	// Events hears what the process pushes, by type, one at a time. They are called by the connection's
	// reader: they must not block, nor call the process.
	Events map[string]func(m *Message)
}

// Supervisor keeps one process of a kind alive. It is a task (Run, Ready, String).
//
// It is a sync.Locker, too: whoever changes which process runs, or its descriptors, holds it. That may take
// seconds. Methods say if they need it.
type Supervisor struct {
	cfg     Config
	timing  Timing
	log     *slog.Logger
	limit   *logLimit
	program int // descriptor of the binary

	op      sync.Mutex
	control int // the listening control socket

	mu       sync.Mutex // guards what follows; held for moments. Order: op, mu
	cur      *Instance
	wanted   bool
	restarts int
	failures int // starts in a row that did not last
	died     time.Time
	tried    time.Time // the latest death or failed start
	closed   bool

	changed   chan struct{} // cur or wanted changed
	ready     chan struct{}
	readyOnce sync.Once
	tasks     sync.WaitGroup
}

// New makes a supervisor; it starts and touches nothing.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Kind.Name == "" || cfg.RunDir == "" || cfg.Check == nil || cfg.Revive == nil {
		return nil, errors.New("supervise a process: Kind.Name, RunDir, Check and Revive are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxRequests == 0 {
		cfg.MaxRequests = defaultMaxRequests
	}
	program, err := openProgram(cfg.Program)
	if err != nil {
		return nil, err
	}
	return &Supervisor{
		cfg: cfg, timing: cfg.Timing.WithDefaults(), log: cfg.Log.With("process", cfg.Kind.Name), limit: newLogLimit(),
		program: program, control: NoFD,
		changed: make(chan struct{}, 1), ready: make(chan struct{}),
	}, nil
}

func (s *Supervisor) String() string { return s.cfg.Kind.Name }

// Lock keeps everybody else from changing which process runs.
func (s *Supervisor) Lock() { s.op.Lock() }

// Unlock is the end of Lock.
func (s *Supervisor) Unlock() { s.op.Unlock() }

// Ready is closed when a process works for the first time.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// Current is the process that is watched; nil if none is.
func (s *Supervisor) Current() *Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur
}

// Closed says whether Close was called.
func (s *Supervisor) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Restarts counts the processes that replaced one that died, hung or was lost.
func (s *Supervisor) Restarts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts
}

// CountRestart counts a replacement that the kind made by itself.
func (s *Supervisor) CountRestart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts++
}

// LogDropped counts the log lines of the process that were not logged, because they were too many.
func (s *Supervisor) LogDropped() uint64 { return s.limit.total() }

// Want says whether a process is to be there: only then Run starts one in place of one that ended.
func (s *Supervisor) Want(wanted bool) {
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	s.notify()
}

// Watch makes i the process that is watched; nil means none. Call it with the supervisor locked.
func (s *Supervisor) Watch(i *Instance) {
	s.mu.Lock()
	s.cur = i
	s.mu.Unlock()
	if i != nil {
		s.readyOnce.Do(func() { close(s.ready) })
	}
	s.notify()
}

func (s *Supervisor) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Run watches the process until ctx ends. Then it detaches, and the process keeps running for the next daemon
// to adopt.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.Close()
	health := time.NewTicker(s.timing.HealthEvery)
	defer health.Stop()
	missed := 0
	for {
		cur, delay := s.state()
		var exited, lost <-chan struct{}
		var again <-chan time.Time
		switch {
		case cur != nil:
			exited, lost = cur.proc.exited, cur.conn.gone
		case delay >= 0:
			again = time.After(delay)
		}

		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			missed = 0
		case <-exited:
			s.bury(cur, "")
		case <-lost:
			// A dying process's connection ends a moment before the process does.
			select {
			case <-exited:
				s.bury(cur, "")
			case <-time.After(s.timing.Answer / 4):
				s.bury(cur, "closed its control connection")
			case <-ctx.Done():
			}
		case <-again:
			s.revive(ctx)
		case <-health.C:
			if cur == nil {
				continue
			}
			err := s.cfg.Check(ctx, cur)
			if err == nil {
				missed = 0
			} else if missed++; missed >= s.timing.HealthTries && ctx.Err() == nil {
				s.bury(cur, "hangs: "+err.Error())
			}
		}
	}
}

// state is the process that runs, or else how long to wait before the next start; negative: none is wanted.
func (s *Supervisor) state() (cur *Instance, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cur != nil || !s.wanted || s.closed:
		return s.cur, -1
	case s.failures == 0:
		return nil, 0
	}
	return nil, max(0, backoff(s.failures)-time.Since(s.tried))
}

// backoff is the wait before the next start after so many that did not last.
func backoff(failures int) time.Duration {
	return min(backoffFirst<<min(failures-1, 10), backoffLast)
}

// bury cleans up after a process that died. With a reason it kills one that hangs or is lost.
func (s *Supervisor) bury(gone *Instance, why string) {
	s.op.Lock()
	defer s.op.Unlock()
	if s.Current() != gone { // replaced or stopped meanwhile
		return
	}
	if gone.Dead() {
		s.log.Warn("process died", "pid", gone.PID(), "reason", gone.proc.reason,
			"lived", time.Since(gone.Since).Round(time.Millisecond))
	} else {
		s.log.Warn("process is replaced", "pid", gone.PID(), "reason", why)
		if s.cfg.Last != nil {
			s.cfg.Last()
		}
		killInstance(gone, s.timing, s.log)
	}
	select { // what it has said at last may still be on its way
	case <-gone.conn.gone:
	case <-time.After(s.timing.Answer):
	}
	s.mu.Lock()
	s.died = time.Now()
	s.tried = s.died
	if s.died.Sub(gone.Since) > steadyAfter {
		s.failures = 0
	}
	s.mu.Unlock()
	s.Release(gone)
	s.Watch(nil)
}

// revive starts a process where one is wanted and none runs. The first one comes at once, the next ones
// slower and slower.
func (s *Supervisor) revive(ctx context.Context) {
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	if s.closed || !s.wanted || s.cur != nil {
		s.mu.Unlock()
		return
	}
	s.failures++
	s.restarts++
	tries, died := s.failures, s.died
	s.mu.Unlock()

	if err := s.cfg.Revive(ctx); err != nil {
		s.mu.Lock()
		s.tried = time.Now()
		s.mu.Unlock()
		s.log.Error("process does not start, trying again", "error", err, "tries", tries)
		return
	}
	if i := s.Current(); i != nil {
		s.log.Info("process is back", "pid", i.PID(), "after", time.Since(died).Round(time.Millisecond))
	}
}

// Refresh asks a process for its hello again: it may say more by now.
func (s *Supervisor) Refresh(ctx context.Context, i *Instance) error {
	_, err := i.hello(ctx, s.helloRequest(), s.timing.Ready)
	return err
}

func (s *Supervisor) helloRequest() envelope {
	return envelope{Watch: true, Answers: len(s.cfg.Requests) > 0}
}

// End tells a process to quit, makes sure that it does, and releases it.
func (s *Supervisor) End(i *Instance) {
	endInstance(i, s.timing, s.log)
	s.Release(i)
}

// EndAfter ends a process whose last answer was err: one that gave none in time is not asked to quit.
func (s *Supervisor) EndAfter(i *Instance, err error) {
	if errors.Is(err, ErrNoAnswer) {
		killInstance(i, s.timing, s.log)
		s.Release(i)
		return
	}
	s.End(i)
}

// endInstance tells a process to quit and makes sure that it does.
func endInstance(i *Instance, t Timing, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), t.Quit)
	defer cancel()
	m, err := i.Call(ctx, Request{Type: typeQuit})
	if err == nil {
		m.Close()
	}
	if err == nil || errors.Is(err, ErrLost) {
		select {
		case <-i.Exited():
		case <-ctx.Done():
		}
	}
	killInstance(i, t, log)
}

// killInstance ends a process, also a stopped one. It waits for the end, but not for good: one that the
// kernel holds runs no line of its program any more.
func killInstance(i *Instance, t Timing, log *slog.Logger) {
	if i.Dead() {
		return
	}
	err := i.proc.kill()
	select {
	case <-i.Exited():
	case <-time.After(t.Kill):
		log.Error("process could not be killed", "pid", i.PID(), "error", err)
	}
}

// Release detaches from a process, which keeps running if it has not ended.
func (s *Supervisor) Release(i *Instance) {
	i.release()
	if i.conn != nil { // handlers may need the lock that the caller holds: Close waits for them
		s.tasks.Go(i.conn.workers.Wait)
	}
}

// Close detaches from the process without ending it. Run does it.
func (s *Supervisor) Close() {
	s.op.Lock()
	s.mu.Lock()
	cur, already := s.cur, s.closed
	s.closed, s.cur = true, nil
	s.mu.Unlock()
	if already {
		s.op.Unlock()
		return
	}
	if cur != nil {
		s.Release(cur)
	}
	Close(s.program, s.control)
	s.program, s.control = NoFD, NoFD
	s.op.Unlock()
	s.tasks.Wait()
}

// RemoveFiles removes control socket and pid file and closes the socket, once no process is wanted any more.
// Call it with the supervisor locked.
func (s *Supervisor) RemoveFiles() {
	Close(s.control)
	s.control = NoFD
	s.cfg.Kind.removeFiles(s.cfg.RunDir, s.log)
}

// listenControl makes the control socket, unless it is there already.
func (s *Supervisor) listenControl() error {
	if s.control != NoFD {
		return nil
	}
	if err := os.MkdirAll(s.cfg.RunDir, 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	fd, err := ListenUnix(s.cfg.Kind.controlPath(s.cfg.RunDir), unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	s.control = fd
	return nil
}

func (s *Supervisor) meeting() meeting {
	return meeting{
		kind: s.cfg.Kind, runDir: s.cfg.RunDir, timing: s.timing, conn: s.newConn, hello: s.helloRequest(),
	}
}

// newConn is the daemon's end of a control connection, ready for use.
func (s *Supervisor) newConn(c *net.UnixConn) (*Conn, error) {
	o := connOptions{
		peer: s.cfg.Kind.Name, daemon: true, version: s.cfg.Kind.Protocol.Major, timing: s.timing,
		serve: s.serve, pushed: s.pushed, large: s.cfg.Large,
	}
	if len(s.cfg.Requests) > 0 {
		o.maxWaiting = s.cfg.MaxRequests
	}
	return openConn(c, o)
}

// serve answers a request of the process.
func (s *Supervisor) serve(ctx context.Context, m *Message) (Reply, error) {
	handle, ok := s.cfg.Requests[m.Type]
	if !ok {
		return Reply{}, fmt.Errorf("unknown request %q (the daemon speaks protocol %d.%d of %s)", m.Type,
			s.cfg.Kind.Protocol.Major, s.cfg.Kind.Protocol.Minor, s.cfg.Kind.Name)
	}
	return handle(ctx, m)
}

// pushed takes an event of the process.
func (s *Supervisor) pushed(m *Message) {
	if m.Type == typeLog {
		s.logRecord(m.env.Log)
		return
	}
	if hear := s.cfg.Events[m.Type]; hear != nil {
		hear(m)
	}
}
