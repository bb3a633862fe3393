// Package host builds machines out of namespaces: each Host is a network and a mount namespace, and all of
// them live in one PID namespace, the World. No namespace has a name; each is held by a process of the World,
// whose process 1 exits when its standard input closes, and the kernel ends the rest: nothing is left behind,
// however the program ends. It needs root.
package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// World is the lab's PID namespace, held by its process 1.
type World struct {
	binary string // whose `lab holder` calls Hold
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	pidNS  *os.File
}

// NewWorld starts it; binary is the program whose `lab holder` calls Hold.
func NewWorld(binary string) (*World, error) {
	w := &World{binary: binary}
	w.cmd = exec.Command(binary, "lab", "holder", "init")
	w.cmd.Stderr = os.Stderr
	// Process 1 has an empty network namespace: stray packets reach nothing.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
	}
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := StartHolder(w.cmd, w.cmd.Start); err != nil {
		_ = w.cmd.Wait()
		return nil, fmt.Errorf("start the lab's process 1: %w", err)
	}
	if w.pidNS, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", w.cmd.Process.Pid)); err != nil {
		w.Close()
		return nil, fmt.Errorf("open the lab's PID namespace: %w", err)
	}
	return w, nil
}

// StartHolder starts a holder and waits until it is ready.
func StartHolder(cmd *exec.Cmd, start func() error) error {
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout = out
	err = start()
	out.Close() // so that the other end's exit is seen
	if err != nil {
		return err
	}
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if line, err := bufio.NewReader(r).ReadString('\n'); strings.TrimSpace(line) != Ready {
		_ = cmd.Process.Kill()
		return fmt.Errorf("%s exited before it was ready (%w)", cmd, err)
	}
	return nil
}

// Close ends every process of the lab and returns when they are gone.
func (w *World) Close() {
	w.stdin.Close()
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
	if w.pidNS != nil {
		w.pidNS.Close()
	}
}

// Keep makes the lab outlive this process.
func (w *World) Keep() error {
	if _, err := io.WriteString(w.stdin, keepWord); err != nil {
		return fmt.Errorf("tell the lab to keep running: %w", err)
	}
	return w.stdin.Close()
}

// PID is the world's process 1 in the machine's own namespace.
func (w *World) PID() int { return w.cmd.Process.Pid }

// Namespace is the path of the world's PID namespace, as long as the world exists.
func (w *World) Namespace() string { return w.pidNS.Name() }

// Host is one machine of the lab: a network and a mount namespace held by a process.
type Host struct {
	Name string // as in the topology: phone-a, edge-a, …
	PID  int    // of the holder in the machine's own namespace, for nsenter

	world *World
	cmd   *exec.Cmd
	files []*os.File // mnt, uts, net, pid: in the order in which they are entered
	net   *os.File
	once  sync.Once
}

// NewHost adds a machine to the world.
func (w *World) NewHost(name string) (*Host, error) {
	h := &Host{Name: name, world: w}
	h.cmd = exec.Command(w.binary, "lab", "holder", "host", name)
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
	}
	err := StartHolder(h.cmd, func() error {
		return onOwnThread(func() error {
			if err := unix.Setns(int(w.pidNS.Fd()), unix.CLONE_NEWPID); err != nil {
				return fmt.Errorf("enter the lab's PID namespace: %w", err)
			}
			return h.cmd.Start()
		})
	})
	go func() { _ = h.cmd.Wait() }() // it ends with the lab
	if err != nil {
		return nil, fmt.Errorf("start host %s: %w", name, err)
	}
	h.PID = h.cmd.Process.Pid
	for _, ns := range []string{"mnt", "uts", "net"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", h.PID, ns))
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("open the namespaces of host %s: %w", name, err)
		}
		h.files = append(h.files, f)
		h.net = f
	}
	return h, nil
}

// Close releases the host; its namespaces live as long as the world.
func (h *Host) Close() {
	h.once.Do(func() {
		for _, f := range h.files {
			f.Close()
		}
	})
}

// NetNS is the host's network namespace; borrowed until the lab is closed.
func (h *Host) NetNS() *os.File { return h.net }

// Path is the path, in this process's mount namespace, of a file that the host calls path.
func (h *Host) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.PID), "root", path)
}

// Do calls f on a thread in the host's network namespace and waits for it. Sockets that f opens stay in that
// namespace and may be used from any thread.
func (h *Host) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(h.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network of %s: %w", h.Name, err)
		}
		return f()
	})
}

// Command prepares a program to run on the host, with Start.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	path := name
	if !strings.Contains(name, "/") {
		if p, err := LookPath(name); err == nil {
			path = p
		}
	}
	cmd := exec.Command(path, args...)
	// A variable of the caller's own ringway must not become a setting of the ringway on this host.
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "RINGWAY_") })
	cmd.Env = append(own, "LC_ALL=C.UTF-8", "TERM=dumb", "PATH="+os.Getenv("PATH")+":"+strings.Join(adminDirs, ":"))
	cmd.Dir = Dir
	// A process group of its own: Ctrl-C on the lab's terminal is the lab's, not the daemon's. No session,
	// which would be a scheduling group (autogroup): the hosts' programs compete for the processor as those
	// of one machine do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Start starts a command inside the host: its network, its mounts and the lab's processes. The
// caller waits for it as usual; it ends with the lab at the latest.
func (h *Host) Start(cmd *exec.Cmd) error {
	err := onOwnThread(func() error {
		// setns(2) refuses a mount namespace to a thread that shares its root and working directory.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the working directory: %w", err)
		}
		for _, f := range append(h.files[:len(h.files):len(h.files)], h.world.pidNS) {
			if err := unix.Setns(int(f.Fd()), 0); err != nil {
				return fmt.Errorf("enter %s: %w", f.Name(), err)
			}
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("start %s on %s: %w", filepath.Base(cmd.Path), h.Name, err)
	}
	return nil
}

// Run runs a program on the host to its end and returns its standard output; the error holds its standard
// error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return h.RunInput(ctx, "", name, args...)
}

// RunInput is Run with something to read.
func (h *Host) RunInput(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := h.Command(name, args...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		err = ctx.Err()
	}
	if err != nil {
		return out.String(), fmt.Errorf(
			"%s: %s %s: %w: %s",
			h.Name,
			name,
			strings.Join(args, " "),
			err,
			strings.TrimSpace(errOut.String()),
		)
	}
	return out.String(), nil
}

// onOwnThread runs f on a thread that is thrown away afterwards, because it never may serve another
// goroutine once it has entered a namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The first thread cannot end, and /proc/self shows its namespaces: keep it occupied and take
		// another.
		done <- onOwnThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

var adminDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"}

// LookPath finds a program also where the user's PATH leaves out the administrator's folders, as Debian's
// does.
func LookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	} else if errors.Is(err, exec.ErrDot) {
		return "", err
	}
	for _, dir := range adminDirs {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not found", name)
}

// NetPath names the host's network namespace as package inside wants it.
func (h *Host) NetPath() string { return fmt.Sprintf("/proc/%d/ns/net", h.PID) }
