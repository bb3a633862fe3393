package appliance

import (
	"context"
	"maps"
	"time"

	"ringway/appliance/compare"
	"ringway/appliance/engine"
	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// The kernel reports most changes of others at once (watchKernel and the watches of ruleset and queues). What it does
// not report is looked at here: sysctls other than those of routing.Sysctl.Notified, the MTU that a router advertised,
// and the peers of engines.

// settingsInterval is how often sysctls are compared. A look costs a read of each file.
const settingsInterval = 3 * time.Second

// minDriftPause leaves a round the time to remove a difference; maxDriftPause is how long one that no round removes
// waits for the next attempt, as whatever nobody reports.
const (
	minDriftPause = 2 * time.Second
	maxDriftPause = reconcileInterval
)

// drift paces the reconciliations for a difference that is found by looking: at once, but not again and again for one
// that stays. Only one goroutine uses it.
type drift struct {
	next  time.Time
	pause time.Duration
}

// due says whether the difference found now, if there is one, is to be reconciled.
func (d *drift) due(now time.Time, differs bool) bool {
	if !differs {
		d.pause = 0
		return false
	}
	if now.Before(d.next) {
		return false
	}
	d.pause = min(max(2*d.pause, minDriftPause), maxDriftPause)
	d.next = now.Add(d.pause)
	return true
}

// watchSettings asks for a reconciliation when a sysctl of ours was changed, or when a router advertised another MTU.
func (d *Daemon) watchSettings(context.Context) {
	d.mu.Lock()
	want, cfg, mtu := d.sysctls, d.cfg, d.wireMTU
	d.mu.Unlock()

	have, err := rtnl.Sysctls(want)
	if err != nil {
		return // the next round says so
	}
	changed := len(routing.Unmet(want, have)) > 0 || !maps.Equal(mtu, compare.WireMTU(compare.WANMTU(cfg)))
	if d.sysctlDrift.due(time.Now(), changed) {
		d.touch()
	}
}

// checkPeers asks for a reconciliation when somebody changed the peers of an engine, as with wg(8).
func (d *Daemon) checkPeers(c tunnel.Class, e *engine.Holder, st tunnel.DeviceStatus) {
	if d.peerDrift[c] == nil {
		d.peerDrift[c] = &drift{}
	}
	if d.peerDrift[c].due(time.Now(), e.Changed(st)) {
		d.touch()
	}
}
