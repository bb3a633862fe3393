package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a long-running program on a host, with its log in the host's own files.
type Process struct {
	Ended <-chan struct{}
	Log   string // path as this process reaches it

	cmd *exec.Cmd
	err error
}

// Spawn starts a long-running program; name names its log in Dir.
func (h *Host) Spawn(name string, cmd *exec.Cmd) (*Process, error) {
	ended := make(chan struct{})
	p := &Process{cmd: cmd, Log: h.Path(Dir + "/" + name + ".log"), Ended: ended}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open a log on %s: %w", h.Name, err)
	}
	defer f.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = f
	}
	cmd.Stderr = f
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(ended)
	}()
	return p, nil
}

// PID is the process ID in the machine's own namespace.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends s and does not wait.
func (p *Process) Signal(s unix.Signal) { _ = p.cmd.Process.Signal(s) }

// Err is how it ended; valid once Ended is closed.
func (p *Process) Err() error { return p.err }

// Wait waits for the end of the process, at most until ctx is done.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.Ended:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// LastWords is the end of the log, for an error message.
func (p *Process) LastWords() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(b, nil))), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	return strings.Join(lines, "\n")
}

// IP runs lines of ip(8) on the host; the network namespace of far, if given, is descriptor 3 there.
func (h *Host) IP(ctx context.Context, far *Host, lines ...string) error {
	cmd := h.Command("ip", "-batch", "-")
	var errOut strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(strings.Join(lines, "\n")+"\n"), &errOut
	if far != nil {
		cmd.ExtraFiles = []*os.File{far.net}
	}
	if err := h.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf(
			"%s: ip %s: %w: %s",
			h.Name,
			strings.Join(lines, "; ip "),
			err,
			strings.TrimSpace(errOut.String()),
		)
	}
	return ctx.Err()
}

// Counter reads one counter of a network device, as /sys/class/net/DEVICE/statistics names it.
func (h *Host) Counter(device, name string) (uint64, error) {
	text, err := os.ReadFile(h.Path("/sys/class/net/" + device + "/statistics/" + name))
	if err != nil {
		return 0, fmt.Errorf("read a counter of %s on %s: %w", device, h.Name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// WaitReach pings until an answer comes; tos is the TOS octet of the pings.
func (h *Host) WaitReach(ctx context.Context, to, tos string) error {
	for {
		_, err := h.Run(ctx, "ping", "-n", "-q", "-c", "1", "-W", "1", "-Q", tos, to)
		if err == nil {
			return nil
		}
		if err := Pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("%s does not reach %s: %w", h.Name, to, err)
		}
	}
}

// WaitTCP waits until a TCP port listens on the host.
func (h *Host) WaitTCP(ctx context.Context, port int) error {
	for {
		out, err := h.Run(ctx, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port))
		if err != nil {
			return err
		}
		if out != "" {
			return nil
		}
		if err := Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// Pause waits for d, or until ctx ends.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
