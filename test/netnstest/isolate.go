package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const isolatedEnv = "TEST_ISOLATED"

// Isolate moves the whole test program into a network and a mount namespace of its own, for tests that compare what
// a machine has before and after: nothing that runs beside them is seen there. Call it first in TestMain. It starts
// the program again in place, so it returns only there, or where there is nothing to run: done then says that
// TestMain should end with code.
//
// With -short, tests that need root are left out (make test-unit).
func Isolate() (code int, done bool) {
	switch {
	case Short():
		return 0, true
	case os.Geteuid() != 0:
		fmt.Fprintln(os.Stderr, needsRoot)
		return 1, true
	case os.Getenv(isolatedEnv) != "":
		return 0, false
	}
	fmt.Fprintln(os.Stderr, "isolate the tests:", isolate())
	return 1, true
}

func isolate() error {
	runtime.LockOSThread() // exec keeps the namespaces of the thread that calls it
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}

	// A /run of its own, or `ip netns` would list the names that others give there.
	if err := unix.Mount("ringway-test", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolatedEnv+"=1"))
}

// Short says whether the flag -short is given; unlike testing.Short, also before TestMain has parsed the flags.
func Short() bool {
	for _, arg := range os.Args[1:] {
		if arg == "-test.short" || arg == "-test.short=true" {
			return true
		}
	}
	return false
}

const needsRoot = "these tests make network namespaces and need root (make test)"

// Root skips the test with -short and fails it without root.
func Root(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root: make test")
	}
	if os.Geteuid() != 0 {
		t.Fatal(needsRoot)
	}
}
