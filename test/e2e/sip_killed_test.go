package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// The daemons of both boxes are killed in calls and started again: the processes that read signalling go on and are
// taken over, the holes stay while there is no daemon, no packet of media is lost, and the ends of the calls are seen.
func TestTheDaemonKilledInACall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	const calls = 2
	talk := dialled(t, l, calls, 8*time.Second, lab.Dialing{Ramp: 200 * time.Millisecond})
	readers, holes := map[string]int{}, map[string][]string{}
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		readers[side], holes[side] = callsStatus(t, e).PID, holesOf(t, e)
		require.Positive(t, readers[side])
		require.Len(t, holes[side], 4*calls)
	}
	for _, side := range []string{"a", "b"} {
		require.NoError(t, l.Edge(side).Kill(within(t, 5*time.Second)))
	}
	for _, side := range []string{"a", "b"} {
		assert.Equal(t, holes[side], holesOf(t, l.Edge(side)), "edge-%s without a daemon", side)
		require.NoError(t, l.Edge(side).Start(t.Context()))
	}
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		require.NoError(t, e.WaitReady(within(t, 15*time.Second)))
		polltest.Require(t, func() bool { return callsStatus(t, e).Reading }, 5*time.Second, 50*time.Millisecond)
		st := callsStatus(t, e)
		assert.Equal(t, readers[side], st.PID, "edge-%s takes the process over", side)
		assert.Zero(t, st.Restarts, "edge-%s", side)
		assert.Equal(t, holes[side], holesOf(t, e), "edge-%s", side)
		list := callsOf(t, e)
		require.Len(t, list, calls, "edge-%s", side)
		assert.Equal(t, "confirmed", list[0].State)
	}
	heardAll(t, l, talk, "")
	noHoles(t, l)
	for _, side := range []string{"a", "b"} {
		ended := callsOf(t, l.Edge(side), "--ended")
		require.Len(t, ended, calls, "edge-%s", side)
		assert.Equal(t, "bye", ended[0].Why)
	}
}
