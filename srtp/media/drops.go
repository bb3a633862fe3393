package media

import (
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ringway/srtp/stream"
	"ringway/tunnel/datagram"
)

// reason is why a packet was dropped.
type reason uint8

const (
	dropLate        reason = iota // waited longer than 20 ms for us
	dropTruncated                 // longer than any packet that is taken
	dropNoLeg                     // to a port of no leg
	dropOther                     // neither RTP, RTCP nor DTLS
	dropSource                    // not from where signalling said, and the leg does not learn
	dropMux                       // RTP on RTCP's port, or RTCP on RTP's of a leg with two
	dropDTLS                      // DTLS on a leg without it
	dropDTLSFull                  // more DTLS than is read
	dropMalformed                 // not an RTP or RTCP packet
	dropNoKey                     // the leg has no key yet, in one direction or the other
	dropForged                    // authentication failed
	dropReplayed                  // its index was seen already, or is older than the window
	dropUnknownKey                // no key with its MKI
	dropSources                   // too many sources (SSRC)
	dropUnencrypted               // SRTCP that is authenticated only
	dropPayload                   // a payload type that was not negotiated
	dropQuota                     // more than the codec sends
	dropDuplicate                 // its sequence number was sent already
	dropExhausted                 // the key has protected as many packets as it may
	dropFailed                    // any other failure of the cryptography
	dropOversized                 // longer than its link takes (EMSGSIZE)
	dropSendRefused               // the firewall refused it (EPERM)
	dropUnreachable               // no route
	dropNoBuffers                 // the socket's buffer stayed full
	dropSend                      // any other error of the socket
	reasons
)

var reasonNames = [reasons]string{
	dropLate:        "late",
	dropTruncated:   "truncated",
	dropNoLeg:       "no_leg",
	dropOther:       "not_media",
	dropSource:      "source",
	dropMux:         "wrong_port",
	dropDTLS:        "dtls_unexpected",
	dropDTLSFull:    "dtls_queue_full",
	dropMalformed:   "malformed",
	dropNoKey:       "no_key",
	dropForged:      "forged",
	dropReplayed:    "replayed",
	dropUnknownKey:  "unknown_key",
	dropSources:     "too_many_sources",
	dropUnencrypted: "unencrypted_srtcp",
	dropPayload:     "payload_type",
	dropQuota:       "over_quota",
	dropDuplicate:   "duplicate",
	dropExhausted:   "key_exhausted",
	dropFailed:      "crypto_failed",
	dropOversized:   datagram.SendOversized.String(),
	dropSendRefused: datagram.SendRefused.String(),
	dropUnreachable: datagram.SendUnreachable.String(),
	dropNoBuffers:   datagram.SendNoBuffers.String(),
	dropSend:        datagram.SendFailed.String(),
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

// Overflow is the reason under which Relay.Drops counts what the kernel dropped because a socket's buffer was full.
const Overflow = "socket_overflow"

// Reasons lists every reason for which packets are dropped, which are the keys of Drops.
func Reasons() []string { return append(slices.Clone(reasonNames[:]), Overflow) }

// reasonOf is the reason for an error of package stream.
func reasonOf(err error) reason {
	switch err { // never wrapped: errors.Is is not for every packet
	case stream.ErrMalformed:
		return dropMalformed
	case stream.ErrReplayed:
		return dropReplayed
	case stream.ErrForged:
		return dropForged
	case stream.ErrUnknownKey:
		return dropUnknownKey
	case stream.ErrSources:
		return dropSources
	case stream.ErrUnencrypted:
		return dropUnencrypted
	case stream.ErrDuplicate:
		return dropDuplicate
	case stream.ErrWiped:
		return dropNoKey
	case stream.ErrExhausted:
		return dropExhausted
	}
	return dropFailed
}

func sendReason(errno unix.Errno) reason { return sendErrors[datagram.ClassifySend(errno)] }

type drops [reasons]atomic.Uint64

func (d *drops) add(r reason) { d[r].Add(1) }

// addTo adds the reasons that occurred.
func (d *drops) addTo(m map[string]uint64) {
	for r := range d {
		if n := d[r].Load(); n > 0 {
			m[reason(r).String()] += n
		}
	}
}
