// Package systemd talks to the service manager about the daemon's own unit.
package systemd

import (
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Restarts reports whether systemd is about to start the calling service's unit again: its job is a restart,
// or it has none because the service died by itself and Restart= applies. Outside a unit it is false.
func Restarts(ctx context.Context) (bool, error) {
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

// ownUnit connects to systemd directly, not through the message bus, which may be gone already at a shutdown.
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

// StopOwnUnit tells systemd that the daemon, the main process of a unit, ends because it was asked to:
// Restart= would start again what the operator stopped. Outside a unit of its own it does nothing.
func StopOwnUnit(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	conn, unit, err := ownUnit(ctx)
	if err != nil {
		return fmt.Errorf("tell systemd about the stop: %w", err)
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
