package host

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// spin waits for a line, so that it spins only once its policy is set. About once a second it sleeps briefly:
// on Linux 6.18 a thread that never sleeps distorts its core's fair scheduling until other threads of that
// core, kernel threads among them, wait for up to a minute although this one has to yield to all.
const spin = `read go
while :; do
	i=0
	while [ $i -lt 1000000 ]; do i=$((i+1)); done
	sleep 0.00005
done`

// KeepAwake keeps the cores from sleeping. Where the kernel has an idle driver, it is asked for zero latency,
// as cyclictest does: an idle core then polls. Elsewhere one spinner on each core uses the time that nothing
// else wants (SCHED_IDLE). That is second best: EEVDF lets a spinner finish its slice before a woken thread
// without lag, which took 30 ms where real-time threads came in between.
//
// With BENCH_AWAKE=no in the environment it does nothing: tests that measure no time run side by side, and spinners are
// in their way.
func (h *Host) KeepAwake() (stop func(), err error) {
	if emulated() || os.Getenv("BENCH_AWAKE") == "no" {
		return func() {}, nil
	}
	if f := noLatency(); f != nil {
		return func() { f.Close() }, nil
	}
	return h.spinners()
}

// emulated reports whether the processor is QEMU's own (TCG). It never sleeps, and a spinner would take time
// from the work.
func emulated() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(info), "QEMU TCG")
}

// noLatency keeps the kernel's idle loop polling (PM QoS, CPU latency 0 us) until the file is closed. Nil:
// not available.
func noLatency() *os.File {
	driver, err := os.ReadFile("/sys/devices/system/cpu/cpuidle/current_driver")
	if err != nil || strings.TrimSpace(string(driver)) == "none" {
		return nil
	}
	if first, err := os.ReadFile("/sys/devices/system/cpu/cpu0/cpuidle/state0/name"); err != nil ||
		strings.TrimSpace(string(first)) != "POLL" {
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
			return nil, fmt.Errorf("create an idle spinner: %w", err)
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
