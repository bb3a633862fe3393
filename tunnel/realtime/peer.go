package realtime

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
)

// peer is one site in this device.
type peer struct {
	key tunnel.PublicKey

	// What forwarding threads use.
	current  atomic.Pointer[session] // to send with
	endpoint atomic.Pointer[endpoint]
	gone     atomic.Bool // it was removed
	wanted   atomic.Bool // a packet waits for a session
	fresh    atomic.Bool // the inbound thread has taken a responder's session into use

	txPackets, txBytes atomic.Uint64
	rxPackets, rxBytes atomic.Uint64

	// Times in ns of the engine's clock; 0 = none.
	unanswered atomic.Int64 // first data sent since anything authentic came (section 6.5: a new handshake after 15 s)
	owed       atomic.Int64 // first data received since anything was sent (section 6.5: a keepalive after 10 s)
	sentAt     atomic.Int64 // anything authentic
	usedAt     atomic.Int64 // anything in a session
	heardAt    atomic.Int64

	budget atomic.Pointer[budget] // of media; nil: none
	media  media                  // what of it is taken

	staged int // packets that wait for a session; outbound thread alone

	control // the rest belongs to the control side, under Engine.mu
}

// control is what handshakes and timers know of a peer.
type control struct {
	psk       tunnel.PresharedKey
	static    [32]byte // shared secret of the static keys; zero: the peer's key is of low order
	cookies   device.CookieGenerator
	allowed   []netip.Prefix
	keepalive time.Duration

	active, previous, next *session    // active is current, as far as control knows
	lingering              []lingering // oldest first; received in, never sent

	pending   *initiation
	attempts  int
	initiated int64 // last initiation; 0: never
	retryAt   int64 // of the pending one
	shaken    time.Time
	derived   int64 // last session's birth; 0: all keys are wiped
	lastStamp tai64n.Timestamp
	lastRead  int64 // last initiation that was taken
	proof     proof
	pressed   bool // the session's last minute has brought a handshake already
}

// routes are the allowed IPs of all peers: immutable, replaced as a whole.
type routes = bart.Table[*peer]

// sent notes an authentic message to the peer: with data, in a session.
func (p *peer) sent(now int64, data, session bool) {
	p.sentAt.Store(now)
	if session {
		p.usedAt.Store(now)
	}
	if p.owed.Load() != 0 {
		p.owed.Store(0)
	}
	if data && p.unanswered.Load() == 0 {
		p.unanswered.Store(now)
	}
}

// heard notes an authentic message of the peer.
func (p *peer) heard(now int64, data bool) {
	p.heardAt.Store(now)
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
	if data && p.owed.Load() == 0 {
		p.owed.Store(now)
	}
}
