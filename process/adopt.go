package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/durable"
)

var (
	// ErrNotRunning means that no process of the kind listens in the run directory.
	ErrNotRunning = errors.New("no process is running")
	// ErrHung means that a process is there but does not answer.
	ErrHung = errors.New("process does not answer")
)

// meeting says how to reach a process that somebody else started.
type meeting struct {
	kind   Kind
	runDir string
	timing Timing
	conn   func(c *net.UnixConn) (*Conn, error)
	hello  envelope
}

// reach connects to the process and finds out, from the kernel, which one it is. It tries again while the
// process gives no answer or goes away, whether that happens at the first hello or between the two.
func (m meeting) reach(ctx context.Context) (*Instance, error) {
	for try := 1; ; try++ {
		i, err := m.reachOnce(ctx)
		hung, lost := errors.Is(err, ErrNoAnswer), errors.Is(err, ErrLost)
		switch {
		case err == nil:
			return i, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case hung && try >= m.timing.HealthTries:
			return nil, fmt.Errorf("%w: %w", ErrHung, err)
		case !hung && !lost, try >= m.timing.HealthTries:
			return nil, err
		}
		if lost { // it is dying, or has no room for another connection
			select {
			case <-time.After(redialAfter):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

func (m meeting) reachOnce(ctx context.Context) (*Instance, error) {
	c, err := dialControl(m.kind.controlPath(m.runDir))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrNotRunning
	case err != nil:
		return nil, fmt.Errorf("connect to %s: %w", m.kind.Name, err)
	}
	i := &Instance{Adopted: true}
	if i.conn, err = m.conn(c); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", m.kind.Name, err)
	}
	if err := m.identify(ctx, i); err != nil {
		i.release()
		return nil, fmt.Errorf("connect to %s: %w", m.kind.Name, err)
	}
	i.Since = i.Hello.Started
	return i, nil
}

// identify gets a pidfd of the process that answers. A process that answers again, with the same pid, after
// its pidfd was opened is the one that the pidfd stands for.
func (m meeting) identify(ctx context.Context, i *Instance) error {
	pid, err := i.hello(ctx, m.hello, m.timing.Answer)
	if err != nil {
		return err
	}
	i.proc, err = watchStranger(pid)
	switch {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w: pid %d has ended", ErrLost, pid)
	case err != nil:
		return err
	}
	again, err := i.hello(ctx, m.hello, m.timing.Answer)
	if err != nil {
		return err
	}
	if again != pid {
		return fmt.Errorf("%w: cannot verify that pid %d is %s: pid %d answered", ErrLost, pid, m.kind.Name, again)
	}
	return nil
}

func dialControl(path string) (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
}

// Dial connects to the process of a kind without supervising it, to send it requests.
func Dial(k Kind, runDir string) (*Conn, error) {
	c, err := dialControl(k.controlPath(runDir))
	if err != nil {
		return nil, err
	}
	return openConn(c, k.clientOptions(defaultTiming))
}

// clientOptions are those of a daemon's end that answers no requests and hears no events.
func (k Kind) clientOptions(t Timing) connOptions {
	return connOptions{peer: k.Name, daemon: true, version: k.Protocol.Major, timing: t}
}

// Close ends a connection that Dial made.
func (c *Conn) Close() { c.close() }

// Adopt looks for a process that an earlier daemon left, and returns it with the descriptors that it was
// started with. Nil without an error means that there is none: one that hangs, or does not hand its
// descriptors back, is ended. The kind decides whether the process that was found is usable.
func (s *Supervisor) Adopt(ctx context.Context) (*Instance, []File, error) {
	i, err := s.meeting().reach(ctx)
	switch {
	case errors.Is(err, ErrNotRunning):
		return nil, nil, nil
	case errors.Is(err, ErrHung):
		s.log.Warn("a process of an earlier daemon hangs and is replaced", "error", err)
		return nil, nil, killRecorded(s.cfg.Kind, s.cfg.RunDir, s.timing)
	case errors.Is(err, ErrLost) && ctx.Err() == nil:
		s.log.Warn("a process of an earlier daemon ended while it was adopted", "error", err)
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}

	files, err := s.takeBack(ctx, i)
	if err != nil {
		s.log.Warn("a process of an earlier daemon does not hand its descriptors back and is replaced",
			"pid", i.PID(), "error", err)
		s.End(i)
		return nil, nil, nil
	}
	return i, files, nil
}

// takeBack asks a process for its descriptors and keeps the control socket among them.
func (s *Supervisor) takeBack(ctx context.Context, i *Instance) ([]File, error) {
	m, err := i.Call(ctx, Request{Type: typeFiles})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var files []File
	control := NoFD
	for _, f := range m.TakeFiles() {
		if f.Name == fileControl && control == NoFD {
			control = f.FD
			continue
		}
		files = append(files, f)
	}
	if control == NoFD {
		CloseFiles(files...)
		return nil, errors.New("the control socket is missing")
	}
	Close(s.control)
	s.control = control
	return files, nil
}

// Record writes down which process i is, for the one case where it cannot say so itself: when it hangs and is
// to be adopted.
func (s *Supervisor) Record(i *Instance) error {
	born, err := startTime(i.PID())
	if err != nil {
		return fmt.Errorf("record process: %w", err)
	}
	path := s.cfg.Kind.pidPath(s.cfg.RunDir)
	if err := durable.WriteFile(path, fmt.Appendf(nil, "%d %s\n", i.PID(), born), 0o600); err != nil {
		return fmt.Errorf("record process: %w", err)
	}
	return nil
}

// killRecorded kills the process of the pid file, if that pid is still the process that was recorded.
func killRecorded(k Kind, runDir string, t Timing) error {
	path := k.pidPath(runDir)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w, and %s does not exist to say which process it is (look for rw-%s in ps)",
			ErrHung, path, k.Name)
	}
	if err != nil {
		return err
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return fmt.Errorf("%s does not hold a pid and a start time", path)
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s does not hold a pid", path)
	}

	p, err := watchStranger(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.release()
	if born, err := startTime(pid); err != nil || born != f[1] {
		return nil // it is gone, and the number is somebody else's
	}
	if err := p.kill(); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(t.Kill):
		return fmt.Errorf("%s could not be killed: the kernel still holds pid %d", k.Name, pid)
	}
}

// Quit ends the process of a kind and removes its files, without a supervisor. No process is not an error. It
// returns the hello of the process that it ended; nil where none said any.
func Quit(ctx context.Context, k Kind, runDir string, t Timing) (hello []byte, err error) {
	t = t.WithDefaults()
	m := meeting{kind: k, runDir: runDir, timing: t, conn: func(c *net.UnixConn) (*Conn, error) {
		return openConn(c, k.clientOptions(t))
	}}
	log := slog.New(slog.DiscardHandler)

	i, err := m.reach(ctx)
	switch {
	case err == nil:
		hello = i.about
		endInstance(i, t, log)
		i.release()
	case errors.Is(err, ErrNotRunning):
	case errors.Is(err, ErrHung):
		if err := killRecorded(k, runDir, t); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	k.removeFiles(runDir, log)
	return hello, nil
}

// removeFiles removes the control socket and the pid file.
func (k Kind) removeFiles(runDir string, log *slog.Logger) {
	for _, path := range []string{k.controlPath(runDir), k.pidPath(runDir)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("file could not be removed", "path", path, "error", err)
		}
	}
}
