package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

func (s *Supervisor) parametersOf(d tunnel.Device) parameters {
	e := d.Settings.Engine
	if e == "" || e == tunnel.EngineAuto {
		e = s.cfg.Engine
	}
	return parameters{iface: d.Settings.Interface, port: d.Settings.ListenPort, mark: d.FwMark, tos: d.Outer.TOS, outer: d.Outer, admit: d.Admission,
		mtu: int(d.Settings.MTU), bounds: d.Bounds, engine: e}
}

var errStopped = errors.New("this supervisor was stopped")

// Configure makes the plane hold dev. A plane that runs is adopted, and only told what it lacks; the
// same device twice says nothing to it. What can only be changed with new descriptors (interface, listen
// port, engine) replaces the plane; a port that cannot be had leaves everything as it was.
//
// A peer's Endpoint is what the configuration or its resolver says, or, for a site that dials in, what the daemon remembered
// from an earlier life. Only a change of it from one call to the next is carried into a running
// plane: where peers roamed to since, the supervisor knows best.
func (s *Supervisor) Configure(ctx context.Context, dev tunnel.Device) error {
	s.op.Lock()
	defer s.op.Unlock()
	if s.stopped || s.closed {
		return errStopped
	}
	if dev.Class != s.cfg.Class {
		return fmt.Errorf("configure plane %s: the device is of class %q", s.cfg.Class, dev.Class)
	}
	cur := s.current()
	if cur != nil && cur.proc.dead() {
		s.drop(cur)
		s.setCurrent(nil)
		cur = nil
	}
	if cur == nil && s.res == noResources {
		if err := s.adopt(ctx); err != nil {
			return err
		}
		cur = s.current()
	}
	s.moveEndpoints(dev)
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
	if (errors.Is(err, errLost) || errors.Is(err, errSilent)) && ctx.Err() == nil {
		// It died just now, or hangs. Its successor gets what is wanted now, not what was.
		s.log.Warn("plane is replaced", "pid", cur.proc.pid, "reason", err)
		s.setCurrent(nil)
		s.endAfter(cur, err)
		s.mu.Lock()
		s.restarts++
		s.mu.Unlock()
		return s.begin(ctx, next, want, dev)
	}
	if err != nil {
		return err
	}
	s.want(&dev)
	return nil
}

// begin starts a plane where none runs. From here on Run goes on trying.
func (s *Supervisor) begin(ctx context.Context, next resources, want parameters, dev tunnel.Device) error {
	// Devices that outlived their plane may be set otherwise.
	err := tuneSockets(next, want)
	if err == nil && next.tun == s.res.tun {
		err = s.cfg.SetLink(want.iface, want.mtu, want.bounds.TxQueueLen)
	}
	if err != nil {
		s.closeNew(next)
		return err
	}
	s.adoptResources(next, want)
	s.want(&dev)
	return s.bringUp(ctx, dev)
}

// moveEndpoints lets an endpoint that the operator or the resolver changed win over the last known one. Whether it
// changed is seen from what was wanted before; what was never wanted before says so itself.
func (s *Supervisor) moveEndpoints(dev tunnel.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := map[tunnel.PublicKey]tunnel.Peer{}
	if s.wanted != nil {
		for _, p := range s.wanted.Peers {
			before[p.PublicKey] = p
		}
	}
	keep := map[tunnel.PublicKey]bool{}
	for _, p := range dev.Peers {
		keep[p.PublicKey] = true
		b, known := before[p.PublicKey]
		if p.Endpoint.IsValid() && (known && (p.Endpoint != b.Endpoint || p.EndpointNews > b.EndpointNews) || !known && p.EndpointNews > 0) {
			s.endpoints[p.PublicKey] = p.Endpoint
		}
	}
	for k := range s.endpoints {
		if !keep[k] {
			delete(s.endpoints, k)
		}
	}
}

// open makes what want needs and is not there yet; the rest is taken over as it is. It changes
// nothing of what is there.
func (s *Supervisor) open(want parameters) (next resources, err error) {
	next = s.res
	defer func() {
		if err != nil {
			s.closeNew(next)
			next = noResources
		}
	}()
	if err := os.MkdirAll(s.cfg.RunDir, 0o700); err != nil {
		return next, fmt.Errorf("make run directory: %w", err)
	}
	if next.control == noFD {
		if next.control, err = listenUnix(controlPath(s.cfg.RunDir, s.cfg.Class), unix.SOCK_SEQPACKET); err != nil {
			return next, err
		}
	}
	if next.udp4 == noFD && next.udp6 == noFD || s.have.port != want.port {
		next.udp4, next.udp6 = noFD, noFD
		four, six, err := s.cfg.OpenUDP(want.port, want.mark, want.tos, want.bounds)
		if err != nil {
			return next, err
		}
		a, errA := takeFD(four)
		b, errB := takeFD(six)
		next.udp4, next.udp6 = a, b
		if err := errors.Join(errA, errB); err != nil {
			return next, err
		}
	}
	if s.have.iface != want.iface {
		next.tun, next.uapi = noFD, noFD
	}
	if next.tun != noFD && deviceGone(next.tun) {
		s.log.Warn("somebody deleted the tunnel device; it is made again", "interface", want.iface)
		next.tun = noFD
	}
	if next.tun == noFD {
		f, err := s.cfg.OpenTUN(want.iface, want.mtu, want.bounds.TxQueueLen)
		if err != nil {
			return next, err
		}
		if next.tun, err = takeFD(f); err != nil {
			return next, err
		}
	}
	if next.uapi == noFD {
		if err := os.MkdirAll(s.cfg.UAPIDir, 0o700); err != nil {
			return next, fmt.Errorf("make directory of UAPI sockets: %w", err)
		}
		if next.uapi, err = listenUnix(uapiPath(s.cfg.UAPIDir, want.iface), unix.SOCK_STREAM); err != nil {
			return next, err
		}
	}
	return next, nil
}

// closeNew closes what next has and the supervisor has not.
func (s *Supervisor) closeNew(next resources) { closeDifference(next, s.res) }

// closeDifference closes the descriptors of a that b does not share.
func closeDifference(a, b resources) {
	for _, x := range [][2]int{{a.tun, b.tun}, {a.udp4, b.udp4}, {a.udp6, b.udp6}, {a.uapi, b.uapi}, {a.control, b.control}} {
		if x[0] != x[1] {
			closeFDs(x[0])
		}
	}
}

// adoptResources makes next the supervisor's own and closes what it replaces.
func (s *Supervisor) adoptResources(next resources, p parameters) {
	old, oldName := s.res, s.have.iface
	s.res, s.have = next, p
	if oldName != "" && oldName != p.iface {
		removeSocket(s.log, uapiPath(s.cfg.UAPIDir, oldName))
	}
	closeDifference(old, next)
}

// adjust changes what can be changed under a running plane, in place.
func (s *Supervisor) adjust(ctx context.Context, cur *running, want parameters) error {
	if s.have.equal(want) {
		return nil
	}
	if err := tuneSockets(s.res, want); err != nil {
		return err
	}
	if want.mtu != s.have.mtu || want.bounds.TxQueueLen != s.have.bounds.TxQueueLen {
		if err := s.cfg.SetLink(want.iface, want.mtu, want.bounds.TxQueueLen); err != nil {
			return err
		}
		if want.mtu != s.have.mtu {
			if _, err := cur.conn.call(ctx, message{Type: typeLink, MTU: want.mtu}); err != nil {
				return err
			}
		}
	}
	if want.bounds != s.have.bounds {
		if _, err := cur.conn.call(ctx, message{Type: typeBounds, Bounds: &want.bounds}); err != nil {
			return err
		}
	}
	if !want.outer.Equal(s.have.outer) && cur.hello.Minor >= minorOuter { // an older one has no engine that could
		if _, err := cur.conn.call(ctx, message{Type: typeOuter, Outer: &want.outer}); err != nil {
			return err
		}
	}
	if !want.admit.Equal(s.have.admit) && cur.hello.Minor >= minorAdmission {
		if _, err := cur.conn.call(ctx, message{Type: typeAdmission, Admission: &want.admit}); err != nil {
			return err
		}
	}
	s.have = want
	return nil
}

// tell sends the engine the difference between dev and what it holds.
func (s *Supervisor) tell(ctx context.Context, cur *running, dev tunnel.Device, prev *tunnel.Device) error {
	r, err := cur.conn.call(ctx, message{Type: typeUAPI})
	if err != nil {
		return err
	}
	have, err := tunnel.ParseUAPI(strings.NewReader(r.m.Text))
	if err != nil {
		return err
	}
	s.learn(have.Status().Peers)
	s.moveEndpoints(dev) // again: should it die of what it is told, its successor shall know
	delta := tunnel.Diff(dev, have, prev, time.Now())
	if delta.Empty() {
		return nil
	}
	if _, err := cur.conn.call(ctx, message{Type: typeSet, Text: delta.SetText()}); err != nil {
		return err
	}
	s.log.Info("plane configured", "changes", delta.Words())
	return nil
}

// replace puts a new plane in the place of the running one. Two readers of one device would steal each other's packets, so
// the new process is made first, up to the point where only its engine is missing; then the old one
// quits, and the new one reads on where it left off: what arrives between waits in the descriptors' queues.
func (s *Supervisor) replace(ctx context.Context, next resources, want parameters, dev tunnel.Device) error {
	old := s.current()
	r, said := old.conn.call(ctx, message{Type: typeUAPI})
	if said == nil {
		if have, err := tunnel.ParseUAPI(strings.NewReader(r.m.Text)); err == nil {
			s.learn(have.Status().Peers)
			s.moveEndpoints(dev)
		}
	}
	fresh, err := s.launch(ctx, next, want.engine)
	if err != nil {
		s.closeNew(next)
		return err
	}
	if err := tuneSockets(next, want); err != nil {
		s.end(fresh)
		s.closeNew(next)
		return err
	}
	if next.tun == s.res.tun && (want.mtu != s.have.mtu || want.bounds.TxQueueLen != s.have.bounds.TxQueueLen) {
		if err := s.cfg.SetLink(want.iface, want.mtu, want.bounds.TxQueueLen); err != nil {
			s.end(fresh)
			s.closeNew(next)
			return err
		}
	}
	s.setCurrent(nil) // its end is no accident
	s.endAfter(old, said)
	s.adoptResources(next, want)
	if err := s.ignite(ctx, fresh, dev, want); err != nil {
		s.end(fresh)
		s.want(&dev) // Run goes on trying
		return err
	}
	s.installed(fresh)
	return nil
}

// Upgrade replaces the running plane by one of this daemon's build, on the same descriptors.
func (s *Supervisor) Upgrade(ctx context.Context) error {
	s.op.Lock()
	defer s.op.Unlock()
	switch {
	case s.stopped || s.closed:
		return errStopped
	case s.current() == nil || s.wanted == nil:
		return fmt.Errorf("upgrade plane %s: none runs", s.cfg.Class)
	}
	return s.replace(ctx, s.res, s.have, *s.wanted)
}

// Status is what the plane says of itself, with what the supervisor knows.
func (s *Supervisor) Status(ctx context.Context) (tunnel.DeviceStatus, error) {
	s.mu.Lock()
	cur, restarts := s.cur, s.restarts
	s.mu.Unlock()
	if cur == nil {
		return tunnel.DeviceStatus{Class: s.cfg.Class, Restarts: restarts}, fmt.Errorf("plane %s does not run", s.cfg.Class)
	}
	r, err := cur.conn.call(ctx, message{Type: typeStatus})
	if err != nil {
		return tunnel.DeviceStatus{Class: s.cfg.Class, PlanePID: cur.proc.pid, Restarts: restarts}, err
	}
	if r.m.Status == nil {
		return tunnel.DeviceStatus{}, fmt.Errorf("plane %s answers without a status", s.cfg.Class)
	}
	d := *r.m.Status
	s.learn(d.Peers)
	d.Class, d.Interface, d.Engine = s.cfg.Class, cur.hello.Interface, cur.hello.Engine
	d.PlanePID, d.PlaneBuild, d.Since = cur.proc.pid, cur.hello.Build, cur.hello.Started
	d.Restarts, d.Adopted = restarts, cur.adopted
	return d, nil
}

// Sandbox is what the running plane gave up, and what it could not.
func (s *Supervisor) Sandbox() (holds, missing []string) {
	cur := s.current()
	if cur == nil {
		return nil, nil
	}
	return cur.hello.Sandbox, append(append([]string(nil), cur.missing...), cur.hello.Missing...)
}

// Stop ends the plane, also one that this daemon never adopted, and removes everything of it:
// the device goes with the last descriptor.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.op.Lock()
	defer s.op.Unlock()
	if s.closed {
		return errStopped
	}
	if s.current() == nil && s.res == noResources {
		if err := s.adopt(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.stopped, s.wanted = true, nil
	s.mu.Unlock()
	if cur := s.current(); cur != nil {
		s.setCurrent(nil)
		s.end(cur)
	}
	iface := s.have.iface
	s.res.close()
	s.res, s.have = noResources, parameters{}
	if iface != "" {
		removeSocket(s.log, uapiPath(s.cfg.UAPIDir, iface))
	}
	removeSocket(s.log, controlPath(s.cfg.RunDir, s.cfg.Class))
	removeSocket(s.log, pidPath(s.cfg.RunDir, s.cfg.Class))
	return nil
}

// setLink changes a device in the calling thread's network namespace.
func setLink(name string, mtu, txqlen int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("change device %s: %w", name, err)
	}
	defer unix.Close(fd)
	for _, x := range []struct {
		what  string
		req   uint
		value int
	}{{"mtu", unix.SIOCSIFMTU, mtu}, {"txqueuelen", unix.SIOCSIFTXQLEN, txqlen}} {
		if x.value <= 0 {
			continue
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return fmt.Errorf("change device %s: %w", name, err)
		}
		ifr.SetUint32(uint32(x.value))
		if err := unix.IoctlIfreq(fd, x.req, ifr); err != nil {
			return fmt.Errorf("set %s %d on device %s: %w", x.what, x.value, name, err)
		}
	}
	return nil
}

// tuneSockets sets what can be changed on open sockets: mark, TOS octet, buffers.
func tuneSockets(r resources, p parameters) error {
	for _, x := range []struct {
		fd         int
		level, tos int
	}{{r.udp4, unix.IPPROTO_IP, unix.IP_TOS}, {r.udp6, unix.IPPROTO_IPV6, unix.IPV6_TCLASS}} {
		if x.fd == noFD {
			continue
		}
		if err := unix.SetsockoptInt(x.fd, x.level, x.tos, int(p.tos)); err != nil {
			return fmt.Errorf("set TOS %#x on the socket of port %d: %w", p.tos, p.port, err)
		}
		for _, o := range []struct {
			force, plain, value int
			what                string
		}{
			{unix.SO_MARK, unix.SO_MARK, int(p.mark), "mark"},
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, p.bounds.SendBuffer, "send buffer"},
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, p.bounds.ReceiveBuffer, "receive buffer"},
		} {
			if o.value <= 0 && o.force != unix.SO_MARK {
				continue
			}
			err := unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, o.force, o.value)
			if errors.Is(err, unix.EPERM) && o.plain != o.force {
				err = unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, o.plain, o.value)
			}
			if err != nil {
				return fmt.Errorf("set %s %d on the socket of port %d: %w", o.what, o.value, p.port, err)
			}
		}
	}
	return nil
}
