package appliance

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ringway/appliance/compare"
	"ringway/appliance/config"
	"ringway/appliance/journal"
	"ringway/appliance/plan"
	"ringway/appliance/problem"
	"ringway/appliance/wanted"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

var errEnding = errors.New("the daemon is ending")

// reconcileLocked compares the machine with the config and applies the difference. It returns what it changed
// in words of nft, ip, tc and wg. Applied twice, the second changes nothing.
//
// The order is the safe one: first what drops, then what routes, so that at no moment a site's prefix has a
// way out in clear. A firewall that cannot be set ends it, as does a journal that cannot be written (which
// leaves the firewall set); everything else that fails is a problem of its own and does not stop the rest: a
// missing card is no reason to have no tunnels.
func (d *Daemon) reconcileLocked(ctx context.Context) (lines []string, err error) {
	if d.ending {
		return nil, errEnding
	}
	r := &round{d: d}
	defer func() { d.countRoundLocked(r, err) }()
	if err := d.ruleset.Use(wanted.DynamicSets(d.cfg)...); err != nil {
		return nil, err
	}

	r.Comparison = compare.Config(ctx, d.cfg, d.factsLocked(), d.journal, d.compareTunnels)
	d.facts.Refused, d.facts.Closed, d.mtus = r.Facts.Refused, r.Facts.Closed, r.Wanted.MTUs
	d.wireMTU = r.Facts.WireMTU
	d.sysctls = slices.DeleteFunc(slices.Clone(r.Wanted.Routing.Sysctls), routing.Sysctl.Notified)
	if err := r.applyFirewall(); err != nil {
		return r.changes, err
	}
	if err := r.note(); err != nil {
		return r.changes, err
	}
	r.applyNetwork()
	r.applyQueues()
	r.applyTunnels(ctx)
	r.applyToTunnels()
	r.endFlows()
	d.reportRound(r)
	d.logNews(d.own.mtu.Replace(fragmented(r.Cfg, r.Facts)))

	d.components.Follow(d.cfg)
	d.pathMTUs.Keep(d.cfg.TunnelSites())
	d.closed = r.Closed
	return r.changes, d.journal.Applied(r.Wanted.Routing, journal.NetworksOf(d.cfg), r.Closed)
}

func (d *Daemon) countRoundLocked(r *round, err error) {
	d.rounds.Runs++
	d.rounds.Changes += uint64(len(r.changes))
	d.rounds.Last = time.Now()
	if r.failed() || err != nil {
		d.rounds.Failed++
	}
}

// round is one reconciliation.
type round struct {
	compare.Comparison
	d        *Daemon
	changes  []string
	problems map[string][]problem.Problem // by component
}

// appliedParts are the components whose problems say that a part of the config could not be applied, each
// with what to do.
var appliedParts = map[string]string{
	"network": "it is tried again every minute; the error names the command that failed",
	"queues":  "it is tried again every minute",
	"tunnel":  "it is tried again every minute; the daemon's log has more",
}

// did notes the outcome of one step about a subject of a component.
func (r *round) did(component, subject string, changes []string, err error) {
	r.changes = append(r.changes, changes...)
	if err == nil {
		return
	}

	if r.problems == nil {
		r.problems = map[string][]problem.Problem{}
	}
	r.problems[component] = append(r.problems[component], problem.Problem{
		Subject: subject, Severity: problem.Critical, Text: err.Error(), Action: appliedParts[component],
	})
}

func (r *round) failed() bool { return len(r.problems) > 0 }

// reportRound makes the problems of a completed round the problems of its parts. What succeeded is resolved;
// a problem that lasts keeps its time.
func (d *Daemon) reportRound(r *round) {
	for part, owner := range d.own.applied {
		for _, p := range owner.Replace(r.problems[part]) {
			d.log.Error("cannot apply the config", "component", p.Component, "subject", p.Subject, "error", p.Text)
		}
	}
}

// applyFirewall comes first: without it a site's prefix could leave in clear. It is a table of Ringway's own,
// of which there is nothing to note.
func (r *round) applyFirewall() error {
	if r.Observed.Firewall.Err != nil {
		return r.Observed.Firewall.Err
	}
	r.changes = append(r.changes, plan.Words(r.Firewall)...)
	return r.d.ruleset.Apply(r.Firewall)
}

// note writes the journal of what is about to be touched for the first time.
func (r *round) note() error {
	if err := errors.Join(r.Observed.Routing.Err, r.Observed.Queues.Err); err != nil {
		return err
	}
	devices := make([]string, len(r.Wanted.Devices))
	for i, d := range r.Wanted.Devices {
		devices[i] = d.Settings.Interface
	}
	return r.d.journal.Note(r.Observed.Routing.State, r.Observed.Queues.State, devices)
}

// applyNetwork applies everything but what needs tunnel devices that are yet to be made.
func (r *round) applyNetwork() {
	now := slices.DeleteFunc(slices.Clone(r.Routing), r.needsMade)
	r.did("network", "", plan.Words(now), rtnl.Apply(now))
}

func (r *round) needsMade(c routing.Change) bool { return slices.Contains(r.Made, c.Device()) }

func (r *round) applyQueues() {
	err := tc.Apply(r.Queues)
	r.did("queues", "", plan.Words(r.Queues), errors.Join(err, plan.RefusedQueues(r.Cfg, r.Facts.Refused)))
}

func (r *round) applyTunnels(ctx context.Context) {
	for _, old := range r.d.swappedPorts(r.Wanted.Devices) {
		r.did("tunnel", string(old), nil, r.d.engines[old].Stop(ctx))
	}
	for _, dev := range r.Wanted.Devices {
		lines, err := r.d.engines[dev.Class].Configure(ctx, r.d.life, dev)
		r.did("tunnel", string(dev.Class), lines, err)
	}
}

// applyToTunnels applies what had to wait for tunnel devices. Then it compares once more and repairs what
// still differs. Only this second attempt counts.
func (r *round) applyToTunnels() {
	waiting := slices.DeleteFunc(slices.Clone(r.Routing), func(c routing.Change) bool { return !r.needsMade(c) })
	if len(waiting) > 0 {
		have, err := r.observeRouting()
		waiting = slices.DeleteFunc(waiting, func(c routing.Change) bool { return !hasLink(have, c.Device()) })
		r.did("network", "", plan.Words(waiting), errors.Join(err, rtnl.Apply(waiting)))
	}

	delete(r.problems, "network")
	have, err := r.observeRouting()
	if err != nil {
		r.did("network", "", nil, err)
		return
	}
	if rest := plan.Routing(r.Wanted, have, r.d.journal.Before(), nil); len(rest) > 0 {
		r.did("network", "", plan.Words(rest), rtnl.Apply(rest))
		if again, err := r.observeRouting(); err == nil {
			have = again
		}
	}
	r.reportInterfaces(have)
}

// endFlows ends what flows to and from networks that are gone or have become another's.
func (r *round) endFlows() {
	gone, n, err := r.d.journal.EndFlows(r.Cfg)
	r.did("network", "connections", nil, err)
	if len(gone) > 0 {
		r.d.log.Info("networks left the config", "networks", gone, "closed_for", journal.ClosedFor, "connections", n)
	}
}

func (r *round) observeRouting() (routing.State, error) {
	before := r.d.journal.Before()
	return rtnl.Observe(routing.Scope(r.Wanted.Routing, before.Last, before.Routing))
}

func hasLink(s routing.State, name string) bool {
	return slices.ContainsFunc(s.Links, func(l routing.Link) bool { return l.Name == name })
}

// reportInterfaces reports what the config needs and the machine does not have, or has in the way.
func (r *round) reportInterfaces(have routing.State) {
	var wrong error
	r.d.logNews(r.d.own.routes.Replace(intrusions(r.Wanted.Routing, have)))
	missing := append(routing.Missing(r.Wanted.Routing, have), routing.Conflicts(r.Wanted.Routing, have)...)
	if len(missing) > 0 {
		wrong = errors.New(strings.Join(missing, "; "))
	}
	report(r.d.own.interfaces, problem.Problem{
		Severity: problem.Critical,
		Action:   "attach or create what is missing, remove what is in the way; Ringway takes it up by itself",
	}, wrong)
}

// logNews logs problems that Replace returned.
func (d *Daemon) logNews(news []problem.Problem) {
	for _, p := range news {
		d.log.Warn("problem", "component", p.Component, "subject", p.Subject, "problem", p.Text, "action", p.Action)
	}
}

// intrusions reports routes and rules of others that take Ringway's packets.
func intrusions(want, have routing.State) (out []problem.Problem) {
	for _, i := range routing.Intrusions(want, have) {
		p := problem.Problem{Subject: i.Subject, Severity: problem.Warning, Text: i.Text, Action: i.Action}
		if i.Severe {
			p.Severity = problem.Critical
		}
		out = append(out, p)
	}
	return out
}

// fragmented reports the WANs that take shorter packets than tunnels do.
func fragmented(cfg *config.Config, f wanted.Facts) (out []problem.Problem) {
	for _, w := range wanted.Fragments(cfg, f) {
		out = append(out, problem.Problem{Subject: w.WAN, Severity: problem.Warning, Text: w.Text, Action: w.Action})
	}
	return out
}

// compareTunnels says what the engines would change for the devices.
func (d *Daemon) compareTunnels(ctx context.Context, devices []tunnel.Device) (out []plan.Tunnel) {
	stopped := d.swappedPorts(devices)
	for _, dev := range devices {
		s := d.engines[dev.Class]
		if slices.Contains(stopped, dev.Class) {
			out = append(out, plan.Tunnel{Lines: plan.Device(dev), Made: true})
			continue
		}
		out = append(out, s.Compare(ctx, dev))
	}
	return out
}

// swappedPorts lists the tunnels that hold a port which the config now gives to the other one: both have to
// release theirs before either can have it.
func (d *Daemon) swappedPorts(devices []tunnel.Device) (out []tunnel.Class) {
	for _, a := range devices {
		for _, b := range devices {
			held := d.engines[b.Class].Port()
			if a.Class != b.Class && held == a.Settings.ListenPort && held != b.Settings.ListenPort {
				out = append(out, b.Class)
			}
		}
	}
	return out
}
