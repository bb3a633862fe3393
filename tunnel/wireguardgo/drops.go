package wireguardgo

import (
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// reason is why a packet was dropped.
type reason int

const (
	dropNoSite         reason = iota // outbound: no peer has the destination
	dropNoSession                    // outbound: its peer has no session, and as many as may wait for one do
	dropOversized                    // outbound: larger than any message, or than the path takes (EMSGSIZE)
	dropSegments                     // outbound: a segmented read with more segments than fit (a tiny MSS)
	dropTUNRead                      // outbound: a read from the tunnel device failed
	dropDevice                       // outbound: inside the engine: no session in time, or its peer was removed
	dropQueueDelay                   // outbound: its flow's queue was long for too long (CoDel)
	dropQueueFull                    // outbound: all flow queues together were full, and its flow's was the longest
	dropSendRefused                  // outbound: the firewall refused it (EPERM)
	dropUnreachable                  // outbound: no route to the endpoint
	dropNoBuffers                    // outbound: the socket's buffer stayed full, or the kernel had no memory
	dropSend                         // outbound: any other error of the socket
	dropGarbage                      // inbound: not a WireGuard message
	dropMAC1                         // inbound: a handshake message that does not know our public key
	dropHandshakeRate                // inbound: more handshake messages than are processed
	dropRefused                      // inbound: unknown session, failed authentication, replay or malformed
	dropSource                       // inbound: inner source outside the peer's allowed IPs
	dropTUNWrite                     // inbound: the tunnel device refused it
	dropSocketOverflow               // inbound: the socket's buffer was full (counted by the kernel)
	reasons
)

var reasonNames = [reasons]string{
	dropNoSite:         "no_site",
	dropNoSession:      "no_session",
	dropOversized:      datagram.SendOversized.String(),
	dropSegments:       "too_many_segments",
	dropTUNRead:        "tun_read",
	dropDevice:         "engine_outbound",
	dropQueueDelay:     "queue_delay",
	dropQueueFull:      "queue_full",
	dropSendRefused:    datagram.SendRefused.String(),
	dropUnreachable:    datagram.SendUnreachable.String(),
	dropNoBuffers:      datagram.SendNoBuffers.String(),
	dropSend:           datagram.SendFailed.String(),
	dropGarbage:        "garbage",
	dropMAC1:           "bad_mac1",
	dropHandshakeRate:  "handshake_rate",
	dropRefused:        "refused",
	dropSource:         "inner_source",
	dropTUNWrite:       "tun_write",
	dropSocketOverflow: "socket_overflow",
}

// sendErrors are the reasons for errors of the socket.
var sendErrors = [datagram.SendErrors]reason{
	datagram.SendFailed:      dropSend,
	datagram.SendRefused:     dropSendRefused,
	datagram.SendUnreachable: dropUnreachable,
	datagram.SendNoBuffers:   dropNoBuffers,
	datagram.SendOversized:   dropOversized,
}

func (r reason) String() string { return reasonNames[r] }

// Reasons lists every reason for which this engine drops packets, which are the keys of DeviceStatus.Drops,
// whether they occurred or not.
func Reasons() []string { return slices.Clone(reasonNames[:]) }

type drops [reasons]atomic.Uint64

func (d *drops) add(r reason, n int) {
	if n > 0 {
		d[r].Add(uint64(n))
	}
}

// sendError counts n packets that the socket refused.
func (d *drops) sendError(errno unix.Errno, n int) {
	d.add(sendErrors[datagram.ClassifySend(errno)], n)
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
