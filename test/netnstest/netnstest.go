// Package netnstest gives a test network namespaces of its own. A namespace has no name in
// /run/netns: it lives as long as a file descriptor or a thread holds it, so that nothing is
// left behind when a test fails, panics or is killed. Only tests import this package. Needs root.
package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// NS is an anonymous network namespace.
type NS struct {
	t    testing.TB
	f    *os.File
	once sync.Once
}

// New makes an empty network namespace with loopback up; it goes when the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	Root(t)
	n := &NS{t: t}
	done := make(chan error)
	go func() {
		// never unlocked: the thread ends with the goroutine, and its namespace with the last descriptor
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare network namespace: %w", err)
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		n.f = f
		done <- err
	}()
	require.NoError(t, <-done)
	t.Cleanup(n.Close)
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// Close lets the namespace go.
func (n *NS) Close() { n.once.Do(func() { n.f.Close() }) }

// FD is the namespace's descriptor, for netlink calls that move a device there.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Do calls f on a thread inside the namespace and waits for it. Sockets that f opens stay in the
// namespace and may be used from any thread. f must not call t.FailNow (return the error instead).
func (n *NS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread is thrown away: it must never serve another goroutine
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Command prepares a program to run inside the namespace.
func (n *NS) Command(name string, args ...string) *exec.Cmd {
	// nsenter by path of our own descriptor: exec keeps descriptor 3 open in the child.
	cmd := exec.Command("nsenter", append([]string{"--net=/proc/self/fd/3", name}, args...)...)
	cmd.ExtraFiles = []*os.File{n.f}
	return cmd
}

// Run runs a program inside and fails the test when it fails; it returns standard output.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(name, args...)
	require.NoError(n.t, err)
	return out
}

// Try runs a program inside; the error holds its standard error.
func (n *NS) Try(name string, args ...string) (string, error) {
	cmd := n.Command(name, args...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errOut.String())
	}
	return string(out), nil
}

// Veth joins two namespaces with a pair of virtual ethernet devices, both up.
func Veth(t testing.TB, a *NS, nameA string, b *NS, nameB string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net=/proc/self/fd/3", "ip", "link", "add", nameA, "type", "veth", "peer",
		"name", nameB, "netns", "/proc/self/fd/4")
	cmd.ExtraFiles = []*os.File{a.f, b.f}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	a.Run("ip", "link", "set", nameA, "up")
	b.Run("ip", "link", "set", nameB, "up")
}
