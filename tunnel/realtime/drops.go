package realtime

import (
	"slices"
	"sync/atomic"
)

// reason says why a packet went no further.
type reason int

const (
	dropNoSite         reason = iota // outbound: no peer has the destination
	dropNoSession                    // outbound: no session came in time, or too many waited for one
	dropOversized                    // outbound: larger than any message, or than the way to the peer takes (EMSGSIZE)
	dropMalformed                    // outbound: the tunnel device gave what is no IP packet
	dropSendRefused                  // outbound: the firewall refused it (EPERM)
	dropUnreachable                  // outbound: no endpoint, or no route to it
	dropNoBuffers                    // outbound: the socket's buffer stayed full
	dropSend                         // outbound: any other error of the socket
	dropOverBudget                   // outbound: media beyond what calls with the site may take (admission.go)
	dropGarbage                      // inbound: no WireGuard message
	dropMAC1                         // inbound: a handshake message that does not know our public key
	dropHandshakeRate                // inbound: more handshake messages than are looked at
	dropHandshake                    // inbound: a handshake message that does not hold
	dropCookie                       // inbound: answered with a cookie, since there is too much to do
	dropSession                      // inbound: of no session, or one that is too old
	dropForged                       // inbound: authentication failed
	dropReplay                       // inbound: seen before, or older than the window
	dropSource                       // inbound: inner source outside the peer's allowed IPs
	dropInner                        // inbound: authentic, but no IP packet
	dropCongestion                   // inbound: marked by the network, of a sender that does not know ECN (RFC 6040)
	dropTUNWrite                     // inbound: the tunnel device did not take it
	dropSocketOverflow               // inbound: the socket's buffer was full (counted by the kernel)
	reasons
)

var reasonNames = [reasons]string{
	"no_site", "no_session", "oversized", "malformed", "send_refused", "send_unreachable", "send_no_buffers", "send_failed", "over_budget",
	"garbage", "bad_mac1", "handshake_rate", "bad_handshake", "cookie_sent", "no_such_session", "forged", "replayed", "inner_source",
	"inner_malformed", "congestion", "tun_write", "socket_overflow",
}

func (r reason) String() string { return reasonNames[r] }

// Reasons names every reason for which this engine drops a packet: the keys of DeviceStatus.Drops, also those that did not occur.
func Reasons() []string { return slices.Clone(reasonNames[:]) }

type drops [reasons]atomic.Uint64

func (d *drops) add(r reason) { d[r].Add(1) }

// all returns the reasons that occurred.
func (d *drops) all() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range d {
		if n := d[r].Load(); n > 0 {
			m[reason(r).String()] = n
		}
	}
	return m
}
