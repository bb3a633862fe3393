package plane

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// The user that a plane runs as: the package makes these; the numbers are the fallback where no
// such user exists. One each, so that no plane may signal or trace the other.
var planeUsers = map[tunnel.Class]struct {
	name string
	id   uint32
}{
	tunnel.Voice: {"ringway-voice", 61801},
	tunnel.Data:  {"ringway-data", 61802},
}

const (
	maxOpenFiles = 256
	// memoryHard is the most private memory a plane may have. Engines bound themselves far below; this keeps a
	// fault in one from taking the machine with it (the plane dies, and is restarted).
	memoryHard = 1 << 30
	memorySoft = 192 << 20
)

func limitMemory() { debug.SetMemoryLimit(memorySoft) }

// limitRuntime sets the collector and how many threads run at once. A voice plane allocates almost nothing and collects
// seldom: each collection costs its forwarding threads time. It is a trickle of single packets, each of which an engine hands
// from goroutine to goroutine: with one processor that is a function call, with several a thread is woken for each
// hand-over, which takes longer than the work and a core away from data. A realtime engine hands nothing over, and sets what it needs.
func limitRuntime(c tunnel.Class, e tunnel.EngineName) {
	if c == tunnel.Voice && e != tunnel.EngineRealtime {
		debug.SetGCPercent(400)
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/4))
	}
}

// sandbox gives up everything that forwarding packets does not need. What the daemon did before exec (own user,
// no capabilities, no new privileges; process.go) is only verified here. It never fails: what could
// not be had is said, and shown in status.
func sandbox(c tunnel.Class) (holds, missing []string) {
	note := func(what string, err error) {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", what, err))
			return
		}
		holds = append(holds, what)
	}
	note(fmt.Sprintf("user %d", os.Getuid()), ownUser())
	note("no capabilities", noCapabilities())
	note("no new privileges", noNewPrivileges())
	note("not dumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	note("no core file", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
	note(fmt.Sprintf("at most %d files", maxOpenFiles), unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxOpenFiles, Max: maxOpenFiles}))
	note(fmt.Sprintf("at most %d MiB", memoryHard>>20), unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: memoryHard, Max: memoryHard}))
	if c == tunnel.Voice { // counts for threads that are real-time alone; lowering it needs no right, while from outside it does
		note(fmt.Sprintf("at most %d ms of real-time without a pause", realtimeHard/1000),
			unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: realtimeSoft, Max: realtimeHard}))
	}
	note("landlock", noFilesystem())
	note("seccomp", restrictCalls())
	return holds, missing
}

func ownUser() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return fmt.Errorf("runs as root")
	}
	if g, err := os.Getgroups(); err != nil || len(g) > 1 {
		return fmt.Errorf("has supplementary groups %v", g)
	}
	return nil
}

func noCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	if d := data[0].Effective | data[0].Permitted | data[0].Inheritable | data[1].Effective | data[1].Permitted | data[1].Inheritable; d != 0 {
		return fmt.Errorf("still holds some (%#x)", d)
	}
	return nil
}

func noNewPrivileges() error {
	// Set for this thread if the daemon could not; the seccomp filter's TSYNC spreads it to all.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return nil
}

// noFilesystem shuts all paths by landlock: a second fence behind the filter on system calls.
func noFilesystem() error {
	err := landlock.V5.BestEffort().RestrictPaths()
	if err != nil {
		return err
	}
	// Best effort says nothing when the kernel has no landlock: look whether it holds.
	f, err := os.Open("/")
	if err == nil {
		_, err = f.Readdirnames(1)
		f.Close()
	}
	if err == nil {
		return fmt.Errorf("the kernel has none")
	}
	if !os.IsPermission(err) {
		return fmt.Errorf("cannot tell: %s", strings.TrimPrefix(err.Error(), "open /: "))
	}
	return nil
}
