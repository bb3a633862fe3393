package plane

import (
	"bytes"
	"context"
	"fmt"

	"ringway/process"
)

// The process keeps what its owner has to have again after a restart, and what may be in no file: the state of key
// channels, which has keys in it. It knows names and bytes, and uses neither.

const (
	typeKeep = "keep" // these bytes, by name
	typeKept = "kept" // tell them
	maxKept  = 2048   // names
	// maxKeptBytes bounds what is kept by one name: a thousand legs with some keys each.
	maxKeptBytes = 448 << 10
)

type keepRequest struct {
	Name string `json:"name"`
}

// handleKeep keeps bytes in place of those that were kept by the name; none: nothing is kept by it any more.
func (s *server) handleKeep(m *process.Message) (process.Reply, error) {
	var r keepRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	before, known := s.kept[r.Name]
	b := m.Attached()
	switch {
	case r.Name == "" || len(r.Name) > maxText || len(b) > maxKeptBytes:
		return process.Reply{}, fmt.Errorf("%d bytes cannot be kept by a name of %d", len(b), len(r.Name))
	case !known && len(b) > 0 && len(s.kept) >= maxKept:
		return process.Reply{}, fmt.Errorf("more than %d names", maxKept)
	}
	clear(before)
	delete(s.kept, r.Name)
	if len(b) > 0 {
		if s.kept == nil {
			s.kept = map[string][]byte{}
		}
		s.kept[r.Name] = bytes.Clone(b)
	}
	return process.Reply{}, nil
}

// handleKept tells what is kept by a name; nothing, if nothing is.
func (s *server) handleKept(m *process.Message) (process.Reply, error) {
	var r keepRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	return process.Reply{Attached: bytes.Clone(s.kept[r.Name])}, nil
}

// Keep has the process keep bytes by a name, in place of those before; none: nothing. The next process has them, too.
// They are copied.
func (s *Supervisor) Keep(ctx context.Context, name string, b []byte) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	s.mu.Lock()
	clear(s.kept[name])
	delete(s.kept, name)
	if len(b) > 0 {
		if s.kept == nil {
			s.kept = map[string][]byte{}
		}
		s.kept[name] = bytes.Clone(b)
	}
	s.mu.Unlock()
	if i := s.procs.Current(); i != nil {
		return keep(ctx, i, name, b)
	}
	return nil
}

func keep(ctx context.Context, i *process.Instance, name string, b []byte) error {
	return i.Ask(ctx, process.Request{Type: typeKeep, Body: keepRequest{name}, Attached: b}, nil)
}

// Kept is what is kept by a name, for the caller to overwrite; nil: nothing. An adopted process has kept it over
// the end of an earlier daemon.
func (s *Supervisor) Kept(ctx context.Context, name string) ([]byte, error) {
	s.procs.Lock()
	defer s.procs.Unlock()
	s.mu.Lock()
	b, known := s.kept[name]
	s.mu.Unlock()
	i := s.procs.Current()
	if known || i == nil {
		return bytes.Clone(b), nil
	}
	m, err := i.Call(ctx, process.Request{Type: typeKept, Body: keepRequest{name}})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer m.Wipe()
	return bytes.Clone(m.Attached()), nil
}

// keepAgain gives a process that takes the place of another one what that one kept.
func (s *Supervisor) keepAgain(ctx context.Context, i *process.Instance) {
	s.mu.Lock()
	all := map[string][]byte{}
	for name, b := range s.kept {
		all[name] = bytes.Clone(b)
	}
	s.mu.Unlock()
	for name, b := range all {
		if err := keep(ctx, i, name, b); err != nil {
			s.log.Warn("the media process does not keep the state of a key channel: over a restart of the daemon, "+
				"its calls would not get other keys", "error", err)
		}
		clear(b)
	}
}

// forgetKept overwrites what is kept here.
func (s *Supervisor) forgetKept() {
	for _, b := range s.kept {
		clear(b)
	}
	s.kept = nil
}
