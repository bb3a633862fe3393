package plane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// found is a plane that answers.
type found struct {
	conn  *client
	proc  *process
	hello Hello
}

func (f *found) close() {
	f.conn.close()
	if f.proc != nil {
		f.proc.letGo()
	}
}

var (
	errNone = errors.New("no plane runs")
	errHung = errors.New("a plane is there but does not answer")
)

// meet connects to the plane of class c and finds out, by the kernel's word, which process it is.
func meet(ctx context.Context, runDir string, c tunnel.Class, event func(message)) (*found, error) {
	var f *found
	var pid int
	for try := 1; ; try++ {
		conn, err := dialPlane(controlPath(runDir, c), event)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
			return nil, errNone
		case err != nil:
			return nil, fmt.Errorf("connect to plane %s: %w", c, err)
		}
		f = &found{conn: conn}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		f.hello, pid, err = conn.hello(call, true)
		cancel()
		if err == nil {
			break
		}
		f.close()
		lost := errors.Is(err, errLost) // it dies, or has no room for one more connection: look again
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case try < healthTries && lost:
			select {
			case <-time.After(redialAfter):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		case try < healthTries:
		case lost:
			return nil, fmt.Errorf("connect to plane %s: %w", c, err)
		default:
			return nil, fmt.Errorf("%w: %w", errHung, err)
		}
	}
	var err error
	if f.proc, err = adoptProcess(pid); err != nil {
		f.close()
		return nil, fmt.Errorf("adopt plane %s: %w", c, err)
	}
	// It spoke again after the pidfd was taken, as the same pid: the pidfd is its own.
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, again, err := f.conn.hello(call, true); err != nil || again != pid {
		f.close()
		return nil, fmt.Errorf("adopt plane %s: process %d is not sure to be it: %v", c, pid, err)
	}
	return f, nil
}

// adopt takes over a plane that an earlier daemon left. A plane that speaks another major version,
// or none any more, is ended; where it gives its descriptors, the devices stay.
func (s *Supervisor) adopt(ctx context.Context) error {
	f, err := meet(ctx, s.cfg.RunDir, s.cfg.Class, s.event)
	switch {
	case errors.Is(err, errNone):
		return nil
	case errors.Is(err, errHung):
		s.log.Warn("a plane of an earlier daemon hangs, it is replaced", "error", err)
		return killRecorded(s.cfg.RunDir, s.cfg.Class)
	case errors.Is(err, errLost) && ctx.Err() == nil:
		s.log.Warn("a plane of an earlier daemon went away while it was adopted", "error", err)
		return nil
	case err != nil:
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := f.conn.files(call)
	name := ""
	if err == nil {
		if name, err = tunName(res.tun); err != nil {
			res.close()
		}
	}
	r := &running{proc: f.proc, conn: f.conn, hello: f.hello, since: f.hello.Started, adopted: true}
	if err != nil {
		s.log.Warn("a plane of an earlier daemon keeps its descriptors, it is replaced", "pid", f.proc.pid, "error", err)
		s.end(r)
		return nil
	}
	s.res = res
	s.have = parameters{iface: name, mtu: f.hello.MTU, bounds: f.hello.Bounds, outer: f.hello.Outer, admit: f.hello.Admission, engine: f.hello.Engine}
	s.have.port, s.have.mark, s.have.tos = socketParameters(res)
	if f.hello.Major != s.speaks || !f.hello.Running || f.hello.Class != s.cfg.Class {
		s.log.Warn("a plane of an earlier daemon does not fit, it is replaced and its devices are kept", "pid", f.proc.pid,
			"build", f.hello.Build, "protocol", f.hello.Major, "spoken_here", s.speaks)
		s.end(r)
		return nil
	}
	s.tune(r, f.hello.Engine)
	if s.realtime(r) {
		r.missing = append(r.missing, realtimeThreads(f.proc.pid)...)
	}
	s.installed(r)
	return nil
}

// socketParameters reads back what a socket is set to.
func socketParameters(r resources) (port uint16, mark uint32, tos uint8) {
	fd, level, opt := r.udp4, unix.IPPROTO_IP, unix.IP_TOS
	if fd == noFD {
		fd, level, opt = r.udp6, unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			port = uint16(a.Port)
		case *unix.SockaddrInet6:
			port = uint16(a.Port)
		}
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err == nil {
		mark = uint32(v)
	}
	if v, err := unix.GetsockoptInt(fd, level, opt); err == nil {
		tos = uint8(v)
	}
	return port, mark, tos
}

// writePID records which process the plane is, for the one case where it cannot say so itself.
func (s *Supervisor) writePID(pid int) error {
	born, err := birth(pid)
	if err != nil {
		return fmt.Errorf("record plane: %w", err)
	}
	path := pidPath(s.cfg.RunDir, s.cfg.Class)
	if err := os.WriteFile(path+".new", []byte(fmt.Sprintf("%d %s\n", pid, born)), 0o600); err != nil {
		return fmt.Errorf("record plane: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("record plane: %w", err)
	}
	return nil
}

// killRecorded ends the plane of the pid file, if that process is still the one recorded.
func killRecorded(runDir string, c tunnel.Class) error {
	b, err := os.ReadFile(pidPath(runDir, c))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w, and no record says which process it is (look for rw-plane-%s in ps)", errHung, c)
	}
	if err != nil {
		return err
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return fmt.Errorf("%s does not hold a pid and a start time", pidPath(runDir, c))
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s does not hold a pid", pidPath(runDir, c))
	}
	p, err := adoptProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.letGo()
	if born, err := birth(pid); err != nil || born != f[1] {
		return nil // it is gone, and the number is somebody else's
	}
	if err := p.kill(); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// removeSocket removes a file of ours; that it is not there is no error.
func removeSocket(log *slog.Logger, path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("file stays behind", "path", path, "error", err)
	}
}

// Quit ends the plane of class c and removes its files, with no daemon's help. No plane is no error. A plane
// that died or hangs does not say what its interface was: its UAPI socket is left to RemoveUAPI.
func Quit(ctx context.Context, runDir, uapiDir string, c tunnel.Class) error {
	log := slog.New(slog.DiscardHandler)
	f, err := meet(ctx, runDir, c, func(message) {})
	var left error
	switch {
	case errors.Is(err, errNone):
	case errors.Is(err, errHung):
		if err := killRecorded(runDir, c); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		s := &Supervisor{log: log}
		s.end(&running{proc: f.proc, conn: f.conn})
		if n := f.hello.Interface; n != "" {
			left = RemoveUAPI(uapiDir, n)
		}
	}
	removeSocket(log, controlPath(runDir, c))
	removeSocket(log, pidPath(runDir, c))
	return left
}

// RemoveUAPI removes the socket of interface iface where wg(8) looks, if nobody answers there any more. One
// where somebody does is another program's, as is a file that is no socket: they stay, and that is no error.
func RemoveUAPI(uapiDir, iface string) error {
	if iface == "" || iface != filepath.Base(iface) {
		return fmt.Errorf("remove UAPI socket: %q is no name of an interface", iface)
	}
	path := uapiPath(uapiDir, iface)
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove UAPI socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil
	}
	if err := knock(path, unix.SOCK_STREAM); !errors.Is(err, unix.ECONNREFUSED) {
		return nil // it answers, or nobody can tell
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove UAPI socket: %w", err)
	}
	return nil
}
