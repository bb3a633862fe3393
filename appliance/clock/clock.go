// Package clock keeps a machine whose clock starts in the past (no battery, no NTP yet) able to shake hands:
// a WireGuard responder refuses a handshake whose TAI64N timestamp is not later than the last one it saw
// (WireGuard paper, section 5.1).
package clock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/durable"
)

// SaveInterval is how often the floor is to be saved.
const SaveInterval = time.Minute

// ahead is how far in the future the floor is saved, so that a crash between two saves is covered.
const ahead = 2 * SaveInterval

// Floor is a time on disk that is later than any handshake this machine can have sent. A clock that is
// clearly before it is set to it: the system clock, since the kernel's WireGuard reads no other.
type Floor struct {
	path   string
	now    func() time.Time
	set    func(time.Time) error
	synced func() bool // whether something (NTP) holds the clock to the true time
}

// NewFloor is the floor in a file, which need not exist.
func NewFloor(path string) *Floor {
	return &Floor{path: path, now: time.Now, set: setClock, synced: clockSynced}
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

func clockSynced() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

// Raise sets the clock to the floor if it is clearly before it, and returns by how much. An error must not
// keep the daemon from starting.
func (f *Floor) Raise() (moved time.Duration, err error) {
	floor, err := f.read()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}

	// A correct clock may stand before the floor, by as much as that was saved ahead.
	now := f.now()
	if !now.Before(floor.Add(-ahead)) {
		return 0, nil
	}

	if err := f.set(floor); err != nil {
		return 0, fmt.Errorf("the clock (%s) is before the last handshake (%s) and cannot be set: "+
			"peers will refuse this box until the clock is right (start an NTP client, or give the daemon CAP_SYS_TIME): %w",
			now.UTC().Format(time.RFC3339), floor.Format(time.RFC3339), err)
	}
	return floor.Sub(now), nil
}

// Save writes the floor. A clock that was set back by hand keeps the old floor. Only a synchronised clock may
// lower it; if none could, one boot with a clock far in the future would move the clock of every later boot.
func (f *Floor) Save() error {
	floor := f.now().Add(ahead).UTC().Truncate(time.Second)
	if old, err := f.read(); err == nil && old.After(floor) && !f.synced() {
		return nil
	}
	return durable.WriteFile(f.path, []byte(floor.Format(time.RFC3339)+"\n"), 0o644)
}

func (f *Floor) read() (time.Time, error) {
	b, err := os.ReadFile(f.path)
	if err != nil {
		return time.Time{}, fmt.Errorf("read clock floor: %w", err)
	}
	floor, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b)))
	if err != nil {
		return time.Time{}, fmt.Errorf("clock floor %s is not a time (remove the file if the clock is right): %w",
			f.path, err)
	}
	return floor, nil
}
