// Package process starts, confines, supervises and adopts the daemon's helper processes, of whatever kind.
//
// A supervised process outlives the daemon: when the daemon is killed, upgraded or restarted, the process
// keeps running, and the next daemon adopts it through its control socket. The daemon (root) opens the
// descriptors that the process needs, keeps duplicates, and hands them over, at the start and later with any
// request. Requests go both ways. The process runs as a user of its own and gives up everything that its kind
// does not name.
//
// The two halves meet at the control protocol (wire.go, message.go, conn.go). The daemon's half is
// Supervisor, Instance and Quit (supervisor.go, launch.go, adopt.go, pidfd.go); the process's is Child
// (child.go, sandbox.go).
//
// A kind of process is a package that uses both, as tunnel/plane does:
//
//   - Its daemon's half makes a Supervisor with a Kind. Config.Revive launches a process with its files, sends it
//     the kind's own first request, records it and has it watched. Config.Requests answers what the process asks.
//   - Its main function makes a Child with the kind's Sandbox and Handlers, and calls Run.
//
// Whatever a process may be asked is a request type of the kind's protocol. Adding one raises Protocol.Minor;
// a process of an older build answers it with an error.
package process

import (
	"path/filepath"
	"time"
)

// Protocol is the version of a kind's requests. A process of another major version is not adopted; one of
// another minor version is, and may lack requests.
type Protocol struct {
	Major, Minor int
}

// Kind says what a process is, for the daemon.
type Kind struct {
	// Name names the process: its control socket is NAME.sock and its pid file NAME.pid in the run directory,
	// ps and top show rw-NAME (cut to 15 bytes).
	Name     string
	Protocol Protocol

	Args []string // of the program, after argv[0]
	Env  []string // besides what this package sets
	// EnvPrefix begins the names of the variables that this package sets.
	EnvPrefix string

	// The user that the process runs as: the one of that name where the system has it, else the number. One
	// each, so that no process may signal or trace another.
	User   string
	UserID uint32
}

func (k Kind) controlPath(runDir string) string { return filepath.Join(runDir, k.Name+".sock") }
func (k Kind) pidPath(runDir string) string     { return filepath.Join(runDir, k.Name+".pid") }

// Environment of a process, set by the daemon, after the kind's EnvPrefix.
const (
	envName  = "_NAME"
	envFiles = "_FILES" // names of the descriptors from 3 on, in order
	envOwner = "_OWNER" // uid of the daemon

	fileConnection = "connection" // the process's end of a socket pair with the daemon
	fileControl    = "control"    // the listening control socket
	firstFile      = 3
)

// Timing holds the times of the supervision; a zero field means the default.
type Timing struct {
	Answer time.Duration // longest that a healthy process takes for an answer
	Change time.Duration // longest for a request that is marked as long
	Ready  time.Duration // longest from exec to hello, on a machine that is busy
	Quit   time.Duration // for an orderly end
	Kill   time.Duration // for the kernel to end a killed process

	HealthEvery time.Duration // between two health checks
	HealthTries int           // checks in a row that must fail; attempts to reach a process to be adopted
}

// The defaults. A process that dies is back at once; one that keeps dying costs at most one start a second.
var defaultTiming = Timing{
	Answer:      2 * time.Second,
	Change:      5 * time.Second,
	Ready:       5 * time.Second,
	Quit:        time.Second,
	Kill:        5 * time.Second,
	HealthEvery: 3 * time.Second,
	HealthTries: 3,
}

const (
	steadyAfter  = 10 * time.Second // a process that lived so long did not die of its start
	redialAfter  = 50 * time.Millisecond
	backoffFirst = 10 * time.Millisecond
	backoffLast  = 900 * time.Millisecond
)

// WithDefaults fills in what is zero.
func (t Timing) WithDefaults() Timing {
	d := defaultTiming
	for _, x := range []struct{ to, from *time.Duration }{
		{&t.Answer, &d.Answer}, {&t.Change, &d.Change}, {&t.Ready, &d.Ready}, {&t.Quit, &d.Quit}, {&t.Kill, &d.Kill},
		{&t.HealthEvery, &d.HealthEvery},
	} {
		if *x.to == 0 {
			*x.to = *x.from
		}
	}
	if t.HealthTries == 0 {
		t.HealthTries = d.HealthTries
	}
	return t
}
