package host

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

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

// KeepAwake keeps the cores from falling asleep. Where the kernel has an idle driver it is asked for no latency at all, as cyclictest does: an
// idle core then polls. Elsewhere one spinner a core takes what nobody else wants (SCHED_IDLE). That is second best: EEVDF lets a
// spinner finish its slice before a woken thread that is owed nothing, and where real-time threads come in between that took 30 ms.
func (h *Host) KeepAwake() (stop func(), err error) {
	if emulated() {
		return func() {}, nil
	}
	if f := noLatency(); f != nil {
		return func() { f.Close() }, nil
	}
	return h.spinners()
}

// emulated says whether the processor is one of QEMU's own (TCG). It has no sleep to wake from, and a spinner would take as long as work does.
func emulated() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(info), "QEMU TCG")
}

// noLatency holds the kernel's idle loop to polling (PM QoS, CPU latency 0 us) until it is closed. Nil: it does not hold it.
func noLatency() *os.File {
	driver, err := os.ReadFile("/sys/devices/system/cpu/cpuidle/current_driver")
	if err != nil || strings.TrimSpace(string(driver)) == "none" {
		return nil
	}
	if first, err := os.ReadFile("/sys/devices/system/cpu/cpu0/cpuidle/state0/name"); err != nil || strings.TrimSpace(string(first)) != "POLL" {
		return nil
	}
	f, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	if _, err := f.Write(make([]byte, 4)); err != nil {
		f.Close()
		return nil
	}
	return f
}

func (h *Host) spinners() (stop func(), err error) {
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
