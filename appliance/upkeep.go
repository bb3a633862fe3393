package appliance

import (
	"context"
	"fmt"
	"os/user"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/wanted"
	"ringway/debounce"
	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/routing/rtnl"
)

// reconcileInterval is how often the machine is compared with the config without a notification: not every
// change causes one.
const reconcileInterval = time.Minute

// roaming makes one change of sites that move together.
var roaming = debounce.Timing{Quiet: 50 * time.Millisecond, Longest: 50 * time.Millisecond}

// watchKernel asks for a reconciliation when links, addresses, routes or rules change.
func (d *Daemon) watchKernel(ctx context.Context, ready func()) error {
	ready()
	return rtnl.Watch(ctx, func(e rtnl.Event) {
		d.leases.Recheck(e.CarrierUp)
		d.dialer.Recheck(e.CarrierUp)
		d.touch()
	})
}

// touch asks for a reconciliation soon.
func (d *Daemon) touch() { d.dirty.Raise() }

// reconcileWhenDirty keeps the machine as the config wants it.
func (d *Daemon) reconcileWhenDirty(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()

	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.dirty:
		case <-tick.C:
		}

		changes, err := d.reconcile(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.Error("reconciliation failed, will retry", "error", err)
		}
		for _, c := range changes {
			d.log.Info("restored what the config wants", "change", c)
		}
	}
}

func (d *Daemon) reconcile(ctx context.Context) (changes []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()

	changes, err = d.reconcileLocked(ctx)
	report(d.own.reconcile, problem.Problem{
		Severity: problem.Critical,
		Action:   "it is tried again every minute; the error says what is in the way",
	}, err)
	report(d.own.control, problem.Problem{
		Severity: problem.Warning,
		Action:   "create the group or correct control.group; until then only root may read the status",
	}, missingGroup(d.cfg.Control.Group))
	d.reports.Update()
	return changes, err
}

// steerSites updates only the firewall's maps of where each site is: after an outage a hub's sites come back by the
// hundred, and a whole reconciliation for each would delay all of them.
func (d *Daemon) steerSites() {
	d.mu.Lock()
	defer d.mu.Unlock()

	var err error
	if !d.ending {
		err = d.applyFirewallLocked(wanted.Firewall(d.cfg, d.factsLocked()))
	}
	news := report(d.own.siteQueues, problem.Problem{
		Severity: problem.Warning,
		Action:   "it is tried again every minute; until then traffic to sites that moved shares the queue of local traffic",
	}, err)
	if news {
		d.log.Error("cannot move the traffic to sites that moved into their queues", "error", err)
	}
}

func (d *Daemon) applyFirewallLocked(want firewall.State) error {
	have, err := nft.Observe()
	if err != nil {
		return err
	}
	return d.ruleset.Apply(firewall.Diff(want, have))
}

func (d *Daemon) raiseClock() {
	moved, err := d.clock.Raise()
	report(d.own.clock, problem.Problem{
		Severity: problem.Warning,
		Action:   "set the clock: peers reject handshakes with an old timestamp",
	}, err)
	if err != nil {
		d.log.Warn("cannot set the clock to the last known time", "error", err)
	}
	if moved > 0 {
		d.log.Warn("the clock was behind the last known time and was set forward: peers reject old timestamps",
			"by", moved.Round(time.Second))
	}
	d.saveClock()
}

func (d *Daemon) saveClock() {
	if err := d.clock.Save(); err != nil {
		d.log.Warn("cannot save the time for the next boot", "error", err)
	}
}

// feedWatchdog tells systemd that the daemon is alive, if the unit asks for it: that it ticks, and that nothing has
// held the lock for longer than the watchdog's timeout.
func (d *Daemon) feedWatchdog(ctx context.Context, ready func()) error {
	ready()
	timeout, err := daemon.SdWatchdogEnabled(false)
	if err != nil || timeout == 0 {
		<-ctx.Done()
		return nil
	}

	tick := time.NewTicker(timeout / 4)
	defer tick.Stop()
	unlocked := time.Now() // when the lock was last seen free
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}

		if d.mu.TryLock() {
			d.mu.Unlock()
			unlocked = time.Now()
		}
		if time.Since(unlocked) < timeout {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

// controlGroup is the id of the group that may read the status; 0 for none.
func (d *Daemon) controlGroup() int {
	id, err := groupID(d.config().Control.Group)
	if err != nil {
		return 0 // a problem, reported with each reconciliation
	}
	return id
}

// missingGroup says that a group does not exist. The default one comes with the package: without it, nobody has asked
// for a group that may read the status.
func missingGroup(name string) error {
	if name == config.DefaultGroup {
		return nil
	}
	_, err := groupID(name)
	return err
}

// groupID looks a group up; "" has id 0, which allows nobody.
func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("control.group %s: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}
