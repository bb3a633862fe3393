package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// The daemon is killed while it changes queues, rules and routes at once, at moments from before its first step to after its last.
// The start that follows ends in the wanted state, and the calls that go on meanwhile are never silent for longer than 50 ms.
// (appliance's TestKilledAtAnyStep kills after each step of what is kept on the disk.)
func TestKilledInAReloadInACall(t *testing.T) {
	const rounds, length = 10, 45 * time.Second
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
	texts := []string{other, string(first)}
	calls := talking(t, l, 4, length)
	ends := time.Now().Add(length - 2*time.Second)

	// How long a reload takes says when there is something to kill.
	require.NoError(t, e.WriteConfig([]byte(texts[0])))
	began := time.Now()
	_, err = e.Ringway(within(t, 10*time.Second), "reload")
	require.NoError(t, err)
	took := time.Since(began)
	require.NoError(t, e.WriteConfig([]byte(texts[1])))
	_, err = e.Ringway(within(t, 10*time.Second), "reload")
	require.NoError(t, err)

	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("a reload takes %s; seed %d", took, seed)
	killed, partly := 0, 0
	var events []string
	note := func(format string, args ...any) {
		events = append(events, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
	for i := range rounds {
		if time.Now().After(ends) {
			break
		}
		require.NoError(t, e.WriteConfig([]byte(texts[i%2])))
		reloaded := make(chan error, 1)
		go func() {
			_, err := e.Ringway(within(t, 20*time.Second), "reload")
			reloaded <- err
		}()
		select { // one of ten even parts of a reload, somewhere in it
		case err := <-reloaded:
			require.NoError(t, err)
			reloaded <- nil
		case <-time.After(time.Duration((float64(i) + random.Float64()) / rounds * float64(took))):
		}
		note("killed, round %d", i)
		require.NoError(t, e.Kill(within(t, 5*time.Second)))
		if <-reloaded != nil {
			partly++
		}
		require.NoError(t, e.Start(t.Context()))
		require.NoError(t, e.WaitReady(within(t, 15*time.Second)))
		note("back")
		killed++
		out, err := e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
		assert.Equal(t, "nothing to change\n", out, "round %d", i)
		// In the kernel's own words, too: the file's rate less the margin of 3 %, and its routes.
		uplink := []qos.BitRate{16 * qos.Mbit, 20 * qos.Mbit}[i%2] * 97 / 100
		tree, err := e.Run(t.Context(), "tc", "class", "show", "dev", "wan0")
		require.NoError(t, err)
		assert.Contains(t, tree, fmt.Sprintf("%dKbit", uplink/qos.Kbit), "round %d", i)
		routes, err := e.Run(t.Context(), "ip", "route", "show", "table", "5272")
		require.NoError(t, err)
		assert.Equal(t, i%2 == 0, strings.Contains(routes, "10.2.30.0/24"), "round %d:\n%s", i, routes)
	}
	h, result := calls.heard()
	sent, lost := count(h)
	t.Logf("killed %d times, %d before the reload had answered; %d of %d voice packets lost, longest silence %s", killed, partly, lost, sent, silence(h))
	for name, d := range map[string]capture.Direction{"a to b": h.AToB, "b to a": h.BToA} {
		for _, s := range d.Streams {
			for _, p := range s.Packets {
				if p.Lost {
					events = append(events, time.Unix(0, int64(p.Sent)).Format("15:04:05.000 ")+name+": lost")
				}
			}
		}
	}
	slices.Sort(events)
	t.Log(strings.Join(events, "\n"))
	assert.GreaterOrEqual(t, killed, rounds/2)
	assert.Positive(t, partly, "no kill fell into a reload")
	assert.Equal(t, 4, result.Completed, result.Why)
	assert.Less(t, silence(h), 50*time.Millisecond)
}
