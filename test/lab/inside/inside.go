// Package inside enters network namespaces: every part of the lab that opens a socket or runs a program in a
// branch's network does it here. It needs root.
//
// A namespace is named by the path of its file: /run/netns/NAME, /proc/PID/ns/net or, for one that only a
// descriptor of this process holds, /proc/self/fd/N. The empty path is the caller's own namespace.
package inside

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Do calls f on a thread inside the namespace and waits for it. Sockets that f opens stay in the namespace
// and may be used from any thread. f must not start goroutines that expect to be inside: they run elsewhere.
func Do(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	// Opened here: /proc/self/fd/N must not depend on the thread.
	file, err := os.Open(ns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer file.Close()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and can't serve another one from inside.
		runtime.LockOSThread()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Command prepares a program to run inside; ctx's end kills it. The error is that of opening the namespace.
func Command(ctx context.Context, ns, name string, args ...string) (*exec.Cmd, func(), error) {
	if ns == "" {
		return exec.CommandContext(ctx, name, args...), func() {}, nil
	}
	file, err := os.Open(ns)
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace: %w", err)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/proc/self/fd/3", name}, args...)...)
	cmd.ExtraFiles = []*os.File{file}
	return cmd, func() { file.Close() }, nil
}

// Run runs a program inside and gives its standard output; the error holds its standard error.
func Run(ctx context.Context, ns, name string, args ...string) (string, error) {
	cmd, release, err := Command(ctx, ns, name, args...)
	if err != nil {
		return "", err
	}
	defer release()
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf(
			"%s %s: %w: %s",
			name,
			strings.Join(args, " "),
			err,
			strings.TrimSpace(errOut.String()),
		)
	}
	return string(out), nil
}
