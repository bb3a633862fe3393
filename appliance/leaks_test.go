package appliance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/problem"
	"ringway/firewall/nft"
)

func TestPacketsRoutedToAWANAreAProblemForAWhile(t *testing.T) {
	var l leaks
	now := time.Now()
	at := func(own, leak uint64) map[string]nft.Counter {
		return map[string]nft.Counter{"own_wan": {Packets: own}, "leak_wan": {Packets: leak}, "private_wan": {Packets: own}}
	}
	assert.Empty(t, l.look(at(7, 0), now), "what an earlier daemon saw")
	assert.Empty(t, l.look(at(7, 0), now))

	now = now.Add(time.Minute)
	got := l.look(at(9, 0), now)
	require.Len(t, got, 1)
	assert.Equal(t, "own_wan", got[0].Subject)
	assert.Equal(t, problem.Critical, got[0].Severity)
	assert.Equal(t, "packets for a network of this box were routed to a WAN in clear and dropped, 9 so far", got[0].Text)
	assert.NotEmpty(t, got[0].Action)
	assert.Len(t, l.look(at(9, 0), now.Add(leakShown-1)), 1)
	assert.Empty(t, l.look(at(9, 0), now.Add(leakShown)))

	// The table was made again, and its counters begin at zero.
	assert.Empty(t, l.look(at(0, 0), now.Add(leakShown)))
	got = l.look(at(0, 1), now.Add(leakShown))
	require.Len(t, got, 1)
	assert.Equal(t, "leak_wan", got[0].Subject)
}
