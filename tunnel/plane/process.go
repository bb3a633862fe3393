package plane

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// voiceSlice is the EEVDF slice of a voice plane's threads in nanoseconds: the shortest the kernel takes. A
// short slice gives a woken thread an early deadline, so that it runs before the ones that burn the core.
const voiceSlice = 100_000

const voiceNice = -20

// process is a running plane, own child or adopted, watched by pidfd: a pid may be
// somebody else's by the time one acts on it.
type process struct {
	pid    int
	pidfd  *os.File
	exited chan struct{} // closed when it is gone
	reason string        // how, valid after exited

	watching sync.WaitGroup
}

// watchProcess takes over pidfd.
func watchProcess(pid, pidfd int) (*process, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), exited: make(chan struct{})}
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.watching.Go(func() {
		err := rc.Read(func(fd uintptr) bool {
			for {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
				if err != unix.EINTR {
					return n > 0
				}
			}
		})
		if err != nil {
			return // let go
		}
		p.reason = reap(p.pid)
		close(p.exited)
	})
	return p, nil
}

// reap takes an own child's exit status, so that no zombie stays; an adopted plane is init's.
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

// adoptProcess watches a process that is no child. The caller checks afterwards that pid is still who it was.
func adoptProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return watchProcess(pid, fd)
}

func (p *process) dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// kill ends the process whatever it does.
func (p *process) kill() error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("kill plane process %d: %w", p.pid, serr)
	}
	return nil
}

// letGo stops watching; the process runs on.
func (p *process) letGo() {
	p.pidfd.Close()
	p.watching.Wait()
}

// spawning says how a plane process is made.
type spawning struct {
	program int // descriptor of the binary
	args    []string
	env     []string
	class   tunnel.Class
	engine  tunnel.EngineName
	names   []string // of files
	files   []int    // become 3, 4, 5 ...
	stderr  int
	own     bool // give it its own user, priority and no capabilities
}

// openProgram opens this process's own binary, so that a plane is always of the daemon's build, whatever
// lies on disk by now. A binary that others may not execute is copied into memory first: a plane runs
// as nobody in particular.
func openProgram() (int, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return noFD, fmt.Errorf("open own program: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return noFD, fmt.Errorf("open own program: %w", err)
	}
	fd := int(f.Fd())
	if st.Mode()&0o001 == 0 {
		m, err := unix.MemfdCreate("ringway", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			return noFD, fmt.Errorf("copy own program into memory: %w", err)
		}
		mem := os.NewFile(uintptr(m), "ringway")
		defer mem.Close()
		if _, err := io.Copy(mem, f); err != nil {
			return noFD, fmt.Errorf("copy own program into memory: %w", err)
		}
		if err := mem.Chmod(0o755); err != nil {
			return noFD, fmt.Errorf("copy own program into memory: %w", err)
		}
		// A program open for writing cannot be executed (ETXTBSY): go on with a read-only view of it.
		ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", m))
		if err != nil {
			return noFD, fmt.Errorf("copy own program into memory: %w", err)
		}
		defer ro.Close()
		fd = int(ro.Fd())
	}
	// High, so that the child's own descriptors (3, 4, 5 ...) never land on it before exec.
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return noFD, fmt.Errorf("open own program: %w", err)
	}
	return n, nil
}

// spawn starts a plane. Its main thread gets priority and loses privileges before exec, so that
// every thread of it, from the runtime's first on, has both. missing says what could not be had.
func spawn(s spawning) (p *process, missing []string, err error) {
	type result struct {
		pid, pidfd int
		missing    []string
		err        error
	}
	var r result
	onThrownAwayThread(func() {
		// A process group of its own, out of reach of a terminal's Ctrl-C, but no session: each session is a scheduling group
		// (autogroup), and between groups nice means little. A voice plane in a group of its own waited 16 ms for a core,
		// at nice -20, while the data plane's threads took turns; in one group it preempts them.
		attr := &syscall.SysProcAttr{Setpgid: true, PidFD: &r.pidfd}
		if s.own {
			r.missing = s.giveUp(attr)
		} else {
			r.missing = []string{"own user, priority: the daemon is not root"}
		}
		env := append([]string{
			envFiles + "=" + strings.Join(s.names, ","),
			envOwner + "=" + strconv.Itoa(os.Geteuid()),
			envClass + "=" + string(s.class),
		}, s.env...)
		null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			r.err = fmt.Errorf("open %s: %w", os.DevNull, err)
			return
		}
		defer unix.Close(null)
		files := []uintptr{uintptr(null), uintptr(null), uintptr(s.stderr)}
		for _, fd := range s.files {
			files = append(files, uintptr(fd))
		}
		r.pid, r.err = syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", s.program), s.args,
			&syscall.ProcAttr{Dir: "/", Env: env, Files: files, Sys: attr})
	})
	if r.err != nil {
		return nil, r.missing, fmt.Errorf("start plane %s: %w", s.class, r.err)
	}
	if r.pidfd < 0 { // a kernel before 5.4
		var perr error
		if r.pidfd, perr = unix.PidfdOpen(r.pid, 0); perr != nil {
			_ = unix.Kill(r.pid, unix.SIGKILL) // an own child that is not reaped: the pid is still its
			return nil, r.missing, fmt.Errorf("watch plane %s: %w", s.class, perr)
		}
	}
	p, err = watchProcess(r.pid, r.pidfd)
	return p, r.missing, err
}

// onThrownAwayThread calls f on a thread that ends with it. f gives the thread a nice value, a slice, an empty bounding set and
// no_new_privs for the child to inherit; none of them may stay on a thread of the daemon. The
// process's first thread is never taken: the runtime cannot end it, and it is what /proc shows of the daemon.
func onThrownAwayThread(f func()) {
	done := make(chan struct{})
	run := func() {
		runtime.LockOSThread() // never unlocked
		f()
		close(done)
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		go run() // elsewhere, since this thread is held until it is done
		<-done
		runtime.UnlockOSThread()
	}()
	<-done
}

// giveUp prepares the calling thread and the child's credentials.
func (s spawning) giveUp(attr *syscall.SysProcAttr) (missing []string) {
	uid, gid := planeUser(s.class)
	attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	if s.class == tunnel.Voice && s.engine != tunnel.EngineRealtime { // whose forwarding threads alone go first (realtime.go)
		if err := setPriority(0); err != nil {
			missing = append(missing, err.Error())
		}
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

// planeUser is the user of a class's plane, by name if the package made it.
func planeUser(c tunnel.Class) (uid, gid uint32) {
	want, ok := planeUsers[c]
	if !ok {
		want = planeUsers[tunnel.Data]
	}
	if u, err := user.Lookup(want.name); err == nil {
		a, errA := strconv.ParseUint(u.Uid, 10, 32)
		b, errB := strconv.ParseUint(u.Gid, 10, 32)
		if errA == nil && errB == nil && a != 0 {
			return uint32(a), uint32(b)
		}
	}
	return want.id, want.id
}

// setPriority gives one thread (0: the calling one) the scheduling of voice.
func setPriority(tid int) error {
	a := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: voiceNice, Runtime: voiceSlice}
	if err := unix.SchedSetAttr(tid, &a, 0); err != nil {
		return fmt.Errorf("nice %d and a slice of %d us: %w", voiceNice, voiceSlice/1000, err)
	}
	got, err := unix.SchedGetAttr(tid, 0)
	if err == nil && got.Runtime != voiceSlice {
		return fmt.Errorf("slice of %d us: the kernel keeps %d us (needs Linux 6.12)", voiceSlice/1000, got.Runtime/1000)
	}
	return nil
}

// birth is when a process started, in the kernel's ticks: with the pid it names one process for good.
func birth(pid int) (string, error) {
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
