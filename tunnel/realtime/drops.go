package realtime

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
	dropNoSession                    // outbound: no session came in time, or too many waited for one
	dropOversized                    // outbound: larger than any message, or than the path takes (EMSGSIZE)
	dropMalformed                    // outbound: not an IP packet
	dropSendRefused                  // outbound: the firewall refused it (EPERM)
	dropUnreachable                  // outbound: no endpoint, or no route to it
	dropNoBuffers                    // outbound: the socket's buffer stayed full
	dropSend                         // outbound: any other error of the socket
	dropOverBudget                   // outbound: media beyond what calls with the site may take (package ledger)
	dropGarbage                      // inbound: not a WireGuard message
	dropMAC1                         // inbound: a handshake message that does not know our public key
	dropHandshakeRate                // inbound: more handshake messages than are processed
	dropHandshake                    // inbound: an invalid handshake message
	dropCookie                       // inbound: answered with a cookie, under load
	dropSession                      // inbound: of no session, or one that is too old
	dropForged                       // inbound: authentication failed
	dropReplay                       // inbound: seen before, or older than the window
	dropSource                       // inbound: inner source outside the peer's allowed IPs
	dropInner                        // inbound: authentic, but not an IP packet
	dropCongestion                   // inbound: marked by the network, but its sender does not understand ECN (RFC 6040)
	dropTUNWrite                     // inbound: the tunnel device refused it
	dropPath                         // inbound: more messages about paths than are read (path.go)
	dropReport                       // inbound: a report of media that cannot be read, or one too many (exchange.go)
	dropSocketOverflow               // inbound: the socket's buffer was full (counted by the kernel)
	reasons
)

var reasonNames = [reasons]string{
	dropNoSite:         "no_site",
	dropNoSession:      "no_session",
	dropOversized:      datagram.SendOversized.String(),
	dropMalformed:      "malformed",
	dropSendRefused:    datagram.SendRefused.String(),
	dropUnreachable:    datagram.SendUnreachable.String(),
	dropNoBuffers:      datagram.SendNoBuffers.String(),
	dropSend:           datagram.SendFailed.String(),
	dropOverBudget:     "over_budget",
	dropGarbage:        "garbage",
	dropMAC1:           "bad_mac1",
	dropHandshakeRate:  "handshake_rate",
	dropHandshake:      "bad_handshake",
	dropCookie:         "cookie_sent",
	dropSession:        "no_such_session",
	dropForged:         "forged",
	dropReplay:         "replayed",
	dropSource:         "inner_source",
	dropInner:          "inner_malformed",
	dropCongestion:     "congestion",
	dropTUNWrite:       "tun_write",
	dropPath:           "path_messages",
	dropReport:         "bad_report",
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

func (d *drops) add(r reason) { d[r].Add(1) }

// sendError counts n packets that the socket refused.
func (d *drops) sendError(errno unix.Errno, n int) {
	d[sendErrors[datagram.ClassifySend(errno)]].Add(uint64(n))
}

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
