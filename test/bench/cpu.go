package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ringway/test/bench/report"
)

// ticks are the counters of the first line of /proc/stat (proc_stat(5)): time of all cores by what they did.
// The time that they were busy is not among them: what keeps them awake may make that 100 %.
type ticks struct {
	softirq, stolen, all uint64
	others               map[int]uint64 // by process: time of programs that are not the benchmark's
}

// readTicks reads the counters; namespace is the PID namespace of the benchmark's own processes.
func readTicks(namespace string) (ticks, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}, fmt.Errorf("read the CPU counters: %w", err)
	}
	t, err := parseTicks(string(text))
	if err != nil {
		return t, err
	}
	own, err := os.Readlink(namespace)
	if err != nil {
		return t, fmt.Errorf("read the CPU counters: %w", err)
	}
	t.others = map[int]uint64{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		text, err := os.ReadFile(d + "/stat")
		if err != nil || pid == os.Getpid() {
			continue // it has exited meanwhile, or is this program, which waits
		}
		used, kernel, err := parseProcess(string(text))
		if err != nil || kernel { // the kernel's threads work for us, too
			continue
		}
		if ns, err := os.Readlink(d + "/ns/pid"); err == nil && ns != own {
			t.others[pid] = used
		}
	}
	return t, nil
}

func parseTicks(text string) (t ticks, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, fmt.Errorf("read the CPU counters: %q is not the first line of /proc/stat", line)
	}
	var v [8]uint64 // user nice system idle iowait irq softirq steal; guest time is in user already
	for i := range v {
		if v[i], err = strconv.ParseUint(fields[1+i], 10, 64); err != nil {
			return t, fmt.Errorf("read the CPU counters: %w", err)
		}
		t.all += v[i]
	}
	t.softirq, t.stolen = v[6], v[7]
	return t, nil
}

// parseProcess reads a process's time, and that of its children that have ended, out of proc_pid_stat(5).
func parseProcess(text string) (used uint64, kernel bool, err error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return 0, false, fmt.Errorf("read the CPU time of a process: %q is not a line of /proc/PID/stat", text)
	}
	const kthread = 0x00200000 // PF_KTHREAD in flags
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, false, fmt.Errorf("read the CPU time of a process: %w", err)
		}
		used += n
	}
	return used, flags&kthread != 0, err
}

// netdevBudget is how many packets the kernel takes from its network cards at once (net.core.netdev_budget),
// which a woken real-time thread may have to wait for where the kernel is not preemptible. 0: unknown.
func netdevBudget() int {
	text, err := os.ReadFile("/proc/sys/net/core/netdev_budget")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// since returns the shares of CPU time between two readings.
func (t ticks) since(before ticks) report.CPU {
	all := float64(t.all - before.all)
	if all == 0 {
		return report.CPU{}
	}
	var others uint64
	for pid, used := range t.others {
		// A new process counts in full. A PID that was reused meanwhile may show less than before.
		others += max(used, before.others[pid]) - before.others[pid]
	}
	return report.CPU{
		SoftIRQ: float64(t.softirq-before.softirq) / all,
		Stolen:  float64(t.stolen-before.stolen) / all,
		Others:  float64(others) / all,
	}
}
