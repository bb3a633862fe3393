package metrics

import (
	"ringway/appliance/exposition"
	"ringway/tunnel"
)

var peerLabels = []string{"tunnel", "site"}

var (
	peerFamilies exposition.Families

	peerHandshake = peerFamilies.Gauge("ringway_peer_last_handshake_timestamp_seconds",
		"Latest handshake with a site, Unix time; 0: never. Its age is time() minus this.", peerLabels...)
	peerRxBytes = peerFamilies.Counter("ringway_peer_receive_bytes_total",
		"Bytes received from a site, as WireGuard counts them.", peerLabels...)
	peerTxBytes = peerFamilies.Counter("ringway_peer_transmit_bytes_total",
		"Bytes sent to a site, as WireGuard counts them.", peerLabels...)
	peerRxPackets = peerFamilies.Counter("ringway_peer_receive_packets_total",
		"Packets received from a site. Not for the engine kernel.", peerLabels...)
	peerTxPackets = peerFamilies.Counter("ringway_peer_transmit_packets_total",
		"Packets sent to a site. Not for the engine kernel.", peerLabels...)
	peerRoundTrip = peerFamilies.Gauge("ringway_peer_round_trip_seconds",
		"Round trip to a site and back, as both boxes measure it during calls.", peerLabels...)
	peerMTU = peerFamilies.Gauge("ringway_peer_mtu_bytes",
		"Largest packet to a site inside the tunnel, IP header included.", peerLabels...)
	peerPathMTU = peerFamilies.Gauge("ringway_peer_path_mtu_bytes",
		"Largest packet to a site outside the tunnel that probing found to pass, IP header included.", peerLabels...)

	copiesSent = peerFamilies.Counter("ringway_copies_sent_total",
		"Copies of voice sent to a site (sites[].copies).", peerLabels...)
	copiesUnsent = peerFamilies.Counter("ringway_copies_unsent_total",
		"Copies of voice to a site that could not be sent.", peerLabels...)
	copiesRemoved = peerFamilies.Counter("ringway_copies_removed_total",
		"Messages of a site that had arrived already, because it sends copies of voice.", peerLabels...)
	copiesActive = peerFamilies.Gauge("ringway_copies_active",
		"Whether voice to a site is sent twice now.", peerLabels...)

	mediaBudget = peerFamilies.Gauge("ringway_media_budget_bytes_per_second",
		"Voice budget of a site: maximum rate of calls in this direction. Only where calls are admitted.",
		peerLabels...)
	mediaLineBudget = peerFamilies.Gauge("ringway_media_line_budget_bytes_per_second",
		"Voice budget of all sites together, where it is limited separately; otherwise 0.", peerLabels...)
	mediaTaken = peerFamilies.Gauge("ringway_media_taken_bytes_per_second",
		"Part of a site's voice budget that admitted media flows use.", peerLabels...)
	mediaFlows = peerFamilies.Gauge("ringway_media_flows",
		"Media flows admitted to a site, RTCP not counted.", peerLabels...)
	mediaReserved = peerFamilies.Gauge("ringway_media_reserved_flows",
		"Admitted media flows to a site whose place is reserved.", peerLabels...)
	mediaRefused = peerFamilies.Counter("ringway_media_refused_packets_total",
		"Media packets refused because the site's voice budget was used up.", peerLabels...)
	mediaRefusing = peerFamilies.Gauge("ringway_media_refusing",
		"Whether calls to a site were refused in the last seconds.", peerLabels...)
	mediaLineFull = peerFamilies.Gauge("ringway_media_line_full",
		"Whether the latest refusal was due to the budget of all sites together.", peerLabels...)
)

// collectPeers leaves out peers without a site: another program added them, and the daemon will remove them.
func collectPeers(d tunnel.DeviceStatus, to exposition.Sink) {
	shown := map[string]bool{}
	for _, p := range d.Peers {
		if p.Site == "" || shown[p.Site] {
			continue
		}
		shown[p.Site] = true

		labels := []string{string(d.Class), p.Site}
		to.Put(peerHandshake, exposition.Time(p.LastHandshake), labels...)
		to.Put(peerRxBytes, float64(p.RxBytes), labels...)
		to.Put(peerTxBytes, float64(p.TxBytes), labels...)
		if d.Engine != tunnel.EngineKernel {
			to.Put(peerRxPackets, float64(p.RxPackets), labels...)
			to.Put(peerTxPackets, float64(p.TxPackets), labels...)
		}
		if p.MTU > 0 {
			to.Put(peerMTU, float64(p.MTU), labels...)
		}
		if p.PathMTU > 0 {
			to.Put(peerPathMTU, float64(p.PathMTU), labels...)
		}
		if p.RoundTrip > 0 {
			to.Put(peerRoundTrip, p.RoundTrip.Seconds(), labels...)
		}
		if c := p.Copies; c != nil {
			to.Put(copiesSent, float64(c.Sent), labels...)
			to.Put(copiesUnsent, float64(c.Unsent), labels...)
			to.Put(copiesRemoved, float64(c.Removed), labels...)
			to.Put(copiesActive, exposition.Bool(c.Active()), labels...)
		}
		if p.Media != nil {
			collectMedia(*p.Media, to, labels)
		}
	}
}

func collectMedia(m tunnel.MediaStatus, to exposition.Sink, labels []string) {
	to.Put(mediaBudget, float64(m.Budget)/8, labels...)
	to.Put(mediaLineBudget, float64(m.LineBudget)/8, labels...)
	to.Put(mediaTaken, float64(m.Taken)/8, labels...)
	to.Put(mediaFlows, float64(m.Flows), labels...)
	to.Put(mediaReserved, float64(m.Reserved), labels...)
	to.Put(mediaRefused, float64(m.Refused), labels...)
	to.Put(mediaRefusing, exposition.Bool(m.Refusing), labels...)
	to.Put(mediaLineFull, exposition.Bool(m.LineFull), labels...)
}
