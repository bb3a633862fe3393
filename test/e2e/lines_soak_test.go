package e2e

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/quality/figures"
	"ringway/test/lab"
	"ringway/tunnel"
	paths "ringway/tunnel/path"
)

// soak is how long calls are up: so long, or TEST_SOAK.
func soak(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("TEST_SOAK")
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "TEST_SOAK")
	return d
}

// Both lines lose 5 % by chance, in both directions. Neither is better, and none is down: nothing moves.
func TestLongSoakLinesThatLosePackets(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{
		WAN: twenty, Lines: 2, Loss: 0.05, Delay: 25 * time.Millisecond, SIP: "enforce", Calls: 3,
		Duration: soak(t, time.Minute),
	})
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	neitherIsSilent(t, l)

	p := r.Report.Paths[0]
	for _, d := range p.Voice.Directions {
		assert.InDelta(t, 0.05, d.Loss, 0.02, "%s: each packet is sent once, and by a line", d.Name)
	}
	for _, m := range movesOf(t, l, r.Begin.Add(l.Options.Duration)) {
		assert.NotEqual(t, paths.WhyBad, m.Why, "the other line is no better")
		rightly(t, r, m)
	}
	t.Logf("%.2f %% of voice lost, %d of %d calls went on to their end",
		p.Voice.Loss*100, p.Calls.Completed, p.Calls.Placed)
}

// The first line loses 10 % for five seconds, then nothing for five, over and over. Calls leave it, and stay where they
// are: to come back, it would have to be well for half a minute.
func TestLongSoakALineThatComesAndGoes(t *testing.T) {
	t.Parallel()
	o := lab.Options{
		WAN: twenty, Lines: 2, Delay: 25 * time.Millisecond, SIP: "enforce", Calls: 3, Duration: soak(t, time.Minute),
	}
	const bad = 5 * time.Second
	for at := bad; at+bad < o.Duration; at += 2 * bad {
		o.Events = append(o.Events, lab.Event{Line: "wan0", Kind: lab.Loss, Loss: 0.1, At: at, Until: at + bad})
	}
	l := branches(t, o)
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	neitherIsSilent(t, l)

	why := map[string]int{}
	for _, m := range movesOf(t, l, r.Begin.Add(o.Duration)) {
		why[m.Why]++
		rightly(t, r, m)
	}
	// No line is left for this cause again for 10 s, and twice as long each time.
	limit := 1 + int(math.Log2(1+o.Duration.Seconds()/10))
	assert.LessOrEqual(t, why[paths.WhyBad], limit, "calls flap with the line")
	assert.Positive(t, len(why), "nobody has left a line that loses 10 %%")
	t.Logf("moves: %v; %.2f %% of voice lost", why, r.Report.Paths[0].Voice.Loss*100)
}

// rightly demands that who has left a line as one that delivers nothing had heard nothing: on a machine that has other
// work, the lab's own lines may stand still for as long.
func rightly(t *testing.T, r lab.Result, m tunnel.PathMove) {
	t.Helper()
	towards := map[string]string{paths.WhySilent: figures.BToA, paths.WhyReported: figures.AToB}[m.Why]
	if towards == "" {
		return
	}
	at := m.At.Sub(r.Begin)
	var arrived []time.Duration
	for _, s := range r.Series {
		for _, p := range s.Points {
			if when := p.At + p.Delay; s.Direction == towards && !p.Lost && when > at-time.Second && when < at+time.Second {
				arrived = append(arrived, when)
			}
		}
	}
	slices.Sort(arrived)
	silence := 2 * time.Second
	if len(arrived) > 1 {
		silence = 0
	}
	for i := 1; i < len(arrived); i++ {
		silence = max(silence, arrived[i]-arrived[i-1])
	}
	assert.Greater(t, silence, 80*time.Millisecond, "%s after %s, though packets arrived all the time", m.Why, at)
	t.Logf("%s after %s, rightly: nothing arrived at the phones for %s", m.Why, at, silence)
}

// movesOf are the last moves of voice at berlin, which has two lines, until all calls were up no more. There are ten at
// most.
func movesOf(t *testing.T, l *lab.Lab, until time.Time) (all []tunnel.PathMove) {
	t.Helper()
	out, err := l.Edge("a").Ringway(within(t, 10*time.Second), "paths", "--json")
	require.NoError(t, err)
	var sites []struct {
		Class tunnel.Class      `json:"class"`
		Moves []tunnel.PathMove `json:"moves"`
	}
	require.NoError(t, json.Unmarshal([]byte(out), &sites))
	for _, s := range sites {
		if s.Class == tunnel.Voice {
			for _, m := range s.Moves {
				if m.At.Before(until) {
					all = append(all, m)
				}
			}
		}
	}
	return all
}

// neitherIsSilent demands that no line is called silent, and that none was: the daemon logs it.
func neitherIsSilent(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		for _, p := range status(t, e).Problems {
			assert.NotEqual(t, "lines", p.Component, "edge-%s: %s", side, p.Text)
		}
		text, err := os.ReadFile(e.Log())
		require.NoError(t, err)
		assert.NotContains(t, string(text), "delivers nothing", "edge-%s", side)
	}
}
