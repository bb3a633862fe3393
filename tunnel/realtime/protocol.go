package realtime

import (
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Constants of the protocol: WireGuard: Next Generation Kernel Network Tunnel (the paper, 2020-06-01),
// section 6.1 unless said.
const (
	rekeyAfterMessages  = 1 << 60
	rejectAfterMessages = 1<<64 - 1<<13 - 1
	rekeyAfterTime      = 120 * time.Second
	rejectAfterTime     = 180 * time.Second
	rekeyAttemptTime    = 90 * time.Second
	rekeyTimeout        = 5 * time.Second
	keepaliveTimeout    = 10 * time.Second
	cookieRefreshTime   = device.CookieRefreshTime // section 5.4.7
	zeroAfter           = 3 * rejectAfterTime      // section 6.3
	maxJitter           = 333 * time.Millisecond   // section 6.1: on REKEY-TIMEOUT
	maxAttempts         = int(rekeyAttemptTime / rekeyTimeout)
	initiationsEvery    = device.HandshakeInitationRate // of one peer; the reference implementations'
	// An initiator that receives when its session is this old begins a new one (section 6.2).
	rekeyOnReceive = rejectAfterTime - keepaliveTimeout - rekeyTimeout
)

// Layouts of messages: section 5.4.
const (
	typeInitiation = device.MessageInitiationType
	typeResponse   = device.MessageResponseType
	typeCookie     = device.MessageCookieReplyType
	typeTransport  = device.MessageTransportType

	initiationSize = device.MessageInitiationSize
	responseSize   = device.MessageResponseSize
	cookieSize     = device.MessageCookieReplySize
	headerSize     = device.MessageTransportHeaderSize
	tagSize        = device.MessageTransportSize - headerSize
	keepaliveSize  = device.MessageKeepaliveSize

	paddingMultiple = device.PaddingMultiple
)

// Our own constants.
const (
	tick             = 100 * time.Millisecond // how often timers are checked
	underLoadAfter   = time.Second            // how long cookies are still asked for after load
	lingerFor        = rekeyTimeout           // how long a session that has lost its place is received in
	maxLingering     = 8                      // of a peer
	stagedFor        = 2 * time.Second        // how long a packet waits for a session; after that voice is worthless
	maxStaged        = 128                    // packets, all peers together
	maxStagedPerPeer = 32
)
