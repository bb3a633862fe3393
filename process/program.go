package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is a program that is not Ringway's, as pppd. It runs as root without the capabilities that it does not need,
// and goes on running when this daemon ends: the next one adopts it.
type Program struct {
	Name         string // looked for in PATH and in the directories of programs for root
	Args         []string
	Capabilities []int // CAP_…: all that it and what it starts will ever have
}

// programPath is where programs are looked for, and what they have as PATH.
const programPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ErrNoProgram is the error of a program that is not installed.
var ErrNoProgram = errors.New("is not installed")

// find returns the program's file.
func (p Program) find() (string, error) {
	for dir := range strings.SplitSeq(os.Getenv("PATH")+":"+programPath, ":") {
		if path := dir + "/" + p.Name; dir != "" {
			if found, err := exec.LookPath(path); err == nil {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("%s %w", p.Name, ErrNoProgram)
}

// Start starts the program. output takes what it writes.
func (p Program) Start(output *os.File) (*Running, error) {
	path, err := p.find()
	if err != nil {
		return nil, err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)

	pid, pidfd := 0, NoFD
	onDisposableThread(func() {
		if err = p.confine(); err != nil {
			return
		}
		pid, err = syscall.ForkExec(path, append([]string{p.Name}, p.Args...), &syscall.ProcAttr{
			Dir: "/", Env: []string{"PATH=" + programPath}, Files: []uintptr{uintptr(null), output.Fd(), output.Fd()},
			Sys: &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	if pidfd < 0 { // a kernel before 5.4
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL) // a child that is not reaped: the pid is still its own
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
	}
	return running(pid, pidfd)
}

// confine takes from the calling thread what the program does not need.
func (p Program) confine() error {
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(p.Capabilities, c) {
			continue
		}
		// EINVAL: the kernel does not know that one.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// Running is a program that runs.
type Running struct {
	watched *watched
	born    string
}

func running(pid, pidfd int) (*Running, error) {
	w, err := watchProcess(pid, pidfd)
	if err != nil {
		return nil, err
	}
	born, err := startTime(pid)
	if err != nil && !w.dead() {
		w.release()
		return nil, fmt.Errorf("read when process %d started: %w", pid, err)
	}
	return &Running{w, born}, nil
}

// Adopt returns the process that ID named, if it still runs.
func Adopt(id string) (*Running, error) {
	text, born, _ := strings.Cut(id, " ")
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 {
		return nil, fmt.Errorf("%q names no process", id)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	r, err := running(pid, fd)
	if err == nil && r.born != born {
		r.Release()
		err = fmt.Errorf("process %d is another one by now", pid)
	}
	return r, err
}

// ID names the process for good: its pid and when it started.
func (r *Running) ID() string { return fmt.Sprintf("%d %s", r.watched.pid, r.born) }

// PID is the process's id.
func (r *Running) PID() int { return r.watched.pid }

// Exited is closed when the process is gone.
func (r *Running) Exited() <-chan struct{} { return r.watched.exited }

// Status is the exit status of a process that is gone; -1: a signal ended it, or it was adopted.
func (r *Running) Status() int {
	status := -1
	_, _ = fmt.Sscanf(r.watched.reason, "exit status %d", &status)
	return status
}

// End asks the process to end, and kills it if it has not within patience.
func (r *Running) End(patience time.Duration) error {
	if err := r.watched.signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-r.watched.exited:
		return nil
	case <-time.After(patience):
	}
	if err := r.watched.kill(); err != nil {
		return err
	}
	select {
	case <-r.watched.exited:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("process %d could not be killed", r.watched.pid)
	}
}

// Release stops watching; the process goes on.
func (r *Running) Release() { r.watched.release() }
