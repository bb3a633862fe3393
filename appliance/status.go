package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/tunnel"
)

// Status reports what the daemon does. A part that cannot be read is a problem in it, not an error.
func (d *Daemon) Status(ctx context.Context) (status.Status, error) {
	st, cfg, f, mtus := d.ownStatus()
	select {
	case <-d.ready:
		st.Ready = true
	default:
	}

	d.addTunnels(ctx, &st, mtus)
	st.Missing = append(st.Missing, machineLacks()...)
	d.addKernel(&st, cfg, f)
	d.components.AddTo(&st)
	d.reports.Update()
	st.Problems = d.problems.List()
	return st, nil
}

// ownStatus is the part that d.mu guards. The lock is released by defer: a panic here is recovered while metrics are
// collected, and must not leave the daemon locked.
func (d *Daemon) ownStatus() (status.Status, *config.Config, wanted.Facts, []wanted.SiteMTU) {
	d.mu.Lock()
	defer d.mu.Unlock()

	st := status.Status{
		Site:         d.cfg.Site,
		Build:        d.opts.Build,
		Config:       d.opts.ConfigPath,
		PID:          os.Getpid(),
		Since:        d.since,
		Confirmation: d.commit.Status(),
		Reconcile:    d.rounds,
	}
	for _, c := range d.closed {
		until := time.Now().Add(c.Left()).Round(time.Second)
		st.Closed = append(st.Closed, status.ClosedNetwork{Network: c.Network, Until: until})
	}
	d.reportRollback(st.Confirmation)
	return st, d.cfg, d.facts, d.mtus
}

// reportRollback makes a rollback that fails a problem.
func (d *Daemon) reportRollback(c *status.Confirmation) {
	var failed error
	if c != nil && c.State == status.Undoing {
		failed = errors.New("rollback to the previous config failed: " + c.Reason)
	}
	report(d.own.commit, problem.Problem{
		Severity: problem.Critical,
		Action:   "fix what the reason says; it is tried again every 30 s",
	}, failed)
}

// askTunnels asks each tunnel's engine. One that does not answer is a problem, and has only Class and Error set.
func (d *Daemon) askTunnels(ctx context.Context) (tunnels []tunnel.DeviceStatus) {
	var down, refused []problem.Problem
	for _, c := range tunnel.Classes {
		t, err := d.engines[c].Status(ctx)
		t.Error = ""
		if err != nil {
			t.Error = err.Error()
			down = append(down, problem.Problem{
				Subject: string(c), Severity: problem.Critical, Text: err.Error(),
				Action: "a plane that died is restarted by itself; if this lasts, read the daemon's log",
			})
		}
		tunnels = append(tunnels, t)
		refused = append(refused, refusedCalls(t)...)
	}

	if ctx.Err() == nil { // a caller that disconnected is no fault of the engine's
		d.own.engine.Replace(down)
		d.own.admission.Replace(refused)
	}
	return tunnels
}

// addTunnels adds the tunnels, their threads, how long packets in them may be, and what the machine denies the planes.
func (d *Daemon) addTunnels(ctx context.Context, st *status.Status, mtus []wanted.SiteMTU) {
	st.Tunnels = d.askTunnels(ctx)
	addMTUs(st.Tunnels, mtus)
	d.addPaths(st.Tunnels)
	for i, c := range tunnel.Classes {
		st.Tunnels[i].Threads = d.engines[c].Threads()
		for _, m := range d.engines[c].Missing() {
			name, cost, _ := strings.Cut(m, ": ")
			st.Missing = append(st.Missing, status.Missing{Name: fmt.Sprintf("%s for the %s plane", name, c), Cost: cost})
		}
	}
}

// addPaths adds the addresses of sites among which not the engine chooses, but the daemon.
func (d *Daemon) addPaths(tunnels []tunnel.DeviceStatus) {
	sites := map[tunnel.PublicKey]tunnel.Site{}
	for _, s := range d.config().TunnelSites() {
		sites[s.PublicKey] = s
	}
	for _, t := range tunnels {
		for i := range t.Peers {
			p := &t.Peers[i]
			if s, ok := sites[p.PublicKey]; ok && len(p.Paths) == 0 {
				p.Paths, p.Moves = d.endpoints.Paths(t.Class, s, p.Endpoint)
			}
		}
	}
}

// addMTUs adds how long packets to each site may be, and what decides that.
func addMTUs(tunnels []tunnel.DeviceStatus, mtus []wanted.SiteMTU) {
	bySite := map[string]wanted.SiteMTU{}
	for _, m := range mtus {
		bySite[m.Site] = m
	}
	for _, t := range tunnels {
		for i := range t.Peers {
			p := &t.Peers[i]
			m, known := bySite[p.Site]
			if !known {
				continue
			}
			of := m.Data
			if t.Class == tunnel.Voice {
				of = m.Voice
			}
			p.MTU, p.MTUSource = int(of.MTU), of.Why
		}
	}
}

// refusedCalls lists the sites whose voice budget has no room for another call.
func refusedCalls(t tunnel.DeviceStatus) (out []problem.Problem) {
	for _, p := range t.Peers {
		m := p.Media
		if m == nil || !m.Refusing {
			continue
		}
		what, rate := "the voice budget", m.Budget
		if m.LineFull {
			what, rate = "the voice budget of all sites together", m.LineBudget
		}
		out = append(out, problem.Problem{
			Subject: cmp.Or(p.Site, p.PublicKey.String()), Severity: problem.Warning,
			Text: fmt.Sprintf("new calls are refused: %s, %d kbit/s, is used up (%d media flows are admitted and stay)",
				what, rate/1000, m.Flows),
			Action: "raise classes[media].share, or use a codec that needs less",
		})
	}
	return out
}

// addKernel reads the kernel's counters and lists what it lacks.
func (d *Daemon) addKernel(st *status.Status, cfg *config.Config, f wanted.Facts) {
	var unreadable []problem.Problem
	failed := func(subject string, err error) {
		if err != nil {
			unreadable = append(unreadable, problem.Problem{
				Subject: subject, Severity: problem.Warning, Text: err.Error(),
				Action: "it is read again with the next status; if this lasts, restart the daemon",
			})
		}
	}

	queues, err := wanQueues(cfg)
	failed("queues", err)
	var wans []string
	for _, w := range cfg.WANs {
		wans = append(wans, w.Interface)
	}
	downlink, err := tc.DownlinkStats(cfg.Cards(), wans)
	failed("queues", err)
	st.Queues = append(queues, downlink...)

	counters, err := nft.Counters()
	failed("firewall", err)
	sortCounters(st, counters)
	if err == nil {
		d.own.clear.Replace(d.leaks.look(counters, time.Now()))
	}

	st.QueueFeatures = f.Queues
	st.Missing = append(st.Missing, kernelLacks(cfg, f)...)
	d.own.counters.Replace(unreadable)
}

// sortCounters shows the ruleset's counters where they belong.
func sortCounters(st *status.Status, counters map[string]nft.Counter) {
	st.Drops, st.Classes, st.Unread = map[string]status.Count{}, map[string]status.Count{}, nil
	classes, seen := map[string]string{}, map[string]string{}
	for _, c := range qos.ClassNames {
		classes[firewall.ClassCounter(c)] = string(c)
	}
	for _, protocol := range firewall.UnreadSignalling() {
		seen[firewall.SeenCounter(protocol)] = protocol
	}
	for name, c := range counters {
		switch count := (status.Count{Packets: c.Packets, Bytes: c.Bytes}); {
		case classes[name] != "":
			st.Classes[classes[name]] = count
		case seen[name] != "":
			if st.Unread == nil {
				st.Unread = map[string]uint64{}
			}
			st.Unread[seen[name]] = c.Packets
		default:
			st.Drops[name] = count
		}
	}
}

// kernelLacks lists features that the config could use and this kernel does not have.
func kernelLacks(cfg *config.Config, f wanted.Facts) (out []status.Missing) {
	for _, w := range cfg.WANs {
		if w.Uplink == 0 {
			out = append(out, status.Missing{Name: "uplink rate of " + w.Interface,
				Cost: "not configured, so nothing is shaped: voice waits behind data in the provider's queue"})
		}
	}
	for _, m := range f.Queues.Missing() {
		name, cost, _ := strings.Cut(strings.TrimPrefix(m, "the kernel has no "), ": ")
		out = append(out, status.Missing{Name: name, Cost: cost})
	}
	for _, m := range f.FirewallMissing {
		out = append(out, status.Missing{Name: "nftables " + string(m), Cost: m.Cost()})
	}
	if cost := unguarded(cfg); cost != "" {
		out = append(out, status.Missing{Name: "admission of calls", Cost: cost})
	}
	if !f.KernelWireGuard {
		out = append(out, status.Missing{Name: "WireGuard in the kernel",
			Cost: "wireguard-go encrypts the data tunnel: more CPU time for each packet"})
	}
	return out
}

// unguarded says why calls are not admitted by flow although the config wants it; empty where they are.
func unguarded(cfg *config.Config) string {
	e := cfg.Tunnels[tunnel.Voice].Engine
	if e == tunnel.EngineAuto || e == "" {
		e = tunnel.Auto(tunnel.Voice, false)
	}
	shaped := slices.ContainsFunc(cfg.WANs, func(w config.WAN) bool { return w.Uplink > 0 })
	if e.PerPacket() || !shaped || !cfg.Class(qos.Media).Admission {
		return ""
	}
	return fmt.Sprintf("the voice tunnel's engine %s does not see single packets: over budget, every call loses packets "+
		"(set tunnels[voice].engine: realtime)", e)
}

// Queues reads the kernel's counters of the WANs' queues, and asks the data plane for its flow queues.
func (d *Daemon) Queues(ctx context.Context) (q status.Queues, err error) {
	if q.Queues, err = wanQueues(d.config()); err != nil {
		return q, err
	}
	data, err := d.engines[tunnel.Data].Status(ctx)
	if err == nil {
		q.Flows, q.FlowDrops = data.Queue, data.Drops["queue_delay"]+data.Drops["queue_full"]
	}
	return q, err
}

// config is the config that runs.
func (d *Daemon) config() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.cfg
}

// wanQueues reads the kernel's counters of the queues on all WANs that are shaped.
func wanQueues(cfg *config.Config) ([]qos.QueueStats, error) {
	var shaped, sites []string
	for _, w := range cfg.WANs {
		if w.Uplink > 0 {
			shaped = append(shaped, w.Interface)
		}
	}
	for _, site := range cfg.Sites {
		sites = append(sites, site.Name)
	}
	return tc.Stats(shaped, sites)
}
