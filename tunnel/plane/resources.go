package plane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/tunnel"
)

// resources are the daemon's own descriptors of everything that a plane works on. They keep the devices alive
// while no plane does.
type resources struct {
	tun, udp4, udp6, uapi int
}

var noResources = resources{process.NoFD, process.NoFD, process.NoFD, process.NoFD}

func (r resources) close() { process.Close(r.tun, r.udp4, r.udp6, r.uapi) }

// named are the descriptors that are there, with the names under which a plane takes and returns them.
func (r resources) named() (files []process.File) {
	for _, f := range []process.File{
		{Name: fileTUN, FD: r.tun}, {Name: fileUDP4, FD: r.udp4}, {Name: fileUDP6, FD: r.udp6},
		{Name: fileUAPI, FD: r.uapi},
	} {
		if f.FD != process.NoFD {
			files = append(files, f)
		}
	}
	return files
}

// resourcesOf sorts what a plane handed back. It takes files over; those of a newer plane that mean nothing
// here are closed.
func resourcesOf(files []process.File) (resources, error) {
	r := noResources
	slots := map[string]*int{fileTUN: &r.tun, fileUDP4: &r.udp4, fileUDP6: &r.udp6, fileUAPI: &r.uapi}
	for _, f := range files {
		if slot := slots[f.Name]; slot != nil && *slot == process.NoFD {
			*slot = f.FD
		} else {
			process.Close(f.FD)
		}
	}
	noUDP := r.udp4 == process.NoFD && r.udp6 == process.NoFD
	if r.tun == process.NoFD || noUDP || r.uapi == process.NoFD {
		r.close()
		return noResources, errors.New("the plane did not hand all its descriptors back")
	}
	return r, nil
}

// parameters are what is set from outside on the descriptors of a plane, and what the plane was told.
type parameters struct {
	iface  string
	port   uint16
	mark   uint32
	tos    uint8 // of the sockets
	engine tunnel.EngineName
	Settings
}

// sameOutside says whether nothing has to be set from outside to get from p to q.
func (p parameters) sameOutside(q parameters) bool {
	return p.mark == q.mark && p.tos == q.tos && p.bounds() == q.bounds()
}

// open makes what want needs and is not there yet; the rest is taken over as it is. It changes nothing of
// what is there.
func (s *Supervisor) open(want parameters) (next resources, err error) {
	next = s.res
	defer func() {
		if err != nil {
			s.closeNew(next)
			next = noResources
		}
	}()
	if next.udp4 == process.NoFD && next.udp6 == process.NoFD || s.have.port != want.port {
		if next.udp4, next.udp6, err = s.openUDP(want); err != nil {
			return next, err
		}
	}
	if s.have.iface != want.iface {
		next.tun, next.uapi = process.NoFD, process.NoFD
	}
	if next.tun != process.NoFD && deviceDeleted(next.tun) {
		s.log.Warn("the tunnel device was deleted and is made again", "interface", want.iface)
		next.tun = process.NoFD
	}
	if next.tun == process.NoFD {
		f, err := s.cfg.OpenTUN(want.iface)
		if err != nil {
			return next, err
		}
		if next.tun, err = process.TakeFD(f); err != nil {
			return next, err
		}
	}
	if next.uapi == process.NoFD {
		if err := os.MkdirAll(s.cfg.UAPIDir, 0o700); err != nil {
			return next, fmt.Errorf("make directory of UAPI sockets: %w", err)
		}
		if next.uapi, err = process.ListenUnix(uapiPath(s.cfg.UAPIDir, want.iface), unix.SOCK_STREAM); err != nil {
			return next, err
		}
	}
	return next, nil
}

func (s *Supervisor) openUDP(want parameters) (udp4, udp6 int, err error) {
	f4, f6, err := s.cfg.OpenUDP(want.port, want.mark, want.tos, want.bounds())
	if err != nil {
		return process.NoFD, process.NoFD, err
	}
	udp4, err4 := process.TakeFD(f4)
	udp6, err6 := process.TakeFD(f6)
	return udp4, udp6, errors.Join(err4, err6)
}

// closeNew closes what next has and the supervisor has not.
func (s *Supervisor) closeNew(next resources) { closeDifference(next, s.res) }

// closeDifference closes the descriptors of a that b does not share.
func closeDifference(a, b resources) {
	for _, x := range [][2]int{{a.tun, b.tun}, {a.udp4, b.udp4}, {a.udp6, b.udp6}, {a.uapi, b.uapi}} {
		if x[0] != x[1] {
			process.Close(x[0])
		}
	}
}

// keepResources makes next the supervisor's own and closes what it replaces.
func (s *Supervisor) keepResources(next resources, p parameters) {
	old, oldName := s.res, s.have.iface
	s.res, s.have = next, p
	if oldName != "" && oldName != p.iface {
		s.removeUAPISocket(oldName)
	}
	closeDifference(old, next)
}

// removeUAPISocket removes a socket of ours; that it is not there is no error.
func (s *Supervisor) removeUAPISocket(iface string) {
	path := uapiPath(s.cfg.UAPIDir, iface)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("file could not be removed", "path", path, "error", err)
	}
}

func uapiPath(dir, iface string) string { return filepath.Join(dir, iface+".sock") }

// tunName asks a TUN descriptor for its device's name.
func tunName(fd int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", fmt.Errorf("read the tunnel device's name: %w", err)
	}
	return strings.TrimRight(ifr.Name(), "\x00"), nil
}

// deviceDeleted says whether the device of a TUN descriptor was deleted: the descriptor outlives it, and is
// of no use.
func deviceDeleted(fd int) bool {
	_, err := tunName(fd)
	return errors.Is(err, unix.EBADFD)
}

// socketParameters reads back what the sockets are set to.
func socketParameters(r resources) (port uint16, mark uint32, tos uint8) {
	fd, level, opt := r.udp4, unix.IPPROTO_IP, unix.IP_TOS
	if fd == process.NoFD {
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

// ignorePathMTU makes sockets of an older release ignore ICMP about the path's MTU, as package descriptor does with
// new ones: they outlive an upgrade. A kernel that refuses leaves them as they were.
func ignorePathMTU(r resources) {
	if r.udp4 != process.NoFD {
		_ = unix.SetsockoptInt(r.udp4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	}
	if r.udp6 != process.NoFD {
		_ = unix.SetsockoptInt(r.udp6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
	}
}

// tuneSockets sets what can be changed on open sockets: mark, TOS octet, buffers.
func tuneSockets(r resources, p parameters) error {
	for _, x := range []struct {
		fd         int
		level, tos int
	}{{r.udp4, unix.IPPROTO_IP, unix.IP_TOS}, {r.udp6, unix.IPPROTO_IPV6, unix.IPV6_TCLASS}} {
		if x.fd == process.NoFD {
			continue
		}
		if err := unix.SetsockoptInt(x.fd, x.level, x.tos, int(p.tos)); err != nil {
			return fmt.Errorf("set TOS %#x on the socket of port %d: %w", p.tos, p.port, err)
		}
		if err := unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.mark)); err != nil {
			return fmt.Errorf("set mark %d on the socket of port %d: %w", p.mark, p.port, err)
		}
		b := p.bounds()
		if err := setBuffer(x.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, b.SendBuffer); err != nil {
			return fmt.Errorf("set send buffer %d on the socket of port %d: %w", b.SendBuffer, p.port, err)
		}
		if err := setBuffer(x.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, b.ReceiveBuffer); err != nil {
			return fmt.Errorf("set receive buffer %d on the socket of port %d: %w", b.ReceiveBuffer, p.port, err)
		}
	}
	return nil
}

// setBuffer sets a buffer beyond the system's limit where that is allowed. 0 leaves it as it is.
func setBuffer(fd, force, plain, bytes int) error {
	if bytes <= 0 {
		return nil
	}
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes)
	if errors.Is(err, unix.EPERM) {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bytes)
	}
	return err
}
