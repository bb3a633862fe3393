package plane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// client is the daemon's end of a plane's control connection.
type client struct {
	w     *wire
	event func(message) // called from the reader, one at a time

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan reply
	lost    error // set once the connection is of no use

	gone    chan struct{}
	reading sync.WaitGroup
}

type reply struct {
	m     message
	files []int
	from  sender
}

var (
	errLost   = errors.New("control connection lost")           // it ended
	errSilent = errors.New("plane does not answer in its time") // it is there, and of no use
)

// timeFor is the longest that a plane may take for a request. Whatever the caller allows, no call is longer: a plane
// that hangs would hold up everything that waits for the call.
func timeFor(request string) time.Duration {
	switch request {
	case typeStatus, typeHandshake, typeFiles, typeQuit:
		return callTimeout
	}
	return readyTimeout // what changes an engine, or asks for all that it holds
}

// newClient takes over c.
func newClient(c *net.UnixConn, event func(message)) (*client, error) {
	w, err := newWire(c, true)
	if err != nil {
		c.Close()
		return nil, err
	}
	k := &client{w: w, event: event, waiting: map[uint64]chan reply{}, gone: make(chan struct{})}
	k.reading.Go(k.read)
	return k, nil
}

func dialPlane(path string, event func(message)) (*client, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return newClient(c, event)
}

func (k *client) read() {
	for {
		m, files, from, err := k.w.read()
		if err == nil && m.Type == "refused" {
			err = errors.New(m.Error)
		}
		if err != nil {
			k.mu.Lock()
			k.lost = fmt.Errorf("%w: %w", errLost, err)
			k.mu.Unlock()
			close(k.gone)
			return
		}
		if m.ID == 0 {
			closeFDs(files...)
			k.event(m)
			continue
		}
		k.mu.Lock()
		ch := k.waiting[m.ID]
		delete(k.waiting, m.ID)
		k.mu.Unlock()
		if ch == nil {
			closeFDs(files...) // the caller gave up
			continue
		}
		ch <- reply{m, files, from}
	}
}

// call sends a request and waits for its answer, no longer than timeFor says: then the error is errSilent. The
// caller owns the reply's files.
func (k *client) call(caller context.Context, m message) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(caller, timeFor(m.Type), errSilent)
	defer cancel()
	ch := make(chan reply, 1)
	k.mu.Lock()
	if k.lost != nil {
		defer k.mu.Unlock()
		return reply{}, k.lost
	}
	k.last++
	m.ID = k.last
	k.waiting[m.ID] = ch
	k.mu.Unlock()
	forget := func() {
		k.mu.Lock()
		delete(k.waiting, m.ID)
		k.mu.Unlock()
		select { // the answer may have come at the same time
		case r := <-ch:
			closeFDs(r.files...)
		default:
		}
	}
	deadline, _ := ctx.Deadline()
	if err := k.w.write(m, nil, time.Until(deadline)); err != nil {
		forget()
		if errors.Is(err, os.ErrDeadlineExceeded) && caller.Err() == nil { // it does not even read
			return reply{}, fmt.Errorf("%w: %w", errSilent, err)
		}
		select {
		case <-k.gone: // the reader knows why, if the plane said so
			k.mu.Lock()
			defer k.mu.Unlock()
			return reply{}, k.lost
		case <-time.After(redialAfter):
			return reply{}, err
		}
	}
	select {
	case r := <-ch:
		if r.m.Error != "" {
			closeFDs(r.files...)
			return r, fmt.Errorf("plane refuses %q: %s", m.Type, r.m.Error)
		}
		return r, nil
	case <-k.gone:
		forget()
		k.mu.Lock()
		defer k.mu.Unlock()
		return reply{}, k.lost
	case <-ctx.Done():
		forget()
		return reply{}, fmt.Errorf("plane does not answer %q: %w", m.Type, context.Cause(ctx))
	}
}

func (k *client) close() {
	k.w.close()
	k.reading.Wait()
}

// hello asks the plane who it is; the second result is the pid by the kernel's word.
func (k *client) hello(ctx context.Context, watch bool) (Hello, int, error) {
	r, err := k.call(ctx, message{Type: typeHello, Watch: watch})
	closeFDs(r.files...)
	if err != nil {
		return Hello{}, 0, err
	}
	if r.m.Hello == nil {
		return Hello{}, 0, errors.New("plane answers hello without saying who it is")
	}
	return *r.m.Hello, r.from.PID, nil
}

// resources are the daemon's own descriptors of everything that a plane works on. They keep the devices
// alive while no plane does.
type resources struct {
	tun, udp4, udp6, uapi, control int
}

var noResources = resources{noFD, noFD, noFD, noFD, noFD}

func (r resources) close() { closeFDs(r.tun, r.udp4, r.udp6, r.uapi, r.control) }

// each names the descriptors that are there.
func (r resources) each() (names []string, fds []int) {
	for _, x := range []struct {
		name string
		fd   int
	}{{fileTUN, r.tun}, {fileUDP4, r.udp4}, {fileUDP6, r.udp6}, {fileUAPI, r.uapi}, {fileControl, r.control}} {
		if x.fd != noFD {
			names, fds = append(names, x.name), append(fds, x.fd)
		}
	}
	return names, fds
}

// files asks for the plane's descriptors.
func (k *client) files(ctx context.Context) (resources, error) {
	r, err := k.call(ctx, message{Type: typeFiles})
	if err != nil {
		return noResources, err
	}
	out := noResources
	if len(r.files) != len(r.m.Files) {
		closeFDs(r.files...)
		return noResources, fmt.Errorf("plane gives %d descriptors but names %d", len(r.files), len(r.m.Files))
	}
	for i, n := range r.m.Files {
		to := map[string]*int{fileTUN: &out.tun, fileUDP4: &out.udp4, fileUDP6: &out.udp6, fileUAPI: &out.uapi, fileControl: &out.control}[n]
		if to == nil || *to != noFD {
			closeFDs(r.files[i]) // of a newer plane
			continue
		}
		*to = r.files[i]
	}
	if out.tun == noFD || out.udp4 == noFD && out.udp6 == noFD || out.uapi == noFD || out.control == noFD {
		out.close()
		return noResources, errors.New("plane does not give all its descriptors back")
	}
	return out, nil
}

// listenUnix makes a listening socket at path, 0600 from its first moment, and removes a stale one.
func listenUnix(path string, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return noFD, fmt.Errorf("make socket %s: %w", path, err)
	}
	address := &unix.SockaddrUnix{Name: path}
	fail := func(what string, err error) (int, error) {
		unix.Close(fd)
		return noFD, fmt.Errorf("%s %s: %w", what, path, err)
	}
	if err := unix.Fchmod(fd, 0o600); err != nil { // of the file that bind makes
		return fail("protect socket", err)
	}
	err = unix.Bind(fd, address)
	if errors.Is(err, unix.EADDRINUSE) {
		switch derr := knock(path, kind); {
		case derr == nil:
			return fail("bind", fmt.Errorf("another program listens there (a second ringway, or a WireGuard device of the same name)"))
		case errors.Is(derr, unix.ECONNREFUSED): // nobody holds it any more
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

// knock tries whether somebody listens at path.
func knock(path string, kind int) error {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); !errors.Is(err, unix.EAGAIN) {
		return err
	}
	return nil // its queue is full: somebody is there
}

func controlPath(runDir string, c tunnel.Class) string {
	return filepath.Join(runDir, "plane-"+string(c)+".sock")
}

func pidPath(runDir string, c tunnel.Class) string {
	return filepath.Join(runDir, "plane-"+string(c)+".pid")
}

func uapiPath(dir, iface string) string { return filepath.Join(dir, iface+".sock") }

// tunName asks a TUN descriptor for its device's name.
func tunName(fd int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", fmt.Errorf("ask tunnel device for its name: %w", err)
	}
	return strings.TrimRight(ifr.Name(), "\x00"), nil
}

// deviceGone says whether the device of a TUN descriptor was deleted: the descriptor outlives it, and is of no use.
func deviceGone(fd int) bool {
	_, err := tunName(fd)
	return errors.Is(err, unix.EBADFD)
}
