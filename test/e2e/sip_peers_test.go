package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// dialled is talking, with calls placed in another way.
func dialled(t *testing.T, l *lab.Lab, calls int, length time.Duration, d lab.Dialing) *talk {
	t.Helper()
	p := l.Pair(lab.Ringway)
	ears, err := p.Listen()
	require.NoError(t, err)
	k := &talk{t: t, ears: ears}
	if k.calls, err = p.Dial(t.Context(), calls, length, d); err != nil {
		_, _ = ears.Stop()
		require.NoError(t, err)
	}
	t.Cleanup(func() { tellAbout(t, l) })
	polltest.Require(t, func() bool {
		a, b := ears.Streams(25)
		return a >= 2*calls && b >= 2*calls
	}, 15*time.Second, 20*time.Millisecond, "no media")
	return k
}

// heardAll is unharmed, and says more where it fails. Streams of the address except do not count; they are what it
// returns.
func heardAll(t *testing.T, l *lab.Lab, k *talk, except string) (others lab.Heard) {
	t.Helper()
	h, result := k.heard()
	isOther := func(s capture.Stream) bool { return s.Key.Source.Addr().String() == except }
	for _, s := range h.AToB.Streams {
		if isOther(s) {
			others.AToB.Streams = append(others.AToB.Streams, s)
		}
	}
	h.AToB.Streams = slices.DeleteFunc(h.AToB.Streams, isOther)
	sent, lost := count(h)
	assert.Zero(t, lost, "voice packets lost of %d: %s", sent, losses(h))
	assert.Greater(t, sent, 0)
	assert.Equal(t, k.calls.Placed, result.Completed, "calls completed (%s)", result.Why)
	a, b := callsStatus(t, l.Edge("a")), callsStatus(t, l.Edge("b"))
	t.Logf("%d voice packets, %d lost; holes late for %d and %d messages", sent, lost, a.LateFlows, b.LateFlows)
	return others
}

// tellAbout logs what the boxes say of calls, if the test failed.
func tellAbout(t *testing.T, l *lab.Lab) {
	if !t.Failed() {
		return
	}
	for _, side := range []string{"a", "b"} {
		for _, about := range [][]string{{"status"}, {"calls"}, {"calls", "--ended"}} {
			// t's context is over by now
			out, err := l.Edge(side).Ringway(context.WithoutCancel(t.Context()), about...)
			t.Logf("edge-%s, %s (%v):\n%s", side, about, err, out)
		}
	}
}

// holeLeft is how long a hole may stay after the BYE was answered.
const holeLeft = time.Second

// noHoles demands that no hole is left on either box, after at most a second.
func noHoles(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, side := range []string{"a", "b"} {
		holesSettle(t, l.Edge(side), 0)
		assert.Empty(t, callsOf(t, l.Edge(side)), "edge-%s", side)
	}
}

// hearing captures the media of baresip at both phones.
type hearingBoth struct {
	t    *testing.T
	a, b *capture.Capture
}

func hearing(t *testing.T, l *lab.Lab) *hearingBoth {
	t.Helper()
	h := &hearingBoth{t: t}
	for name, into := range map[string]**capture.Capture{lab.PhoneA: &h.a, lab.PhoneB: &h.b} {
		c, err := capture.Start(l.Host(name).NetPath(), "eth0", baresipPorts)
		require.NoError(t, err)
		t.Cleanup(func() { _, _ = c.Stop() })
		*into = c
	}
	return h
}

// until waits for so many packets each way.
func (h *hearingBoth) until(packets int) {
	h.t.Helper()
	polltest.Require(h.t, func() bool { return h.a.Streams(packets) >= 2 && h.b.Streams(packets) >= 2 },
		10*time.Second, 20*time.Millisecond, "no media")
}

// unharmed demands that nothing was lost between the phones.
func (h *hearingBoth) unharmed() {
	h.t.Helper()
	a, err := h.a.Stop()
	require.NoError(h.t, err)
	b, err := h.b.Stop()
	require.NoError(h.t, err)
	var heard lab.Heard
	heard.AToB, heard.BToA = capture.Match(a, b, quality.MatchOptions{})
	sent, lost := count(heard)
	assert.Zero(h.t, lost, "voice packets lost of %d: %s", sent, losses(heard))
	assert.Len(h.t, heard.AToB.Streams, 1, "straight from phone-a to phone-b")
	assert.Len(h.t, heard.BToA.Streams, 1, "straight from phone-b to phone-a")
	h.t.Logf("%d voice packets, %d lost", sent, lost)
}

// losses says which packets were lost: by stream, with their numbers from 1.
func losses(h lab.Heard) string {
	var all strings.Builder
	for _, s := range slices.Concat(h.AToB.Streams, h.BToA.Streams) {
		for i, p := range s.Packets {
			if p.Lost {
				fmt.Fprintf(&all, "%v: %d of %d; ", s.Key, i+1, len(s.Packets))
			}
		}
	}
	return all.String()
}
