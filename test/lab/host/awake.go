package host

import (
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// spin waits for a line, so that it spins under its new policy only. About once a second it sleeps for a moment: on Linux 6.18 a thread
// that does not for minutes drives the fair scheduler's account of its core so far that others of that core, kernel threads among
// them, waited for up to a minute although this one has to yield to all.
const spin = `read go
while :; do
	i=0
	while [ $i -lt 1000000 ]; do i=$((i+1)); done
	sleep 0.00005
done`

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
		cmd := h.Command("sh", "-c", spin)
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
