package calls

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/sip/admission"
	"ringway/sip/relay"
)

// Status is the section of the status about calls. Fields are added, never renamed.
type Status struct {
	Mode     string            `json:"mode"`    // off, observe or enforce
	Reading  bool              `json:"reading"` // signalling is read now
	PID      int               `json:"pid"`     // of the process that reads it
	Restarts int               `json:"restarts"`
	Flows    int               `json:"flows"`      // that calls need
	Holes    int               `json:"holes"`      // elements of sets of the firewall
	NotOpen  map[string]uint64 `json:"not_opened"` // flows without a hole, by reason
	Places   int               `json:"places"`     // in voice budgets, that calls have
	Abuse    map[string]uint64 `json:"abuse"`      // seen, by kind
	NoPlace  map[string]uint64 `json:"no_place"`   // places that the engine refused, by reason
	Media    MediaStatus       `json:"media"`      // what it went through

	// KeyChannels are the far boxes with which calls that begin now have keys agreed.
	KeyChannels int `json:"key_channels"`

	Certificates map[string]time.Time `json:"certificates"` // when those that phones are shown expire, by server

	relay.Stats
}

// String is one line of the status.
func (s Status) String() string {
	switch {
	case s.Mode == string(config.SIPOff):
		return "Signalling: not read (sip.mode: off)"
	case !s.Reading:
		return fmt.Sprintf("Signalling: NOT READ (sip.mode: %s)", s.Mode)
	}
	line := fmt.Sprintf("Signalling: read (sip.mode: %s); %d calls, %d holes; not read %s; refused %s%s",
		s.Mode, s.Calls, s.Holes, words(s.Unread), words(s.Refused), s.tls())
	if !s.Media.Measured && s.Media.Why != "" {
		line += "; quality of calls not measured: " + s.Media.Why
	}
	return line
}

// tls is what the line says of SIP over TLS, where any is read.
func (s Status) tls() string {
	if len(s.TLS) == 0 {
		return ""
	}
	unread := map[string]uint64{}
	for name, n := range s.Transport {
		if why, is := strings.CutPrefix(name, unreadTLS); is {
			unread[why] = n
		}
	}
	return fmt.Sprintf("; TLS of %d connections read, not read %s", s.Encrypted, words(unread))
}

// unreadTLS begins the names of events of connections whose TLS passed unread.
const unreadTLS = "tls_unread_"

// words are the counters that are not zero, by name.
func words(counts map[string]uint64) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[name]; n > 0 {
			out = append(out, fmt.Sprintf("%s %d", name, n))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "0")
}

// statusPatience is how long the status waits for the process.
const statusPatience = 500 * time.Millisecond

// Status says whether signalling is read, and what came of it.
func (c *Calls) Status() fmt.Stringer {
	c.mu.Lock()
	s := Status{Mode: string(c.cfg.Mode), Stats: c.stats}
	s.Abuse = maps.Clone(c.reported)
	s.Reading = c.cfg.Mode != config.SIPOff && !c.silent && c.applied
	if c.applied {
		s.KeyChannels = keyChannels(c.settings.Media)
	}
	c.mu.Unlock()
	s.Flows, s.Holes, s.NotOpen = c.holes.state()
	s.Places, s.NoPlace = c.places.state()
	s.Media = c.meter.status()
	s.Certificates = c.certificates.expiries()
	s.Restarts, s.PID = c.relay.Restarts(), c.relay.PID()
	if !s.Reading {
		return s
	}

	ctx, cancel := context.WithTimeout(context.Background(), statusPatience)
	defer cancel()
	if stats, err := c.relay.Stats(ctx); err == nil {
		s.Stats = stats
		c.mu.Lock()
		c.stats = stats
		c.mu.Unlock()
	}
	return s
}

var (
	families exposition.Families

	calls    = families.Gauge("ringway_sip_calls", "Calls whose signalling is followed, by leg.")
	flows    = families.Gauge("ringway_sip_media_flows", "Media flows that calls need now.")
	boxes    = families.Gauge("ringway_sip_key_channels", "Far boxes with which calls that begin now have keys agreed.")
	open     = families.Gauge("ringway_sip_holes", "Elements in the sets of the firewall that let media pass.")
	reading  = families.Gauge("ringway_sip_reading", "Whether signalling is read: 0 or 1.")
	messages = families.Counter("ringway_sip_messages_total", "SIP messages that were read and sent on.")
	unread   = families.Counter("ringway_sip_unread_total",
		"SIP messages sent on without being read, by reason.", "reason")
	refused = families.Counter("ringway_sip_refused_total", "SIP messages not sent on, by reason.", "reason")
	notOpen = families.Counter("ringway_sip_flows_not_opened_total",
		"Media flows without a hole, by reason.", "reason")
	lateness = families.Counter("ringway_sip_late_flows_total",
		"SIP messages sent on before their holes were open.")
	beyond    = families.Counter("ringway_sip_beyond_total", "Calls and flows that were too many to be followed.")
	conns     = families.Gauge("ringway_sip_connections", "TCP connections that the relay carries.")
	encrypted = families.Gauge("ringway_sip_tls_connections", "Connections whose TLS is read.")
	shook     = families.Counter("ringway_sip_tls_handshakes_total",
		"TLS handshakes with servers of sip.tls, by result: read, or why not.", "server", "result")
	expiry = families.Gauge("ringway_sip_tls_certificate_expiry_timestamp_seconds",
		"When the certificate that phones are shown expires.", "server")
	events = families.Counter("ringway_sip_transport_events_total",
		"What befell datagrams and connections.", "event")
	phones  = families.Gauge("ringway_sip_registrations", "Registrations of phones that are known.")
	held    = families.Gauge("ringway_sip_places", "Places in voice budgets that calls have.")
	noPlace = families.Counter("ringway_sip_places_refused_total", "Places that the engine refused, by reason.",
		"reason")
	limit = families.Gauge("ringway_sip_budget_bytes_per_second",
		"Voice budget by which calls are admitted. Absent: no bound.", "site", "wan", "direction")
	taken = families.Gauge("ringway_sip_budget_taken_bytes_per_second",
		"How much of it calls have.", "site", "wan", "direction")
	unknown = families.Gauge("ringway_sip_budget_other_bytes_per_second",
		"How much of it flows have that no signalling explains.", "site", "wan", "direction")
	flowsIn = families.Gauge("ringway_sip_budget_places", "Flows that calls have a place for.",
		"site", "wan", "direction")
	misuse = families.Counter("ringway_sip_abuse_total", "Abuse of signalling that was reported, by kind.", "kind")
	media  = families.Counter("ringway_media_packets_total",
		"Packets of media that went on from this box, to a site or from it. Only the engine realtime counts them.",
		"site", "direction")
	mediaLost = families.Counter("ringway_media_lost_total",
		"Packets of media that were lost, by segment of their way, as far as this box knows.",
		"site", "direction", "segment")
	mediaSeries = families.Gauge("ringway_media_series", "Sources of media that had packets lately.", "direction")
	mediaBeyond = families.Counter("ringway_media_beyond_total",
		"Packets of media that were not counted, because there were too many sources.")
	mirrored    = families.Counter("ringway_sip_hep_messages_total", "Messages sent to the Homer server.")
	lost        = families.Counter("ringway_sip_hep_lost_total", "Messages for the Homer server that could not be sent.")
	relayedLegs = families.Gauge("ringway_sip_relayed", "Legs of calls whose media this box relays.")
	mediaPorts  = families.Gauge("ringway_sip_media_ports", "Pairs of ports that relayed media has.")
	noPorts     = families.Counter("ringway_sip_no_media_ports_total", "How often no port for relayed media was free.")
	barred      = families.Gauge("ringway_sip_barred",
		"Legs of calls without media because the policy of SRTP changed during the call.")
	restarts = families.Counter("ringway_sip_restarts_total", "Processes that replaced one that ended.")
)

// Families are the metrics of calls.
func (c *Calls) Families() exposition.Families { return families }

// Collect shows the section of the status about calls.
func (c *Calls) Collect(st status.Status, to exposition.Sink) {
	s, ok := status.Section[Status](st, Name)
	if !ok || s.Mode == string(config.SIPOff) {
		return
	}
	to.Put(calls, float64(s.Calls))
	to.Put(flows, float64(s.Flows))
	to.Put(boxes, float64(s.KeyChannels))
	to.Put(open, float64(s.Holes))
	to.Put(reading, map[bool]float64{true: 1}[s.Reading])
	to.Put(messages, float64(s.Messages))
	to.Put(lateness, float64(s.LateFlows))
	to.Put(restarts, float64(s.Restarts))
	to.Put(beyond, float64(s.Beyond))
	to.Put(phones, float64(s.Phones))
	to.Put(held, float64(s.Places))
	to.Put(mirrored, float64(s.Mirrored))
	to.Put(lost, float64(s.Unmirrored))
	to.Put(relayedLegs, float64(s.Relayed))
	to.Put(mediaPorts, float64(s.MediaPorts))
	to.Put(noPorts, float64(s.NoMediaPorts))
	to.Put(barred, float64(s.Barred))
	for name, n := range s.NoPlace {
		to.Put(noPlace, float64(n), name)
	}
	for name, n := range s.Abuse {
		to.Put(misuse, float64(n), name)
	}
	collectBudgets(s.Budgets, to)
	collectMedia(s.Media, to)
	to.Put(conns, float64(s.Connections))
	collectTLS(&s, to)
	for name, n := range s.Transport {
		to.Put(events, float64(n), name)
	}
	for name, n := range s.Unread {
		to.Put(unread, float64(n), name)
	}
	for name, n := range s.Refused {
		to.Put(refused, float64(n), name)
	}
	for name, n := range s.NotOpen {
		to.Put(notOpen, float64(n), name)
	}
}

// collectMedia shows what media went through.
func collectMedia(m MediaStatus, to exposition.Sink) {
	if !m.Measured {
		return
	}
	directions := map[bool]string{false: "in", true: "out"}
	for _, t := range m.Sites {
		to.Put(media, float64(t.Packets), t.Site, directions[t.Out])
		for segment, n := range t.Lost {
			to.Put(mediaLost, float64(n), t.Site, directions[t.Out], segment)
		}
	}
	for i, direction := range []string{"in", "out"} {
		to.Put(mediaSeries, float64(m.Series[i]), direction)
	}
	to.Put(mediaBeyond, float64(m.Beyond))
}

// collectTLS shows what came of SIP over TLS.
func collectTLS(s *Status, to exposition.Sink) {
	to.Put(encrypted, float64(s.Encrypted))
	for _, t := range s.TLS {
		to.Put(shook, float64(t.Read), t.Name, "read")
		for why, n := range t.Failed {
			to.Put(shook, float64(n), t.Name, why)
		}
	}
	for name, at := range s.Certificates {
		to.Put(expiry, float64(at.Unix()), name)
	}
}

// collectBudgets shows the budgets by which calls are admitted.
func collectBudgets(budgets []admission.Budget, to exposition.Sink) {
	for _, b := range budgets {
		direction := "out"
		if b.Inbound {
			direction = "in"
		}
		labels := []string{b.Site, b.Line, direction}
		if b.Internet {
			labels[0] = "internet"
		}
		if b.Limit > 0 {
			to.Put(limit, float64(b.Limit)/8, labels...)
		}
		to.Put(taken, float64(b.Taken)/8, labels...)
		to.Put(unknown, float64(b.Other)/8, labels...)
		to.Put(flowsIn, float64(b.Places), labels...)
	}
}
