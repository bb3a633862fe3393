package plane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ringway/process"
	"ringway/tunnel"
)

func (s *Supervisor) parametersOf(d tunnel.Device) parameters {
	e := d.Settings.Engine
	if e == "" || e == tunnel.EngineAuto {
		e = s.cfg.Engine
	}
	return parameters{
		iface: d.Settings.Interface, port: d.Settings.ListenPort, mark: d.FwMark, tos: d.Outer.TOS, engine: e,
		Settings: settingsOf(d),
	}
}

var errStopped = errors.New("supervisor is stopped")

// Configure makes the plane hold dev. A plane that runs is adopted, and only told what it lacks; the same
// device twice sends it nothing. What can only be changed with new descriptors (interface, listen port,
// engine) replaces the plane; a port that is taken leaves everything as it was.
//
// Only a change of a peer's Endpoint from one call to the next is told to a running plane, which follows
// roaming peers by itself (tunnel.Peer.MustTellEndpoint).
func (s *Supervisor) Configure(ctx context.Context, dev tunnel.Device) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	if s.stopped || s.procs.Closed() {
		return errStopped
	}
	if dev.Class != s.cfg.Class {
		return fmt.Errorf("configure plane %s: the device is of class %q", s.cfg.Class, dev.Class)
	}
	cur, err := s.find(ctx)
	if err != nil {
		return err
	}
	want := s.parametersOf(dev)
	next, err := s.open(want)
	if err != nil {
		return err
	}
	switch {
	case cur == nil:
		return s.begin(ctx, next, want, dev)
	case next != s.res || want.engine != s.have.engine:
		if err := s.replace(ctx, next, want, dev); err != nil {
			return err
		}
		s.want(&dev)
		return nil
	}

	err = s.adjust(ctx, cur, want)
	if err == nil {
		err = s.tell(ctx, cur, dev, s.wanted)
	}
	if (errors.Is(err, process.ErrLost) || errors.Is(err, process.ErrNoAnswer)) && ctx.Err() == nil {
		// It died just now, or hangs. Its successor gets what is wanted now, not what was.
		s.log.Warn("plane is replaced", "pid", cur.PID(), "reason", err)
		s.procs.Watch(nil)
		s.procs.EndAfter(cur.Instance, err)
		s.procs.CountRestart()
		return s.begin(ctx, next, want, dev)
	}
	if err != nil {
		return err
	}
	s.want(&dev)
	return nil
}

// find is the plane that runs, if need be an earlier daemon's.
func (s *Supervisor) find(ctx context.Context) (*running, error) {
	cur := s.current()
	if cur != nil && cur.Dead() {
		s.procs.Release(cur.Instance)
		s.procs.Watch(nil)
		cur = nil
	}
	if cur == nil && s.res == noResources {
		if err := s.adopt(ctx); err != nil {
			return nil, err
		}
		cur = s.current()
	}
	return cur, nil
}

// begin starts a plane where none runs. From here on Run keeps trying.
func (s *Supervisor) begin(ctx context.Context, next resources, want parameters, dev tunnel.Device) error {
	// Sockets that outlived their plane may be set otherwise.
	if err := tuneSockets(next, want); err != nil {
		s.closeNew(next)
		return err
	}
	s.keepResources(next, want)
	s.want(&dev)
	return s.bringUp(ctx, dev)
}

// adjust changes what can be changed under a running plane, in place.
func (s *Supervisor) adjust(ctx context.Context, cur *running, want parameters) error {
	if !s.have.sameOutside(want) {
		if err := tuneSockets(s.res, want); err != nil {
			return err
		}
	}
	change := want.changes(s.have.Settings)
	if err := tellSettings(ctx, cur, change); err != nil {
		return err
	}
	held := s.have.with(change) // a setting that the plane does not know stays unknown
	s.have = want
	s.have.Settings = held
	return nil
}

// tellSettings has a plane change settings, in the form that it understands.
func tellSettings(ctx context.Context, cur *running, change Settings) error {
	switch {
	case change.empty():
		return nil
	case cur.Hello.Minor < minorSettings:
		return tellOlder(ctx, cur.Instance, change)
	}
	return cur.Ask(ctx, process.Request{Type: typeSettings, Body: change, Long: true}, nil)
}

// tell sends the engine the difference between dev and what it holds.
func (s *Supervisor) tell(ctx context.Context, cur *running, dev tunnel.Device, prev *tunnel.Device) error {
	have, err := s.observe(ctx, cur)
	if err != nil {
		return err
	}
	delta := tunnel.Diff(dev, have, prev, time.Now())
	if delta.Empty() {
		return nil
	}
	set := process.Request{Type: typeSet, Body: uapiText{delta.SetText()}, Long: true}
	if err := cur.Ask(ctx, set, nil); err != nil {
		return err
	}
	s.log.Info("plane configured", "changes", delta.Words())
	return nil
}

// replace puts a new plane in the place of the running one. Two readers of one device would steal each
// other's packets, so the new process is made first, up to the point where only its engine is missing; then
// the old one quits, and the new one continues where it left off: what arrives in between waits in the
// descriptors' queues.
func (s *Supervisor) replace(ctx context.Context, next resources, want parameters, dev tunnel.Device) error {
	old := s.current()
	_, oldErr := s.observe(ctx, old)
	fresh, err := s.launch(ctx, next, want.engine)
	if err != nil {
		s.closeNew(next)
		return err
	}
	if err := tuneSockets(next, want); err != nil {
		s.procs.End(fresh.Instance)
		s.closeNew(next)
		return err
	}

	s.procs.Watch(nil) // its end is no accident
	s.procs.EndAfter(old.Instance, oldErr)
	s.keepResources(next, want)
	if err := s.startEngine(ctx, fresh, dev, want); err != nil {
		s.procs.End(fresh.Instance)
		s.want(&dev) // Run keeps trying
		return err
	}
	s.watch(fresh)
	return nil
}

// Upgrade replaces the running plane by one of this daemon's build, on the same descriptors.
func (s *Supervisor) Upgrade(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	switch {
	case s.stopped || s.procs.Closed():
		return errStopped
	case s.current() == nil || s.wanted == nil:
		return fmt.Errorf("upgrade plane %s: it is not running", s.cfg.Class)
	}
	// A setting that the old plane did not know is told to the new one.
	want := s.have
	want.Settings = settingsOf(*s.wanted)
	return s.replace(ctx, s.res, want, *s.wanted)
}
