package rival

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/lab/host"
)

// Engines are the processes that carry packets at each end, by their PIDs here. They are empty where the
// kernel does it.
func (t *Tunnel) Engines() (a, b []int, err error) {
	if len(t.processes) == 0 {
		return nil, nil, nil
	}
	if len(t.processes) != 2 {
		return nil, nil, fmt.Errorf("%s: %d processes at two ends", t.Kind, len(t.processes))
	}
	var ends [2][]int
	for i, p := range t.processes {
		if ends[i], err = WithChildren(p.PID()); err != nil {
			return nil, nil, fmt.Errorf("%s: find what carries the packets: %w", t.Kind, err)
		}
	}
	return ends[0], ends[1], nil
}

// WithChildren returns a process and its descendants: a plane has a supervisor.
func WithChildren(pid int) ([]int, error) {
	pids := []int{pid}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		return nil, errors.Join(
			fmt.Errorf("process %d has no list of children (the kernel needs CONFIG_PROC_CHILDREN)", pid),
			err,
		)
	}
	for _, f := range tasks {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has exited
		}
		for _, w := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(w)
			if err != nil {
				return nil, fmt.Errorf("read the children of process %d: %w", pid, err)
			}
			of, err := WithChildren(child)
			if err != nil {
				continue // it has exited
			}
			pids = append(pids, of...)
		}
	}
	return pids, nil
}

// CPUTime is the user and system time of processes, by their CPU clocks (clock_getcpuclockid(3)): like
// /proc/PID/stat without its rounding to 10 ms.
func CPUTime(pids []int) (time.Duration, error) {
	const cpuclockSched = 2
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &ts); err != nil {
			return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// Pin binds processes, with all threads, to processors. Threads that start later inherit it.
func Pin(pids []int, set *unix.CPUSet) error {
	for _, pid := range pids {
		// Twice: a new thread may have been started by one that was not bound yet.
		for range 2 {
			tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				return fmt.Errorf("bind process %d to processors: %w", pid, err)
			}
			for _, t := range tasks {
				tid, err := strconv.Atoi(t.Name())
				if err != nil {
					continue
				}
				if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("bind thread %d of process %d to processors: %w", tid, pid, err)
				}
			}
		}
	}
	return nil
}

// SentBytes is how many bytes of messages the tunnel's engine on h has sent, by its own count over UAPI.
func (t *Tunnel) SentBytes(h *host.Host) (uint64, error) {
	text, err := t.uapi(h, "get=1\n\n")
	if err != nil {
		return 0, err
	}
	return field(text, "tx_bytes")
}

// uapi sends a request to the tunnel's WireGuard device on h.
func (t *Tunnel) uapi(h *host.Host, ask string) (string, error) {
	c, err := net.DialTimeout("unix", h.Path("/run/wireguard/"+t.device+".sock"), uapiTime)
	if err != nil {
		return "", fmt.Errorf("%s: ask the device %s on %s: %w", t.Kind, t.device, h.Name, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(uapiTime))
	if _, err := io.WriteString(c, ask); err != nil {
		return "", fmt.Errorf("%s: ask the device %s on %s: %w", t.Kind, t.device, h.Name, err)
	}
	r := bufio.NewReader(c)
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("%s: read what the device %s on %s answers: %w", t.Kind, t.device, h.Name, err)
		}
		if line == "\n" { // the end
			return b.String(), nil
		}
		if n, failed := strings.CutPrefix(line, "errno="); failed && strings.TrimSpace(n) != "0" {
			return "", fmt.Errorf(
				"%s: the device %s on %s returned errno %s",
				t.Kind,
				t.device,
				h.Name,
				strings.TrimSpace(n),
			)
		}
		b.WriteString(line)
	}
}

const uapiTime = 5 * time.Second

// field reads a number from a UAPI answer.
func field(text, name string) (uint64, error) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("the device does not report %s", name)
}

// DeviceDrops is how many packets the tunnel's device on h dropped because its engine did not read them.
func (t *Tunnel) DeviceDrops(h *host.Host) (uint64, error) {
	n, err := h.Counter(t.device, "tx_dropped")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", t.Kind, err)
	}
	return n, nil
}

// MessageSize is the length of a WireGuard data message with an IP packet of so many bytes: padded to 16
// bytes, but not beyond the MTU, with header and tag.
func MessageSize(packet int) uint64 {
	return uint64(min((packet+15)&^15, max(packet, wireguardMTU)) + 32)
}

// DropData is a ruleset for the far end's edge that drops the tunnel's data messages on arrival and accepts
// handshakes.
func (t *Tunnel) DropData() string {
	const dataMessage = 4 // the first byte
	return fmt.Sprintf(
		"add table netdev bench\nadd chain netdev bench in { type filter hook ingress device wan0 priority 0; }\n"+
			"add rule netdev bench in udp dport %d @th,64,8 %d drop\n",
		t.port,
		dataMessage,
	)
}
