package bench

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/report"
	"ringway/test/bench/rival"
)

// measured runs a benchmark as a user starts it and decodes its JSON, every field of it.
func measured(t *testing.T, into any, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), programs.Ringway, append([]string{"bench"}, args...)...)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	require.NoError(t, cmd.Run(), "%s", &progress)
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(into))
	return progress.String()
}

// One engine after the other: packets flow, every trial's books are right, and what a packet costs is there.
// It asserts nothing about speed: the machine of a test is busy.
func TestThroughputOfTwoEngines(t *testing.T) {
	before := machine(t)
	var r report.Throughput
	measured(
		t,
		&r,
		"throughput",
		"--json",
		"--sizes",
		"200",
		"--engines",
		"realtime,stock",
		"--trial",
		"300ms",
		"--resolution",
		"25",
	)
	assert.Equal(t, before, machine(t))
	require.Len(t, r.Sizes, 1)
	s := r.Sizes[0]
	assert.Equal(t, "200", s.Size)
	assert.InDelta(t, 200, s.IPBytes, 0)
	require.Len(t, s.Engines, 2)
	for i, name := range []string{"ringway", "wireguard-go"} {
		e := s.Engines[i]
		assert.Equal(t, name, e.Name)
		assert.NotEmpty(t, e.Program)
		require.Len(t, e.Rounds, 1)
		require.NotEmpty(t, e.Rounds[0].Trials)
		for _, trial := range e.Rounds[0].Trials {
			assert.Positive(t, trial.Sent, name)
			assert.Positive(t, trial.Received, name)
			assert.LessOrEqual(t, trial.Received, trial.Sent, name)
			assert.Zero(t, trial.Duplicates, name)
			assert.Contains(t, []string{report.Held, report.Lossy, report.Unsent}, trial.Verdict)
			assert.Positive(t, trial.CPU.SenderEdge, name)
			assert.Positive(t, trial.CPU.ReceiverEdge, name)
			assert.Positive(t, trial.CPU.Machine, name)
			if trial.Verdict == report.Held {
				assert.Equal(t, trial.Sent, trial.Received+trial.Overflow, name)
			}
		}
		assert.InDelta(t, e.PacketsPerS*1600, e.BitsPerS, 1, name)
	}
	assert.Contains(
		t,
		r.Settings.Command,
		"--engines ringway,wireguard-go --sizes 200 --trial 300ms --resolution 25 --rounds 1",
	)
}

// The sending engine alone on a core: what left it is counted, by its own count, and nothing arrives.
func TestThroughputOnOneCore(t *testing.T) {
	var r report.Throughput
	measured(
		t,
		&r,
		"throughput",
		"--json",
		"--sizes",
		"imix",
		"--engines",
		"ringway",
		"--trial",
		"300ms",
		"--resolution",
		"25",
		"--one-core",
	)
	assert.True(t, r.Settings.OneCore)
	e := r.Sizes[0].Engines[0]
	require.NotEmpty(t, e.Rounds[0].Trials)
	for _, trial := range e.Rounds[0].Trials {
		assert.Positive(t, trial.Received)
		assert.Zero(t, trial.CPU.ReceiverEdge)
	}
	assert.InDelta(t, 329.17, r.Sizes[0].IPBytes, 0.01)
}

func TestThroughputOptionsAreHeldToTheirRange(t *testing.T) {
	for want, change := range map[string]func(*ThroughputOptions){
		"wrong usage: --trial: 1ms (allowed: 100ms-1m0s)": func(
			o *ThroughputOptions) {
			o.Trial = time.Millisecond
		},
		"wrong usage: --resolution: 0.05 % (allowed: 0.1-50)": func(
			o *ThroughputOptions) {
			o.Resolution = 0.0005
		},
		"wrong usage: --loss: 20 % (allowed: 0-10)": func(
			o *ThroughputOptions) {
			o.Loss = 0.2
		},
		"wrong usage: --rounds: 0 (allowed: 1-100)": func(
			o *ThroughputOptions) {
			o.Rounds = 0
		},
		"wrong usage: --sizes: none is given (allowed: bytes of an IP packet, 44-1420, and imix)": func(
			o *ThroughputOptions) {
			o.Sizes = nil
		},
		"wrong usage: --sizes: 1500 (allowed: bytes of an IP packet, 44-1420, and imix, each once)": func(
			o *ThroughputOptions) {
			o.Sizes = []int{200, 1500}
		},
		"wrong usage: --sizes: 200 (allowed: bytes of an IP packet, 44-1420, and imix, each once)": func(
			o *ThroughputOptions) {
			o.Sizes = []int{200, 200}
		},
		`wrong usage: --engines: "ipsec" (allowed: ringway, ringway-wireguard-go, wireguard-go, nebula, openvpn, kernel, each once)`: func(o *ThroughputOptions) {
			o.Engines = []Engine{"ipsec"}
		},
		"wrong usage: --one-core: the kernel's forwarding is not a process that can be bound to a core (leave " +
			"kernel out of --engines)": func(o *ThroughputOptions) {
			o.OneCore = true
		},
	} {
		o := DefaultThroughput()
		change(&o)
		_, err := MeasureThroughput(t.Context(), o)
		require.ErrorIs(t, err, ErrUsage)
		assert.EqualError(t, err, want)
	}
}

// What an engine says that it sent is turned back into packets: padded to 16 bytes but not beyond the MTU,
// header and tag added.
func TestMessageBytes(t *testing.T) {
	assert.EqualValues(t, 240, rival.MessageSize(200))
	assert.EqualValues(t, 96, rival.MessageSize(64))
	assert.EqualValues(t, 1452, rival.MessageSize(1420))
	assert.EqualValues(t, 2*240+96, messageBytes([]int{200, 64}, 3))
	assert.Len(t, imix, 12)
	assert.InDelta(t, 329.17, meanSize(IMIX), 0.01)
}

// Two builds in turn, here twice the same: every run is in the report, under the program's name, and each
// pair has its ratio.
func TestBuildsInTurn(t *testing.T) {
	t.Parallel()
	both := programs.Ringway + "," + programs.Ringway
	var r report.Builds
	said := measured(t, &r, "memory", "--json", "--sites", "2", "--ringway", both, "--pairs", "2")
	require.Len(t, r.Programs, 2)
	assert.Equal(t, programs.Ringway, r.Programs[0].File)
	assert.NotEmpty(t, r.Programs[0].BuildID)
	assert.Equal(t, "ringway bench memory --sites 2 --ringway "+both+" --pairs 2", r.Settings.Command)
	require.Len(t, r.Figures, 3)
	for _, f := range r.Figures {
		require.Len(t, f.Ratios, 2, f.What)
		assert.InDelta(t, 1, *f.Ratio, 0.5, f.What)
	}
	var order []int
	for _, run := range r.Runs {
		order = append(order, run.Build)
	}
	assert.Equal(t, []int{0, 1, 1, 0}, order, "each build is first in turn")
	assert.Contains(t, said, "pair 2 of 2")

	// Planes of a build that is not this program's are run by its own supervisor.
	var j report.Builds
	measured(
		t,
		&j,
		"jitter",
		"--json",
		"--loads",
		"0",
		"--vs",
		"kernel",
		"--duration",
		"1s",
		"--ringway",
		both,
		"--pairs",
		"1",
	)
	assert.Contains(t, j.Figures[0].What, "load 0 %, ringway: ")
	assert.Positive(t, j.Figures[0].Values[1][0])
}
