package realtime

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/ledger"
	"ringway/tunnel/path"
)

// peer is one site in this device.
type peer struct {
	key tunnel.PublicKey

	// What forwarding threads use.
	current  atomic.Pointer[session] // to send with
	endpoint atomic.Pointer[endpoint]
	gone     atomic.Bool // was removed
	wanted   atomic.Bool // a packet waits for a session
	fresh    atomic.Bool // the inbound thread has taken a session into use that we answered with

	txPackets, txBytes atomic.Uint64
	rxPackets, rxBytes atomic.Uint64

	// Times in ns of the engine's clock; 0 = none.
	unanswered atomic.Int64 // first data sent since anything authentic arrived (section 6.5: new handshake after 15 s)
	replyDue   atomic.Int64 // first data received since anything was sent (section 6.5: a keepalive after 10 s)
	sentAt     atomic.Int64 // anything authentic
	usedAt     atomic.Int64 // anything in a session
	receivedAt atomic.Int64

	voice ledger.Account // its voice budget, and what flows take of it

	number uint32 // of the engine's peers, which names it in series

	staged int // packets that wait for a session; the outbound thread's alone

	copies     peerCopies                // of media, to it and from it
	left       datagram.Left             // addresses of ours that it is not sent to from
	hold       atomic.Pointer[path.Hold] // of the last move of a peer with several addresses; nil: none
	heardAt    atomic.Int64              // anything by the path that is used
	pathsHeard atomic.Uint64             // messages about paths among rxPackets

	pathSecond int64 // for limiting messages about paths: the inbound thread's alone
	pathCount  int

	control // belongs to the control side, under Engine.mu
}

// control is what handshakes and timers keep of a peer.
type control struct {
	psk       tunnel.PresharedKey
	static    [32]byte // shared secret of the static keys; zero: the peer's key is of low order
	cookies   device.CookieGenerator
	allowed   []netip.Prefix
	keepalive time.Duration

	active, previous, next *session    // section 6.3; active is current, as far as the control side knows
	lingering              []lingering // oldest first; they are received in, never sent with

	pending        *initiation
	attempts       int
	initiated      int64 // last initiation; 0: never
	retryAt        int64 // of the pending one
	lastHandshake  time.Time
	keysSince      int64 // when the last session was made; 0: all keys are wiped
	lastStamp      tai64n.Timestamp
	lastRead       int64 // when an initiation was last answered
	proof          proof
	paths          path.Watch
	sizes          path.Sizes
	pairs          peerPairs
	tried          path.Path // of several, which a retry chose last
	copying        copying
	rekeyRequested bool // the last minute of the session has begun a handshake already
}

// routes are the allowed IPs of all peers. A table does not change, but is replaced as a whole.
type routes = bart.Table[*peer]

// sent notes an authentic message to the peer: with data, in a session.
func (p *peer) noteSent(now int64, data, session bool) {
	p.sentAt.Store(now)
	if session {
		p.usedAt.Store(now)
	}
	if p.replyDue.Load() != 0 {
		p.replyDue.Store(0)
	}
	if data && p.unanswered.Load() == 0 {
		p.unanswered.Store(now)
	}
}

// heard notes an authentic message of the peer.
func (p *peer) noteReceived(now int64, data bool) {
	p.receivedAt.Store(now)
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
	if data && p.replyDue.Load() == 0 {
		p.replyDue.Store(now)
	}
}
