package process

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// Sandbox says what a kind of process keeps. All else is given up before it reads the first byte from
// outside. OpenFiles and Memory must be given.
type Sandbox struct {
	OpenFiles  uint64 // most descriptors
	Memory     uint64 // most private memory in bytes; above it the process dies, and is restarted
	SoftMemory int64  // bytes above which the Go runtime collects garbage more often
	Limits     []Limit
	Calls      []Call   // system calls besides those that every process needs
	ReadPaths  []string // files and directories that may be read; without any, no file can be opened at all
}

// Limit is a further resource limit.
type Limit struct {
	What      string // for status
	Resource  int    // unix.RLIMIT_...
	Soft, Max uint64
}

// enter gives up everything that s does not name. What the daemon did before exec (own user, no capabilities,
// no new privileges; launch.go) is only verified here. It never fails: what is
// not available is reported, and shown in status.
func (s Sandbox) enter() (holds, missing []string) {
	note := func(what string, err error) {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", what, err))
			return
		}
		holds = append(holds, what)
	}
	note(fmt.Sprintf("user %d", os.Getuid()), checkUser())
	note("no capabilities", checkCapabilities())
	// Set for this thread if the daemon could not; the seccomp filter's TSYNC spreads it to all.
	note("no new privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	note("not dumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	// Huge pages hold what was given back to the kernel, which takes milliseconds to make them. One without them refuses.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	note("no core file", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))

	if s.SoftMemory > 0 {
		debug.SetMemoryLimit(s.SoftMemory)
	}
	limits := append([]Limit{
		{fmt.Sprintf("at most %d files", s.OpenFiles), unix.RLIMIT_NOFILE, s.OpenFiles, s.OpenFiles},
		{fmt.Sprintf("at most %d MiB", s.Memory>>20), unix.RLIMIT_DATA, s.Memory, s.Memory},
	}, s.Limits...)
	for _, l := range limits {
		note(l.What, unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Max}))
	}

	calls := s.Calls
	err := s.restrictFiles()
	note("landlock", err)
	switch {
	case err == nil && len(s.ReadPaths) > 0:
		calls = append(append([]Call(nil), calls...), fileCalls...)
	case len(s.ReadPaths) > 0: // nothing but landlock tells one path from another
		missing = append(missing,
			fmt.Sprintf("files: %s cannot be read without landlock", strings.Join(s.ReadPaths, ", ")))
	}
	note("seccomp", restrictCalls(calls))
	return holds, missing
}

func checkUser() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return fmt.Errorf("runs as root")
	}
	if g, err := os.Getgroups(); err != nil || len(g) > 1 {
		return fmt.Errorf("has supplementary groups %v", g)
	}
	return nil
}

func checkCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	var held uint32
	for _, d := range data {
		held |= d.Effective | d.Permitted | d.Inheritable
	}
	if held != 0 {
		return fmt.Errorf("still holds some (%#x)", held)
	}
	return nil
}

// restrictFiles denies every path but ReadPaths by landlock. Without ReadPaths it is a second barrier behind
// the filter on system calls.
func (s Sandbox) restrictFiles() error {
	var allowed []landlock.Rule
	for _, path := range s.ReadPaths {
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return fmt.Errorf("allow %s: %w", path, err)
		case st.IsDir():
			allowed = append(allowed, landlock.RODirs(path))
		default:
			allowed = append(allowed, landlock.ROFiles(path))
		}
	}
	if err := landlock.V5.BestEffort().RestrictPaths(allowed...); err != nil {
		return err
	}

	// Best effort is silent when the kernel has no landlock: test whether it holds.
	f, err := os.Open("/")
	if err == nil {
		_, err = f.Readdirnames(1)
		f.Close()
	}
	if err == nil {
		return fmt.Errorf("not supported by this kernel")
	}
	if !os.IsPermission(err) {
		return fmt.Errorf("cannot test it: %s", strings.TrimPrefix(err.Error(), "open /: "))
	}
	return nil
}
