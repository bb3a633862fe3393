package series

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const ms = int64(time.Millisecond)

// times is a report of times alone.
func (e *end) times(peer uint32, now int64) []byte {
	e.Begin(now)
	defer e.End()
	return append(e.AppendTimes(NewReport(nil), peer, now), 0, 0, 0)
}

// Both ends know the round trip, whatever their clocks say, how long each holds a time, and which reports are lost.
func TestBothEndsKnowTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newEnd(true), newEnd(false)
		clock := rapid.Int64Range(1, 1<<50)
		aAhead, bAhead := clock.Draw(t, "a's clock"), clock.Draw(t, "b's clock")
		there, back := rapid.Int64Range(0, 2000*ms), rapid.Int64Range(0, 2000*ms)
		wayThere, wayBack := there.Draw(t, "there"), back.Draw(t, "back")
		lost := rapid.IntRange(0, 3)
		now, atA, atB := int64(0), 0, 0
		for range 40 {
			now += 500 * ms
			toB := a.times(4, aAhead+now)
			if lost.Draw(t, "to b lost") > 0 {
				require.True(t, b.Hear(5, toB, bAhead+now+wayThere))
				atB++
			}
			now += wayThere + rapid.Int64Range(0, 900*ms).Draw(t, "held")
			toA := b.times(5, bAhead+now)
			if lost.Draw(t, "to a lost") > 0 {
				require.True(t, a.Hear(4, toA, aAhead+now+wayBack))
				atA++
			}
			now += wayBack
		}
		want := time.Duration(max(wayThere+wayBack, int64(minTrip)))
		for _, took := range []time.Duration{a.RoundTrip(4), b.RoundTrip(5)} {
			if took != 0 { // so many in a row were lost
				assert.InDelta(t, float64(want), float64(took), float64(4*time.Microsecond))
			}
		}
		if atA == 40 && atB == 40 {
			assert.NotZero(t, a.RoundTrip(4))
			assert.NotZero(t, b.RoundTrip(5))
		}
		assert.Zero(t, a.RoundTrip(9), "another peer")
	})
}

// The delay of a series is the mean of its life, of the seconds in which it had packets. A peer of an older release
// tells words, and no times.
func TestTheDelayOfASeries(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	sequence := uint16(0)
	seconds := func(n int, way int64, times bool) {
		for range n {
			now := sec + int64(sequence)*gap
			for range 50 {
				p := rtp(false, 1, 7, sequence, 0, 160*uint32(sequence))
				a.table.Pass(a.table.Arrive(p, 4, now))
				b.table.Pass(b.table.Arrive(p, 5, now+way))
				sequence++
				now += gap
			}
			toB := a.tell()
			if times {
				toB = a.AppendTimes(toB, 4, now)
			}
			require.True(t, b.Hear(5, toB, now+way))
			toA := b.tell()
			if times {
				toA = b.AppendTimes(toA, 5, now+way)
			}
			require.True(t, a.Hear(4, toA, now+2*way))
		}
	}
	delay := func() time.Duration {
		ra := one(t, a.table)
		return a.Fate(&ra, true).Delay
	}
	seconds(10, 30*ms, false)
	rb := one(t, b.table)
	assert.Zero(t, delay())
	assert.Positive(t, b.Fate(&rb, false).Compared)

	seconds(11, 80*ms, true) // the first of them is known by the second
	assert.Equal(t, 80*time.Millisecond, delay())
	seconds(10, 40*ms, true)
	assert.InDelta(t, float64(60*time.Millisecond), float64(delay()), float64(2*time.Millisecond))
	was := delay()
	for range 2 * tripFor { // silent
		a.tell()
	}
	assert.Equal(t, was, delay())
	rb = one(t, b.table)
	assert.InDelta(t, float64(60*time.Millisecond), float64(b.Fate(&rb, false).Delay), float64(4*time.Millisecond))
}

// What is made up, or of an engine before, is no round trip; what cannot be read is refused; what is of another kind is
// not for this release.
func TestTimesThatDoNotCount(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	require.True(t, b.Hear(5, a.times(4, 1000*ms), 2000*ms))
	echo := b.times(5, 2100*ms)
	other := newEnd(true)
	other.times(4, 777*ms)
	require.True(t, other.Hear(4, echo, 900*ms))
	assert.Zero(t, other.RoundTrip(4), "an engine before was asked")
	require.True(t, a.Hear(4, echo, 1050*ms))
	assert.Zero(t, a.RoundTrip(4), "held for longer than it is away")
	require.True(t, a.Hear(4, echo, 1100*ms+9000*ms))
	assert.Zero(t, a.RoundTrip(4), "too long")

	for cut := len(NewReport(nil)) + 2; cut < 4+TimesSize; cut++ {
		assert.False(t, a.Hear(4, echo[:cut], 1180*ms), cut)
	}
	assert.Zero(t, a.RoundTrip(4))
	assert.True(t, a.Hear(4, append(NewReport(nil), 0, 0x40, 1), 1180*ms))
	require.True(t, a.Hear(4, echo, 1180*ms))
	assert.Equal(t, 80*time.Millisecond, a.RoundTrip(4))

	for range tripFor + 1 {
		a.tell()
	}
	assert.Zero(t, a.RoundTrip(4), "long ago")
	for range forgetLooks {
		a.tell()
	}
	assert.Empty(t, a.trips)
}
