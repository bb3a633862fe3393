package units

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestParseBitRate(t *testing.T) {
	for text, want := range map[string]BitRate{
		"20mbit": 20 * Mbit, "1.5mbit": 1500 * Kbit, " 64KBIT ": 64 * Kbit,
		"100gbit": 100 * Gbit, "64000": 64 * Kbit, "64000bit": 64 * Kbit,
	} {
		got, err := ParseBitRate(text)
		assert.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}

	for _, text := range []string{
		"", "fast", "20", "32kbit", "101gbit", "-1mbit", "+1mbit", "1e3mbit", "0x10mbit", "infmbit",
		"1_000kbit", "nan", "20 parsecs",
	} {
		_, err := ParseBitRate(text)
		assert.EqualError(
			t, err, `"`+text+`" is not a rate (allowed: 64kbit to 100gbit, for example 20mbit or 1.5mbit)`,
		)
	}
}

func TestBitRateString(t *testing.T) {
	for want, r := range map[string]BitRate{
		"0bit": 0, "999bit": 999, "1500kbit": 1500 * Kbit, "20mbit": 20 * Mbit, "3gbit": 3 * Gbit,
	} {
		assert.Equal(t, want, r.String())
	}
	for want, r := range map[string]BitRate{
		"0bit": 0, "999bit": 999, "1.0kbit": 1000, "17.1mbit": 17_123_456, "100mbit": 99_960_000, "582kbit": 582 * Kbit,
		"1.0gbit": 999_600_000, "25.0gbit": 25 * Gbit,
	} {
		assert.Equal(t, want, r.About())
	}
}

func TestBytesAndTime(t *testing.T) {
	assert.Equal(t, ByteCount(2500), (2 * Mbit).Bytes(10*time.Millisecond))
	assert.Equal(t, 6*time.Millisecond, (2 * Mbit).Serialization(1500))
	assert.Zero(t, BitRate(0).Serialization(1500), "an unknown rate has no serialization time")
	assert.Equal(t, 300*Kbit, Mbit.Percent(30))
}
