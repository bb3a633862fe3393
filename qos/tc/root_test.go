package tc

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

// The oracle is tc: of a queue from which next to nothing leaves (1 kbit/s), both say the same, to the byte.
func TestRootStatsAreWhatTCShows(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	root := func(device string) (s qos.QueueStats, found bool) {
		require.NoError(t, w.a.Do(func() (err error) { s, found, err = RootStats(device); return err }))
		return s, found
	}
	_, found := root("lo")
	assert.False(t, found, "the kernel's default is no queue")
	s, found := root("wan0")
	assert.True(t, found, "Ringway's own tree has a root, too")
	assert.Zero(t, s.Backlog)

	w.a.Run(
		"tc", "qdisc", "replace", "dev", "wan0", "root", "tbf", "rate", "1kbit", "burst", "1600", "limit",
		"10000",
	)
	c := w.dialPriority(0, 4000, nil)
	for range 20 {
		_, err := c.Write(make([]byte, 1000))
		require.NoError(t, err)
	}
	shown := func() (q struct{ Bytes, Packets, Drops, Backlog, Qlen, Overlimits uint64 }) {
		var all []json.RawMessage
		require.NoError(
			t, json.Unmarshal([]byte(w.a.Run("tc", "-s", "-j", "qdisc", "show", "dev", "wan0", "root")), &all),
		)
		require.Len(t, all, 1)
		require.NoError(t, json.Unmarshal(all[0], &q))
		return q
	}
	for {
		before := shown()
		s, _ = root("wan0")
		if after := shown(); before != after { // the one packet in eight seconds
			continue
		}
		assert.EqualValues(t, before.Bytes, s.Sent)
		assert.EqualValues(t, before.Packets, s.SentPackets)
		assert.EqualValues(t, before.Drops, s.Drops)
		assert.EqualValues(t, before.Backlog, s.Backlog)
		assert.EqualValues(t, before.Qlen, s.BacklogPackets)
		break
	}
	assert.Greater(t, s.Backlog, qos.ByteCount(8000))
	assert.GreaterOrEqual(t, s.Drops, uint64(9))
}
