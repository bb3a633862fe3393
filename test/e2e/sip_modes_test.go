package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// The mode is changed in calls, from off to enforce and back, by `ringway reload`: what is open is open at once, and
// with off nothing is left of it: no set, no rule, no process, no place in a voice budget, though calls were up.
func TestTheModeIsChangedInCalls(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("observe", nil)})
	e := l.Edge("a")
	text, err := e.Config()
	require.NoError(t, err)
	mode := func(m config.SIPMode) {
		t.Helper()
		other := strings.Replace(string(text), "mode: observe", "mode: "+string(m), 1)
		require.NoError(t, e.WriteConfig([]byte(other)))
		_, err := e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
	}
	reads := func() bool { return callsStatus(t, e).Reading }
	set := func(name string) string {
		out, _ := e.Run(within(t, 5*time.Second), "nft", "list", "set", "inet", "ringway", name)
		return out
	}

	talk := talking(t, l, 2, 12*time.Second)
	polltest.Require(t, func() bool { return callsStatus(t, e).Holes == 8 }, 5*time.Second, 50*time.Millisecond)
	assert.Empty(t, set("sip_enforced"))
	mode(config.SIPEnforce)
	polltest.Require(t, func() bool { return strings.Contains(set("sip_enforced"), "elements") }, 5*time.Second,
		50*time.Millisecond)
	holesSettle(t, e, 8)
	mode(config.SIPObserve)
	assert.Empty(t, set("sip_enforced"))
	holesSettle(t, e, 8)

	mode(config.SIPOff)
	polltest.Require(t, func() bool { return callsStatus(t, e).PID == 0 }, 5*time.Second, 50*time.Millisecond)
	polltest.Require(t, func() bool {
		st := callsStatus(t, e)
		return st.Flows+st.Holes+st.Places == 0
	}, 5*time.Second, 50*time.Millisecond)
	out, err := e.Run(within(t, 5*time.Second), "nft", "list", "table", "inet", "ringway")
	require.NoError(t, err)
	for _, left := range []string{"set sip_udp", "set media4", "set banned4", "tproxy"} {
		assert.NotContains(t, out, left)
	}
	talk.unharmed()

	mode(config.SIPEnforce)
	polltest.Require(t, reads, 5*time.Second, 50*time.Millisecond)
	assert.Zero(t, callsStatus(t, e).Holes)
	talk = talking(t, l, 2, 3*time.Second)
	holesSettle(t, e, 8)
	talk.unharmed()
}
