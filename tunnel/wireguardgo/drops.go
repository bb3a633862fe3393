package wireguardgo

import (
	"slices"
	"sync/atomic"
)

// reason says why a packet went no further.
type reason int

const (
	dropNoSite         reason = iota // outbound: no peer has the destination
	dropNoSession                    // outbound: its peer has no session and the few that may wait do
	dropOversized                    // outbound: larger than any message
	dropSegments                     // outbound: a segmented read with more segments than fit (a tiny MSS)
	dropTUNRead                      // outbound: the tunnel device gave what nobody can read
	dropDevice                       // outbound: inside the engine: no session in time, or its peer went
	dropQueueDelay                   // outbound: its flow's queue was long for too long (CoDel)
	dropQueueFull                    // outbound: all flow queues together were full, its flow's most
	dropSendRefused                  // outbound: the firewall refused it (EPERM)
	dropUnreachable                  // outbound: no route to the endpoint
	dropNoBuffers                    // outbound: the kernel had no memory for it
	dropSend                         // outbound: any other error of the socket
	dropGarbage                      // inbound: no WireGuard message
	dropMAC1                         // inbound: a handshake message that does not know our public key
	dropHandshakeRate                // inbound: more handshake messages than are looked at
	dropRefused                      // inbound: unknown session, failed authentication, replay or malformed
	dropSource                       // inbound: inner source outside the peer's allowed IPs
	dropTUNWrite                     // inbound: the tunnel device did not take it
	dropSocketOverflow               // inbound: the socket's buffer was full (counted by the kernel)
	reasons
)

var reasonNames = [reasons]string{
	"no_site", "no_session", "oversized", "too_many_segments", "tun_read", "engine_outbound", "queue_delay", "queue_full",
	"send_refused", "send_unreachable", "send_no_buffers", "send_failed",
	"garbage", "bad_mac1", "handshake_rate", "refused", "inner_source", "tun_write", "socket_overflow",
}

func (r reason) String() string { return reasonNames[r] }

// Reasons names every reason for which this engine drops a packet: the keys of DeviceStatus.Drops, also those that did not occur.
func Reasons() []string { return slices.Clone(reasonNames[:]) }

type drops [reasons]atomic.Uint64

func (d *drops) add(r reason, n int) {
	if n > 0 {
		d[r].Add(uint64(n))
	}
}

// all returns the reasons that occurred.
func (d *drops) all() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range d {
		if n := d[r].Load(); n > 0 {
			m[reason(r).String()] = n
		}
	}
	// The device gives back a packet with a wrong inner source like any other that it refuses.
	if src := m[dropSource.String()]; src > 0 {
		if all := m[dropRefused.String()]; all > src {
			m[dropRefused.String()] = all - src
		} else {
			delete(m, dropRefused.String())
		}
	}
	return m
}
