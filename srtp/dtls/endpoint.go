package dtls

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringway/srtp/suite"
)

// Bounds.
const (
	// MaxDatagram is the length in bytes above which datagrams are dropped. A handshake's are cut to fit any path.
	MaxDatagram = 2048

	maxLegs       = 4096
	maxWaiting    = 256 // datagrams that the forwarding thread has handed over
	maxHandshakes = 128 // at once, without those that are complete
	maxUnproven   = 64  // of these, those whose peer has not shown that it receives what we send
	maxOfLeg      = 4   // handshakes of a leg, complete or not
	maxOfAddress  = 2   // of these, unproven ones with one address
	queued        = 16  // datagrams of a handshake
	// maxReceived is how many bytes a handshake reads, and again how many once it is complete. One with retransmissions
	// has some 30 kB; the library would keep 2 MB of fragments.
	maxReceived = 64 << 10

	handshakeRate, handshakeBurst = 30, 3 // a second, in all
	sourceRate, sourceBurst       = 10, 30
	legRate, legBurst             = 2, 4 // for the signalled address, and for all others together
	lateRate, lateBurst           = 2, 5 // datagrams of a complete handshake
)

// Times.
const (
	// establishTime is how long an association may take, once offer and answer are known.
	establishTime = 30 * time.Second
	// attemptTime is how long a client's attempt may take: five retransmissions.
	attemptTime = 10 * time.Second
	attempts    = 3
	attemptGap  = 500 * time.Millisecond
	// holdTime is how long keys are held for an answer: as long as a phone may ring.
	holdTime = 3 * time.Minute
	// alertTime is what is left to a handshake after a fatal alert in clear: if it is the peer's, nothing more comes; if
	// it is forged, the peer's messages do.
	alertTime = 2 * time.Second
	// lingerTime is how long a repeated last flight of the peer is answered (RFC 6347 section 4.2.4: twice a segment's
	// longest life).
	lingerTime = 4 * time.Minute
	// flightInterval is the first wait before a retransmission; it doubles each time. RFC 6347 section 4.2.4.1 has one
	// second, and less for media, where somebody waits to speak.
	flightInterval = 250 * time.Millisecond
)

// Why an association is not, or no longer, established.
var (
	ErrTimeout = errors.New("no handshake in time")
	ErrAlert   = errors.New("peer refused the handshake")
	ErrClosed  = errors.New("peer closed the association")
	ErrStopped = errors.New("DTLS endpoint has stopped")
	ErrFull    = errors.New("too many legs")
)

// Leg names one stream of media with its own port. The owner never uses a number twice.
type Leg uint64

// Config is what an endpoint needs.
type Config struct {
	Certificate *Certificate
	// Send sends a datagram from the leg's port. It does not wait, and the datagram is borrowed until it returns.
	// Several goroutines call it.
	Send func(leg Leg, to netip.AddrPort, datagram []byte)
	// Notify says what has become of an association. Calls come one after the other, and may call the endpoint. One that
	// was on its way may still come after Close, or after Start began another association: Event has the number.
	Notify func(Event)
}

// Agreement is what offer and answer say.
type Agreement struct {
	Role Role // ours
	// LocalID and RemoteID are the values of a=tls-id (RFC 8842 section 4), empty without one.
	LocalID, RemoteID string
	Fingerprints      []Fingerprint  // the peer's
	Remote            netip.AddrPort // where the peer wants its media
	Suites            []suite.Suite  // allowed, preferred first; of Suites
}

// Event is what has become of an association.
type Event struct {
	Leg         Leg
	Association uint64
	// Keys are there if the association is established; the receiver overwrites them after use.
	Keys *Keys
	// Remote is from where the handshake came. It is authenticated, and the signalled address may be another.
	Remote netip.AddrPort
	// Err is why the association failed (no keys were there) or ended, nil if it is established.
	Err error
}

// Counters are of all legs, since the start.
type Counters struct {
	// Handshakes; rejected are those that failed, or were not what was agreed.
	Started  uint64 `json:"started"`
	Rejected uint64 `json:"rejected"`
	// Associations.
	Established uint64 `json:"established"`
	Failed      uint64 `json:"failed"`

	// Dropped datagrams, or records of them.

	Overflow        uint64 `json:"overflow"` // the worker was behind, or the datagram too long
	UnknownLeg      uint64 `json:"unknown_leg"`
	Unauthenticated uint64 `json:"unauthenticated"` // records that anyone could have sent, and would have ended a handshake
	Unexpected      uint64 `json:"unexpected"`      // no handshake of this address, and none may begin
	WrongCookie     uint64 `json:"wrong_cookie"`
	LegLimited      uint64 `json:"leg_limited"`
	SourceLimited   uint64 `json:"source_limited"`
	RateLimited     uint64 `json:"rate_limited"`
	Full            uint64 `json:"full"`       // too many handshakes at once
	QueueFull       uint64 `json:"queue_full"` // a handshake's queue or budget
	Late            uint64 `json:"late"`       // of a complete handshake, too many
}

// Endpoint does the handshakes of all legs. It is safe for concurrent use.
type Endpoint struct {
	config   Config
	in, free chan *datagram
	overflow atomic.Uint64
	slots    chan struct{} // one for each handshake under way
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup
	wake     chan struct{} // there are events

	mu       sync.Mutex
	stopped  bool
	legs     map[Leg]*leg
	number   uint64 // of the last association
	unproven int
	total    bucket
	sources  *sources
	events   []Event // each association has two at most
	counters Counters
	scratch  [MaxDatagram]byte
}

type datagram struct {
	leg  Leg
	from netip.AddrPort
	n    int
	b    [MaxDatagram]byte
}

// New makes an endpoint. Nothing happens before Run.
func New(c Config) *Endpoint {
	e := &Endpoint{
		config: c, in: make(chan *datagram, maxWaiting), free: make(chan *datagram, maxWaiting),
		slots: make(chan struct{}, maxHandshakes), wake: make(chan struct{}, 1),
		legs: map[Leg]*leg{}, sources: newSources(),
	}
	for range maxWaiting {
		e.free <- &datagram{}
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// String is the task's name.
func (e *Endpoint) String() string { return "DTLS endpoint" }

// Run works until ctx is done. It returns when nothing of it runs any more; keys that were held are overwritten.
func (e *Endpoint) Run(ctx context.Context) error {
	e.running.Go(e.notify)
	for ctx.Err() == nil {
		select {
		case d := <-e.in:
			e.dispatch(d)
			e.free <- d
		case <-ctx.Done():
		}
	}
	e.mu.Lock()
	e.stopped = true
	for _, l := range e.legs {
		e.close(l)
	}
	e.mu.Unlock()
	e.stop()
	e.running.Wait()
	return nil
}

// Receive takes a datagram that came to the leg's port. It does not wait and does not allocate: a forwarding thread
// calls it. The packet is the caller's again when it returns.
func (e *Endpoint) Receive(l Leg, from netip.AddrPort, packet []byte) {
	if len(packet) > MaxDatagram {
		e.overflow.Add(1)
		return
	}
	select {
	case d := <-e.free:
		d.leg, d.from, d.n = l, unmapped(from), copy(d.b[:], packet)
		e.in <- d // never waits: there are as many places as datagrams
	default:
		e.overflow.Add(1)
	}
}

// Counters returns what has been counted.
func (e *Endpoint) Counters() Counters {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.counters
	c.Overflow = e.overflow.Load()
	return c
}

// notify hands out events.
func (e *Endpoint) notify() {
	for {
		select {
		case <-e.wake:
		case <-e.ctx.Done():
		}
		e.mu.Lock()
		events := e.events
		e.events = nil
		e.mu.Unlock()
		for _, event := range events {
			e.config.Notify(event)
		}
		if e.ctx.Err() != nil {
			return
		}
	}
}

func (e *Endpoint) emitLocked(event Event) {
	e.events = append(e.events, event)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Offer says that an offer of ours is out. If our setup in it is actpass or passive, the peer's first message may
// come before its answer: the handshake begins then, and the keys are held until Start. An association that exists
// stays.
func (e *Endpoint) Offer(id Leg, allowed []suite.Suite) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	suites, err := withProfile(allowed)
	if err != nil {
		return err
	}
	l, err := e.legLocked(id)
	if err != nil {
		return err
	}
	l.offered, l.suites = true, suites
	return nil
}

// Start says what offer and answer have agreed on. Never before: a client would send its first message to a peer that
// may become one itself (RFC 5763 section 5). It returns the association's number, and whether it is one that exists:
// its keys are still right. Otherwise a new one begins; the old one's keys are right until the new one is
// established.
func (e *Endpoint) Start(id Leg, a Agreement) (number uint64, kept bool, err error) {
	a, err = a.checked()
	if err != nil {
		return 0, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l, err := e.legLocked(id)
	if err != nil {
		return 0, false, err
	}
	l.offered = false
	if old := l.current; old != nil && old.alive() && old.agreement.same(a) {
		if old.state == established {
			e.dropLocked(l, func(h *handshake) bool { return !h.taken })
		}
		old.agreement = a
		return old.number, true, nil
	}
	e.beginLocked(l, a)
	return l.current.number, false, nil
}

// Restore says that an association exists whose keys the owner has from the process before. It needs no handshake
// until offer and answer ask for another. A last flight that is repeated by the peer is not answered: the library
// keeps neither the flight nor the messages that it would have to repeat in the state that it can export.
func (e *Endpoint) Restore(id Leg, a Agreement) (number uint64, err error) {
	a, err = a.checked()
	if err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l, err := e.legLocked(id)
	if err != nil {
		return 0, err
	}
	if l.current != nil {
		return 0, fmt.Errorf("leg %d has an association already", id)
	}
	e.number++
	l.current = &association{number: e.number, agreement: a, state: established, cancel: func() {}}
	return e.number, nil
}

// Close ends all of the leg, silently: the peer knows by signalling, and its port may be another call's by then.
func (e *Endpoint) Close(id Leg) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.legs[id]; l != nil {
		e.close(l)
	}
}

// legLocked returns the leg, which is made where there is none.
func (e *Endpoint) legLocked(id Leg) (*leg, error) {
	switch l := e.legs[id]; {
	case e.stopped:
		return nil, ErrStopped
	case l != nil:
		return l, nil
	case len(e.legs) >= maxLegs:
		return nil, ErrFull
	}
	e.legs[id] = &leg{id: id}
	return e.legs[id], nil
}

// checked returns the agreement as it is kept, or what is missing in it.
func (a Agreement) checked() (Agreement, error) {
	switch {
	case a.Role != Client && a.Role != Server:
		return a, errors.New("agreement has no role")
	case !slices.ContainsFunc(a.Fingerprints, Fingerprint.Accepted):
		return a, fmt.Errorf("%w: none of the %d has a hash that is accepted", ErrFingerprint, len(a.Fingerprints))
	case !a.Remote.IsValid():
		return a, errors.New("agreement has no address")
	}
	a.Remote, a.Fingerprints = unmapped(a.Remote), slices.Clone(a.Fingerprints)
	var err error
	a.Suites, err = withProfile(a.Suites)
	return a, err
}

// same says whether b continues the association of a (RFC 8842 section 4: else the roles, a fingerprint or a tls-id
// differ). Without tls-id a new address is a new association, too (RFC 5763 section 6.6): the peer may be another.
func (a Agreement) same(b Agreement) bool {
	if a.Role != b.Role || a.LocalID != b.LocalID || a.RemoteID != b.RemoteID ||
		!sameSet(a.Fingerprints, b.Fingerprints) {
		return false
	}
	return a.Remote == b.Remote || a.LocalID != "" && a.RemoteID != ""
}

// withProfile are the allowed suites that have a profile, all if none is given.
func withProfile(allowed []suite.Suite) ([]suite.Suite, error) {
	if len(allowed) == 0 {
		return Suites(), nil
	}
	with := slices.DeleteFunc(slices.Clone(allowed), func(s suite.Suite) bool { return !slices.Contains(Suites(), s) })
	if len(with) == 0 {
		return nil, fmt.Errorf("%w: %v", ErrProfile, allowed)
	}
	return with, nil
}

// unmapped is the address without the prefix that IPv4 has on a socket of IPv6.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
