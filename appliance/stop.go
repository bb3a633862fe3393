package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
	"ringway/tunnel/plane"
)

// Stop takes Ringway away: through the daemon where one runs, else by itself, from the journal and the
// planes' own control sockets. It waits until all is gone. Nothing there is no error.
func Stop(ctx context.Context, p Paths, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := NewClient(p).Stop(ctx)
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	if _, serr := os.Stat(p.Run); errors.Is(serr, os.ErrNotExist) {
		return nil
	}
	// The lock is free once the daemon has done its work, or died in it. Where it did its work, the lock and all else
	// are gone, and the folder is not to be touched again: systemd may be about to mount it for the unit's ExecStopPost=.
	flags := os.O_RDWR
	if err != nil {
		flags |= os.O_CREATE // there was no daemon that takes anything away
	}
	release, err := waitForLock(ctx, p.lock(), flags)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	j, err := loadJournal(p.journal())
	if j != nil || err != nil {
		log.Warn("no daemon finished the stop; taking planes, tunnels and kernel state away from here")
	}
	if j == nil {
		j = &journal{} // also then a plane may have been left alone
	}
	if err := errors.Join(err, p.takeAway(ctx, j)); err != nil {
		return err
	}
	return p.remove()
}

// takeAway ends planes that nobody holds, removes tunnel devices and sockets, and puts the kernel back to what j found.
// What the daemon has done already is no error.
func (p Paths) takeAway(ctx context.Context, j *journal) error {
	var errs []error
	for _, c := range tunnel.Classes {
		errs = append(errs, plane.Quit(ctx, p.planes(), p.UAPI, c))
	}
	for _, d := range j.Devices {
		errs = append(errs, kernel.Remove(d), plane.RemoveUAPI(p.UAPI, d))
	}
	return errors.Join(append(errs, j.restore(ctx))...)
}

func waitForLock(ctx context.Context, path string, flags int) (release func(), err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		release, err := takeLock(path, flags)
		if err == nil {
			return release, nil
		}
		if !errors.As(err, &errLocked{}) {
			return nil, fmt.Errorf("%w (stop needs root)", err)
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("the daemon did not stop in time; its log says why")
		case <-tick.C:
		}
	}
}

// SystemdRestarts says whether systemd is about to start the calling service's unit again: its job is a
// restart, or it has none because the service died by itself and Restart= applies. Outside a unit it is false.
func SystemdRestarts(ctx context.Context) (bool, error) {
	if os.Getenv("INVOCATION_ID") == "" {
		return false, nil
	}
	conn, unit, err := ownUnit(ctx)
	if err != nil {
		return false, fmt.Errorf("ask systemd why the service ends: %w", err)
	}
	defer conn.Close()
	jobs, err := conn.ListJobsContext(ctx)
	if err != nil {
		return false, fmt.Errorf("ask systemd for its jobs: %w", err)
	}
	for _, j := range jobs {
		if j.Unit == unit {
			return j.JobType != "stop", nil
		}
	}
	return true, nil
}

// ownUnit connects to systemd itself, not through the message bus: that may be gone already at a shutdown.
func ownUnit(ctx context.Context) (*dbus.Conn, string, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, "", err
	}
	unit, err := conn.GetUnitNameByPID(ctx, uint32(os.Getpid()))
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return conn, unit, nil
}

// stopOwnUnit tells systemd that the daemon, which is the main process of a unit, ends because it was asked to:
// Restart= would start again what the operator stopped. Outside a unit of its own it does nothing.
func stopOwnUnit(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	conn, unit, err := ownUnit(ctx)
	if err != nil {
		return fmt.Errorf("tell systemd of the stop: %w", err)
	}
	defer conn.Close()
	// Whoever started a daemon by hand inside some other service does not want that service stopped.
	main, err := conn.GetServicePropertyContext(ctx, unit, "MainPID")
	if err != nil || main.Value.Value() != uint32(os.Getpid()) {
		return err
	}
	if _, err := conn.StopUnitContext(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("tell systemd to stop %s: %w", unit, err)
	}
	return nil
}
