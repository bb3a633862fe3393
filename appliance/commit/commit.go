// Package commit replaces the config that runs: for good, or until a deadline unless somebody confirms it.
// Whatever is killed or loses power at any moment, the next start ends in the old config or the new one,
// whole.
//
//  1. the record is written: both texts, the boot, the deadline; phase applying
//  2. the file on disk becomes the new config
//  3. the machine runs the new config
//  4. phase waiting; or, if no confirmation was asked for, the record is removed: the new config stays
//  5. `ringway confirm`: the record is removed
//
// The rollback, at the deadline, on request, or after a failure of step 2 or 3:
//
//  6. phase undoing
//  7. the file on disk becomes the old config
//  8. the machine runs the old config
//  9. the record is removed
//
// The record is the truth. A start that finds one goes to step 6, with one exception: in phase waiting,
// before the deadline and on the same boot, the new config goes on running and the time goes on counting. It
// is counted by the clock since boot, the only one that does not jump on a machine without a clock battery.
package commit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"ringway/appliance/config"
	"ringway/boottime"
)

// A confirmation may be waited for this long: long enough to type it, short enough that somebody remembers.
const (
	MinConfirm = 5 * time.Second
	MaxConfirm = 24 * time.Hour
)

// retryInterval is how long after a failed rollback the next one is tried.
const retryInterval = 30 * time.Second

// Machine runs configs: the daemon. All its methods but Load are called with its lock held.
type Machine interface {
	// Load checks the text of the config file and reads its keys; it changes nothing. Error messages call the
	// config by name, or by the file's path if name is empty.
	Load(text []byte, name string) (config.Loaded, error)
	// Running is the config of the last Switch or TrySwitch.
	Running() config.Loaded
	// Switch makes the machine run a config, and returns what it changed. An error means that nothing can run;
	// every smaller failure is a problem in the status, and is retried.
	Switch(ctx context.Context, l config.Loaded) (changes []string, err error)
	// TrySwitch is Switch, but a problem that was not there before is an error.
	TrySwitch(ctx context.Context, l config.Loaded) (changes []string, err error)
}

// Files are the paths that a Committer uses.
type Files struct {
	Config  string
	Record  string // of the change under way
	Refused string // keeps the text of a config that was rolled back
}

// Committer makes one change of config at a time. The caller of any method but Load holds the machine's lock.
type Committer struct {
	machine Machine
	files   Files
	log     *slog.Logger
	boot    func() (string, error)
	now     func() time.Duration // since boot
	step    func(string)         // called after each step; tests end the process there

	rec        *record       // nil: no change is under way
	old        config.Loaded // rec.Old, loaded; Config is nil if it does not load
	retryAt    time.Duration // when a failed rollback is tried again
	failed     error         // why it failed
	lastUndone string        // why the last change was rolled back; empty: it was not
}

// New returns a Committer for the config file in f.
func New(m Machine, f Files, log *slog.Logger) *Committer {
	return &Committer{machine: m, files: f, log: log, boot: boottime.ID, now: boottime.Now, step: func(string) {}}
}

// Load finds the config to start with: the one in the file, or the one that the record says. It changes
// nothing, so it needs no lock. Start must follow.
func (c *Committer) Load() (config.Loaded, error) {
	c.rec, c.old = c.findRecord(), config.Loaded{}
	if c.rec == nil {
		text, err := config.Read(c.files.Config)
		if err != nil {
			return config.Loaded{}, err
		}
		return c.machine.Load(text, "")
	}

	oldErr := c.loadOld()
	if oldErr != nil {
		c.log.Error("an unconfirmed config cannot be rolled back", "error", oldErr)
	}

	if reason := c.expired(); reason != "" {
		c.rec.Phase, c.rec.Reason = undoing, reason
	} else {
		l, err := c.machine.Load(c.rec.New.Data, "")
		if err == nil || oldErr != nil {
			return l, err
		}
		c.rec.Phase, c.rec.Reason = undoing, "it no longer loads: "+err.Error()
	}
	if oldErr == nil {
		return c.old, nil
	}

	// Neither should run; a machine that runs nothing is worse.
	if l, err := c.machine.Load(c.rec.New.Data, ""); err == nil {
		return l, nil
	}
	return config.Loaded{}, oldErr
}

// findRecord reads the record of a change that an earlier daemon left under way, if there is one.
func (c *Committer) findRecord() *record {
	rec, err := readRecord(c.files.Record)
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // Load refuses to run anything without root
		return nil
	case err != nil:
		c.log.Error("cannot read the record of a config change; starting with the config file as it is", "error", err)
		return nil
	case rec != nil && rec.Config != c.files.Config:
		c.log.Warn("ignoring the record of a change to another config file", "file", rec.Config)
		return nil
	}
	return rec
}

// expired says why the new config of the record must not run any more; empty: it may.
func (c *Committer) expired() string {
	boot, err := c.boot()
	switch {
	case c.rec.Phase == undoing:
		return c.rec.Reason
	case c.rec.Phase == applying:
		return "the daemon ended while applying it"
	case err != nil:
		return err.Error()
	case boot != c.rec.Boot:
		return "the machine rebooted before it was confirmed"
	case c.now() >= c.rec.Deadline:
		return reasonDeadline
	}
	return ""
}

func (c *Committer) loadOld() error {
	l, err := c.machine.Load(c.rec.Old.Data, "")
	if err != nil {
		c.old = config.Loaded{}
		return fmt.Errorf("load the previous config: %w", err)
	}
	c.old = l
	return nil
}

// Start makes the machine run l, which Load returned.
func (c *Committer) Start(ctx context.Context, l config.Loaded) error {
	switch {
	case c.rec == nil:
		_, err := c.machine.Switch(ctx, l)
		return err

	case c.rec.Phase == waiting:
		if _, err := c.machine.Switch(ctx, l); err != nil {
			return c.rollbackAtStart(ctx, "it cannot be applied: "+err.Error())
		}
		c.log.Warn("this config is not confirmed; it is rolled back unless `ringway confirm` is given",
			"in", c.left().Round(time.Second))
		return nil

	case c.old.Config == nil: // Load has logged it, and l is the config that should be rolled back
		_, err := c.machine.Switch(ctx, l)
		c.failed, c.retryAt = c.loadOld(), c.now()+retryInterval
		return err
	}
	return c.rollbackAtStart(ctx, c.rec.Reason)
}

// rollbackAtStart ignores a file that cannot be restored: that is retried, and must not keep the machine from
// running.
func (c *Committer) rollbackAtStart(ctx context.Context, reason string) error {
	_, runErr := c.rollback(ctx, reason)
	return runErr
}

// Reload makes the machine run l, the config file as it stands. On an error what ran before runs again.
func (c *Committer) Reload(ctx context.Context, l config.Loaded) (changes []string, err error) {
	if err := c.pending(); err != nil {
		return nil, err
	}

	before := c.machine.Running()
	changes, err = c.machine.TrySwitch(ctx, l)
	if err != nil {
		_, backErr := c.machine.Switch(ctx, before)
		return nil, errors.Join(notApplied(err), backErr)
	}
	c.lastUndone = ""
	return changes, nil
}

// pending is the error for whoever wants to change the config while another change is under way.
func (c *Committer) pending() error {
	const advice = "keep it first (`ringway confirm`) or roll it back (`ringway confirm --undo`)"
	switch {
	case c.rec == nil:
		return nil
	case c.rec.Phase == waiting:
		return fmt.Errorf("a config is waiting for confirmation, %s left: "+advice, c.left().Round(time.Second))
	}
	return fmt.Errorf("a config is being rolled back (%s), but the rollback fails (%w): "+advice,
		c.rec.Reason, c.failed)
}

func (c *Committer) left() time.Duration { return max(c.rec.Deadline-c.now(), 0) }

// notApplied says what became of a valid config that does not work here.
func notApplied(err error) error {
	return fmt.Errorf("the config is valid, but cannot be applied here; the previous config keeps running: %w", err)
}
