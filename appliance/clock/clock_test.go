package clock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeClock is a system clock that can be wrong.
type fakeClock struct {
	t      time.Time
	denied bool
	synced bool
}

func (f *fakeClock) floor(path string) *Floor {
	return &Floor{path: path, now: func() time.Time { return f.t }, set: func(t time.Time) error {
		if f.denied {
			return errors.New("operation not permitted")
		}
		f.t = t
		return nil
	}, synced: func() bool { return f.synced }}
}

func TestAClockThatStartsInThePastIsSetToTheFloor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	real := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	c := fakeClock{t: real}
	require.NoError(t, c.floor(path).Save())

	c.t = time.Date(1970, 1, 1, 0, 0, 20, 0, time.UTC) // reboot without a battery
	moved, err := c.floor(path).Raise()
	require.NoError(t, err)
	assert.Positive(t, moved)
	assert.True(t, c.t.After(real), "every handshake sent before the reboot is older than what is sent now")
}

func TestARightClockIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	c := fakeClock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	require.NoError(t, c.floor(path).Save())
	c.t = c.t.Add(5 * time.Second) // a quick reboot: still before the floor, which is written ahead
	moved, err := c.floor(path).Raise()
	require.NoError(t, err)
	assert.Zero(t, moved)
}

func TestTheFloorNeverGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	c := fakeClock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	require.NoError(t, c.floor(path).Save())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	c.t = c.t.Add(-time.Hour)
	require.NoError(t, c.floor(path).Save())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(before), string(after))
}

func TestATrueClockLowersAFloorFromTheFuture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	real := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	c := fakeClock{t: real.AddDate(40, 0, 0)} // a faulty clock chip, for one boot
	require.NoError(t, c.floor(path).Save())
	c.t, c.synced = real, true
	require.NoError(t, c.floor(path).Save())
	c.t, c.synced = real.Add(time.Hour), false
	moved, err := c.floor(path).Raise()
	require.NoError(t, err)
	assert.Zero(t, moved)
}

func TestErrorsOfTheClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	c := fakeClock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	moved, err := c.floor(path).Raise()
	require.NoError(t, err, "a first start has no floor")
	assert.Zero(t, moved)

	require.NoError(t, c.floor(path).Save())
	c.t, c.denied = time.Unix(0, 0), true
	_, err = c.floor(path).Raise()
	assert.ErrorContains(t, err, "peers will refuse this box until the clock is right "+
		"(start an NTP client, or give the daemon CAP_SYS_TIME)")

	require.NoError(t, os.WriteFile(path, []byte("garbage"), 0o600))
	_, err = c.floor(path).Raise()
	assert.ErrorContains(t, err, "is not a time")
}
