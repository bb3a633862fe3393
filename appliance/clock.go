package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockFloor keeps a box whose clock starts in the past (no battery, no NTP yet) able to shake hands:
// a WireGuard responder refuses a handshake whose TAI64N timestamp is not later than the last one it
// saw (WireGuard paper, section 5.1). The floor is a time on disk that is later than any handshake
// this box can have sent; a clock that is clearly before it is set to it.
//
// The system clock is what moves, since the kernel's WireGuard reads nothing else. The floor is
// written ahead by clockAhead, so a crash between two saves is covered; and since a right clock may
// stand up to that far before the floor, only one that is further back is moved.
type clockFloor struct {
	path   string
	now    func() time.Time
	set    func(time.Time) error
	synced func() bool // whether something (NTP) holds the clock to the true time
}

const (
	clockSaveInterval = time.Minute
	clockAhead        = 2 * clockSaveInterval
)

func newClockFloor(path string) *clockFloor {
	return &clockFloor{path: path, now: time.Now, set: func(t time.Time) error {
		ts := unix.NsecToTimespec(t.UnixNano())
		return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}, synced: func() bool {
		var t unix.Timex
		state, err := unix.Adjtimex(&t)
		return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
	}}
}

// raise sets the clock to the floor where it is clearly before it, and says by how much.
// A floor that cannot be read is an error but never a reason not to start.
func (c *clockFloor) raise() (moved time.Duration, err error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read clock floor: %w", err)
	}
	floor, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("clock floor %s holds no time (remove the file if the clock is right): %w", c.path, err)
	}
	now := c.now()
	if !now.Before(floor.Add(-clockAhead)) {
		return 0, nil
	}
	if err := c.set(floor); err != nil {
		return 0, fmt.Errorf("clock is at %s, before the last handshake (%s), and cannot be set: peers will refuse this box until the clock is right (start an NTP client, or give the daemon CAP_SYS_TIME): %w",
			now.UTC().Format(time.RFC3339), floor.Format(time.RFC3339), err)
	}
	return floor.Sub(now), nil
}

// save writes the floor. It does not go back: a clock that was set back by hand keeps the old floor. Only a clock that
// is held to the true time may lower it, or one boot with a clock far in the future would move every later one.
func (c *clockFloor) save() error {
	floor := c.now().Add(clockAhead).UTC().Truncate(time.Second)
	if b, err := os.ReadFile(c.path); err == nil {
		if old, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b))); err == nil && old.After(floor) && !c.synced() {
			return nil
		}
	}
	return writeFileAtomic(c.path, []byte(floor.Format(time.RFC3339)+"\n"), 0o644)
}
