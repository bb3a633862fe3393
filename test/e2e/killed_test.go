package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/quality"
	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// stopped is the longest time for which voice stopped on the way, over all streams: from when a packet was
// sent until it, or the next that was not lost, came, and the 20 ms since the one before. A phone that pauses
// itself, as on a busy machine, stops nothing.
func stopped(h lab.Heard) time.Duration {
	var longest time.Duration
	for _, d := range []capture.Direction{h.AToB, h.BToA} {
		for _, s := range d.Streams {
			var since quality.Timestamp
			for _, p := range s.Packets {
				if since == 0 {
					since = p.Sent
				}
				if p.Lost {
					longest = max(longest, p.Sent.Sub(since))
					continue
				}
				longest = max(longest, p.Received.Sub(since))
				since = 0
			}
		}
	}
	return longest + 20*time.Millisecond
}

// The daemon is killed while it changes queues, rules, routes and tunnels at once, at moments from before its
// first step to after its last. The start that follows ends in the wanted state, and the calls that go on
// meanwhile never stop for 50 ms. (appliance's TestKilledAtAnyStep kills after each step of what is kept on
// the disk.)
func TestLongKilledInAReloadInACall(t *testing.T) {
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	first, err := e.Config()
	require.NoError(t, err)
	// Everything differs between the two, and a call's packets pass all of it.
	other := strings.NewReplacer(
		"uplink: 20mbit", "uplink: 16mbit",
		"downlink: 20mbit", "downlink: 18mbit",
		`data_networks: [10.2.20.0/24,`, `data_networks: [10.2.20.0/24, 10.2.30.0/24,`,
		"share: 30", "share: 25",
	).Replace(string(first))
	for _, part := range []string{"16mbit", "10.2.30.0/24", "share: 25"} {
		require.Contains(t, other, part, "the shipped config changed")
	}
	texts := [2]string{other, string(first)}
	reload := func() (took time.Duration) {
		began := time.Now()
		_, err := e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
		return time.Since(began)
	}
	// what is lost is lost at every attempt; a machine that is busy with other things makes a call wait at one
	for attempt := 1; ; attempt++ {
		const length = 14 * time.Second
		calls := talking(t, l, 4, length)
		require.NoError(t, e.WriteConfig([]byte(texts[0])))
		took := reload()
		require.NoError(t, e.WriteConfig([]byte(texts[1])))
		reload()
		partly := killsInReloads(t, e, texts, took)
		h, result := calls.heard()
		sent, lost := count(h)
		t.Logf(
			"a reload takes %s; killed 10 times, %d before it had answered; %d of %d voice packets lost, "+
				"voice stopped for %s",
			took, partly, lost, sent, stopped(h))
		assert.Positive(t, partly, "no kill fell into a reload")
		assert.Equal(t, 4, result.Completed, result.Why)
		if attempt == 3 || stopped(h) < 50*time.Millisecond {
			assert.Less(t, stopped(h), 50*time.Millisecond)
			return
		}
	}
}

// killsInReloads kills the daemon in ten reloads, one in each tenth of the time that a reload takes, and
// looks after each start. It gives in how many of them the daemon had not answered yet.
func killsInReloads(t *testing.T, e *lab.Edge, texts [2]string, took time.Duration) (partly int) {
	t.Helper()
	const rounds = 10
	for i := range rounds {
		require.NoError(t, e.WriteConfig([]byte(texts[i%2])))
		reloaded := make(chan error, 1)
		go func() {
			_, err := e.Ringway(within(t, 20*time.Second), "reload")
			reloaded <- err
		}()
		select {
		case err := <-reloaded:
			require.NoError(t, err)
			reloaded <- nil
		case <-time.After(time.Duration((float64(i) + rand.Float64()) / rounds * float64(took))):
		}
		require.NoError(t, e.Kill(within(t, 5*time.Second)))
		if <-reloaded != nil {
			partly++
		}
		require.NoError(t, e.Start(t.Context()))
		require.NoError(t, e.WaitReady(within(t, 15*time.Second)))
		out, err := e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
		assert.Equal(t, "nothing to change\n", out, "round %d", i)
		// In the kernel's own words, too: the file's rate less the margin of 3 %, and its routes.
		uplink := [2]qos.BitRate{16 * qos.Mbit, 20 * qos.Mbit}[i%2] * 97 / 100
		tree, err := e.Run(t.Context(), "tc", "class", "show", "dev", "wan0")
		require.NoError(t, err)
		assert.Contains(t, tree, fmt.Sprintf("%dKbit", uplink/qos.Kbit), "round %d", i)
		routes, err := e.Run(t.Context(), "ip", "route", "show", "table", "5272")
		require.NoError(t, err)
		assert.Equal(t, i%2 == 0, strings.Contains(routes, "10.2.30.0/24"), "round %d:\n%s", i, routes)
	}
	return partly
}
