// Package lock keeps two daemons from running on one machine at the same time.
package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// HeldError says that a daemon holds the lock.
type HeldError struct{ Path string }

func (e HeldError) Error() string {
	return fmt.Sprintf("another ringway daemon runs here (%s is locked); "+
		"`ringway status` shows it, `ringway reload` makes it read its config again", e.Path)
}

// Take locks a file until release is called or the process ends; create makes the file if it is not there. It
// returns a HeldError if another process holds the lock.
func Take(path string, create bool) (release func(), err error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	for {
		release, err = try(path, flags)
		if release != nil || err != nil {
			return release, err
		}
	}
}

// try returns neither a release nor an error if the file lost its name before it was locked: a stop removes
// the file, and a lock on a file without a name excludes nobody.
func try(path string, flags int) (release func(), err error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, HeldError{path}
	}

	mine, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read lock: %w", err)
	}
	named, err := os.Stat(path)
	if err != nil || !os.SameFile(mine, named) {
		f.Close()
		return nil, nil
	}
	return func() { f.Close() }, nil
}

// Wait is Take, but it waits while another process holds the lock, until ctx ends.
func Wait(ctx context.Context, path string, create bool) (release func(), err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		release, err := Take(path, create)
		if !errors.As(err, &HeldError{}) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}
