package metrics

import (
	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/qos"
)

// Queues has the metrics of the kernel's queues.
type Queues struct{}

// queueLabels: site is "local" for traffic to no site. Of class downlink, wan is the LAN's interface and site the WAN.
var queueLabels = []string{"wan", "class", "site"}

var (
	queueFamilies exposition.Families

	queueBytes = queueFamilies.Counter("ringway_queue_transmit_bytes_total",
		"Bytes sent by a class's queue, with Ethernet headers and without the config's overhead.", queueLabels...)
	queuePackets = queueFamilies.Counter("ringway_queue_transmit_packets_total",
		"Packets sent by a class's queue.", queueLabels...)
	queueDrops = queueFamilies.Counter("ringway_queue_dropped_packets_total",
		"Packets dropped by a class's queue: it was full, or CoDel dropped them.", queueLabels...)
	queueMarks = queueFamilies.Counter("ringway_queue_ecn_marked_packets_total",
		"Packets ECN-marked instead of dropped. Only where the queue marks.", queueLabels...)
	queueBorrowed = queueFamilies.Counter("ringway_queue_borrowed_packets_total",
		"Packets sent above the class's guaranteed rate.", queueLabels...)
	queueOverlimits = queueFamilies.Counter("ringway_queue_overlimits_total",
		"Times that the class was delayed by its ceiling.", queueLabels...)
	queueBacklog = queueFamilies.Gauge("ringway_queue_backlog_bytes",
		"Bytes queued now.", queueLabels...)
	queueBacklogPackets = queueFamilies.Gauge("ringway_queue_backlog_packets",
		"Packets queued now.", queueLabels...)
	queueLimit = queueFamilies.Gauge("ringway_queue_limit_bytes",
		"Maximum length of the queue. Only where it is limited in bytes.", queueLabels...)
	queueRate = queueFamilies.Gauge("ringway_queue_guaranteed_bytes_per_second",
		"Guaranteed rate of the class.", queueLabels...)
	queueCeil = queueFamilies.Gauge("ringway_queue_ceiling_bytes_per_second",
		"Maximum rate of the class.", queueLabels...)
)

// Families are the metrics of queues.
func (Queues) Families() exposition.Families { return queueFamilies }

// Collect shows the queues in the status.
func (Queues) Collect(st status.Status, to exposition.Sink) {
	for _, q := range st.Queues {
		collectQueue(q, to)
	}
}

func collectQueue(q qos.QueueStats, to exposition.Sink) {
	labels := []string{q.WAN, string(q.Class), q.Site}
	to.Put(queueBytes, float64(q.Sent), labels...)
	to.Put(queuePackets, float64(q.SentPackets), labels...)
	to.Put(queueDrops, float64(q.Drops), labels...)
	if q.Marks != nil {
		to.Put(queueMarks, float64(*q.Marks), labels...)
	}
	to.Put(queueBorrowed, float64(q.Borrowed), labels...)
	to.Put(queueOverlimits, float64(q.Overlimits), labels...)

	to.Put(queueBacklog, float64(q.Backlog), labels...)
	to.Put(queueBacklogPackets, float64(q.BacklogPackets), labels...)
	if q.Limit > 0 {
		to.Put(queueLimit, float64(q.Limit), labels...)
	}
	to.Put(queueRate, float64(q.Rate)/8, labels...)
	to.Put(queueCeil, float64(q.Ceil)/8, labels...)
}
