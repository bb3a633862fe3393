package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/bench/report"
	"ringway/test/bench/rival"
	"ringway/test/lab"
	"ringway/test/lab/host"
)

// shortRun is a run as a user starts it, at the length of a test. It asserts nothing about speed: the machine
// of a test is busy.
func shortRun(t *testing.T, args ...string) report.Jitter {
	t.Helper()
	plots := t.TempDir()
	cmd := exec.CommandContext(
		t.Context(),
		programs.Ringway,
		append([]string{"bench", "jitter", "--json", "--plot", plots, "--duration", "2s"}, args...)...)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	var j report.Jitter
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&j))
	assert.FileExists(t, filepath.Join(plots, "jitter.html"))
	assert.Contains(t, progress.String(), "measuring the machine itself")
	return j
}

// everyPacketCounts holds a path to its books: what was sent is there or lost, and nothing is there that was
// not sent.
func everyPacketCounts(t *testing.T, j report.Jitter, kinds ...rival.Kind) {
	t.Helper()
	for _, l := range j.Loads {
		require.Len(t, l.Rounds, j.Settings.Rounds)
		for _, r := range l.Rounds {
			assert.Zero(t, r.Unsent, r.UnsentWhy)
			var names []rival.Kind
			for _, p := range r.Paths {
				names = append(names, rival.Kind(p.Name))
				v := p.Voice
				require.Len(t, v.Directions, 2, p.Name)
				for _, d := range v.Directions {
					what := p.Name + " " + d.Name
					assert.Equal(t, j.Settings.Streams, d.Streams, what)
					// By its schedule; the packet on the edge between lead and measurement may be on either
					// side.
					assert.InDelta(
						t,
						float64(j.Settings.Streams)*j.Settings.Seconds*1e6/j.Settings.Interval,
						d.Sent,
						float64(j.Settings.Streams),
						what,
					)
					assert.LessOrEqual(t, d.Received, d.Sent, what)
					assert.Zero(t, d.Unmatched, what)
					assert.Zero(t, d.Duplicates, what)
					assert.Zero(t, d.Negative, what)
					assert.Zero(t, d.CaptureLost, what)
					assert.Positive(t, d.Received, what)
					assert.Positive(t, d.Delay.Min, what)
					assert.LessOrEqual(t, d.Delay.P50, d.Delay.P9999, what)
				}
				assert.NotEmpty(t, p.Program, p.Name)
				require.NotNil(t, p.Against, p.Name)
				assert.Positive(t, p.Against.PDV, p.Name)
			}
			assert.Equal(t, kinds, names)
		}
	}
}

// phone-a ---           --- phone-b     ringway, two stock wireguard-go and plain forwarding at the same time
//
//	edge-a --- edge-b
//
// pc-a    ---           --- pc-b        TCP through one of the wireguard-go
func TestJitterOfAllThatIsAlwaysThere(t *testing.T) {
	j := shortRun(
		t,
		"--engine",
		engine(t),
		"--vs",
		"wireguard-go-shared,wireguard-go,kernel",
		"--loads",
		"0,50,100",
		"--streams",
		"4",
	)
	everyPacketCounts(t, j, rival.Ringway, rival.WireGuardGoShared, rival.WireGuardGo, rival.Kernel)
	require.Len(t, j.Loads, 3)
	idle, half, full := j.Loads[0], j.Loads[1], j.Loads[2]
	assert.Equal(t, []int{0, 50, 100}, []int{idle.LoadPercent, half.LoadPercent, full.LoadPercent})
	assert.Zero(t, idle.Bulk.MbitPerS)
	assert.Positive(t, j.Settings.Capacity)
	assert.InDelta(t, j.Settings.Capacity/2, half.Bulk.Asked, 1)
	assert.Positive(t, half.Bulk.MbitPerS)
	assert.LessOrEqual(t, half.Bulk.MbitPerS, half.Bulk.Asked*1.25, "the rate that iperf3 was given, and its bursts")
	assert.Positive(t, full.Bulk.MbitPerS)
	assert.Equal(t, full.Bulk.MbitPerS, full.Paths[1].Bulk.MbitPerS, "the bulk's own path says what it carried")
	for _, p := range idle.Paths {
		assert.Zero(t, p.Voice.Loss, "%s without bulk", p.Name)
	}
	kernel, shared := full.Paths[3].Voice, full.Paths[1].Voice
	assert.Less(t, kernel.Delay.P50, shared.Delay.P50, "no tunnel is quicker than one full of TCP")
	// Idle and three loads, two policies each.
	assert.Len(t, j.Machine.Wakeup, 8)
	assert.Nil(t, j.Machine.Wakeup[0].LoadPercent)
	for _, w := range j.Machine.Wakeup {
		assert.True(t, w.Denied != "" || w.Samples > 1000 && w.Max >= w.P999, "%+v", w)
	}
	assert.NotEmpty(t, j.Machine.Kernel)
	assert.Contains(t, j.Settings.Command, "--loads 0,50,100")
}

// Over IPv6 the same paths stand, and voice goes through each.
func TestPathsOverIPv6(t *testing.T) {
	t.Parallel()
	kinds := []rival.Kind{rival.Ringway, rival.WireGuardGo, rival.Kernel}
	s, err := newStand(t.Context(), programs.Helper, lab.IPv6, len(kinds))
	require.NoError(t, err)
	defer s.close()
	require.NoError(t, s.join(t.Context(), kinds, programs, engine(t), t.Logf))
	r := &jitterRun{o: DefaultJitter(), stand: s, kinds: kinds, say: t.Logf}
	r.o.Programs, r.o.Against, r.o.Streams, r.o.Duration = programs, kinds[1:], 4, time.Second
	seen, err := r.voiceOn(t.Context(), kinds)
	require.NoError(t, err)
	for i, path := range r.figures(kinds, seen, 0, 0) {
		for _, d := range path.Voice.Directions {
			assert.InDelta(t, 4*50, d.Received, 4, "%s %s", kinds[i], d.Name)
			assert.Positive(t, d.Delay.Min)
		}
	}
	assert.True(t, strings.HasPrefix(s.paths[0].a, "2001:db8:"), s.paths[0].a)
}

// engine is what the shipped program's plane can run.
func engine(t *testing.T) string {
	t.Helper()
	return DefaultJitter().Engine
}

// Rivals that have to be installed or built: only where they are there already.
func TestJitterOfInstalledRivals(t *testing.T) {
	t.Parallel()
	kinds := []rival.Kind{rival.Ringway}
	var vs []string
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	if built, _ := filepath.Glob(filepath.Join(cache, "ringway", "nebula-v*", "nebula-cert")); len(built) > 0 {
		kinds, vs = append(kinds, rival.Nebula), append(vs, "nebula")
	}
	if _, err := host.LookPath("openvpn"); err == nil {
		kinds, vs = append(kinds, rival.OpenVPN), append(vs, "openvpn")
	}
	if len(vs) == 0 {
		t.Skip("neither nebula (ringway bench jitter --vs nebula builds it) nor openvpn is there")
	}
	j := shortRun(t, "--engine", engine(t), "--vs", strings.Join(vs, ","), "--loads", "0", "--rounds", "2")
	everyPacketCounts(t, j, kinds...)
}

// The stamp of a packet is taken where it arrives: a queue on the last cable is in its delay. (Were it taken
// on the first of the cables, the whole benchmark would measure nothing.)
func TestDelayReachesToTheLastCable(t *testing.T) {
	t.Parallel()
	s, err := newStand(t.Context(), programs.Helper, lab.IPv4, 1)
	require.NoError(t, err)
	defer s.close()
	p := programs
	require.NoError(t, s.join(t.Context(), []rival.Kind{rival.Kernel}, p, "", t.Logf))
	// 4 streams of 200 packets a second with 214 bytes on the wire are 342 kbit/s.
	_, err = s.hosts[edgeB].Run(
		t.Context(),
		"tc",
		"qdisc",
		"add",
		"dev",
		"voice0",
		"root",
		"tbf",
		"rate",
		"300kbit",
		"burst",
		"500",
		"latency",
		"50ms",
	)
	require.NoError(t, err)
	r := &jitterRun{o: DefaultJitter(), stand: s, kinds: []rival.Kind{rival.Kernel}, say: t.Logf}
	r.o.Programs, r.o.Against, r.o.Streams, r.o.Duration = p, r.kinds, 4, time.Second
	seen, err := r.voiceOn(t.Context(), r.kinds)
	require.NoError(t, err)
	d := r.figures(r.kinds, seen, 0, 0)[0].Voice.Directions
	assert.Greater(t, d[0].Delay.P50, 20_000.0, "µs towards phone-b, behind the queue")
	assert.Positive(t, d[0].Loss, "more than the queue lets through")
	assert.Less(t, d[1].Delay.P50, 20_000.0, "µs back")
}

func TestInterruptedBenchmarkLeavesNothing(t *testing.T) {
	before := machine(t)
	cmd := exec.Command(
		programs.Ringway,
		"bench",
		"jitter",
		"--engine",
		engine(t),
		"--vs",
		"wireguard-go",
		"--loads",
		"100",
		"--duration",
		"1m",
	)
	progress, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var said bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(said.String(), "load 100 %") {
		n, err := progress.Read(buf)
		said.Write(buf[:n])
		require.NoError(t, err, "%s", &said)
	}
	children := descendants(t, cmd.Process.Pid)
	assert.Greater(t, len(children), 8, "hosts, planes, wireguard-go")
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	_, _ = said.ReadFrom(progress)
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, said.String(), "ringway: interrupted; the benchmark left nothing behind")
	for _, pid := range children {
		assert.NoDirExists(t, "/proc/"+pid)
	}
	assert.Equal(t, before, machine(t))
}

// machine is the part of the machine's own network that a benchmark must never change.
func machine(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{{"-o", "link"}, {"rule"}, {"route", "show", "table", "all"}, {"netns", "list"}} {
		path, err := host.LookPath("ip")
		require.NoError(t, err)
		out, err := exec.Command(path, args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		b.Write(out)
	}
	return b.String()
}

// descendants are all processes below one.
func descendants(t *testing.T, pid int) []string {
	t.Helper()
	out, err := exec.Command("ps", "-e", "-o", "pid=,ppid=").Output()
	require.NoError(t, err)
	// In the world's PID namespace every process is a descendant of its process 1, which is our child.
	var below []string
	wanted := []string{strconv.Itoa(pid)}
	for grown := true; grown; {
		grown = false
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) == 2 && slices.Contains(wanted, f[1]) && !slices.Contains(wanted, f[0]) {
				wanted, below, grown = append(wanted, f[0]), append(below, f[0]), true
			}
		}
	}
	return below
}

func TestJitterOptionsAreHeldToTheirRange(t *testing.T) {
	for want, change := range map[string]func(*JitterOptions){
		"wrong usage: --duration: a load of 1ms (allowed: 1s-1h)": func(
			o *JitterOptions) {
			o.Duration = time.Millisecond
		},
		"wrong usage: --rounds: 0 (allowed: 1-100)": func(
			o *JitterOptions) {
			o.Rounds = 0
		},
		"wrong usage: --loads: 101 (allowed: percents of the capacity, 0-100, each once)": func(
			o *JitterOptions) {
			o.Loads = []int{0, 101}
		},
		"wrong usage: --loads: 5 (allowed: percents of the capacity, 0-100, each once)": func(
			o *JitterOptions) {
			o.Loads = []int{5, 5}
		},
		"wrong usage: --loads: none is given (allowed: percents of the capacity, 0-100)": func(
			o *JitterOptions) {
			o.Loads = nil
		},
		"wrong usage: 0 streams (allowed: 1-1000)": func(
			o *JitterOptions) {
			o.Streams = 0
		},
		`wrong usage: --vs: "ipsec" (allowed: wireguard-go-shared, wireguard-go, nebula, openvpn, kernel, each once)`: func(o *JitterOptions) {
			o.Against = []rival.Kind{"ipsec"}
		},
	} {
		o := DefaultJitter()
		change(&o)
		_, err := MeasureJitter(context.Background(), o)
		require.ErrorIs(t, err, ErrUsage)
		assert.EqualError(t, err, want)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	p := rival.Programs{Ringway: filepath.Join(t.TempDir(), "ringway")}
	err := p.Find(t.Context(), []rival.Kind{rival.Ringway}, t.Logf)
	if _, there := host.LookPath("wireguard-go"); there != nil {
		require.ErrorContains(
			t,
			err,
			"the benchmark needs the stock program wireguard-go, which carries the bulk traffic",
		)
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", "")
	p = programs
	err = p.Find(t.Context(), []rival.Kind{rival.Nebula}, t.Logf)
	assert.EqualError(
		t,
		err,
		"the path nebula is built from source and needs go in PATH (install Go, name one with --nebula PROGRAM, "+
			"or leave nebula out of --vs)",
	)
}
