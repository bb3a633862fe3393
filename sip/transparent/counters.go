package transparent

import (
	"sync/atomic"

	"ringway/sip/message"
	"ringway/tunnel/datagram"
)

// event is something that is counted.
type event uint8

const (
	none event = iota

	datagramsPassed
	datagramsDropped
	messagesPassed
	messagesDropped
	replies

	// Datagrams that did not go on, for want of more than an error of sendmsg.
	noOriginalDestination
	unusableAddress
	sentToRelay
	datagramTruncated
	reservedPort
	noFreshSocket
	bindFailed
	receiveFailed

	// Connections.
	accepted
	dialed
	imported
	exported
	passedRaw
	tooManyConnections
	tooManyOfSource
	acceptFailed
	dialRefused
	dialTimedOut
	dialUnreachable
	dialAddressTaken
	dialFailed

	// Why connections ended, besides those that both sides closed.
	framingFault
	messageTimedOut
	messageCutOff
	stalled
	idle
	memoryExhausted
	peerReset
	closedByHandler
	lineGone
	relayClosed

	// TLS: what was read, why connections passed unread, and why they ended.
	tlsEstablished
	tlsUnreadNoName
	tlsUnreadNoCertificate
	tlsUnreadUnsupported
	tlsUnreadMalformed
	tlsUnreadClientCertificate
	tlsUnreadUnverified
	tlsUnreadServerFailed
	tlsHelloTimedOut
	tlsTooMany
	tlsTooManyOfSource
	tlsHandshakeTimedOut
	tlsServerUnverified
	tlsServerFailed
	tlsSenderRefused
	tlsSenderFailed
	tlsBroken
	tlsNotHandedOver

	// Sockets.
	openFailed
	egressEvicted

	events
)

var eventNames = [events]string{
	datagramsPassed:       "udp_passed",
	datagramsDropped:      "udp_dropped_by_handler",
	messagesPassed:        "tcp_passed",
	messagesDropped:       "tcp_dropped_by_handler",
	replies:               "replies",
	noOriginalDestination: "udp_no_original_destination",
	unusableAddress:       "unusable_address",
	sentToRelay:           "sent_to_relay",
	datagramTruncated:     "udp_truncated",
	reservedPort:          "udp_reserved_port",
	noFreshSocket:         "no_fresh_socket",
	bindFailed:            "bind_failed",
	receiveFailed:         "udp_receive_failed",
	accepted:              "tcp_accepted",
	dialed:                "tcp_dialed",
	imported:              "tcp_imported",
	exported:              "tcp_exported",
	passedRaw:             "tcp_passed_raw",
	tooManyConnections:    "tcp_too_many_connections",
	tooManyOfSource:       "tcp_too_many_of_source",
	acceptFailed:          "tcp_accept_failed",
	dialRefused:           "tcp_dial_refused",
	dialTimedOut:          "tcp_dial_timed_out",
	dialUnreachable:       "tcp_dial_unreachable",
	dialAddressTaken:      "tcp_dial_address_taken",
	dialFailed:            "tcp_dial_failed",
	framingFault:          "tcp_framing_fault",
	messageTimedOut:       "tcp_message_timed_out",
	messageCutOff:         "tcp_message_cut_off",
	stalled:               "tcp_stalled",
	idle:                  "tcp_idle",
	memoryExhausted:       "tcp_memory_exhausted",
	peerReset:             "tcp_peer_reset",
	closedByHandler:       "tcp_closed_by_handler",
	lineGone:              "tcp_line_gone",
	relayClosed:           "tcp_relay_closed",

	tlsEstablished:             "tls_established",
	tlsUnreadNoName:            "tls_unread_no_server_name",
	tlsUnreadNoCertificate:     "tls_unread_no_certificate",
	tlsUnreadUnsupported:       "tls_unread_unsupported",
	tlsUnreadMalformed:         "tls_unread_malformed_hello",
	tlsUnreadClientCertificate: "tls_unread_client_certificate",
	tlsUnreadUnverified:        "tls_unread_server_unverified",
	tlsUnreadServerFailed:      "tls_unread_server_failed",
	tlsHelloTimedOut:           "tls_hello_timed_out",
	tlsTooMany:                 "tls_too_many_handshakes",
	tlsTooManyOfSource:         "tls_too_many_handshakes_of_source",
	tlsHandshakeTimedOut:       "tls_handshake_timed_out",
	tlsServerUnverified:        "tls_server_unverified",
	tlsServerFailed:            "tls_server_failed",
	tlsSenderRefused:           "tls_sender_refused",
	tlsSenderFailed:            "tls_sender_failed",
	tlsBroken:                  "tls_broken",
	tlsNotHandedOver:           "tls_not_handed_over",

	openFailed:    "open_failed",
	egressEvicted: "egress_evicted",
}

// counters hold every count of a relay; their number does not depend on what comes.
type counters struct {
	events [events]atomic.Uint64
	unsent [datagram.SendErrors]atomic.Uint64
	faults [1 << 8]atomic.Uint64 // framing faults, by message.Reason
}

func (c *counters) add(e event) { c.events[e].Add(1) }

// Stats are counts since New, and what is held now.
type Stats struct {
	Connections int   // TCP pairs
	Encrypted   int   // of them, those whose TLS is read
	Egress      int   // bound UDP sockets
	Memory      int64 // bytes of TCP buffers in use, with what is reckoned for TLS

	// Counts has every name from the start:
	//
	//   - udp_, tcp_ and tls_ with what became of messages and connections; tcp_framing_fault is the sum of
	//     tcp_fault_ and a message.Reason
	//   - udp_ with a reason of package datagram: sendmsg failed
	//   - udp_listener_overflow: the kernel dropped datagrams, as a listener's buffer was full
	Counts map[string]uint64
}

// encryptedLocked counts the pairs whose TLS is read. The caller holds r.mu.
func (r *Relay) encryptedLocked() (n int) {
	for p := range r.pairs {
		if p.isEncrypted() {
			n++
		}
	}
	return n
}

// Stats reads all counts.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	s := Stats{Connections: len(r.pairs), Encrypted: r.encryptedLocked()}
	r.mu.Unlock()
	s.Egress = r.egress.size()
	s.Memory = r.memory.used.Load()

	s.Counts = map[string]uint64{}
	for e, name := range eventNames {
		if event(e) != none {
			s.Counts[name] = r.counts.events[e].Load()
		}
	}
	for e := range datagram.SendErrors {
		s.Counts["udp_"+datagram.SendError(e).String()] = r.counts.unsent[e].Load()
	}
	for _, why := range message.Reasons() {
		if why.Verdict() == message.Refused {
			s.Counts["tcp_fault_"+why.Name()] = r.counts.faults[why].Load()
		}
	}
	for _, rd := range r.readers {
		s.Counts["udp_listener_overflow"] += rd.overflow()
	}
	return s
}
