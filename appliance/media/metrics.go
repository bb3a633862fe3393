package media

import (
	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/srtp/dtls"
	"ringway/srtp/plane"
)

var (
	families exposition.Families

	running = families.Gauge("ringway_srtp_running", "Whether the process that re-keys media runs: 0 or 1.")
	streams = families.Gauge("ringway_srtp_streams", "Streams of calls that are re-keyed. Two legs each.")
	legs    = families.Gauge("ringway_srtp_legs",
		"Legs of such streams, by how their keys were agreed: clear, sdes, dtls or channel.", "keying")
	packets = families.Counter("ringway_srtp_packets_total",
		"Packets of re-keyed media: received and authentic, or sent.", "direction")
	octets = families.Counter("ringway_srtp_bytes_total", "Their UDP payload in bytes.", "direction")
	drops  = families.Counter("ringway_srtp_dropped_packets_total",
		"Packets that were not sent on, by reason: forged and replayed ones are attacks, or a far end with wrong keys.",
		"reason")
	rotations = families.Counter("ringway_srtp_rotations_total",
		"Keys that this box sends with and that followed another.")
	recovered = families.Counter("ringway_srtp_rollover_recovered_total",
		"How often the roll-over counter of a source was found again after a gap.")
	moved = families.Counter("ringway_srtp_moved_total",
		"How often media of a leg came from another address and was followed.")
	handshakes = families.Counter("ringway_srtp_dtls_handshakes_total",
		"DTLS handshakes with phones, by result. Those under way are in started alone.", "result")
	datagrams = families.Counter("ringway_srtp_dtls_dropped_total",
		"Datagrams of DTLS that were dropped, by reason.", "reason")
	restarts = families.Counter("ringway_srtp_restarts_total", "Processes that replaced one that ended.")
	refused  = families.Counter("ringway_srtp_refused_total", "Streams that the process did not take.")
	lostKeys = families.Gauge("ringway_srtp_lost_streams",
		"Streams that are silent until their calls end: their keys are lost, or how far they were used.", "state")
	logLost = families.Counter("ringway_srtp_log_dropped_total", "Lines of the process's log that were too many.")
)

// Families are the metrics of re-keyed media.
func (m *Media) Families() exposition.Families { return families }

// Collect shows the section of the status about re-keyed media.
func (m *Media) Collect(st status.Status, to exposition.Sink) {
	s, ok := status.Section[Status](st, Name)
	if !ok || !s.Wanted {
		return
	}
	to.Put(running, map[bool]float64{true: 1}[s.Running])
	to.Put(streams, float64(s.Pairs))
	count := map[plane.Keying]int{plane.Clear: 0, plane.SDES: 0, plane.DTLS: 0, plane.Channel: 0}
	for i := range s.Legs {
		count[s.Legs[i].Keying]++
	}
	for keying, n := range count {
		to.Put(legs, float64(n), string(keying))
	}
	to.Put(packets, float64(s.Totals.ReceivedPackets), "received")
	to.Put(packets, float64(s.Totals.SentPackets), "sent")
	to.Put(octets, float64(s.Totals.ReceivedBytes), "received")
	to.Put(octets, float64(s.Totals.SentBytes), "sent")
	to.Put(rotations, float64(s.Totals.Rotations))
	to.Put(recovered, float64(s.Totals.Recovered))
	to.Put(moved, float64(s.Totals.Moved))
	for reason, n := range s.Drops {
		to.Put(drops, float64(n), reason)
	}
	collectDTLS(&s.DTLS, to)
	to.Put(restarts, float64(s.Restarts))
	to.Put(refused, float64(s.Refused))
	to.Put(lostKeys, float64(s.Alarm.Lost), "keys_lost")
	to.Put(lostKeys, float64(s.Alarm.Silent), "use_unknown")
	to.Put(logLost, float64(s.LogDropped))
}

func collectDTLS(c *dtls.Counters, to exposition.Sink) {
	for result, n := range map[string]uint64{
		"started": c.Started, "rejected": c.Rejected, "established": c.Established, "failed": c.Failed,
	} {
		to.Put(handshakes, float64(n), result)
	}
	for reason, n := range map[string]uint64{
		"overflow": c.Overflow, "unknown_leg": c.UnknownLeg, "unauthenticated": c.Unauthenticated,
		"unexpected": c.Unexpected, "wrong_cookie": c.WrongCookie, "leg_limited": c.LegLimited,
		"source_limited": c.SourceLimited, "rate_limited": c.RateLimited, "full": c.Full, "queue_full": c.QueueFull,
		"late": c.Late,
	} {
		to.Put(datagrams, float64(n), reason)
	}
}
