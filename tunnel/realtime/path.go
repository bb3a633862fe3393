package realtime

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
)

// Paths: by which of our lines each peer is sent to (package path decides). The control side looks at every peer ten
// times a second (timers.go), and at those with calls every path.LookEvery. Messages of the far ends come from the
// inbound thread through a ring.

// SetSources tells the engine the addresses of this machine's lines, in order of preference.
func (e *Engine) SetSources(all []netip.Addr) error {
	var s lineAddresses
	for _, a := range all {
		if a.Is4() {
			s.v4 = append(s.v4, a)
		} else {
			s.v6 = append(s.v6, a)
		}
	}
	e.lines.Store(&s)
	return nil
}

// runPaths looks at the peers with calls until the engine is closed.
func (e *Engine) runPaths() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-e.closed:
			return
		case <-e.called:
		case <-t.C:
		}
		if e.lookAtCalls() {
			t.Reset(path.LookEvery)
		}
	}
}

// lookAtCalls looks at the peers with calls, and reports whether there are any.
func (e *Engine) lookAtCalls() (any bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for p := range e.calling {
		if p.gone.Load() || !p.paths.Active(now) {
			delete(e.calling, p)
			continue
		}
		any = true
		e.lookAtPathsLocked(p, now)
	}
	if e.out.later.Load().waiting() {
		any = true
		e.out.Wake()
	}
	return any
}

// followPathsLocked looks at a peer's paths, and has calls with it looked at more often.
func (e *Engine) followPathsLocked(p *peer, now int64) {
	e.probeMTULocked(p, now)
	if e.calling[p] {
		return
	}
	e.lookAtPathsLocked(p, now)
	if p.paths.Active(now) {
		e.calling[p] = true
		select {
		case e.called <- struct{}{}:
		default:
		}
	}
}

func (e *Engine) lookAtPathsLocked(p *peer, now int64) {
	to := p.endpoint.Load()
	if to == nil {
		return
	}
	s := e.seenLocked(p, to, now)
	e.actLocked(p, to, s, p.paths.Look(now, s), now)
	e.copyLocked(p, now)
}

// seenLocked is what the engine knows of a peer.
func (e *Engine) seenLocked(p *peer, to *endpoint, now int64) path.Seen {
	s := path.Seen{
		Used: pathOf(to), Session: p.current.Load().usable(now), Heard: p.heardAt.Load(), Sent: p.sentAt.Load(),
		Packets:      p.txPackets.Load() + p.rxPackets.Load() - p.pathsHeard.Load(),
		MayHandshake: p.pending == nil && elapsed(now, p.initiated) > rekeyTimeout,
	}
	s.Paths, s.Metered = e.pairsLocked(p, s.Used), e.paths.metered
	s.Pace = e.paceLocked(p, s)
	return s
}

// actLocked does what package path decides.
func (e *Engine) actLocked(p *peer, to *endpoint, s path.Seen, a path.Act, now int64) {
	if a.Move != (path.Path{}) {
		next := endpointOf(a.Move)
		if !e.moveLocked(p, to, next, s, now) {
			return // the peer was heard elsewhere at this very moment
		}
		level := slog.LevelInfo
		if p.paths.Futile() > 2 { // nothing delivers, and each line is tried in turn
			level = slog.LevelDebug
		}
		e.log.Log(context.Background(), level, "a site is sent to by another line", "peer", p.key, "from", s.Used.Source,
			"to", a.Move.Source, "address", a.Move.Remote, "silent_for", time.Duration(now-s.Heard).Round(time.Millisecond))
		to, s.Used = next, a.Move
	}
	if a.Send {
		e.sendPathLocked(p, to, p.paths.Message(now, s), now)
	}
	if a.Handshake {
		p.attempts = 0
		e.initiateLocked(p)
	}
	for _, by := range a.Probe {
		e.sendPathLocked(p, endpointOf(by), p.paths.Probe(now, s), now)
	}
}

// sendPathLocked sends a message about paths by one of them. What cannot be sent is lost, as it would be on the line.
func (e *Engine) sendPathLocked(p *peer, to *endpoint, m path.Message, now int64) {
	s := p.current.Load()
	if !s.usable(now) {
		return
	}
	var b [headerSize + path.Size + tagSize]byte
	var nonce [12]byte
	m.Elsewhere, m.Copies = s.elsewhere, uint16(p.copies.sentLater.Load())
	m.Append(b[headerSize:headerSize])
	e.sealMessage(s, &nonce, b[:], path.Size)
	tos := e.outer.Load().tos[dscpOfReports]
	if m.Probe || m.Answer {
		s.elsewhere++
		if e.transmit(to, b[:], tos) == 0 {
			p.txBytes.Add(uint64(len(b)))
		}
		return
	}
	e.sendAsLocked(p, b[:], tos)
}

// pathsAtOnce is how many messages about paths are read before others may have the mutex.
const pathsAtOnce = 64

// hearPaths takes what far ends have sent about paths.
func (e *Engine) hearPaths() {
	for !e.pathMessages.empty() {
		e.hearSomePaths()
	}
}

func (e *Engine) hearSomePaths() {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := &e.pathMessage
	for range pathsAtOnce {
		if !e.pathMessages.get(m) {
			return
		}
		p, now := m.peer, e.now()
		to := p.endpoint.Load()
		if p.gone.Load() || to == nil {
			continue
		}
		s := e.seenLocked(p, to, now)
		heard := path.Read(m.b[:])
		if heard.Answer {
			p.sizes.Answer(now, heard.Echo)
		}
		by := path.Path{Source: m.src, Remote: m.from.AddrPort()}
		e.hearByLocked(p, to, m, now)
		act, answer, answered := p.paths.Hear(now, heard, m.counts, by, s)
		if answered {
			e.sendPathLocked(p, newEndpoint(m.from, m.src), answer, now)
		}
		e.actLocked(p, to, s, act, now)
		p.copies.hear(&p.paths)
	}
}

// pathStatusLocked adds the paths to a peer's status.
func (e *Engine) pathStatusLocked(p *peer, st *tunnel.PeerStatus, now int64) {
	to := p.endpoint.Load()
	if to == nil {
		return
	}
	st.Copies = e.copiesStatusLocked(p)
	paths, moves := p.paths.Status(now, e.seenLocked(p, to, now))
	for _, s := range paths {
		st.Paths = append(st.Paths, tunnel.PathStatus{
			Source: s.Source, Remote: s.Remote, Used: s.Used, State: tunnel.PathState(s.State), RoundTrip: s.Trip,
		})
	}
	for _, m := range moves {
		st.Moves = append(st.Moves, tunnel.PathMove{
			At: time.Now().Add(-time.Duration(now - m.At)), From: m.From.Source, To: m.To.Source, Why: m.Why,
			FromRemote: m.From.Remote, ToRemote: m.To.Remote,
		})
	}
}

// lineAddresses are the addresses of lines, by family.
type lineAddresses struct{ v4, v6 []netip.Addr }

// pathMessage is a message about paths on its way to the control side.
type pathMessage struct {
	peer   *peer
	from   datagram.Sockaddr
	src    netip.Addr // our address
	counts path.Counts
	b      [path.Size]byte
}

// pathRing carries them: one writer, one reader, no lock, no allocation.
type pathRing struct {
	messages [pathRingSize]pathMessage
	head     atomic.Uint64 // next to read
	tail     atomic.Uint64 // next to write
}

const pathRingSize = 256

// put is for the inbound thread. first reports that nobody may be reading: the reader has taken what was there before.
// It looks again after it has, so that it sees what comes while it reads. ok is false if the ring is full.
func (r *pathRing) put(p *peer, from *datagram.Sockaddr, src netip.Addr, c path.Counts, b []byte) (first, ok bool) {
	t := r.tail.Load()
	if t-r.head.Load() == pathRingSize {
		return false, false
	}
	m := &r.messages[t%pathRingSize]
	m.peer, m.from, m.src, m.counts = p, *from, src, c
	copy(m.b[:], b)
	r.tail.Store(t + 1)
	return r.head.Load() == t, true
}

func (r *pathRing) empty() bool { return r.tail.Load() == r.head.Load() }

// get is for the control side, under Engine.mu. It returns false if the ring is empty.
func (r *pathRing) get(m *pathMessage) bool {
	h := r.head.Load()
	if h == r.tail.Load() {
		return false
	}
	*m = r.messages[h%pathRingSize]
	r.head.Store(h + 1)
	return true
}
