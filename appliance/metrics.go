package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ringway/firewall"
	"ringway/qos"
	"ringway/stamp"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// The numbers of the status for Prometheus. They come from Daemon.Status and nowhere else: what `ringway status` shows and what a
// graph shows is the same. docs/metrics.md has the table; a test holds it to what is here.
//
// What may become a label is what the config names (WANs, sites, tunnels), classes, and names from lists in this binary. A plane,
// which a stranger may have taken over, cannot add any.

// family is one metric with its labels.
type family struct {
	name   string
	kind   prometheus.ValueType
	labels []string
	desc   *prometheus.Desc
}

var metricFamilies []*family // all of them, in the order below

func newFamily(kind prometheus.ValueType, name, help string, labels ...string) *family {
	f := &family{name, kind, labels, prometheus.NewDesc(name, help, labels, nil)}
	metricFamilies = append(metricFamilies, f)
	return f
}

func counter(name, help string, labels ...string) *family {
	return newFamily(prometheus.CounterValue, name, help, labels...)
}

func gauge(name, help string, labels ...string) *family {
	return newFamily(prometheus.GaugeValue, name, help, labels...)
}

var (
	buildInfo      = gauge("ringway_build_info", "Always 1: the daemon's build.", "version", "goversion")
	scrapeSuccess  = gauge("ringway_scrape_success", "Whether the status could be read for this scrape. 0: nothing but this and the build is shown.")
	boxInfo        = gauge("ringway_box_info", "Always 1: this box's own name.", "box")
	readyNow       = gauge("ringway_ready", "Whether every task of the daemon is ready.")
	startTime      = gauge("ringway_start_time_seconds", "When the daemon started, Unix time.")
	problemCount   = gauge("ringway_problems", "Things that are wrong now; `ringway status` says which.")
	featureMissing = gauge("ringway_feature_missing", "Always 1: something that the kernel lacks or the machine denies.", "feature")

	reconcileRuns    = counter("ringway_reconcile_runs_total", "Comparisons of the kernel with the config.")
	reconcileFailed  = counter("ringway_reconcile_errors_total", "Comparisons after which something could not be set.")
	reconcileChanges = counter("ringway_reconcile_changes_total", "What had to be set in the kernel or an engine, in commands.")
	reconcileLast    = gauge("ringway_reconcile_last_timestamp_seconds", "When the latest comparison ended, Unix time.")

	tunnelInfo        = gauge("ringway_tunnel_info", "Always 1: what runs a tunnel. plane_build is empty in the kernel.", "tunnel", "interface", "engine", "plane_build")
	tunnelUp          = gauge("ringway_tunnel_up", "Whether the tunnel's engine answers.", "tunnel")
	tunnelStart       = gauge("ringway_tunnel_start_time_seconds", "When the tunnel's plane or device started, Unix time.", "tunnel")
	tunnelAdopted     = gauge("ringway_tunnel_adopted", "Whether this daemon took the tunnel over from an earlier one.", "tunnel")
	tunnelRestarts    = counter("ringway_tunnel_plane_restarts_total", "Starts of a plane in place of one that died or hung.", "tunnel")
	tunnelCollections = counter("ringway_tunnel_garbage_collections_total", "Garbage collections of the engine realtime; each may keep packets waiting for a moment.", "tunnel")
	tunnelDrops       = counter("ringway_tunnel_dropped_packets_total", "Packets that the tunnel's engine dropped, by reason.", "tunnel", "reason")
	threadRealtime    = gauge("ringway_tunnel_thread_realtime", "Whether all forwarding threads of a name run under SCHED_FIFO now.", "tunnel", "thread")
	flowPackets       = gauge("ringway_tunnel_flow_queue_packets", "Packets that wait in the engine's flow queues now. Only where it has them.", "tunnel")
	flowBytes         = gauge("ringway_tunnel_flow_queue_bytes", "What they come to.", "tunnel")
	flowFlows         = gauge("ringway_tunnel_flow_queue_flows", "Flows that send now.", "tunnel")
	flowMarks         = counter("ringway_tunnel_flow_queue_ecn_marked_packets_total", "Packets that the flow queues marked instead of dropping them.", "tunnel")
	flowSlow          = gauge("ringway_tunnel_flow_queue_slow_sites", "Sites whose own line holds back what goes to them, now; others do not wait for them.", "tunnel")
	flowLimit         = gauge("ringway_tunnel_flow_queue_limit_bytes", "Socket memory that may be under way behind the flow queues, as it is now.", "tunnel")

	peerHandshake = gauge("ringway_peer_last_handshake_timestamp_seconds", "Latest handshake with a site, Unix time; 0: never. Its age is time() less this.", "tunnel", "site")
	peerRxBytes   = counter("ringway_peer_receive_bytes_total", "Received from a site, as WireGuard counts.", "tunnel", "site")
	peerTxBytes   = counter("ringway_peer_transmit_bytes_total", "Sent to a site, as WireGuard counts.", "tunnel", "site")
	peerRxPackets = counter("ringway_peer_receive_packets_total", "Packets received from a site. Not with the engine kernel.", "tunnel", "site")
	peerTxPackets = counter("ringway_peer_transmit_packets_total", "Packets sent to a site. Not with the engine kernel.", "tunnel", "site")

	mediaBudget     = gauge("ringway_media_budget_bytes_per_second", "What calls with a site may take in this direction: its voice budget. Only where calls are admitted.", "tunnel", "site")
	mediaLineBudget = gauge("ringway_media_line_budget_bytes_per_second", "What calls with all sites together may take, where that is a bound of its own; else 0.", "tunnel", "site")
	mediaTaken      = gauge("ringway_media_taken_bytes_per_second", "What the admitted flows of media take of a site's voice budget.", "tunnel", "site")
	mediaFlows      = gauge("ringway_media_flows", "Flows of media that are admitted to a site, RTCP apart.", "tunnel", "site")
	mediaRefused    = counter("ringway_media_refused_packets_total", "Packets of media that were refused, since calls with the site took their budget already.", "tunnel", "site")
	mediaRefusing   = gauge("ringway_media_refusing", "Whether calls with a site were refused within the last seconds.", "tunnel", "site")
	mediaLineFull   = gauge("ringway_media_line_full", "Whether what was refused last found the budget of all sites together full.", "tunnel", "site")

	queueBytes          = counter("ringway_queue_transmit_bytes_total", "Sent by a class's queue, with Ethernet headers and without the config's overhead.", queueLabels...)
	queuePackets        = counter("ringway_queue_transmit_packets_total", "Packets sent by a class's queue.", queueLabels...)
	queueDrops          = counter("ringway_queue_dropped_packets_total", "Packets that found the queue full.", queueLabels...)
	queueMarks          = counter("ringway_queue_ecn_marked_packets_total", "Packets that the queue marked instead of dropping them. Only where it does.", queueLabels...)
	queueBorrowed       = counter("ringway_queue_borrowed_packets_total", "Packets sent beyond the class's guaranteed rate.", queueLabels...)
	queueOverlimits     = counter("ringway_queue_overlimits_total", "Times that the class had to wait for its ceiling.", queueLabels...)
	queueBacklog        = gauge("ringway_queue_backlog_bytes", "Waiting now.", queueLabels...)
	queueBacklogPackets = gauge("ringway_queue_backlog_packets", "Packets waiting now.", queueLabels...)
	queueLimit          = gauge("ringway_queue_limit_bytes", "Most that may wait. Not where the queue is bounded otherwise.", queueLabels...)
	queueRate           = gauge("ringway_queue_guaranteed_bytes_per_second", "The class's own rate.", queueLabels...)
	queueCeil           = gauge("ringway_queue_ceiling_bytes_per_second", "The class's highest rate.", queueLabels...)

	policyPackets = counter("ringway_policy_dropped_packets_total", "Packets that the firewall dropped, by reason.", "reason")
	policyBytes   = counter("ringway_policy_dropped_bytes_total", "Bytes that the firewall dropped, by reason.", "reason")
	classPackets  = counter("ringway_class_packets_total", "Packets that were put into a class.", "class")
	classBytes    = counter("ringway_class_bytes_total", "Bytes that were put into a class.", "class")

	reflectorInterfaces = gauge("ringway_reflector_interfaces", "Devices on which probes are answered.")
	reflectorSessions   = gauge("ringway_reflector_sessions", "Probe sessions within the last 30 s.")
	reflectorAnswers    = counter("ringway_reflector_answers_total", "Probes answered.")
	reflectorDrops      = counter("ringway_reflector_dropped_packets_total", "Probes not answered, by reason.", "reason")
)

var queueLabels = []string{"wan", "class", "site"} // site is local for what goes to no site; of class downlink wan is the LAN's card and site the WAN

// otherReason holds what a plane counts under a name that this build does not know.
const otherReason = "other"

// scrapesApart is the least time between two readings of the status: each makes garbage in the planes, and whoever reaches the port
// must not be able to keep calls waiting with it. Within that time the same numbers are given again.
const scrapesApart = time.Second

// collector turns the status into metrics.
type collector struct {
	build   string
	status  func(context.Context) (Status, error)
	reasons map[tunnel.EngineName][]string // Options.Reasons
	now     func() time.Time

	mu   sync.Mutex // held over a reading: who comes meanwhile takes its result
	at   time.Time
	last Status
	err  error
}

// Describe sends every metric that there is.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range metricFamilies {
		ch <- f.desc
	}
}

func (c *collector) read() (Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.at.IsZero() && c.now().Sub(c.at) < scrapesApart {
		return c.last, c.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c.last, c.err = safely(func() (Status, error) { return c.status(ctx) })
	c.at = c.now()
	return c.last, c.err
}

// safely makes a panic an error: a graph is no reason for the daemon to end.
func safely(read func() (Status, error)) (st Status, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read the status: %v", p)
		}
	}()
	return read()
}

// Collect reads the status and sends all of it.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch}
	st, err := c.read()
	s.put(buildInfo, 1, c.build, runtime.Version())
	s.put(scrapeSuccess, truth(err == nil))
	if err != nil {
		return
	}
	s.put(boxInfo, 1, st.Site)
	s.put(readyNow, truth(st.Ready))
	s.put(startTime, seconds(st.Since))
	s.put(problemCount, float64(len(st.Problems)))
	names := map[string]bool{}
	for _, f := range st.Features {
		names[f.Name] = true // once: two lists may name the same
	}
	for name := range names {
		s.put(featureMissing, 1, name)
	}
	s.put(reconcileRuns, float64(st.Reconcile.Runs))
	s.put(reconcileFailed, float64(st.Reconcile.Failed))
	s.put(reconcileChanges, float64(st.Reconcile.Changes))
	s.put(reconcileLast, seconds(st.Reconcile.Last))
	for _, t := range st.Tunnels {
		s.tunnel(t, c.reasonsOf(t.Engine))
	}
	for _, q := range st.Queues {
		s.queue(q)
	}
	s.policy(st)
	s.reflector(st.Reflector)
}

// reasonsOf are those for which an engine drops packets; of one that this build does not know, none.
func (c *collector) reasonsOf(e tunnel.EngineName) []string {
	if e == tunnel.EngineKernel {
		return kernel.Reasons()
	}
	return c.reasons[e]
}

// sink is where metrics go.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) put(f *family, v float64, labels ...string) {
	m, err := prometheus.NewConstMetric(f.desc, f.kind, v, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(f.desc, err) // the others are shown
	}
	s.ch <- m
}

func (s sink) tunnel(t tunnel.DeviceStatus, reasons []string) {
	name := string(t.Class)
	s.put(tunnelUp, truth(t.Error == ""), name)
	s.put(tunnelRestarts, float64(t.Restarts), name)
	realtime := map[string]bool{} // a direction may have a thread on each processor, all of one name
	for _, th := range t.Threads {
		all, known := realtime[th.Name]
		realtime[th.Name] = th.Realtime && (all || !known)
	}
	for thread, all := range realtime {
		s.put(threadRealtime, truth(all), name, thread)
	}
	if t.Error != "" { // the rest is not known, and zeros would be read as a restart
		return
	}
	s.put(tunnelInfo, 1, name, t.Interface, string(t.Engine), short(t.PlaneBuild))
	s.put(tunnelStart, seconds(t.Since), name)
	s.put(tunnelAdopted, truth(t.Adopted), name)
	if t.Engine == tunnel.EngineRealtime {
		s.put(tunnelCollections, float64(t.Collections), name)
	}
	if q := t.Queue; q != nil {
		s.put(flowPackets, float64(q.Packets), name)
		s.put(flowBytes, float64(q.Bytes), name)
		s.put(flowFlows, float64(q.Flows), name)
		s.put(flowMarks, float64(q.Marked), name)
		s.put(flowLimit, float64(q.Limit), name)
		s.put(flowSlow, float64(q.SlowSites), name)
	}
	other := uint64(0)
	for reason, n := range t.Drops {
		if !slices.Contains(reasons, reason) {
			other += n
		}
	}
	for _, reason := range reasons {
		s.put(tunnelDrops, float64(t.Drops[reason]), name, reason)
	}
	s.put(tunnelDrops, float64(other), name, otherReason)
	shown := map[string]bool{}
	for _, p := range t.Peers {
		if p.Site == "" || shown[p.Site] { // set by another than the daemon, which will take it away
			continue
		}
		shown[p.Site] = true
		s.put(peerHandshake, seconds(p.LastHandshake), name, p.Site)
		s.put(peerRxBytes, float64(p.RxBytes), name, p.Site)
		s.put(peerTxBytes, float64(p.TxBytes), name, p.Site)
		if t.Engine != tunnel.EngineKernel {
			s.put(peerRxPackets, float64(p.RxPackets), name, p.Site)
			s.put(peerTxPackets, float64(p.TxPackets), name, p.Site)
		}
		if m := p.Media; m != nil {
			s.put(mediaBudget, float64(m.Budget)/8, name, p.Site)
			s.put(mediaLineBudget, float64(m.LineBudget)/8, name, p.Site)
			s.put(mediaTaken, float64(m.Taken)/8, name, p.Site)
			s.put(mediaFlows, float64(m.Flows), name, p.Site)
			s.put(mediaRefused, float64(m.Refused), name, p.Site)
			s.put(mediaRefusing, truth(m.Refusing), name, p.Site)
			s.put(mediaLineFull, truth(m.LineFull), name, p.Site)
		}
	}
}

func (s sink) queue(q qos.QueueStats) {
	labels := []string{q.WAN, string(q.Class), q.Site}
	s.put(queueBytes, float64(q.Sent), labels...)
	s.put(queuePackets, float64(q.SentPackets), labels...)
	s.put(queueDrops, float64(q.Drops), labels...)
	if q.Marks != nil {
		s.put(queueMarks, float64(*q.Marks), labels...)
	}
	s.put(queueBorrowed, float64(q.Borrowed), labels...)
	s.put(queueOverlimits, float64(q.Overlimits), labels...)
	s.put(queueBacklog, float64(q.Backlog), labels...)
	s.put(queueBacklogPackets, float64(q.BacklogPackets), labels...)
	if q.Limit > 0 {
		s.put(queueLimit, float64(q.Limit), labels...)
	}
	s.put(queueRate, float64(q.Rate)/8, labels...)
	s.put(queueCeil, float64(q.Ceil)/8, labels...)
}

// policy shows what is counted in the ruleset. A counter that somebody else put there has no place.
func (s sink) policy(st Status) {
	for _, reason := range firewall.DropCounters() {
		if n, ok := st.Drops[reason]; ok { // without a ruleset nothing is counted
			s.put(policyPackets, float64(n.Packets), reason)
			s.put(policyBytes, float64(n.Bytes), reason)
		}
	}
	for _, class := range qos.ClassNames {
		if n, ok := st.Classes[string(class)]; ok {
			s.put(classPackets, float64(n.Packets), string(class))
			s.put(classBytes, float64(n.Bytes), string(class))
		}
	}
}

func (s sink) reflector(r ReflectorStatus) {
	s.put(reflectorInterfaces, float64(len(r.Devices)))
	s.put(reflectorSessions, float64(r.Sessions))
	s.put(reflectorAnswers, float64(r.Answered))
	for _, why := range stamp.Reasons {
		s.put(reflectorDrops, float64(r.Drops[why]), string(why))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is a time as Prometheus has it; 0 for none.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// short bounds what a plane says of itself.
func short(s string) string { return strings.ToValidUTF8(s[:min(len(s), 64)], "?") }

// metricsHandler answers GET with everything that c has. What goes wrong with one metric keeps no other from being shown.
func metricsHandler(log *slog.Logger, c *collector) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, ErrorLog: gatherLog{log}})
}

// gatherLog takes what promhttp cannot show. It is a mistake of ours, and would come again with each scrape: it is for who looks.
type gatherLog struct{ log *slog.Logger }

func (g gatherLog) Println(v ...any) { g.log.Debug("metrics", "error", fmt.Sprint(v...)) }
