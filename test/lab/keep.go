package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Keep leaves the lab running after this process has exited, and prints how to enter it and how to end it.
func (l *Lab) Keep(w io.Writer) error {
	id := l.world.PID()
	if err := l.world.Keep(); err != nil {
		return err
	}
	l.kept = true
	fmt.Fprintf(w, "\nThe lab keeps running. To enter a host (its files are in %s there):\n", MachineDir)
	for _, p := range l.pairs {
		for _, name := range hostNames {
			fmt.Fprintf(w, "  nsenter -t %-7d -a -w    # %s %s\n", p.Host(name).PID, p.Name, name)
		}
		for _, line := range p.lines {
			fmt.Fprintf(w, "  nsenter -t %-7d -a -w    # %s %s\n", line.PID, p.Name, line.Name)
		}
	}
	fmt.Fprintf(w, "To end it with everything in it:\n  ringway lab --down %d\n", id)
	return nil
}

// Down ends a lab that was kept; id is the number that Keep printed.
func Down(id string) error {
	pid, err := strconv.Atoi(id)
	if err != nil || pid <= 1 {
		return fmt.Errorf("%w: %q is not a lab (allowed: the number that `ringway lab --keep` printed)", ErrUsage, id)
	}
	// The descriptor keeps the PID from being reused between the check and the kill.
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(fd)
		if !isLab(pid) {
			err = unix.ESRCH
		}
	}
	if errors.Is(err, unix.ESRCH) {
		if others := kept(); len(others) > 0 {
			return fmt.Errorf("lab %d is not running (running: %s)", pid, strings.Join(others, ", "))
		}
		return fmt.Errorf("lab %d is not running", pid)
	}
	if err != nil {
		return fmt.Errorf("find lab %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("end lab %d: %w", pid, err)
	}
	// Readable once the process has ended, which is after everything inside it has.
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil &&
		!errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the end of lab %d: %w", pid, err)
	}
	return nil
}

// isLab reports whether a process is process 1 of a lab.
func isLab(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := bytes.Split(bytes.TrimRight(line, "\x00"), []byte{0})
	return err == nil && len(args) == 4 && string(bytes.Join(args[1:], []byte{' '})) == "lab holder init"
}

// kept lists the labs that are running.
func kept() []string {
	var ids []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && isLab(pid) {
			ids = append(ids, filepath.Base(d))
		}
	}
	return ids
}
