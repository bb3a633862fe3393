// Package e2e holds whole branches to what they promise, in the lab: two edges that run the shipped program,
// phones with real calls, a WAN between them. What a call loses is counted packet by packet, at both phones.
// It has tests alone.
//
//	phone-a ---                           --- phone-b
//	            edge-a --- provider --- edge-b
//	pc-a    ---                           --- pc-b
package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// The programs under test, built once for all.
var ringway, upgraded, helper, wireguardGo string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if code, done := netnstest.Isolate(); done {
		return code
	}
	dir, remove, err := netnstest.Dir("ringway-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	ringway, upgraded = filepath.Join(dir, "ringway"), filepath.Join(dir, "ringway-upgraded")
	helper, wireguardGo = filepath.Join(dir, "ringway-lab"), filepath.Join(dir, "wireguard-go")
	for _, b := range []struct {
		out  string
		args []string
	}{
		{ringway, []string{"-ldflags", "-X main.version=1.0.0-test", "ringway/cmd/ringway"}},
		{upgraded, []string{"-ldflags", "-X main.version=1.1.0-test", "ringway/cmd/ringway"}},
		{helper, []string{"-ldflags", "-X main.version=1.0.0-test", "ringway/cmd/ringway-lab"}},
		{wireguardGo, []string{"golang.zx2c4.com/wireguard"}},
	} {
		cmd := exec.Command("go", append([]string{"build", "-o", b.out}, b.args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b.out, err, out)
			return 1
		}
	}
	return m.Run()
}

// branches builds a lab whose edges run the program under test. When the test fails, it prints what the edges said.
func branches(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Binary, o.Helper, o.WireGuardGo = cmp.Or(o.Binary, ringway), helper, wireguardGo
	l, err := lab.New(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, side := range []string{"a", "b"} {
			if text, err := os.ReadFile(l.Edge(side).Log()); err == nil {
				t.Logf("edge-%s said:\n%s", side, text)
			}
		}
	})
	return l
}

// talk is calls that are up, heard at both phones.
type talk struct {
	t     *testing.T
	ears  *lab.Listening
	calls *lab.Calls
}

// talking places calls and returns once media of all of them flows both ways.
func talking(t *testing.T, l *lab.Lab, calls int, length time.Duration) *talk {
	t.Helper()
	p := l.Pair(lab.Ringway)
	ears, err := p.Listen()
	require.NoError(t, err)
	k := &talk{t: t, ears: ears}
	if k.calls, err = p.StartCalls(t.Context(), calls, length); err != nil {
		_, _ = ears.Stop()
		require.NoError(t, err)
	}
	// All are up, and their signalling is over, when every one of them is heard both ways at both phones.
	polltest.Require(t, func() bool {
		a, b := ears.Streams(25)
		return a >= 2*calls && b >= 2*calls
	}, 30*time.Second, 50*time.Millisecond, "no media")
	return k
}

// heard waits for the end of the calls.
func (k *talk) heard() (lab.Heard, lab.CallResult) {
	k.t.Helper()
	result, err := k.calls.Wait(k.t.Context())
	h, stopErr := k.ears.Stop()
	require.NoError(k.t, err)
	require.NoError(k.t, stopErr)
	require.Zero(k.t, h.CaptureDrops, "the capture missed packets")
	require.Zero(k.t, h.AToB.Unmatched+h.BToA.Unmatched, "the capture began too late")
	return h, result
}

// unharmed demands that the calls went on as if nothing had happened.
func (k *talk) unharmed() {
	k.t.Helper()
	h, result := k.heard()
	sent, lost := count(h)
	assert.Equal(k.t, 0, lost, "voice packets lost of %d", sent)
	assert.Greater(k.t, sent, 0)
	assert.Equal(k.t, k.calls.Placed, result.Completed, "calls completed (%s)", result.Why)
	k.t.Logf("%d voice packets, %d lost", sent, lost)
}

func count(h lab.Heard) (sent, lost int) {
	for _, d := range []capture.Direction{h.AToB, h.BToA} {
		for _, s := range d.Streams {
			for _, p := range s.Packets {
				sent++
				if p.Lost {
					lost++
				}
			}
		}
	}
	return sent, lost
}

// silence is the longest time for which a phone that was being sent to heard nothing, over all streams.
func silence(h lab.Heard) time.Duration {
	var longest time.Duration
	for _, d := range []capture.Direction{h.AToB, h.BToA} {
		for _, s := range d.Streams {
			last := s.Packets[0].Sent
			for _, p := range s.Packets {
				if !p.Lost {
					longest = max(longest, p.Received.Sub(last))
					last = p.Received
				}
			}
			longest = max(longest, s.Packets[len(s.Packets)-1].Sent.Sub(last))
		}
	}
	return longest
}

func status(t *testing.T, e *lab.Edge) lab.Status {
	t.Helper()
	s, err := e.Status(t.Context())
	require.NoError(t, err)
	return s
}

// within gives the time that something may take, and says so when it is over.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not within %s", d))
	t.Cleanup(cancel)
	return ctx
}

// killProcess sends SIGKILL to a process that the daemon of a host names.
func killProcess(t *testing.T, h *lab.Host, pid int) {
	t.Helper()
	require.Greater(t, pid, 1)
	_, err := h.Run(t.Context(), "kill", "-KILL", strconv.Itoa(pid))
	require.NoError(t, err)
}

// twenty is the WAN of most tests.
const twenty = 20 * qos.Mbit
