package metrics

import (
	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/firewall"
	"ringway/qos"
)

// Box has the metrics of the box as a whole: the daemon, reconciliation, policy and classes.
type Box struct{}

var (
	boxFamilies exposition.Families

	boxInfo   = boxFamilies.Gauge("ringway_box_info", "Always 1; the name of this site is in the label.", "box")
	boxReady  = boxFamilies.Gauge("ringway_ready", "Whether every task of the daemon is ready.")
	boxStart  = boxFamilies.Gauge("ringway_start_time_seconds", "When the daemon started, Unix time.")
	boxFaults = boxFamilies.Gauge("ringway_problems",
		"Number of problems now; `ringway status` lists them.")
	boxMissing = boxFamilies.Gauge("ringway_feature_missing",
		"Always 1; a feature that the kernel lacks or the machine denies is in the label.", "feature")

	reconcileRuns = boxFamilies.Counter("ringway_reconcile_runs_total",
		"Rounds in which the kernel was compared with the config.")
	reconcileFailed = boxFamilies.Counter("ringway_reconcile_errors_total",
		"Rounds in which something could not be set.")
	reconcileChanges = boxFamilies.Counter("ringway_reconcile_changes_total",
		"Changes made to the kernel or an engine, counted in commands.")
	reconcileLast = boxFamilies.Gauge("ringway_reconcile_last_timestamp_seconds",
		"When the latest round ended, Unix time.")

	policyPackets = boxFamilies.Counter("ringway_policy_dropped_packets_total",
		"Packets dropped by the firewall, by reason.", "reason")
	policyBytes = boxFamilies.Counter("ringway_policy_dropped_bytes_total",
		"Bytes dropped by the firewall, by reason.", "reason")
	classPackets = boxFamilies.Counter("ringway_class_packets_total", "Packets put into a class.", "class")
	classBytes   = boxFamilies.Counter("ringway_class_bytes_total", "Bytes put into a class.", "class")

	unreadPackets = boxFamilies.Counter("ringway_signalling_unread_connections_total",
		"New connections of phones in signalling that is not read, by protocol.", "protocol")
)

// Families are the metrics of the box.
func (Box) Families() exposition.Families { return boxFamilies }

// Collect shows the box's part of the status.
func (Box) Collect(st status.Status, to exposition.Sink) {
	to.Put(boxInfo, 1, st.Site)
	to.Put(boxReady, exposition.Bool(st.Ready))
	to.Put(boxStart, exposition.Time(st.Since))
	to.Put(boxFaults, float64(len(st.Problems)))

	shown := map[string]bool{}
	for _, m := range st.Missing {
		if !shown[m.Name] { // both planes may lack the same
			to.Put(boxMissing, 1, m.Name)
			shown[m.Name] = true
		}
	}

	to.Put(reconcileRuns, float64(st.Reconcile.Runs))
	to.Put(reconcileFailed, float64(st.Reconcile.Failed))
	to.Put(reconcileChanges, float64(st.Reconcile.Changes))
	to.Put(reconcileLast, exposition.Time(st.Reconcile.Last))
	collectPolicy(st, to)
}

// collectPolicy shows the ruleset's own counters only: labels are names from lists in this program. Without a ruleset
// there are none.
func collectPolicy(st status.Status, to exposition.Sink) {
	for _, reason := range firewall.DropCounters() {
		if n, ok := st.Drops[reason]; ok {
			to.Put(policyPackets, float64(n.Packets), reason)
			to.Put(policyBytes, float64(n.Bytes), reason)
		}
	}
	for _, protocol := range firewall.UnreadSignalling() {
		if n, ok := st.Unread[protocol]; ok {
			to.Put(unreadPackets, float64(n), protocol)
		}
	}
	for _, class := range qos.ClassNames {
		if n, ok := st.Classes[string(class)]; ok {
			to.Put(classPackets, float64(n.Packets), string(class))
			to.Put(classBytes, float64(n.Bytes), string(class))
		}
	}
}
