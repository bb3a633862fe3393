package durable_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/durable"
)

// A process that replaces a file is traced with ptrace(2), as strace does it: its system calls on files are
// recorded, and it can be killed before any of them.

const (
	pathEnv   = "TEST_REPLACE"
	neverKill = -1
)

var testFile = durable.File{Data: []byte(newText), Mode: 0o604, UID: -1, GID: -1}

// TestMain is also the traced process. getsid(2), which nothing else calls, says where the trace begins and
// ends.
func TestMain(m *testing.M) {
	path := os.Getenv(pathEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	_, _ = unix.Getsid(0)
	err := testFile.Replace(path)
	_, _ = unix.Getsid(0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// trace replaces path by testFile in a process of its own and returns its system calls on files. It kills the
// process before the one numbered kill, counted from 0.
func trace(t *testing.T, path string, kill int) (calls []string) {
	t.Helper()
	runtime.LockOSThread() // ptrace(2) answers only the thread that traces
	defer runtime.UnlockOSThread()

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pathEnv+"="+path)
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true}
	require.NoError(t, cmd.Start())
	pid := cmd.Process.Pid

	var ws unix.WaitStatus
	_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
	require.NoError(t, err)
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	require.NoError(t, unix.PtraceSetOptions(pid, options))
	require.NoError(t, unix.PtraceSyscall(pid, 0))

	recording := false
	for {
		thread, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		require.NoError(t, err)
		if thread == pid && (ws.Exited() || ws.Signaled()) {
			if kill == neverKill {
				require.True(t, ws.Exited() && ws.ExitStatus() == 0, "%v", ws)
			}
			return calls
		}
		if !ws.Stopped() {
			continue
		}

		signal := 0
		switch ws.StopSignal() {
		case unix.SIGTRAP | 0x80: // a system call begins or ends
			call, marker := beginning(t, thread)
			if marker {
				recording = !recording
			}
			if recording && call != "" {
				calls = append(calls, call)
				if len(calls)-1 == kill {
					require.NoError(t, unix.Kill(pid, unix.SIGKILL))
					continue
				}
			}
		case unix.SIGTRAP, unix.SIGSTOP: // of the tracing itself
		default:
			signal = int(ws.StopSignal())
		}
		_ = unix.PtraceSyscall(thread, signal) // a thread may have ended meanwhile
	}
}

// syscallInfo is struct ptrace_syscall_info of a system call that begins.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32
	_    [2]uint64
	nr   uint64
	args [6]uint64
}

// beginning describes the system call that a thread begins; empty for one that ends or does not concern
// files.
func beginning(t *testing.T, thread int) (call string, marker bool) {
	t.Helper()
	var info syscallInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno == unix.ESRCH { // it ended with the process, by another thread's exit
		return "", false
	}
	require.Zero(t, errno)
	if info.op != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return "", false
	}

	file := func() string { return descriptorPath(thread, info.args[0]) }
	switch info.nr {
	case unix.SYS_GETSID:
		return "", true
	case unix.SYS_OPENAT:
		verb := "open "
		if info.args[2]&unix.O_CREAT != 0 {
			verb = "create "
		}
		return verb + stringAt(t, thread, info.args[1]), false
	case unix.SYS_FCHMOD:
		return "chmod " + file(), false
	case unix.SYS_FCHOWN:
		return "chown " + file(), false
	case unix.SYS_WRITE:
		if !filepath.IsAbs(file()) { // the runtime wakes its poller through a descriptor
			return "", false
		}
		return "write " + file(), false
	case unix.SYS_FSYNC:
		return "sync " + file(), false
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "rename " + stringAt(t, thread, info.args[1]) + " " + stringAt(t, thread, info.args[3]), false
	case unix.SYS_UNLINKAT:
		return "unlink " + stringAt(t, thread, info.args[1]), false
	}
	return "", false
}

func descriptorPath(thread int, fd uint64) string {
	name, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(thread), "fd", strconv.FormatUint(fd, 10)))
	return name
}

// stringAt reads a string of a stopped process.
func stringAt(t *testing.T, thread int, at uint64) string {
	t.Helper()
	buf := make([]byte, unix.PathMax)
	n, err := unix.PtracePeekData(thread, uintptr(at), buf)
	require.True(t, err == nil || n > 0, "%v", err) // the end of the page may come first
	text, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return text
}
