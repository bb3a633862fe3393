package qos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFlows(t *testing.T) {
	before := []QueueStats{
		{
			WAN:         "wan0",
			Class:       Media,
			Rate:        6 * Mbit,
			Ceil:        6 * Mbit,
			Sent:        1000,
			SentPackets: 5,
			Drops:       7,
			Borrowed:    3,
		},
	}
	now := []QueueStats{
		{
			WAN:            "wan0",
			Class:          Media,
			Rate:           6 * Mbit,
			Ceil:           6 * Mbit,
			Sent:           251000,
			SentPackets:    1255,
			Drops:          17,
			Borrowed:       103,
			Backlog:        15000,
			BacklogPackets: 70,
		},
		{WAN: "wan1", Class: Media, Rate: Mbit, Ceil: 2 * Mbit, Sent: 500, SentPackets: 1},
	}
	f := Flows(before, now, 2*time.Second)
	require.Len(t, f, 2)
	assert.Equal(
		t,
		QueueFlow{
			WAN:             "wan0",
			Class:           Media,
			Now:             Mbit,
			Guaranteed:      6 * Mbit,
			Ceiling:         6 * Mbit,
			Backlog:         15000,
			BacklogPackets:  70,
			Wait:            20 * time.Millisecond,
			Drops:           17,
			DropsASecond:    5,
			Borrowed:        103,
			BorrowedASecond: 50,
		},
		f[0],
	)
	assert.Equal(t, 2*Kbit, f[1].Now, "a queue that is new counts from zero")

	shared := Flows(
		[]QueueStats{{WAN: "wan0", Site: "munich", Class: Data, Rate: 144}},
		[]QueueStats{{WAN: "wan0", Site: "munich", Class: Data, Rate: 144, Sent: 125000, Backlog: 12500}},
		time.Second,
	)
	assert.Equal(t, 100*time.Millisecond, shared[0].Wait, "a token does not tell how long a packet waits")

	for _, f := range Flows(nil, now, time.Second) {
		assert.Zero(t, f.Now, "without a reading before there is no rate")
	}
	for _, f := range Flows(before, now, 0) {
		assert.Zero(t, f.Now)
		assert.Zero(t, f.DropsASecond)
	}
}

// Queues that were made again begin from zero, and the kernel's 32 bits of drops come round: neither is a rate
// of 2^64.
func TestFlowsOfCountersThatWentBack(t *testing.T) {
	before := []QueueStats{
		{WAN: "wan0", Class: Data, Sent: 1 << 40, SentPackets: 1 << 30, Drops: 1<<32 - 1, Borrowed: 1<<32 - 1},
	}
	again := Flows(
		before,
		[]QueueStats{{WAN: "wan0", Class: Data, Sent: 125, SentPackets: 1, Drops: 2}},
		time.Second,
	)
	assert.Equal(t, Kbit, again[0].Now)
	assert.EqualValues(t, 2, again[0].DropsASecond)
	round := Flows(
		before,
		[]QueueStats{{WAN: "wan0", Class: Data, Sent: 1<<40 + 125, SentPackets: 1<<30 + 1, Drops: 4, Borrowed: 8}},
		time.Second,
	)
	assert.Equal(t, Kbit, round[0].Now)
	assert.EqualValues(t, 4, round[0].DropsASecond)
	assert.EqualValues(t, 8, round[0].BorrowedASecond)
}
