package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/polltest"
)

// path is what the lab's JSON promises, read by a stranger: by field name, not by our types.
type path struct {
	Name  string
	Voice struct {
		Sent, Received int
		Loss           float64
		DelayUS        struct {
			Min  float64
			P50  float64
			P99  float64
			P999 float64 `json:"p99_9"`
			Max  float64
		} `json:"delay_us"`
		PDV    float64 `json:"pdv_us"`
		Jitter float64 `json:"jitter_rfc3550_us"`
		MOS, R float64
	}
	Calls struct{ Placed, Completed int }
	Bulk  struct {
		Mbit float64 `json:"mbit_per_s"`
	}
}

// ringwayLab runs the command as a user does.
func ringwayLab(t *testing.T, args ...string) map[string]path {
	t.Helper()
	cmd := exec.Command(ringway, append([]string{"lab", "--json", "--wireguard-go", wireguardGo}, args...)...)
	cmd.Dir = t.TempDir()
	var progress strings.Builder
	cmd.Stderr = &progress
	out, err := cmd.Output()
	require.NoError(t, err, "%s", progress.String())
	assert.FileExists(t, filepath.Join(cmd.Dir, "lab-out", "ringway-lab.png"))
	var r struct{ Paths []path }
	require.NoError(t, json.Unmarshal(out, &r))
	paths := map[string]path{}
	for _, p := range r.Paths {
		paths[p.Name] = p
		t.Logf(
			"%-8s voice %d of %d, delay µs p50 %.0f p99 %.0f p99.9 %.0f, PDV %.0f, MOS %.2f; "+
				"calls %d of %d; bulk %.1f Mbit/s",
			p.Name, p.Voice.Received, p.Voice.Sent,
			p.Voice.DelayUS.P50, p.Voice.DelayUS.P99, p.Voice.DelayUS.P999, p.Voice.PDV, p.Voice.MOS,
			p.Calls.Completed, p.Calls.Placed, p.Bulk.Mbit)
	}
	return paths
}

// The WAN is flooded: through Ringway voice is as if nothing was; beside it, it breaks.
func TestTimedFloodedWAN(t *testing.T) {
	var pdv float64
	for range 3 { // p99.9 is the four worst packets, and one pause of a busy machine meets ten: the first good run decides
		p := ringwayLab(t, "--wan", "20mbit", "--bulk", "udp", "--baseline", "--duration", "8s")
		ours, theirs := p["ringway"], p["baseline"]
		assert.Equal(t, 10, ours.Calls.Placed)
		assert.Equal(t, 10, ours.Calls.Completed)
		assert.Equal(t, 4_000, ours.Voice.Sent, "ten calls of 8 s, the worse direction")
		assert.Equal(t, ours.Voice.Sent, ours.Voice.Received, "voice packets")
		assert.Zero(t, ours.Voice.Loss)
		assert.GreaterOrEqual(t, ours.Voice.MOS, 4.2)
		assert.True(t, theirs.Voice.Loss > 0 || theirs.Voice.MOS < 3, "the baseline was not under load")
		if pdv = ours.Voice.PDV; pdv < 15_000 {
			break
		}
	}
	assert.Less(t, pdv, 15_000.0, "µs")
}

// The processor is the bottleneck: voice does not wait behind the bulk.
func TestLongSaturatedProcessor(t *testing.T) {
	p := ringwayLab(t, "--wan", "none", "--bulk", "tcp", "--baseline")
	ours, theirs := p["ringway"], p["baseline"]
	assert.Equal(t, 10, ours.Calls.Completed)
	assert.Zero(t, ours.Voice.Loss)
	assert.LessOrEqual(t, ours.Voice.DelayUS.P99, theirs.Voice.DelayUS.P99/4, "a quarter of the baseline's p99")
}

// SIGKILL leaves the lab no chance to clean up, and nothing of it to be cleaned.
func TestKilledCommandLeavesNothing(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			before := labProcesses(t)
			const all = "ip -o link; ip netns list; ip rule; ip -6 rule; ip route show table all; nft -s list ruleset"
			links, err := exec.Command("sh", "-c", all).Output()
			require.NoError(t, err)
			cmd := exec.Command(ringway, "lab", "--bulk", "none", "--plot", "none")
			progress, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			buf := make([]byte, 4096)
			for said := ""; !strings.Contains(said, "calls of"); {
				n, err := progress.Read(buf)
				require.NoError(t, err, said)
				said += string(buf[:n])
			}
			assert.Greater(t, labProcesses(t), before+6)
			require.NoError(t, cmd.Process.Signal(s))
			_ = cmd.Wait()
			if s != syscall.SIGKILL {
				assert.Equal(t, 1, cmd.ProcessState.ExitCode())
			}
			polltest.Require(t, func() bool { return labProcesses(t) == before }, 10*time.Second, 20*time.Millisecond)
			after, err := exec.Command("sh", "-c", all).Output()
			require.NoError(t, err)
			assert.Equal(t, string(links), string(after))
		})
	}
}

// labProcesses counts the processes that run the programs under test.
func labProcesses(t *testing.T) int {
	t.Helper()
	n := 0
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	for _, p := range all {
		if exe, err := os.Readlink(p); err == nil && (exe == ringway || exe == helper) {
			n++
		}
	}
	return n
}

// A command line that makes no sense is told so, before root is asked for and anything is made.
func TestWrongUsage(t *testing.T) {
	for want, args := range map[string][]string{
		`--only: unknown pair "x" (allowed: ringway, baseline; with lines also single, duplicate-all)`:   {"--only", "x"},
		`--wan: "20" is not a rate (allowed: 64kbit to 100gbit, for example 20mbit or 1.5mbit), or none`: {"--wan", "20"},
		`--loss: "5" is not a share (allowed: 0% to 99%, or 0 to 0.99)`:                                  {"--loss", "5"},
		`--calls: 501 is out of range (allowed: 1-500)`:                                                  {"--calls", "501"},
		`--plot: unknown format of x.gif (allowed: a name that ends in .png or .svg, or none)`:           {"--plot", "x.gif"},
		"wrong usage: \"x\" is not a lab (allowed: the number that `ringway lab --keep` printed)":        {"--down", "x"},
		`wrong usage: family "ipx" (allowed: ipv4, ipv6)`:                                                {"--family", "ipx"},
		`wrong usage: bulk "sctp" (allowed: none, tcp, udp)`:                                             {"--bulk", "sctp"},
	} {
		cmd := exec.Command(ringway, append([]string{"lab"}, args...)...)
		out, _ := cmd.CombinedOutput()
		assert.Equal(t, "ringway: "+want+"\n", string(out))
		assert.Equal(t, 2, cmd.ProcessState.ExitCode(), want)
	}
}
