package metrics

import (
	"slices"
	"strings"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/tunnel"
)

// Tunnels has the metrics of tunnels, their peers and the calls in them. A plane, which a stranger may have taken over,
// cannot add a series: labels are what the config names and names from lists in this program.
type Tunnels struct {
	// Reasons are those for which each engine drops packets: their counters exist before the first drop. What a plane
	// counts under another name is counted as OtherReason.
	Reasons map[tunnel.EngineName][]string
}

// OtherReason is the label of drops that a plane counts under a name this build does not know.
const OtherReason = "other"

// maxBuildLength bounds what a plane says about itself.
const maxBuildLength = 64

var (
	tunnelFamilies exposition.Families

	tunnelInfo = tunnelFamilies.Gauge("ringway_tunnel_info",
		"Always 1; what runs the tunnel is in the labels. plane_build is empty for the kernel.",
		"tunnel", "interface", "engine", "plane_build")
	tunnelUp    = tunnelFamilies.Gauge("ringway_tunnel_up", "Whether the tunnel's engine answers.", "tunnel")
	tunnelStart = tunnelFamilies.Gauge("ringway_tunnel_start_time_seconds",
		"When the tunnel's plane or device started, Unix time.", "tunnel")
	tunnelAdopted = tunnelFamilies.Gauge("ringway_tunnel_adopted",
		"Whether this daemon adopted the tunnel's plane from an earlier one.", "tunnel")
	tunnelRestarts = tunnelFamilies.Counter("ringway_tunnel_plane_restarts_total",
		"Planes started to replace one that died or hung.", "tunnel")
	tunnelLogDropped = tunnelFamilies.Counter("ringway_tunnel_plane_log_lines_dropped_total",
		"Log lines of the plane that were not logged, because they were too many.", "tunnel")
	tunnelCollections = tunnelFamilies.Counter("ringway_tunnel_garbage_collections_total",
		"Garbage collections of the engine realtime; each may delay packets briefly.", "tunnel")
	tunnelDrops = tunnelFamilies.Counter("ringway_tunnel_dropped_packets_total",
		"Packets dropped by the tunnel's engine, by reason.", "tunnel", "reason")
	threadRealtime = tunnelFamilies.Gauge("ringway_tunnel_thread_realtime",
		"Whether all forwarding threads of that name run under SCHED_FIFO now.", "tunnel", "thread")

	flowPackets = tunnelFamilies.Gauge("ringway_tunnel_flow_queue_packets",
		"Packets queued in the engine's flow queues. Only for engines that have them.", "tunnel")
	flowBytes = tunnelFamilies.Gauge("ringway_tunnel_flow_queue_bytes",
		"Bytes queued in the engine's flow queues.", "tunnel")
	flowFlows = tunnelFamilies.Gauge("ringway_tunnel_flow_queue_flows",
		"Active flows in the engine's flow queues.", "tunnel")
	flowMarks = tunnelFamilies.Counter("ringway_tunnel_flow_queue_ecn_marked_packets_total",
		"Packets ECN-marked by the flow queues instead of dropped.", "tunnel")
	flowSlow = tunnelFamilies.Gauge("ringway_tunnel_flow_queue_slow_sites",
		"Sites whose own downlink limits them now; traffic to other sites is not delayed.", "tunnel")
	flowLimit = tunnelFamilies.Gauge("ringway_tunnel_flow_queue_limit_bytes",
		"Current limit of socket memory in flight behind the flow queues.", "tunnel")
)

// Families are the metrics of tunnels, peers and calls.
func (Tunnels) Families() exposition.Families {
	return slices.Concat(tunnelFamilies, peerFamilies)
}

// Collect shows the tunnels in the status.
func (t Tunnels) Collect(st status.Status, to exposition.Sink) {
	for _, d := range st.Tunnels {
		name := string(d.Class)
		to.Put(tunnelUp, exposition.Bool(d.Error == ""), name)
		to.Put(tunnelRestarts, float64(d.Restarts), name)
		to.Put(tunnelLogDropped, float64(d.PlaneLogDropped), name)
		collectThreads(d, to)
		if d.Error != "" { // the rest is unknown, and zeros would look like a restart
			continue
		}

		to.Put(tunnelInfo, 1, name, d.Interface, string(d.Engine), short(d.PlaneBuild))
		to.Put(tunnelStart, exposition.Time(d.Since), name)
		to.Put(tunnelAdopted, exposition.Bool(d.Adopted), name)
		if d.Engine == tunnel.EngineRealtime {
			to.Put(tunnelCollections, float64(d.Collections), name)
		}
		collectDrops(d, t.Reasons[d.Engine], to)
		if d.Queue != nil {
			collectFlows(name, *d.Queue, to)
		}
		collectPeers(d, to)
	}
}

// collectThreads: a direction may have a thread on each processor, all with the same name.
func collectThreads(d tunnel.DeviceStatus, to exposition.Sink) {
	realtime := map[string]bool{}
	for _, th := range d.Threads {
		others, known := realtime[th.Name]
		realtime[th.Name] = th.Realtime && (others || !known)
	}
	for name, all := range realtime {
		to.Put(threadRealtime, exposition.Bool(all), string(d.Class), name)
	}
}

func collectDrops(d tunnel.DeviceStatus, reasons []string, to exposition.Sink) {
	name := string(d.Class)
	for _, reason := range reasons {
		to.Put(tunnelDrops, float64(d.Drops[reason]), name, reason)
	}

	other := uint64(0)
	for reason, n := range d.Drops {
		if !slices.Contains(reasons, reason) {
			other += n
		}
	}
	to.Put(tunnelDrops, float64(other), name, OtherReason)
}

func collectFlows(name string, q tunnel.FlowStatus, to exposition.Sink) {
	to.Put(flowPackets, float64(q.Packets), name)
	to.Put(flowBytes, float64(q.Bytes), name)
	to.Put(flowFlows, float64(q.Flows), name)
	to.Put(flowMarks, float64(q.Marked), name)
	to.Put(flowSlow, float64(q.SlowSites), name)
	to.Put(flowLimit, float64(q.Limit), name)
}

func short(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxBuildLength)], "?") }
