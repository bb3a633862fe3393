package realtime

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/ledger"
	"ringway/tunnel/path"
	"ringway/units"
)

// Copies of voice: the ciphertext of media is sent a second time, by another path or path.CopyDelay later by the same
// one (laterring.go). When and by which path is decided by package path, on the control side; the outbound thread finds
// in a pointer of the peer whether to copy.
//
//  1. seal: a packet of media to a peer with copies is marked
//  2. sendBatch: the batch leaves. Nothing waits for a copy
//  3. sendCopies: what is marked is sent again to where copies go, from the same memory, or is kept for later
//
// Inbound, the replay window removes what has arrived already, before it is opened (arrivedAgain). A peer that has said
// that it sends copies, or to which copies are sent by another path so that its answers come by both, does not move
// because something of it is heard elsewhere: only what it sends once says where it wants to be sent to.

// answersSplitFor is how long nothing is heard by the path that is used until a peer that does not know copies counts
// as one that has moved: it answers to whichever copy came first.
const answersSplitFor = 400 * time.Millisecond

// copyTo is where a peer's media is sent a second time. It does not change.
type copyTo struct {
	media uint64    // inner code points, a bit each
	to    *endpoint // nil: by the path that is used, later
}

// copied says what kind of copy a packet is.
type copied uint8

const (
	original copied = iota
	copiedElsewhere
	copiedLater
)

// peerCopies is what forwarding threads use and count of a peer's copies.
type peerCopies struct {
	to     atomic.Pointer[copyTo] // nil: nothing is sent twice
	coming atomic.Int64           // until when copies come from the peer, which it has said
	split  atomic.Int64           // until when its answers may come by two paths
	// silence is the longest time in which nothing is heard of the peer while it sends, in ns (path.Watch.Silence).
	silence atomic.Int64

	sent, unsent, removed atomic.Uint64
	sentLater             atomic.Uint32 // of sent, those by the path that is used
}

// stays reports whether the peer stays where it is although something of it that may be a copy arrived elsewhere. heard
// is when something last arrived by the path that is used.
func (c *peerCopies) stays(now, heard int64) bool {
	return now < c.coming.Load() && now-heard < c.silence.Load() ||
		now < c.split.Load() && now-heard < int64(answersSplitFor)
}

// hear takes what the far end says of its copies and its pace.
func (c *peerCopies) hear(w *path.Watch) {
	c.silence.Store(int64(w.Silence()))
	c.coming.Store(w.Coming())
}

func (c *peerCopies) noteSent(kind copied) {
	c.sent.Add(1)
	if kind == copiedLater {
		c.sentLater.Add(1)
	}
}

// arrivedAgain takes a message whose counter has arrived already: a copy, if the peer has said that it sends some, and
// otherwise a replay. One by the path that is used shows that the path delivers; so that nobody else can show that,
// it is opened.
func (in *inbound) arrivedAgain(s *session, p []byte, counter uint64, name *datagram.Sockaddr, a *datagram.Arrival,
	now int64) {
	peer := s.peer
	if now >= peer.copies.coming.Load() {
		in.e.drops.add(dropReplay)
		return
	}
	to := peer.endpoint.Load()
	used := to != nil && to.raw == *name && to.src == a.Source
	if used {
		if _, err := in.open(s, p); err != nil {
			in.e.drops.add(dropForged)
			return
		}
	}
	if !s.replay.takeAgain(counter, used) {
		in.e.drops.add(dropReplay)
		return
	}
	peer.copies.removed.Add(1)
	if used {
		s.got++
		peer.heardAt.Store(now)
	}
}

// sendCopies sends what is marked in the batch a second time, or keeps it for later.
func (o *outbound) sendCopies(now int64) {
	o.copies = 0
	n := 0
	for i := range o.packets[:o.n] {
		p := &o.packets[i]
		switch c := p.again; {
		case c == nil:
		case c.to == nil:
			o.keepForLater(p, now)
		default:
			o.packets[n] = outPacket{peer: p.peer, to: c.to, wire: p.wire, tos: p.tos, copied: copiedElsewhere}
			n++
		}
	}
	if o.n = n; n > 0 {
		o.sendBatch(now)
	}
}

// dropPacket drops a packet of the batch. A copy has a count of its own: what it is a copy of was sent.
func (o *outbound) dropPacket(at int, why reason) {
	if p := &o.packets[at]; p.copied != original {
		p.peer.copies.unsent.Add(1)
		return
	}
	o.drop(why, o.packets[at].mark)
}

// copyPlan is tunnel.Copies, ready to be looked up. It does not change.
type copyPlan struct {
	media uint64
	lines []copyLine
	sites map[tunnel.PublicKey]tunnel.CopySite
}

// copyLine is a WAN. packet is what callPacket counts there.
type copyLine struct {
	tunnel.CopyLine
	packet int64
}

// callPacket is an IP packet of G.711 in the tunnel, in bytes: by it rates are converted from line to line.
const callPacket = 208 + tunnel.OverheadIPv4

// copying is what the control side keeps of a peer's copies.
type copying struct {
	route path.Path
	on    bool
	line  int           // that they go by
	rate  units.BitRate // that they take there
	state path.CopyState

	charged   units.BitRate // of rate, what Engine.copyLoad has of it
	chargedTo int
}

// copyLoad is what calls and copies take of each line of a plan. It is found once for all peers that are looked at in
// one go: a hub has hundreds, and each of them is looked at every path.LookEvery.
type copyLoad struct {
	plan  *copyPlan
	at    int64
	lines []units.BitRate
	walks int // over all peers
}

// SetCopies changes to which peers media is sent twice, from the next look at their paths on.
func (e *Engine) SetCopies(c tunnel.Copies) error {
	if err := c.Check(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.copyPlan = nil
	if len(c.Sites) > 0 && c.Media != 0 {
		e.copyPlan = newCopyPlan(c)
	}
	now := e.now()
	for _, p := range e.peers {
		e.copyLocked(p, now)
	}
	return nil
}

func newCopyPlan(c tunnel.Copies) *copyPlan {
	plan := &copyPlan{media: c.Media, sites: map[tunnel.PublicKey]tunnel.CopySite{}}
	for _, l := range c.Lines {
		plan.lines = append(plan.lines, copyLine{l, int64(ledger.Wire(l.AdmissionLine, callPacket))})
	}
	for _, s := range c.Sites {
		plan.sites[s.Key] = s
	}
	return plan
}

// lineOf is the line that has an address of ours; otherwise which the daemon names.
func (c *copyPlan) lineOf(a netip.Addr, otherwise int) int {
	if i := slices.IndexFunc(c.lines, func(l copyLine) bool { return slices.Contains(l.Sources, a) }); i >= 0 {
		return i
	}
	return otherwise
}

// convert is what a rate on one line counts on another.
func (c *copyPlan) convert(r units.BitRate, from, to int) units.BitRate {
	return units.BitRate(int64(r) * c.lines[to].packet / c.lines[from].packet)
}

var copyModes = map[tunnel.CopiesWhen]path.CopyMode{
	tunnel.CopiesOff: path.CopyOff, tunnel.CopiesOnLoss: path.CopyOnLoss, tunnel.CopiesAlways: path.CopyAlways,
}

// copyLocked decides whether media to a peer is sent twice, and by which path.
func (e *Engine) copyLocked(p *peer, now int64) {
	c := &p.copying
	site, wanted := e.copySite(p)
	if !wanted && c.state == "" {
		return
	}
	to := p.endpoint.Load()
	if to == nil {
		e.stopCopiesLocked(p)
		return
	}
	s := e.seenLocked(p, to, now)
	r, later := p.paths.CopyRoute(now, s)
	on := p.paths.Copies(now, s, copyModes[site.When], r, later, func() bool {
		return e.copyFitsLocked(p, site, to.src, r.Source, later, now)
	})
	e.noteCopiesLocked(p, site.When, r, later)
	if !wanted || !on {
		e.stopCopiesLocked(p)
		return
	}
	e.chargeLocked(c, c.rate)
	if later {
		e.out.makeLater()
	} else if !p.paths.Knows(now) {
		p.copies.split.Store(now + int64(2*time.Second))
	}
	is := p.copies.to.Load()
	if c.on && is != nil && (is.to == nil) == later && (later || c.route == r) && is.media == e.copyPlan.media {
		return
	}
	next := &copyTo{media: e.copyPlan.media}
	if !later {
		next.to = newEndpoint(datagram.RawSockaddr(r.Remote), r.Source)
	}
	c.route, c.on = r, true
	p.copies.to.Store(next)
}

func (e *Engine) copySite(p *peer) (s tunnel.CopySite, wanted bool) {
	if e.copyPlan == nil {
		return tunnel.CopySite{When: tunnel.CopiesOff}, false
	}
	s, wanted = e.copyPlan.sites[p.key]
	if !wanted || s.When == tunnel.CopiesOff {
		return tunnel.CopySite{When: tunnel.CopiesOff}, false
	}
	return s, true
}

func (e *Engine) stopCopiesLocked(p *peer) {
	if p.copying.on {
		p.copying.on = false
		p.copies.to.Store(nil)
		e.chargeLocked(&p.copying, 0)
	}
}

// copyFitsLocked notes which line copies go by and what they take there, and finds out whether the voice budget has
// room for that: calls come first.
func (e *Engine) copyFitsLocked(p *peer, s tunnel.CopySite, used, by netip.Addr, later bool, now int64) bool {
	plan, c := e.copyPlan, &p.copying
	e.findCopyLoadLocked(now)
	e.chargeLocked(c, 0) // what its copies take is found again
	from := plan.lineOf(used, s.Line)
	c.line = from
	if !later {
		c.line = plan.lineOf(by, s.Line)
	}
	taken := p.voice.Taken(now)
	c.rate = plan.convert(taken, from, c.line)
	need := c.rate
	if c.line == from {
		need += taken
	}
	if limit := s.Rates[c.line]; limit > 0 && need > limit {
		return false
	}
	pool := plan.lines[c.line].Rate
	return pool == 0 || e.copyLoad.lines[c.line]+c.rate <= pool
}

// findCopyLoadLocked finds what calls take of each line, and copies.
func (e *Engine) findCopyLoadLocked(now int64) {
	load, plan := &e.copyLoad, e.copyPlan
	if load.plan == plan && load.at == now {
		return
	}
	load.plan, load.at, load.walks = plan, now, load.walks+1
	load.lines = append(load.lines[:0], make([]units.BitRate, len(plan.lines))...)
	for k, p := range e.peers {
		p.copying.charged = 0
		taken := p.voice.Taken(now)
		s, known := plan.sites[k]
		if taken == 0 || !known {
			continue
		}
		used := netip.Addr{}
		if to := p.endpoint.Load(); to != nil {
			used = to.src
		}
		load.lines[plan.lineOf(used, s.Line)] += taken
		if p.copying.on && p.copying.line < len(plan.lines) {
			e.chargeLocked(&p.copying, p.copying.rate)
		}
	}
}

// chargeLocked has a peer's copies count as so much on their line, instead of what they did.
func (e *Engine) chargeLocked(c *copying, rate units.BitRate) {
	if e.copyPlan == nil || e.copyLoad.plan != e.copyPlan {
		return // it is found again before it is used
	}
	if c.charged > 0 {
		e.copyLoad.lines[c.chargedTo] -= c.charged
	}
	if c.charged, c.chargedTo = rate, c.line; rate > 0 {
		e.copyLoad.lines[c.line] += rate
	}
}

// hearByLocked notes a path by which the far end probes.
func (e *Engine) hearByLocked(p *peer, to *endpoint, m *pathMessage, now int64) {
	if path.Stays(m.b[:]) && m.from != to.raw {
		p.paths.HearBy(now, path.Path{Source: m.src, Remote: m.from.AddrPort()})
	}
}

// noteCopiesLocked logs what becomes of a peer's copies. That calls begin and end is not worth a line.
func (e *Engine) noteCopiesLocked(p *peer, when tunnel.CopiesWhen, r path.Path, later bool) {
	state, _, _, _ := p.paths.CopiesTo()
	was := p.copying.state
	if was == state {
		return
	}
	p.copying.state = state
	if when == tunnel.CopiesOff {
		if state == path.CopiesRest {
			p.copying.state = ""
		}
		return
	}
	level := slog.LevelDebug
	if state == path.CopiesNoRoom || state == path.CopiesSent && when == tunnel.CopiesOnLoss ||
		was == path.CopiesSent && state == path.CopiesClean {
		level = slog.LevelInfo
	}
	words := "voice to a site is sent once"
	if state == path.CopiesSent {
		words = "voice to a site is sent twice"
	}
	e.log.Log(context.Background(), level, words, "peer", p.key, "why", copyWords(when, state), "by", r.Source,
		"to", r.Remote, "later", later)
}

// copyWords says for people why copies are sent or not.
func copyWords(when tunnel.CopiesWhen, state path.CopyState) string {
	switch state {
	case path.CopiesRest:
		return "there is no call"
	case path.CopiesClean:
		return "the line loses less than 0.5 %"
	case path.CopiesUnknown:
		return "the far end does not tell what is lost"
	case path.CopiesBegin:
		return "the far end is told first"
	case path.CopiesSent:
		if when == tunnel.CopiesOnLoss {
			return "the line loses packets"
		}
		return "copies: always"
	case path.CopiesNoRoom:
		return "the voice budget has no room for copies"
	case path.CopiesNoRoute:
		return "the site is not heard"
	}
	return "copies: off"
}

// copiesStatusLocked is for people; nil: there is nothing to say.
func (e *Engine) copiesStatusLocked(p *peer) *tunnel.CopiesStatus {
	site, wanted := e.copySite(p)
	c := &p.copies
	removed := c.removed.Load()
	if !wanted && removed == 0 && c.sent.Load() == 0 {
		return nil
	}
	state, _, _, later := p.paths.CopiesTo()
	st := &tunnel.CopiesStatus{
		When: site.When, State: string(state), Why: copyWords(site.When, state), Sent: c.sent.Load(),
		Unsent: c.unsent.Load(), Removed: removed,
	}
	if !wanted {
		st.State, st.Why = string(path.CopiesRest), copyWords(site.When, "")
	}
	if p.copying.on {
		st.By, st.To, st.Later = p.copying.route.Source, p.copying.route.Remote, later
	}
	return st
}
