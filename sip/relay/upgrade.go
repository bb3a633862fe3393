package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ringway/process"
	"ringway/sip/transparent"
)

// A process is replaced by one of another build without losing a TCP connection: the old one stops reading and hands
// each connection over, both descriptors and what was read and not sent on; the new one goes on from there. Datagrams
// and new connections wait in the sockets that both hold. Calls that are up are in the journal.

const (
	// exportLimit is how long the old process may take to stop reading.
	exportLimit = 2 * time.Second
	// handOverBatch is how many connections one message carries: two descriptors each.
	handOverBatch = 32
)

type (
	exportAnswer struct {
		Connections int `json:"connections"`
	}
	takeRequest struct {
		From int `json:"from"`
	}
	connectionsMessage struct { // the answer of take, and the request import
		Connections []transparent.Connection `json:"connections"`
	}
)

// handleExport ends the relay and keeps its connections, to be taken.
func (s *server) handleExport(ctx context.Context, _ *process.Message) (process.Reply, error) {
	s.mu.Lock()
	relay, c, j := s.relay, s.core, s.journal
	s.mu.Unlock()
	if relay == nil {
		return process.Reply{}, errors.New("no settings yet")
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	all, err := relay.Export(ctx)
	if err != nil {
		s.child.Log().Warn("not all TCP connections are handed over", "error", err)
	}
	if j != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		if err := c.keepOnce(j); err != nil {
			return process.Reply{}, err
		}
		j.handedOver = true // its lines would be taken for those of the next process
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exported = all
	return process.Reply{Body: exportAnswer{len(all)}}, nil
}

// handleTake hands some of the connections over.
func (s *server) handleTake(_ context.Context, m *process.Message) (process.Reply, error) {
	var r takeRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.From < 0 || r.From >= len(s.exported) {
		return process.Reply{}, fmt.Errorf("no connection %d (there are %d)", r.From, len(s.exported))
	}
	batch := s.exported[r.From:min(r.From+handOverBatch, len(s.exported))]
	return process.Reply{Body: connectionsMessage{batch}, Files: filesOf(batch)}, nil
}

// filesOf are the descriptors of connections, in their order.
func filesOf(all []transparent.Connection) (files []process.File) {
	for i := range all {
		for j, name := range sideNames {
			if fd := all[i].Streams[j].FD; fd >= 0 {
				files = append(files, process.File{Name: fmt.Sprintf("%d-%s", i, name), FD: fd})
			}
		}
	}
	return files
}

var sideNames = [2]string{"from", "to"}

// withFiles gives connections the descriptors that came with them.
func withFiles(all []transparent.Connection, files []process.File) []transparent.Connection {
	byName := map[string]int{}
	for _, f := range files {
		byName[f.Name] = f.FD
	}
	for i := range all {
		for j, name := range sideNames {
			fd, there := byName[fmt.Sprintf("%d-%s", i, name)]
			if !there {
				fd = -1
			}
			all[i].Streams[j].FD = fd
		}
	}
	return all
}

// handleImport takes connections of the process before. It comes before the first settings.
func (s *server) handleImport(_ context.Context, m *process.Message) (process.Reply, error) {
	var r connectionsMessage
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay != nil {
		return process.Reply{}, errors.New("it is too late: the relay runs")
	}
	s.imported = append(s.imported, withFiles(r.Connections, m.TakeFiles())...)
	return process.Reply{}, nil
}

// goOn takes the imported connections over. It is called with s.mu held.
func (s *server) goOn(relay *transparent.Relay) {
	for _, c := range s.imported {
		if err := relay.Import(c); err != nil {
			s.child.Log().Warn("a TCP connection is lost in the upgrade", "error", err)
		}
	}
	s.imported = nil
}

// Upgrade replaces the process by one of this daemon's build.
func (s *Supervisor) Upgrade(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	old, settings := s.procs.Current(), s.wanted()
	if old == nil || settings == nil || s.procs.Closed() {
		return errors.New("signalling is not read: there is no process to replace")
	}
	var known phonesAnswer
	if old.Ask(ctx, process.Request{Type: typePhones, Long: true}, &known) == nil {
		s.mu.Lock()
		s.phones = known.Phones
		s.mu.Unlock()
	}
	next, err := s.procs.Launch(ctx, s.sockets, raise)
	if err != nil {
		return err
	}
	handedOver, err := s.handOver(ctx, old, next)
	if err == nil {
		err = s.bringUp(ctx, next, *settings)
	}
	if err != nil {
		s.procs.End(next)
		if handedOver { // it reads nothing any more: Run starts another one
			s.procs.Watch(nil)
			s.procs.End(old)
		}
		return fmt.Errorf("replace the relay of signalling: %w", err)
	}
	s.procs.End(old)
	return nil
}

// handOver has the next process go on with the old one's connections. stopped: the old one has stopped.
func (s *Supervisor) handOver(ctx context.Context, old, next *process.Instance) (stopped bool, err error) {
	var all exportAnswer
	if err := old.Ask(ctx, process.Request{Type: typeExport, Long: true}, &all); err != nil {
		return true, err
	}
	for from := 0; from < all.Connections; from += handOverBatch {
		if err := s.handOverSome(ctx, old, next, from); err != nil {
			return true, err
		}
	}
	return true, nil
}

func (s *Supervisor) handOverSome(ctx context.Context, old, next *process.Instance, from int) error {
	m, err := old.Call(ctx, process.Request{Type: typeTake, Body: takeRequest{from}, Long: true})
	if err != nil {
		return err
	}
	defer m.Close()
	var batch connectionsMessage
	if err := m.Decode(&batch); err != nil {
		return err
	}
	return next.Ask(ctx, process.Request{Type: typeImport, Body: batch, Files: m.Files(), Long: true}, nil)
}
