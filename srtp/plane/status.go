package plane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ringway/process"
	"ringway/process/priority"
)

// Status is what the process says of itself, with what the supervisor knows.
type Status struct {
	Stats
	PID      int               `json:"pid"`
	Build    string            `json:"build"`
	Since    time.Time         `json:"since"`
	Restarts int               `json:"restarts"`
	Adopted  bool              `json:"adopted"`
	Pairs    int               `json:"pairs"`
	Threads  []priority.Thread `json:"threads"`
	Alarm    Alarm             `json:"alarm,omitzero"`
	// LogDropped counts lines of its log that were too many.
	LogDropped uint64 `json:"log_dropped,omitempty"`
}

// Status asks the process for its counters. On an error there is still what the supervisor knows.
func (s *Supervisor) Status(ctx context.Context) (Status, error) {
	i := s.procs.Current()
	st := Status{Restarts: s.procs.Restarts(), LogDropped: s.procs.LogDropped()}
	s.mu.Lock()
	st.Pairs, st.Alarm = len(s.book.pairs), s.alarm
	s.mu.Unlock()
	if i == nil {
		return st, errors.New("the media process is not running")
	}
	st.PID, st.Build, st.Since, st.Adopted = i.PID(), i.Hello.Build, i.Hello.Started, i.Adopted
	st.Threads = scheduled(st.PID).Scheduled()
	return st, i.Ask(ctx, process.Request{Type: typeStatus, Long: true}, &st.Stats)
}

// PID is the process's id; 0 if there is none.
func (s *Supervisor) PID() int {
	if i := s.procs.Current(); i != nil {
		return i.PID()
	}
	return 0
}

// Sandbox is what the process gave up, and what it could not.
func (s *Supervisor) Sandbox() (holds, missing []string) {
	i := s.procs.Current()
	s.mu.Lock()
	defer s.mu.Unlock()
	if i == nil {
		return nil, nil
	}
	return i.Hello.Sandbox, s.missing
}

// alarmFor is how long calls that were lost are a problem.
const alarmFor = 10 * time.Minute

// Problems lists what is wrong now.
func (s *Supervisor) Problems() (all []string) {
	running := s.procs.Current() != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted && !running {
		all = append(all, "the media process does not run: calls whose media passes the box are silent")
	}
	if running && s.unlocked != "" {
		all = append(all, fmt.Sprintf("keys of media may be swapped out: %s (give the daemon CAP_SYS_RESOURCE, "+
			"or switch swap off)", s.unlocked))
	}
	if recent := !s.alarm.At.IsZero() && time.Since(s.alarm.At) < alarmFor; recent {
		if n := s.alarm.Lost; n > 0 {
			all = append(all, fmt.Sprintf("calls that have lost the keys of their media since the daemon started: %d; "+
				"they stay silent until they are set up again", n))
		}
		if n := s.alarm.Silent; n > 0 {
			all = append(all, fmt.Sprintf("ends of calls that are sent nothing until they get other keys: %d; "+
				"it is not known how far theirs were used", n))
		}
	}
	return all
}
