package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/appliance/status"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// Where run.sh puts things for the container, and what comes back out of it.
const (
	given   = "/ringway-test"
	results = "/ringway-results"
)

// run runs a program with a time limit and gives its standard output and error together.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	require.NoError(t, err)
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// property is one of systemd's of the unit.
func property(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "systemctl", "show", "-P", name, "ringway.service"))
}

func mainPID(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(property(t, "MainPID"))
	require.NoError(t, err)
	return n
}

func daemonStatus(t *testing.T) status.Status {
	t.Helper()
	var st status.Status
	require.NoError(t, json.Unmarshal([]byte(run(t, "ringway", "status", "--json")), &st))
	return st
}

// planes gives each class's plane process.
func planes(t *testing.T) map[tunnel.Class]int {
	t.Helper()
	out := map[tunnel.Class]int{}
	for _, d := range daemonStatus(t).Tunnels {
		require.NotZero(t, d.PlanePID, "class %s has no plane", d.Class)
		out[d.Class] = d.PlanePID
	}
	require.Len(t, out, 2)
	return out
}

// waitActive waits until a daemon other than the one with the process id before has said that it is ready.
func waitActive(t *testing.T, before int) {
	t.Helper()
	polltest.Require(t, func() bool {
		out, err := try("systemctl", "show", "-p", "ActiveState,SubState,MainPID", "ringway.service")
		if err != nil {
			return false
		}
		f := strings.Fields(out) // in an order of systemd's own
		return slices.Contains(f, "ActiveState=active") && slices.Contains(f, "SubState=running") &&
			!slices.Contains(f, "MainPID="+strconv.Itoa(before)) && !slices.Contains(f, "MainPID=0")
	}, 20*time.Second, 50*time.Millisecond, "no new daemon became ready")
}

// processStatus reads /proc/PID/status.
func processStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out
}

// planeProcesses are all processes of the planes' users, whoever knows of them.
func planeProcesses() string {
	out, err := exec.Command("pgrep", "-a", "-u", "ringway-voice,ringway-data").Output() // an error: none
	if err != nil {
		return ""
	}
	return string(out)
}

// traces is all that Ringway could leave behind, by where. Counters, times and the order of dumps are taken out.
func traces(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{"planes": planeProcesses()}
	for name, cmd := range map[string]string{
		"links":   "ip -o link show",
		"address": "ip -o address show",
		"rule":    "ip rule show; ip -6 rule show",
		"route":   "ip route show table all; ip -6 route show table all",
		"nft":     "nft list ruleset",
		"tc":      "tc qdisc show; tc class show dev wan0; tc filter show dev wan0",
		"sysctl": "sysctl -a 2>/dev/null | grep -E " +
			"'^net\\.(ipv[46]\\.(ip_forward|conf)|netfilter\\.nf_conntrack_helper)' | grep -v mtu | sort",
		"run": "ls -A /run/ringway /run/wireguard 2>/dev/null; ls -d /run/ringway /run/wireguard 2>/dev/null; true",
		"cgroup": "cat /sys/fs/cgroup/system.slice/ringway.service/cgroup.procs " +
			"/sys/fs/cgroup/systemd/system.slice/ringway.service/cgroup.procs 2>/dev/null; true",
		"listens": "ss -Huln | awk '{print $4}' | sort",
		"unixes":  "ss -Hxl | grep -E 'ringway|wireguard'; true",
		"mounts":  "grep -E 'ringway|wireguard' /proc/mounts | grep -v ringway-test | grep -v ringway-results; true",
	} {
		o, err := try("sh", "-c", cmd)
		require.NoError(t, err)
		out[name] = clean(o)
	}
	return out
}

// volatile is what goes its own way: counters, times, and the elements that rules put into sets as packets pass.
var volatile = regexp.MustCompile(
	`\s*elements = \{[^}]*expires[^}]*\}|packets \d+ bytes \d+|expires \d+sec|valid_lft \S+|preferred_lft \S+|handle \d+|@if\d+|@\S+:`)

func clean(s string) string { return volatile.ReplaceAllString(s, "") }

// spawnFar starts a program in a namespace with a /run of its own (UAPI sockets are found by
// interface name, and both ends' are called alike). It is killed when the test ends.
func spawnFar(t *testing.T, ns string, args ...string) *exec.Cmd {
	t.Helper()
	script := "mount -t tmpfs none /run && exec \"$@\""
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, "sh", "-c", script, "sh"}, args...)...)
	log, err := os.Create(filepath.Join(results, ns+".log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	log.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// inNamespace calls f on a thread in the named namespace; sockets that f opens stay there.
func inNamespace(name string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + name)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// journal gives what the unit logged since the mark.
func journal(t *testing.T, since time.Time) string {
	t.Helper()
	return run(t, "journalctl", "-u", "ringway.service", "-o", "cat", "--no-pager", "--since",
		since.Format("2006-01-02 15:04:05.000000"))
}

func writeFile(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, data, mode))
}

// edit replaces text in a file; it must be there.
func edit(t *testing.T, path, old, new string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(b), old)
	writeFile(t, path, bytes.Replace(b, []byte(old), []byte(new), 1), 0o644)
}
