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
	"github.com/vishvananda/netlink"
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
		if err == nil {
			err = up("lo")
		}
		done <- err
	}()
	require.NoError(t, <-done)
	t.Cleanup(n.Close)
	return n
}

// up sets a device of the calling thread's namespace up.
func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set device %s up: %w", name, err)
	}
	return nil
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

// IP runs lines of ip(8), as in "addr add 192.0.2.1/24 dev wan0" and "-6 rule add ...", in order, and fails the test
// when one fails. Lines of one family that follow each other take one process.
func (n *NS) IP(lines ...string) {
	n.t.Helper()
	family := func(line string) (option, rest string) {
		if strings.HasPrefix(line, "-4 ") || strings.HasPrefix(line, "-6 ") {
			return line[:2], line[3:]
		}
		return "", line
	}
	for len(lines) > 0 {
		first, _ := family(lines[0])
		var batch strings.Builder
		count := 0
		for _, line := range lines {
			option, rest := family(line)
			if option != first {
				break
			}
			fmt.Fprintln(&batch, rest)
			count++
		}
		args := []string{"-batch", "-"}
		if first != "" {
			args = append([]string{first}, args...)
		}
		_, err := n.try(batch.String(), "ip", args...)
		require.NoError(n.t, err, "one of:\n%s", &batch)
		lines = lines[count:]
	}
}

// Try runs a program inside; the error holds its standard error.
func (n *NS) Try(name string, args ...string) (string, error) { return n.try("", name, args...) }

func (n *NS) try(in, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	if in != "" {
		cmd.Stdin = strings.NewReader(in)
	}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	// A program is in the namespace of the thread that starts it. That saves an nsenter, which costs as much as `ip`.
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// Veth joins two namespaces with a pair of virtual ethernet devices, both up.
func Veth(t testing.TB, a *NS, nameA string, b *NS, nameB string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	require.NoError(t, a.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.FD()),
		}); err != nil {
			return fmt.Errorf("add veth %s: %w", nameA, err)
		}
		return up(nameA)
	}))
	require.NoError(t, b.Do(func() error { return up(nameB) }))
}
