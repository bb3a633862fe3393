package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// start says how a process is made.
type start struct {
	kind    Kind
	program int // descriptor of the binary
	files   []File
	stderr  int

	confine bool            // give it its own user and no capabilities
	prepare func() []string // as in Supervisor.Launch
}

// openProgram opens the binary of the children: by default this process's own, so that a child is always of
// the daemon's build, whatever lies on disk by now. A binary that others may not execute is copied into
// memory first, since the child runs as an unprivileged user.
func openProgram(path string) (int, error) {
	f, err := os.Open(cmp.Or(path, "/proc/self/exe"))
	if err != nil {
		return NoFD, fmt.Errorf("open program: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return NoFD, fmt.Errorf("open program: %w", err)
	}
	if st.Mode()&0o001 == 0 {
		copied, err := copyToMemory(f)
		if err != nil {
			return NoFD, fmt.Errorf("copy program into memory: %w", err)
		}
		defer copied.Close()
		f = copied
	}
	// High, so that the child's own descriptors (3, 4, 5 ...) never land on it before exec.
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return NoFD, fmt.Errorf("open program: %w", err)
	}
	return n, nil
}

// copyToMemory makes an executable copy of f.
func copyToMemory(f io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate("ringway", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	mem := os.NewFile(uintptr(fd), "ringway")
	defer mem.Close()
	if _, err := io.Copy(mem, f); err != nil {
		return nil, err
	}
	if err := mem.Chmod(0o755); err != nil {
		return nil, err
	}
	// A program that is open for writing cannot be executed (ETXTBSY): return a read-only view of it.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// spawn starts a process. Its main thread loses privileges before exec, so that every thread of it, from the
// runtime's first on, lacks them. missing lists what could not be restricted.
func spawn(s start) (p *watched, missing []string, err error) {
	var pid, pidfd int
	onDisposableThread(func() { pid, pidfd, missing, err = s.exec() })
	if err != nil {
		return nil, missing, fmt.Errorf("start %s: %w", s.kind.Name, err)
	}
	if pidfd < 0 { // a kernel before 5.4
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL) // a child that is not reaped: the pid is still its own
			return nil, missing, fmt.Errorf("watch %s: %w", s.kind.Name, err)
		}
	}
	p, err = watchProcess(pid, pidfd)
	return p, missing, err
}

// exec forks and executes; it changes the calling thread for good.
func (s start) exec() (pid, pidfd int, missing []string, err error) {
	// A process group of its own, out of reach of a terminal's Ctrl-C, but no session: each session is a
	// scheduling group (autogroup), and between groups nice means little. A voice plane in a group of its own
	// waited 16 ms for a core, at nice -20, while the data plane's threads took turns; in one group it
	// preempts them.
	attr := &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd}
	if s.confine {
		missing = s.dropPrivileges(attr)
	} else {
		missing = []string{"own user, priority: the daemon is not root"}
	}

	names := make([]string, len(s.files))
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, NoFD, missing, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	fds := []uintptr{uintptr(null), uintptr(null), uintptr(s.stderr)}
	for i, f := range s.files {
		names[i], fds = f.Name, append(fds, uintptr(f.FD))
	}
	env := append([]string{
		s.kind.EnvPrefix + envName + "=" + s.kind.Name,
		s.kind.EnvPrefix + envFiles + "=" + strings.Join(names, ","),
		s.kind.EnvPrefix + envOwner + "=" + strconv.Itoa(os.Geteuid()),
	}, s.kind.Env...)
	program, args := fmt.Sprintf("/proc/self/fd/%d", s.program), append([]string{"ringway"}, s.kind.Args...)
	pid, err = syscall.ForkExec(program, args, &syscall.ProcAttr{Dir: "/", Env: env, Files: fds, Sys: attr})
	return pid, pidfd, missing, err
}

// dropPrivileges prepares the calling thread and the child's credentials.
func (s start) dropPrivileges(attr *syscall.SysProcAttr) (missing []string) {
	uid, gid := s.kind.IDs()
	attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	if s.prepare != nil {
		missing = s.prepare()
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		// EINVAL: the kernel does not know that one.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			missing = append(missing, fmt.Sprintf("empty bounding set: %v", err))
			break
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		missing = append(missing, fmt.Sprintf("no new privileges: %v", err))
	}
	return missing
}

// onDisposableThread calls f on a thread that ends with it. f gives the thread a nice value, an empty
// bounding set and no_new_privs for the child to inherit; none of them may stay on a thread of the daemon.
// The process's first thread is never used: the runtime cannot end it, and it is what /proc shows of the
// daemon.
func onDisposableThread(f func()) {
	done := make(chan struct{})
	run := func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends
		f()
		close(done)
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		go run() // on another thread, since this one is held until it is done
		<-done
		runtime.UnlockOSThread()
	}()
	<-done
}

// IDs are those of the kind's user: by name if the system has it.
func (k Kind) IDs() (uid, gid uint32) {
	if u, err := user.Lookup(k.User); err == nil {
		a, errA := strconv.ParseUint(u.Uid, 10, 32)
		b, errB := strconv.ParseUint(u.Gid, 10, 32)
		if errA == nil && errB == nil && a != 0 {
			return uint32(a), uint32(b)
		}
	}
	return k.UserID, k.UserID
}

// Launch starts a process on files, up to its hello: what it does from then on, its kind tells it. prepare,
// which may be nil, runs on the thread that the process is made from, before that thread gives up its
// privileges; it returns what it could not do.
func (s *Supervisor) Launch(ctx context.Context, files []File, prepare func() []string) (*Instance, error) {
	if err := s.listenControl(); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make control connection: %w", err)
	}
	stderr, write, err := os.Pipe() // takes what the runtime writes when it crashes
	if err != nil {
		Close(pair[0], pair[1])
		return nil, err
	}

	handed := append([]File{{fileConnection, pair[1]}, {fileControl, s.control}}, files...)
	proc, missing, err := spawn(start{kind: s.cfg.Kind, program: s.program, files: handed, stderr: int(write.Fd()),
		confine: os.Geteuid() == 0, prepare: prepare})
	write.Close()
	Close(pair[1]) // or the end of a process that fails at once would only be noticed by its silence
	if err != nil {
		Close(pair[0])
		stderr.Close()
		return nil, err
	}
	i := &Instance{proc: proc, Missing: missing, stderr: stderr, Since: time.Now()}
	s.tasks.Go(func() { s.forwardStderr(stderr, proc.pid) })
	if err := s.greet(ctx, i, pair[0]); err != nil {
		return nil, s.abandon(i, err)
	}
	return i, nil
}

// greet connects to a new process and waits for its hello. It takes over fd.
func (s *Supervisor) greet(ctx context.Context, i *Instance, fd int) error {
	c, err := asConn(fd)
	if err != nil {
		return err
	}
	if i.conn, err = s.newConn(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timing.Ready)
	defer cancel()
	if err := s.Refresh(ctx, i); err != nil {
		return fmt.Errorf("%s did not start up: %w", s.cfg.Kind.Name, err)
	}
	return nil
}

// abandon kills a process that did not get as far as its hello.
func (s *Supervisor) abandon(i *Instance, err error) error {
	_ = i.proc.kill()
	select {
	case <-i.proc.exited:
		err = fmt.Errorf("%w (%s)", err, i.proc.reason)
	case <-time.After(s.timing.Kill):
		err = errors.Join(err, fmt.Errorf("process %d could not be killed", i.proc.pid))
	}
	s.Release(i)
	return err
}
