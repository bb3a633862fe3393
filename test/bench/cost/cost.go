// Package cost measures what a path through a box takes of a processor, of memory and of time, where the ends and the
// box share a machine: the ends' threads on one core, the box on another.
package cost

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/lab/host"
)

// Cores are those that the threads of the ends and what is measured are bound to.
type Cores struct{ Ends, Box int }

// Choose takes the first and the last core: interrupts like the first.
func Choose() (c Cores, err error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return c, fmt.Errorf("read the allowed cores: %w", err)
	}
	first := true
	for i := range len(allowed) * 64 {
		if !allowed.IsSet(i) {
			continue
		}
		if first {
			c.Ends, first = i, false
		}
		c.Box = i
	}
	return c, nil
}

// OnCore runs f on a thread that is bound to a core.
func OnCore(core int, f func() error) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind a thread to core %d: %w", core, err)
	}
	return f()
}

// Steer has what a host's device receives worked on by a core (RPS), as separate machines would: without it, the
// sender's core would do the receiver's work.
func Steer(h *host.Host, device string, core int) error {
	file := h.Path("/sys/class/net/" + device + "/queues/rx-0/rps_cpus")
	if err := os.WriteFile(file, []byte(mask(core)), 0); err != nil {
		return fmt.Errorf("choose the core of %s on %s: %w", device, h.Name, err)
	}
	return nil
}

// mask is a set of one core as sysfs reads it: words of 32 bits in hexadecimal.
func mask(core int) string {
	return fmt.Sprintf("%x", uint32(1)<<(core%32)) + strings.Repeat(",00000000", core/32)
}

// BacklogDrops is the second figure of each core in /proc/net/softnet_stat: packets that found
// net.core.netdev_max_backlog others waiting.
func BacklogDrops() (n int, err error) {
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return 0, fmt.Errorf("read the drops of the backlogs: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		one, err := strconv.ParseUint(f[1], 16, 32)
		if err != nil {
			return 0, fmt.Errorf("read the drops of the backlogs: %w", err)
		}
		n += int(one)
	}
	return n, nil
}

// SoftIRQ is the time that a core spent on software interrupts (proc_stat(5)).
func SoftIRQ(core int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU counters: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 7 && f[0] == fmt.Sprintf("cpu%d", core) {
			n, err := strconv.ParseInt(f[7], 10, 64)
			return time.Duration(n) * 10 * time.Millisecond, err
		}
	}
	return 0, fmt.Errorf("read the CPU counters: there is no core %d", core)
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB$`)

// Memory is what processes hold in bytes, with their parts of what they share.
func Memory(pids []int) (bytes int, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		m := pssLine.FindSubmatch(text)
		if m == nil {
			return 0, fmt.Errorf("read the memory of process %d: there is no Pss", pid)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return 0, err
		}
		bytes += n << 10
	}
	return bytes, nil
}

// Until sleeps until a time of the monotonic clock.
func Until(t time.Duration) {
	ts := unix.NsecToTimespec(int64(t))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}

// Monotonic is that clock.
func Monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// Quantile is that of sorted figures; 0 of none.
func Quantile[T any](sorted []T, q float64) (x T) {
	if len(sorted) == 0 {
		return x
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// Median is 0 of no figures.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
