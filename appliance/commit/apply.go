package commit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/durable"
)

// Apply replaces the running config by text: for good, or, with a wait, until the deadline. A config that
// cannot be applied is rolled back at once. Error messages call the text by name.
func (c *Committer) Apply(
	ctx context.Context, text []byte, name string, wait time.Duration,
) (changes []string, err error) {
	if err := c.pending(); err != nil {
		return nil, err
	}
	if wait != 0 && (wait < MinConfirm || wait > MaxConfirm) {
		return nil, fmt.Errorf("cannot wait %s for a confirmation (allowed: %s to %s)", wait, MinConfirm, MaxConfirm)
	}
	next, err := c.machine.Load(text, name)
	if err != nil {
		return nil, err
	}

	rec, err := c.prepare(text, wait)
	if err != nil {
		return nil, err
	}
	c.rec, c.old, c.lastUndone = rec, c.machine.Running(), ""
	c.step("recorded")

	changes, err = c.swap(ctx, next, wait > 0)
	if err != nil {
		fileErr, runErr := c.rollback(ctx, "it could not be applied: "+err.Error())
		refused := fmt.Errorf("%w (the rejected config is kept in %s)", notApplied(err), c.files.Refused)
		return nil, errors.Join(refused, fileErr, runErr)
	}
	return changes, nil
}

// prepare is step 1. If it fails, nothing has changed.
func (c *Committer) prepare(text []byte, wait time.Duration) (*record, error) {
	boot, err := c.boot()
	if err != nil {
		return nil, err
	}

	file := c.file()
	if err := writable(filepath.Dir(file)); err != nil {
		return nil, err
	}
	now, err := durable.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		now, err = durable.File{Mode: 0o644, UID: -1, GID: -1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the config file: %w", err)
	}

	rec := &record{Phase: applying, Boot: boot, Deadline: c.now() + wait, Config: c.files.Config, Old: now, New: now}
	// The file may have been edited since it was loaded: the old config is what runs, not what the file says.
	rec.Old.Data, rec.New.Data = c.machine.Running().Text, text
	c.step("checked")

	if err := durable.WriteFile(c.files.Refused, text, 0o600); err != nil {
		return nil, err
	}
	c.step("kept")

	if err := c.save(rec); err != nil {
		_ = os.Remove(c.files.Record) // the next start must not roll back
		return nil, err
	}
	return rec, nil
}

// swap is steps 2 to 4.
func (c *Committer) swap(ctx context.Context, next config.Loaded, confirm bool) (changes []string, err error) {
	if now, err := durable.Read(c.file()); err != nil || !now.Equal(c.rec.New) {
		if err := c.rec.New.Replace(c.file()); err != nil {
			return nil, err
		}
	}
	c.step("file replaced")

	changes, err = c.machine.TrySwitch(ctx, next)
	if err != nil {
		return nil, err
	}
	c.step("switched")

	if !confirm {
		return changes, c.keep()
	}
	c.rec.Phase = waiting
	err = c.save(c.rec)
	c.step("waiting")
	return changes, err
}

// writable finds out before anything changes what would make a rollback fail.
func writable(folder string) error {
	if err := unix.Access(folder, unix.W_OK); err != nil {
		return fmt.Errorf("the daemon must be able to restore the config file and cannot write %s: %w "+
			"(under systemd, add ReadWritePaths=%s to the unit)", folder, err, folder)
	}
	return nil
}

// Confirm keeps the config that waits for it.
func (c *Committer) Confirm() error {
	switch {
	case c.rec == nil && c.lastUndone != "":
		return fmt.Errorf("too late: the config was rolled back (%s); it is kept in %s", c.lastUndone, c.files.Refused)
	case c.rec == nil:
		return errors.New("no config is waiting for confirmation")
	case c.rec.Phase == undoing && c.old.Config != nil:
		return fmt.Errorf("too late: the config is being rolled back (%s): %w", c.rec.Reason, c.failed)
	}

	if err := c.keep(); err != nil {
		return fmt.Errorf("the config is still waiting for confirmation: %w", err)
	}
	c.log.Info("config confirmed")
	return nil
}

// keep makes the running config the one that stays.
func (c *Committer) keep() error {
	if err := c.forget(); err != nil {
		return err
	}
	_ = os.Remove(c.files.Refused) // it is the config now; a copy that stays harms nobody
	c.lastUndone = ""
	return nil
}
