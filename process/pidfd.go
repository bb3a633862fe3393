package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// watched is a process, own child or adopted, watched by pidfd: a pid may be somebody else's by the time one
// acts on it.
type watched struct {
	pid    int
	pidfd  *os.File
	exited chan struct{} // closed when it is gone
	reason string        // how it ended, valid after exited

	watching sync.WaitGroup
}

// watchProcess takes over pidfd.
func watchProcess(pid, pidfd int) (*watched, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	p := &watched{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), exited: make(chan struct{})}
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.watching.Go(func() {
		if err := rc.Read(pidfdReady); err != nil {
			return // released
		}
		p.reason = reap(p.pid)
		close(p.exited)
	})
	return p, nil
}

// pidfdReady says whether the process of a pidfd has ended.
func pidfdReady(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// reap takes an own child's exit status, so that no zombie stays; an adopted process is init's child.
func reap(pid int) string {
	var ws unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || got != pid:
			return "ended (not a child of this daemon)"
		case ws.Signaled():
			return "signal: " + ws.Signal().String()
		}
		return fmt.Sprintf("exit status %d", ws.ExitStatus())
	}
}

// watchStranger watches a process that is no child. The caller checks afterwards that pid is still the same
// process.
func watchStranger(pid int) (*watched, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return watchProcess(pid, fd)
}

func (p *watched) dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// kill ends the process, also a stopped one.
func (p *watched) kill() error { return p.signal(unix.SIGKILL) }

// signal sends s, unless the process is gone.
func (p *watched) signal(s unix.Signal) error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var killErr error
	if err := rc.Control(func(fd uintptr) {
		killErr = unix.PidfdSendSignal(int(fd), s, nil, 0)
	}); err != nil {
		return err
	}
	if killErr != nil && !errors.Is(killErr, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(s), p.pid, killErr)
	}
	return nil
}

// release stops watching; the process keeps running.
func (p *watched) release() {
	p.pidfd.Close()
	p.watching.Wait()
}

// startTime is when a process started, in the kernel's ticks: with the pid it names one process for good.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	s := string(b)
	i := strings.LastIndexByte(s, ')') // the name may hold anything
	f := strings.Fields(s[i+1:])
	if i < 0 || len(f) < 20 {
		return "", fmt.Errorf("read /proc/%d/stat: too short", pid)
	}
	return f[19], nil
}
