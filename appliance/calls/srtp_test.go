package calls

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/relay"
)

// A person hears of calls that have no media for want of SRTP: of the latest that was refused for an hour, and of
// those that lost theirs to a change of the config until they are over.
func TestCallsWithoutMediaAreAProblem(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	c := &Calls{stats: relay.Stats{NoMedia: &relay.NoMedia{
		At: now, What: "srtp_refused", Reason: "it offers no SRTP, which voice network voice0 requires",
		From: netip.MustParseAddr("10.1.10.10"), To: netip.MustParseAddr("10.2.10.10"),
	}}}
	all := c.withoutMedia(now.Add(time.Hour))
	require.Len(t, all, 1)
	assert.Equal(t, "srtp: a call was refused, or is without media, as it could not be secured; the latest from "+
		"10.1.10.10 to 10.2.10.10: it offers no SRTP, which voice network voice0 requires; give the phone SRTP, "+
		"or lower srtp of its network (ringway_sip_refused_total counts them)", all[0].String())
	assert.Empty(t, c.withoutMedia(now.Add(time.Hour+time.Second)))

	c.stats = relay.Stats{Barred: 2}
	all = c.withoutMedia(now)
	require.Len(t, all, 1)
	assert.Contains(t, all[0].String(), "since they were set up: 2 legs")
}
