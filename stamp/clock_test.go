package stamp

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTimestamps(t *testing.T) {
	assert.Equal(
		t, Timestamp(3_155_673_600<<32),
		NewTimestamp(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(), NTP, 0), "RFC 5905, figure 4",
	)
	assert.Equal(
		t, Timestamp(2_208_988_800<<32|0x80000000), NewTimestamp(500_000_000, NTP, 0),
		"the first day of Unix, and half of 2^32",
	)
	at := time.Date(2026, 11, 25, 10, 0, 0, 500_000_000, time.UTC).UnixNano()
	assert.Equal(
		t, Timestamp(uint64(at/1e9+37)<<32|500_000_000), NewTimestamp(at, PTP, 37*time.Second),
		"TAI seconds since 1970, nanoseconds",
	)
	assert.Equal(
		t, Timestamp(0), NewTimestamp(time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC).UnixNano(), NTP, 0),
		"NTP's next era begins (RFC 5905, section 6)",
	)
}

// Every nanosecond comes back, also when the 32 bits of seconds come round between it and the moment that
// it is read at.
func TestTimestampsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(0, 4e18).Draw(t, "at")
		near := at + rapid.Int64Range(-1e18, 1e18).Draw(t, "away")
		f := Format(rapid.IntRange(0, 1).Draw(t, "format"))
		if near < 0 {
			near = 0
		}
		assert.Equal(t, at, NewTimestamp(at, f, 37*time.Second).Unix(f, 37*time.Second, near))
	})
}

func TestErrorEstimates(t *testing.T) {
	good := ClockState{Synchronized: true, MaxError: 3 * time.Millisecond}
	e := NewErrorEstimate(good, NTP)
	assert.True(t, e.Synchronized())
	d, ok := e.Max()
	require.True(t, ok)
	assert.GreaterOrEqual(t, d, good.MaxError, "never better than it is")
	assert.Less(t, d, good.MaxError*102/100)

	assert.False(t, NewErrorEstimate(ClockState{}, NTP).Synchronized())
	assert.False(t, NewErrorEstimate(good, PTP).Synchronized(), "TAI is not known")
	good.TAI = 37 * time.Second
	assert.True(t, NewErrorEstimate(good, PTP).Synchronized())
	assert.Equal(t, PTP, NewErrorEstimate(good, PTP).Format())

	_, ok = ErrorEstimate(0x8f00).Max()
	assert.False(t, ok, "a multiplier of zero gives no bound (RFC 4656, section 4.1.2)")
	assert.NotZero(t, NewErrorEstimate(ClockState{}, NTP)&0xff)
	_, ok = ErrorEstimate(0xbfff).Max()
	assert.False(t, ok, "centuries")
	d, ok = ErrorEstimate(0x2001).Max()
	assert.True(t, ok)
	assert.Equal(t, time.Second, d, "1 * 2^(32-32) s")
}

func TestKernelSaysHowGoodItsClockIs(t *testing.T) {
	_, err := ReadClock()
	require.NoError(t, err)
}
