package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"ringway/durable"
)

const reasonDeadline = "it was not confirmed in time"

// Undo rolls back on request.
func (c *Committer) Undo(ctx context.Context) error {
	if c.rec == nil {
		return errors.New("no config is waiting for confirmation: there is nothing to roll back")
	}
	fileErr, runErr := c.rollback(ctx, "rolled back on request")
	return errors.Join(fileErr, runErr)
}

// Tick rolls back once the deadline has passed, and retries a rollback that failed. It is to be called every
// second.
func (c *Committer) Tick(ctx context.Context) {
	switch {
	case c.rec == nil:
	case c.rec.Phase == waiting && c.now() >= c.rec.Deadline:
		_, _ = c.rollback(ctx, reasonDeadline) // it logs its errors and retries
	case c.rec.Phase == undoing && c.now() >= c.retryAt:
		_, _ = c.rollback(ctx, c.rec.Reason)
	}
}

// rollback is steps 6 to 9. If the file cannot be restored (fileErr) or the old config cannot run (runErr),
// the record stays and the rollback is retried.
func (c *Committer) rollback(ctx context.Context, reason string) (fileErr, runErr error) {
	rec := c.rec
	rec.Phase, rec.Reason = undoing, reason
	// A full disk must not prevent the rollback: a start that finds the earlier phase also rolls back, at the
	// deadline at the latest.
	saveErr := c.save(rec)
	c.step("undoing")

	if c.old.Config == nil {
		runErr = c.loadOld()
	}
	if runErr == nil {
		fileErr = c.restoreFile()
		c.step("file restored")
		_, runErr = c.machine.Switch(ctx, c.old)
		c.step("switched back")
	}
	if fileErr == nil && runErr == nil {
		fileErr = c.forget()
	}

	if c.failed = errors.Join(fileErr, runErr); c.failed != nil {
		c.retryAt = c.now() + retryInterval
		c.log.Error("config rollback failed; will retry", "reason", reason, "error", errors.Join(c.failed, saveErr))
		return fileErr, runErr
	}
	c.lastUndone = reason
	c.log.Error("CONFIG ROLLED BACK: the previous config is running", "reason", reason,
		"kept", c.files.Refused, "file", c.files.Config)
	return nil, nil
}

// restoreFile makes the file on disk the old config. A text that somebody else wrote there meanwhile is kept.
func (c *Committer) restoreFile() error {
	file := c.file()
	now, err := durable.Read(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the config file: %w", err)
	}
	if err == nil && now.Equal(c.rec.Old) {
		return nil
	}

	foreign := err == nil && !bytes.Equal(now.Data, c.rec.New.Data) && !bytes.Equal(now.Data, c.rec.Old.Data)
	if foreign {
		if err := durable.WriteFile(c.files.Refused, now.Data, 0o600); err != nil {
			return err
		}
	}
	return c.rec.Old.Replace(file)
}
