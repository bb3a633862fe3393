package flowqueue

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSiteLimitIsWhatLeavesInTheWait(t *testing.T) {
	const full, most = 2304, 37440
	for _, c := range []struct {
		limit, underWay int
		took            time.Duration
		want            int
	}{
		{most, full, 12 * ms, 1536},                // 1 Mbit/s: less than a packet, so one at a time
		{full, full, 0, 2 * full},                  // found nothing before it: twice what it was
		{full, full, 600 * time.Microsecond, 4608}, // 20 Mbit/s, one at a time
		{16000, 10 * full, 6 * ms, 30720},          // 20 Mbit/s
		{30000, 10 * full, 100 * time.Microsecond, most},
		{most, 10, time.Hour, 1},       // stood still
		{most, full, -time.Hour, most}, // the wall clock was set back
	} {
		assert.Equal(t, c.want, SiteLimit(c.limit, most, c.underWay, c.took, 8*ms), "%+v", c)
	}
}

// Sites that are full are passed over, lose nothing but to the bounds, and keep their order and their place
// when they go on.
func TestFullSitesArePassedOver(t *testing.T) {
	q := New(roomy, 7)
	full := map[uint32]bool{1: true, 257: true} // one place for both
	isFull := func(site uint32) bool { return full[site] }
	for n := range uint32(100) {
		for _, site := range []uint32{1, 2, 257} {
			q.Push(0, udp(byte(site), uint16(site), 1000, n, 0), site)
		}
	}
	var b [2048]byte
	next := map[uint16]uint32{}
	pop := func(want uint16) bool {
		n := q.PopWhere(ms, b[:], isFull)
		if n == 0 {
			return false
		}
		_, port, number := flowOf(b[:n])
		require.Equal(t, next[port], number)
		next[port]++
		if want != 0 {
			require.Equal(t, want, port)
		}
		return true
	}
	for range 100 {
		require.True(t, pop(2))
	}
	require.False(t, pop(0))
	assert.False(t, q.Ready())
	assert.Equal(t, 200, q.Len())
	q.Unpark(isFull)
	require.False(t, q.Ready(), "still full")
	delete(full, 257)
	q.Unpark(isFull)
	require.True(t, q.Ready())
	for range 50 {
		require.True(t, pop(257))
	}
	delete(full, 1)
	q.Unpark(isFull)
	for range 100 {
		pop(0)
	}
	assert.InDelta(t, 50, next[1], 2, "both go on in turns")
	for pop(0) {
	}
	assert.Equal(t, map[uint16]uint32{1: 100, 2: 100, 257: 100}, next)
	assert.Zero(t, q.Active())
}

// Whatever is full when: what was pushed comes out once and in order, or is counted as crowded out.
func TestNothingIsLostWhereSitesAreFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := roomy
		c.Packets = rapid.IntRange(5, 200).Draw(t, "packets")
		q := New(c, rapid.Uint64().Draw(t, "seed"))
		var full [4]bool
		isFull := func(site uint32) bool { return full[site/256] }
		var b [2048]byte
		pushed, popped := uint32(0), 0
		last := map[byte]uint32{}
		pop := func() bool {
			n := q.PopWhere(0, b[:], isFull)
			if n == 0 {
				return false
			}
			host, _, number := flowOf(b[:n])
			require.False(t, full[host])
			require.Greater(t, number, last[host])
			last[host] = number
			popped++
			return true
		}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			switch site := rapid.IntRange(0, 3).Draw(t, "site"); rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				full[site] = !full[site]
				q.Unpark(isFull)
			case 1:
				if !pop() {
					require.False(t, q.Ready())
				}
			default:
				pushed++
				q.Push(0, udp(byte(site), 1, 100, pushed, 0), uint32(site)*256+3)
			}
			require.LessOrEqual(t, q.Len(), c.Packets)
		}
		full = [4]bool{}
		q.Unpark(isFull)
		for pop() {
		}
		require.Zero(t, q.Len())
		require.Zero(t, q.Active())
		require.Zero(t, q.memory)
		require.Empty(t, q.places)
		require.EqualValues(t, pushed, popped+int(q.Overflowed))
	})
}

func TestNothingIsAllottedForFullSites(t *testing.T) {
	q := New(roomy, 7)
	full := true
	isFull := func(site uint32) bool { return full && site == 1 }
	p, r := udp(1, 1, 1000, 0, 0), udp(2, 2, 1000, 0, 0)
	var b [2048]byte
	turn := func() {
		full = true
		q.Push(0, p, 1)
		q.Push(0, r, 2)
		for q.PopWhere(0, b[:], isFull) > 0 {
		}
		full = false
		q.Unpark(isFull)
		for q.PopWhere(0, b[:], isFull) > 0 {
		}
	}
	turn()
	assert.Zero(t, testing.AllocsPerRun(100, turn))
}
