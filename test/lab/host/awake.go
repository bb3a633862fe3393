package host

import (
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// KeepAwake lets one spinner a core take what nobody else wants (SCHED_IDLE: everybody else goes first, at once).
func (h *Host) KeepAwake() (stop func(), err error) {
	var running []*exec.Cmd
	stop = func() {
		for _, c := range running {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	for core := range runtime.NumCPU() {
		// It waits for a line so that it spins under its new policy only.
		cmd := h.Command("sh", "-c", "read go; while :; do :; done")
		in, err := cmd.StdinPipe()
		if err != nil {
			stop()
			return nil, err
		}
		if err := h.Start(cmd); err != nil {
			stop()
			return nil, err
		}
		running = append(running, cmd)
		pid := cmd.Process.Pid
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
		if err := unix.SchedSetAttr(pid, &attr, 0); err != nil {
			stop()
			return nil, fmt.Errorf("make an idle spinner: %w", err)
		}
		var one unix.CPUSet
		one.Set(core)
		_ = unix.SchedSetaffinity(pid, &one) // a cpuset may forbid it; then the scheduler spreads them
		if _, err := in.Write([]byte("go\n")); err != nil {
			stop()
			return nil, fmt.Errorf("start an idle spinner: %w", err)
		}
	}
	return stop, nil
}
