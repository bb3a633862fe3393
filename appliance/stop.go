package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"ringway/appliance/control"
	"ringway/appliance/dial"
	"ringway/appliance/journal"
	"ringway/appliance/lock"
	"ringway/appliance/media"
	"ringway/sip/relay"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
	"ringway/tunnel/plane"
)

// Stop removes Ringway from the machine: through the daemon if one runs, otherwise by itself, by the journal
// and the planes' control sockets. It returns when everything is gone. If there is nothing to remove, that is
// not an error.
func Stop(ctx context.Context, p Paths, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := control.NewClient(p.Socket()).Stop(ctx)
	if err != nil && !errors.Is(err, control.ErrNotRunning) {
		return err
	}
	if _, serr := os.Stat(p.Run); errors.Is(serr, os.ErrNotExist) {
		return nil
	}

	// The lock is free once the daemon has finished, or died. If it has finished, the lock and everything
	// else is gone, and the directory must not be touched again: systemd may be about to mount it for the
	// unit's ExecStopPost=.
	noDaemon := err != nil
	release, err := lock.Wait(ctx, p.lock(), noDaemon)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.As(err, &lock.HeldError{}):
		return errors.New("the daemon did not stop in time; its log says why")
	case err != nil:
		return fmt.Errorf("%w (stop needs root)", err)
	}
	defer release()

	j, err := journal.Load(p.journal())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // there may still be a plane without a daemon
	} else {
		log.Warn("no daemon finished the stop; removing planes, tunnels and kernel state from here")
	}
	if err := errors.Join(err, p.takeAway(ctx, j)); err != nil {
		return err
	}
	return p.remove()
}

// takeAway ends planes without a daemon, removes tunnel devices and sockets, and restores the kernel. What
// the daemon has done already is not an error.
func (p Paths) takeAway(ctx context.Context, j *journal.Journal) error {
	errs := []error{relay.Quit(ctx, p.planes()), media.Quit(ctx, p.planes()), dial.Quit(p.dialed())}
	for _, c := range tunnel.Classes {
		errs = append(errs, plane.Quit(ctx, p.planes(), p.UAPI, c))
	}
	for _, d := range j.Devices() {
		errs = append(errs, kernel.Remove(d), plane.RemoveUAPI(p.UAPI, d))
	}
	return errors.Join(append(errs, j.Restore())...)
}
