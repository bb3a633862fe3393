package transparent

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A pair has two sides and a direction from each.
const (
	near = 0 // the side that was accepted
	far  = 1 // the side that we connected
)

// mode is what a pair carries.
type mode uint32

const (
	undecided mode = iota // nothing but line ends has come
	carriesSIP
	carriesRaw // it began with something that cannot be SIP, and passes unread
)

// pair is a TCP connection of a sender and the one that we made in its name.
type pair struct {
	r        *Relay
	from, to netip.AddrPort // who connected, and to whom
	fromNear bool

	sides      [2]*side
	directions [2]*direction // by the side that they read
	dialed     bool
	reserved   int64 // memory of TLS

	mode   atomic.Uint32
	active atomic.Int64 // when anything came, as Relay.now says

	stop     chan struct{} // closed by pause and abort
	stopOnce sync.Once
	done     chan struct{} // closed when nothing works on the pair any more

	mu     sync.Mutex // guards what follows, the setting of deadlines, and sides' conn
	paused bool       // for export: no byte is read or written any more
	over   bool       // closed

	encrypted bool // both sides speak TLS
}

// errPaused ends the work on a pair that is to be exported. What is unsent stays in its sides and directions.
var errPaused = errors.New("paused")

// failure ends a pair, and says under which name that is counted.
type failure event

func (f failure) Error() string { return eventNames[f] }

// newPair makes a pair of an accepted connection. On error the connection stays open.
func newPair(r *Relay, from, to netip.AddrPort, fromNear bool, conn *net.TCPConn) (*pair, error) {
	p := &pair{
		r: r, from: from, to: to, fromNear: fromNear,
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for i := range p.sides {
		p.sides[i] = newSide(p)
	}
	p.directions[near] = newDirection(p, p.sides[near], p.sides[far], from, to, fromNear)
	p.directions[far] = newDirection(p, p.sides[far], p.sides[near], to, from, !fromNear)
	p.touch()
	if conn == nil {
		return p, nil
	}
	return p, p.setConn(near, conn)
}

// setConn gives a side its connection. It closes the connection if the pair has ended.
func (p *pair) setConn(which int, conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return failure(dialFailed)
	}
	tune(conn, raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		reset(conn)
		return failure(relayClosed)
	}
	p.sides[which].conn, p.sides[which].raw = conn, raw
	return nil
}

// run carries the pair to its end, or until it is paused.
func (p *pair) run() {
	defer close(p.done)
	defer func() { p.r.memory.release(p.reserved) }()
	if err := p.dial(); err != nil {
		if isUnreachable(err) {
			p.r.config.Unreachable(p.to)
		}
		p.abort(err)
		return
	}
	if err := p.secure(); err != nil {
		if !errors.Is(err, errPaused) {
			in := &p.directions[near].in
			in.consume(len(in.bytes()))
		}
		p.abort(err)
		return
	}

	var other sync.WaitGroup
	if d := p.directions[near]; !d.ended {
		other.Go(func() { p.abort(d.carry()) })
	}
	if d := p.directions[far]; !d.ended {
		p.abort(d.carry())
	}
	other.Wait()
	switch {
	case p.directions[near].ended && p.directions[far].ended:
		p.finish()
	case p.isPaused() && p.isEncrypted():
		// Its keys cannot be handed over: the peers are told that it ends, and connect again.
		p.end(tlsNotHandedOver, (*side).close)
	}
}

// finish closes a pair that both ends have ended.
func (p *pair) finish() { p.end(none, (*side).close) }

// abort ends the pair because of an error; nil and errPaused do not. Both peers see a reset, except where the
// Handler ended it, whose reply may still be on its way.
func (p *pair) abort(err error) {
	var why failure
	switch {
	case err == nil, errors.Is(err, errPaused):
		return
	case !errors.As(err, &why):
		why = failure(peerReset)
	}
	if why == failure(closedByHandler) {
		p.end(event(why), (*side).close)
		return
	}
	p.end(event(why), func(s *side) { reset(s.conn) })
}

// end closes both sides. Only the first reason counts.
func (p *pair) end(why event, closeSide func(*side)) {
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return
	}
	p.over = true
	p.mu.Unlock()

	if why != none {
		p.r.counts.add(why)
	}
	p.stopOnce.Do(func() { close(p.stop) })
	p.r.forget(p) // first: a sender who is reset may be back at once
	for _, s := range p.sides {
		if s.conn != nil {
			closeSide(s)
		}
	}
}

// pause stops the work on the pair where it is, which done then reports.
func (p *pair) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = true
	p.stopOnce.Do(func() { close(p.stop) })
	past := time.Unix(1, 0)
	for _, s := range p.sides {
		if s.conn != nil {
			_ = s.conn.SetDeadline(past)
		}
	}
}

func (p *pair) isEncrypted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.encrypted
}

func (p *pair) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// arm sets a deadline, unless the pair is paused: pause must not be overwritten.
func (p *pair) arm(setDeadline func(time.Time) error, at time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		return errPaused
	}
	return setDeadline(at)
}

// touch notes that something came.
func (p *pair) touch() { p.active.Store(p.r.now()) }

// decide says what the pair carries, if that is not decided, and returns what was.
func (p *pair) decide(m mode) mode {
	if p.mode.CompareAndSwap(uint32(undecided), uint32(m)) && m == carriesRaw {
		p.r.counts.add(passedRaw)
		p.wake()
	}
	return mode(p.mode.Load())
}

// wake has both directions look again: they may hold bytes that waited for the rest of a message.
func (p *pair) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sides {
		if s.conn != nil {
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// longestMethod is the most that may precede the first blank of a stream that is read. RFC 3261 has no bound; the
// longest registered method, SUBSCRIBE, has 9 bytes.
const longestMethod = 32

// mayBeSIP reports whether a stream that begins with b may carry SIP: first comes a token or a version, then a blank
// (RFC 3261, section 7). Without this a TLS peer would wait for an answer to bytes that the relay holds until a line
// ends. Line ends are pings: what follows them shows.
func mayBeSIP(b []byte) bool {
	for i, c := range b {
		switch {
		case i == 0 && (c == '\r' || c == '\n'):
			return true
		case c == ' ':
			return i > 0
		case i == longestMethod || !isTokenOrSlash(c):
			return false
		}
	}
	return true
}

// isTokenOrSlash reports whether c may be in a token (RFC 3261, section 25.1), or in `SIP/2.0`.
func isTokenOrSlash(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return c != 0 && bytes.IndexByte([]byte("-.!%*_+`'~/"), c) >= 0
}
