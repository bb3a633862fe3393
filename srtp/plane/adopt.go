package plane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ringway/process"
)

// meet adopts the process of an earlier daemon, once.
func (s *Supervisor) meet(ctx context.Context) error {
	if s.met {
		return nil
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	s.met = true
	return nil
}

// adopt takes over the process of an earlier daemon, with its sockets and its book. The process goes on forwarding.
func (s *Supervisor) adopt(ctx context.Context) error {
	s.mu.Lock()
	s.adopting = true // what it says from its first hello on is newer than its book, or in it
	s.mu.Unlock()
	defer s.caughtUp()

	i, files, err := s.procs.Adopt(ctx)
	if err != nil {
		return err
	}
	if i == nil {
		s.lose(readCount(s.cfg.RunDir), 0)
		return nil
	}
	var a about
	err = i.DecodeHello(&a)
	switch {
	case err != nil:
	case i.Hello.Major != ProtocolMajor:
		err = fmt.Errorf("it speaks protocol %d, and %d is spoken here", i.Hello.Major, ProtocolMajor)
	case !a.Running:
		err = errors.New("it forwards nothing")
	default:
		if _, err = portsOf(files); err == nil {
			err = s.takeBook(ctx, i, typeExport)
		}
	}
	if err != nil {
		s.log.Warn("the media process of an earlier daemon is replaced, and its calls are lost", "pid", i.PID(),
			"build", i.Hello.Build, "error", err)
		s.procs.End(i)
		if _, err := portsOf(files); err != nil {
			process.CloseFiles(files...)
			files = nil
		}
		s.files = files
		s.lose(max(a.Pairs, readCount(s.cfg.RunDir)), i.PID())
		return nil
	}
	s.files = files
	s.allow(i)
	s.watch(i)
	if s.certificate != "" && a.Certificate != s.certificate {
		s.log.Warn("the media process of an earlier daemon has another certificate and is replaced", "pid", i.PID())
		return s.replace(ctx, i)
	}
	return nil
}

// caughtUp does what was heard meanwhile.
func (s *Supervisor) caughtUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range s.early {
		what()
	}
	s.adopting, s.early = false, nil
}

// lastWithin is how long a process may take that is to be killed.
const lastWithin = time.Second

// askLast has a process stop and tell how far it has come that has closed its connection, or does not answer. It closes
// that of a daemon that reads nothing: then what it has told is not enough to go on from.
func (s *Supervisor) askLast() {
	c, err := process.Dial(kindOf(nil, nil), s.cfg.RunDir)
	if err != nil {
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), lastWithin)
	defer cancel()
	if s.takeBook(ctx, c, typeStop) == nil {
		s.mu.Lock()
		s.beat = 0 // it has told everything
		s.mu.Unlock()
	}
}

// caller is a connection to the process.
type caller interface {
	Call(ctx context.Context, r process.Request) (*process.Message, error)
}

// takeBook has the process tell its book, by that request, and makes it ours.
func (s *Supervisor) takeBook(ctx context.Context, i caller, request string) error {
	m, err := i.Call(ctx, process.Request{Type: request, Long: true})
	if err != nil {
		return err
	}
	defer m.Close()
	defer m.Wipe()
	var st state
	if err := m.Decode(&st); err != nil {
		return err
	}
	if err := unpackKeys(m.Attached(), st.keys()); err != nil {
		return err
	}
	b, err := bookOf(&st)
	if err != nil {
		wipeKeys(st.keys())
		return fmt.Errorf("the book of the media process: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.wipe()
	s.book = b
	return nil
}

// Upgrade replaces the process by one of this daemon's build. Calls go on.
func (s *Supervisor) Upgrade(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	old := s.procs.Current()
	if old == nil || s.procs.Closed() {
		return errors.New("media is not forwarded: there is no process to replace")
	}
	return s.replace(ctx, old)
}

// replace puts another process in the place of one. The next one waits ready; the old one stops and tells how far it
// has come; what arrives in between waits in the sockets.
func (s *Supervisor) replace(ctx context.Context, old *process.Instance) error {
	next, err := s.procs.Launch(ctx, s.files, nil)
	if err != nil {
		return err
	}
	if err = s.takeBook(ctx, old, typeStop); err == nil {
		s.mu.Lock()
		s.beat = 0 // it has told everything
		s.mu.Unlock()
		if err = s.bringUp(ctx, next); err == nil {
			s.procs.End(old)
			return nil
		}
	}
	s.procs.End(next)
	s.procs.Watch(nil) // the old one may have stopped: Run starts another
	s.procs.EndAfter(old, err)
	return fmt.Errorf("replace the media process: %w", err)
}
