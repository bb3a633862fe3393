package process

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Descriptors are plain numbers in this package, never os.Files: an os.File of a tunnel device would join the
// runtime's poller, which then wakes for every packet that another process reads, and (*os.File).Fd makes the
// open file description blocking for every process that shares it.

// NoFD stands for a descriptor that is not there.
const NoFD = -1

// File is a descriptor with the name under which it is handed over.
type File struct {
	Name string
	FD   int
}

// Close closes descriptors. It skips NoFD and the standard streams: a zero value must not close standard
// input.
func Close(fds ...int) {
	for _, fd := range fds {
		if fd > 2 {
			unix.Close(fd)
		}
	}
}

// CloseFiles closes the descriptors of files.
func CloseFiles(files ...File) {
	for _, f := range files {
		Close(f.FD)
	}
}

// Dup duplicates fd with close-on-exec set; NoFD gives NoFD.
func Dup(fd int) (int, error) {
	if fd == NoFD {
		return NoFD, nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return NoFD, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return n, nil
}

// TakeFD turns f into a plain descriptor and closes f; nil gives NoFD.
func TakeFD(f *os.File) (int, error) {
	if f == nil {
		return NoFD, nil
	}
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return NoFD, err
	}
	fd, dupErr := NoFD, error(nil)
	if err := rc.Control(func(old uintptr) { fd, dupErr = Dup(int(old)) }); err != nil {
		return NoFD, err
	}
	return fd, dupErr
}

// AsFile makes an os.File of a duplicate of fd; NoFD gives nil.
func AsFile(fd int, name string) (*os.File, error) {
	n, err := Dup(fd)
	if err != nil || n == NoFD {
		return nil, err
	}
	return os.NewFile(uintptr(n), name), nil
}

// asConn makes a connection of fd and closes fd, also on error.
func asConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "control connection")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a unix socket")
	}
	return u, nil
}

var errInUse = errors.New("another program listens there (a second ringway, or a WireGuard device of the same name)")

// ListenUnix makes a listening socket of the given type at path. The file has mode 0600 from its first
// moment; a stale one is removed first.
func ListenUnix(path string, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return NoFD, fmt.Errorf("make socket %s: %w", path, err)
	}
	fail := func(what string, err error) (int, error) {
		unix.Close(fd)
		return NoFD, fmt.Errorf("%s %s: %w", what, path, err)
	}
	if err := unix.Fchmod(fd, 0o600); err != nil { // bind creates the file with the socket's mode
		return fail("protect socket", err)
	}

	address := &unix.SockaddrUnix{Name: path}
	err = unix.Bind(fd, address)
	if errors.Is(err, unix.EADDRINUSE) {
		switch probeErr := ProbeUnix(path, kind); {
		case probeErr == nil:
			return fail("bind", errInUse)
		case errors.Is(probeErr, unix.ECONNREFUSED): // its listener is gone
			if err := os.Remove(path); err != nil {
				return fail("remove stale socket", err)
			}
			err = unix.Bind(fd, address)
		}
	}
	if err != nil {
		return fail("bind", err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		return fail("listen on", err)
	}
	return fd, nil
}

// ProbeUnix tries whether a program listens at path; nil means that one does.
func ProbeUnix(path string, kind int) error {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); !errors.Is(err, unix.EAGAIN) {
		return err
	}
	return nil // its backlog is full, so it has a listener
}
