package appliance

import (
	"context"
	"errors"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/control"
)

// reload reads the config file again. A file with a mistake changes nothing.
func (d *Daemon) reload(ctx context.Context) (control.ReloadResult, error) {
	text, err := config.Read(d.opts.ConfigPath)
	if err != nil {
		return control.ReloadResult{}, err
	}
	l, err := d.load(text, "")
	if err != nil {
		return control.ReloadResult{}, err
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	changes, err := d.commit.Reload(ctx, l)
	if err != nil {
		return control.ReloadResult{}, err
	}
	d.endpoints.KeepOnly(d.cfg.TunnelSites())
	d.log.Info("config reloaded", "changes", len(changes))
	return control.ReloadResult{Changes: changes}, nil
}

// apply replaces the config by text; with a wait, until somebody confirms it.
func (d *Daemon) apply(ctx context.Context, text []byte, name string,
	wait time.Duration) (control.ReloadResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return control.ReloadResult{}, errEnding
	}

	changes, err := d.commit.Apply(ctx, text, name, wait)
	switch {
	case err != nil:
		d.log.Error("config not applied", "name", name, "error", err)
		return control.ReloadResult{}, err
	case wait > 0:
		d.log.Warn("config applied; it is rolled back unless `ringway confirm` is given",
			"name", name, "changes", len(changes), "in", wait)
	default:
		d.endpoints.KeepOnly(d.cfg.TunnelSites())
		d.log.Info("config applied", "name", name, "changes", len(changes))
	}
	return control.ReloadResult{Changes: changes}, nil
}

func (d *Daemon) confirm() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.commit.Confirm(); err != nil {
		return err
	}
	d.endpoints.KeepOnly(d.cfg.TunnelSites()) // not before: a rollback needs the endpoints of sites that dial in
	return nil
}

func (d *Daemon) undo(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commit.Undo(ctx)
}

func (d *Daemon) checkDeadline(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commit.Tick(ctx)
}

// machine is the daemon as package commit sees it. Its methods, but for Load, are called with d.mu held.
type machine struct{ d *Daemon }

func (m machine) Load(text []byte, name string) (config.Loaded, error) { return m.d.load(text, name) }

func (m machine) Running() config.Loaded { return m.d.running }

func (m machine) Switch(ctx context.Context, l config.Loaded) ([]string, error) {
	d := m.d
	d.running, d.cfg = l, l.Config
	d.components.Follow(d.cfg)
	d.endpoints.SetLiterals(d.cfg.TunnelSites())
	d.names.Again()
	return d.reconcileLocked(ctx)
}

// conflict says which WANs could not keep with cfg what their networks gave them.
func (d *Daemon) conflict(cfg *config.Config) error {
	return errors.Join(d.leases.Conflict(cfg), d.dialer.Conflict(cfg))
}

// TrySwitch refuses new problems only: one that was there before is no reason to refuse what else the config
// says. A config that would cost a WAN its lease or its session is refused before anything is touched.
func (m machine) TrySwitch(ctx context.Context, l config.Loaded) ([]string, error) {
	if err := m.d.conflict(l.Config); err != nil {
		return nil, err
	}

	before := m.d.problems.Keys()
	changes, err := m.Switch(ctx, l)
	for _, p := range m.d.problems.List() {
		if _, applied := appliedParts[p.Component]; applied && !before[p.Key()] {
			err = errors.Join(err, errors.New(p.Name()+": "+p.Text))
		}
	}
	return changes, err
}
