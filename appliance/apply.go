package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"ringway/appliance/config"
)

// How a running daemon gets another config: `reload` takes the file as it stands, `apply` is handed one, puts it into the file's
// place, and may go back by itself (trial.go).

// reload reads the config again. A file with a mistake changes nothing.
func (d *Daemon) reload(ctx context.Context) (ReloadResult, error) {
	text, err := config.Read(d.opts.ConfigPath)
	if err != nil {
		return ReloadResult{}, err
	}
	l, err := d.load(text, "")
	if err != nil {
		return ReloadResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.trial.busy(); err != nil {
		return ReloadResult{}, err
	}
	was := d.running
	lines, err := d.tryLocked(ctx, l)
	if err != nil { // the machine refused what the file asks for: back to what ran
		_, back := d.takeLocked(ctx, was)
		return ReloadResult{}, errors.Join(errNotApplied(err), back)
	}
	d.trial.undone = ""
	d.endpoints.keepOnly(d.cfg.Sites)
	d.log.Info("config reloaded", "changes", len(lines))
	return ReloadResult{Changes: lines}, nil
}

func (d *Daemon) apply(ctx context.Context, text []byte, name string, wait time.Duration) (ReloadResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return ReloadResult{}, errEnding
	}
	lines, err := d.trial.applyLocked(ctx, text, name, wait)
	switch {
	case err != nil:
		d.log.Error("config not applied", "name", name, "error", err)
		return ReloadResult{}, err
	case wait > 0:
		d.log.Warn("config applied; without `ringway confirm` the one before comes back", "name", name, "changes", len(lines), "in", wait)
	default:
		d.endpoints.keepOnly(d.cfg.Sites)
		d.log.Info("config applied", "name", name, "changes", len(lines))
	}
	return ReloadResult{Changes: lines}, nil
}

func (d *Daemon) confirm() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.trial.confirmLocked(); err != nil {
		return err
	}
	d.endpoints.keepOnly(d.cfg.Sites) // not before: who goes back wants to know where a site was that dials in
	return nil
}

func (d *Daemon) undo(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trial.undoAskedLocked(ctx)
}

func (d *Daemon) lookAtTrial(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trial.lookLocked(ctx)
}

func (d *Daemon) runningLocked() loaded { return d.running }

// takeLocked makes the machine what l says. What is not there yet is a problem, not an error.
func (d *Daemon) takeLocked(ctx context.Context, l loaded) ([]string, error) {
	d.running, d.cfg, d.secrets = l, l.cfg, l.keys
	d.leases.follow(d.life, d.cfg.WANs)
	d.takeAddressesLocked(d.cfg)
	d.lookSoon()
	return d.reconcileLocked(ctx)
}

// tryLocked is takeLocked, but a problem that was not there before is an error. One that was is no reason to refuse what else
// the config says.
func (d *Daemon) tryLocked(ctx context.Context, l loaded) ([]string, error) {
	wasWrong := maps.Clone(d.problems)
	lines, err := d.takeLocked(ctx, l)
	for what, p := range d.problems {
		if wasWrong[what] == "" && what != "devices" && !strings.HasPrefix(what, "endpoint ") {
			err = errors.Join(err, fmt.Errorf("%s: %s", what, p))
		}
	}
	return lines, err
}
