package path

import (
	"net/netip"
	"slices"
	"time"

	"ringway/tunnel"
)

const (
	// LookEvery is how often to look while calls are up.
	LookEvery = 10 * time.Millisecond
	// SendEvery is the longest time without a message while calls are up and either end has several lines.
	SendEvery = 20 * time.Millisecond
	// Silence is the longest time in which nothing is received from an end that sends at least every SendEvery
	// (silenceOf).
	Silence = 5*SendEvery + 10*time.Millisecond
	// settleTime is how long a path that was moved to has until it is judged: a round trip, and what Silence takes.
	// It doubles with each move that did not help, up to longestSettle.
	settleTime    = 250 * time.Millisecond
	longestSettle = 5 * time.Second
	// desperateAfter is how long nothing must have been received until a path is tried that is known to be silent.
	desperateAfter = time.Second
	// reportHold is how long after a move the far end's report that it receives nothing is not yet about the new
	// path.
	reportHold = tunnel.TrialTime + 2*settleTime

	// activeFor is how long after the last packets calls count as up.
	activeFor = 2 * time.Second
	// activePackets in each of two periods of activeIn in a row are a call: signalling alone is fewer, or shorter.
	activePackets = 3
	activeIn      = 250 * time.Millisecond
	// helloEvery is how often the promise is renewed beside media; legacyEvery, how often a far end that has not
	// sent a message about paths is sent one, and at most asked by a handshake.
	helloEvery  = 500 * time.Millisecond
	legacyEvery = 10 * time.Second
	// knownFor is how long a far end that is silent counts as one that knows paths.
	knownFor = 5 * time.Minute

	// probeEvery is how often an unused path is probed while calls are up, and restProbeEvery, every path at rest.
	// The path that is used is probed as rarely during calls: for its round trip alone.
	probeEvery     = 500 * time.Millisecond
	restProbeEvery = 5 * time.Second
	// leftProbeEvery is how often a path that was just left is, for leftFor: what else uses its line has to know soon.
	leftProbeEvery = 200 * time.Millisecond
	leftFor        = 2 * time.Second
	// lostProbes in a row without an answer and a path is silent.
	lostProbes = 3
	// healthTime is how long a path that was left has to answer until it is taken again.
	healthTime = 30 * time.Second

	// LeadTime is how long the leader of two ends that move at the same time stays where it has moved to, although it
	// hears the other by another path: the other follows. Otherwise each would follow the other forever.
	LeadTime = settleTime

	// legacySilence is the longest time in which nothing is received from a far end that does not know paths, until
	// it is asked by a handshake: it may have nothing to send. It has answerTime to answer, and nextLineAfter by
	// each further line.
	legacySilence = 500 * time.Millisecond
	answerTime    = 600 * time.Millisecond
	nextLineAfter = 2 * time.Second

	// maxAnswers bounds the answers to probes in a second: those for eight lines, one of them bad, and more.
	maxAnswers = 250

	maxMoves = 10
)

// Seen is what the engine knows of a peer. Times are in ns of its clock; 0: never.
type Seen struct {
	Paths   []Path       // in order of preference (Pairs)
	Used    Path         // by which it is sent to
	Metered []netip.Addr // sources on lines that are paid by volume: paths from there are not probed
	Pace    Pace         // what the lines have space for
	Session bool         // something can be sent
	Heard   int64        // anything by the path that is used
	Sent    int64
	Packets uint64 // in both directions; messages of this package are not counted
	// MayHandshake is whether a handshake may be begun now.
	MayHandshake bool
}

// Act is what the engine is to do.
type Act struct {
	Move      Path   // send by this path from now on; zero: stay
	Send      bool   // send Message by the path that is used
	Probe     []Path // send Probe by these paths
	Handshake bool   // begin a handshake by the path that is used: any far end answers
}

// Watch is what is known of the paths to one peer. The zero Watch knows nothing. It is not for several goroutines at
// once.
type Watch struct {
	known    int64         // when the far end last sent a message about paths
	promised bool          // it sends something at least every SendEvery
	farLines bool          // it has several lines
	farEvery time.Duration // how often it sends something; 0: it does not say, and does not know any pace
	farSlow  int           // by how much slower than usual it wants to be probed
	replies  int           // to its probes, since second
	second   int64

	active  int64 // until when calls count as up
	packets uint64
	counted int64 // when packets was taken
	busy    bool  // there were enough packets in the last period

	sent       int64         // the last message
	every      time.Duration // how often something is sent, as was told last
	filledAt   int64         // the last message that was sent since there was no media
	handshake  int64         // the last one for a far end that does not know paths
	unanswered bool          // nothing was received since

	away       Path  // that was left first of all, to which the peer returns; zero: none was
	used       Path  // at the last look
	followedAt int64 // when that became another one since the far end sends by it
	movedAt    int64
	moved      bool // and nothing was received since by the path that is used
	futile     int  // moves in a row after which nothing was received

	probed []probed
	moves  []Move

	in        incoming
	farLoss   int // per mille of what we send, as the far end reports
	farLossAt int64
	bad       bad
	badLeft   int64 // when a bad path was left; 0: never
	badTimes  int   // how often

	copies copies
}

// probed is a path as its probes find it.
type probed struct {
	path     Path
	phase    int64
	asked    int64
	answered int64
	healthy  int64 // since when probes are answered; 0: they are not
	missed   int
	counted  int64 // when missed was
	ever     bool  // something was received by it once
	trip     time.Duration
	history  history
}

// Active reports whether calls count as up, or were until a moment ago: then Look is due every LookEvery.
func (w *Watch) Active(now int64) bool { return w.active != 0 && now < w.active+int64(activeFor) }

// Knows reports whether the far end knows paths.
func (w *Watch) Knows(now int64) bool { return w.known != 0 && now-w.known < int64(knownFor) }

// Futile is how many moves in a row have not helped.
func (w *Watch) Futile() int { return w.futile }

// Look takes a look at a peer. It is due every LookEvery while Active, else every 100 ms.
func (w *Watch) Look(now int64, s Seen) (a Act) {
	w.count(now, s.Packets)
	w.noteUsed(now, s)
	if !s.Session {
		return a
	}
	w.noteHeard(s)
	up, several := now < w.active, len(s.Paths) > 1
	a.Send = w.due(now, s, up, several)
	switch {
	case !several:
	case w.Knows(now):
		a.Probe = w.probe(now, s, up)
		a.Move = w.choose(now, s, up)
	case up && s.Heard != 0:
		a.Handshake, a.Move = w.askLegacy(now, s)
	}
	if a.Move != (Path{}) && w.Knows(now) {
		a.Send = true
	}
	if a.Send {
		w.noteSent(now, s)
	}
	return a
}

// noteSent notes a message, and how often something is sent from now on. Step by step that may become less: the far end
// has to hear of it before it waits to no effect, and messages are lost.
func (w *Watch) noteSent(now int64, s Seen) {
	if now-s.Sent >= int64(max(w.every, SendEvery)) {
		w.filledAt = now
	}
	w.sent = now
	target := SendEvery
	if w.filling(now, s) && w.farEvery > 0 {
		target = s.Pace.send()
	}
	w.every = min(target, max(w.every, SendEvery)*3/2)
}

// count finds out whether calls are up.
func (w *Watch) count(now int64, packets uint64) {
	elapsed := now - w.counted
	if w.counted != 0 && elapsed < int64(activeIn) {
		return
	}
	// The engine's counters are read one after the other: the difference may be below zero by one.
	busy := w.counted != 0 && elapsed < 2*int64(activeIn) && int64(packets-w.packets) >= activePackets
	if busy && w.busy {
		w.active = now + int64(activeFor)
	}
	w.counted, w.packets, w.busy = now, packets, busy
}

// noteUsed notes by which path the peer is sent to. Where the peer itself has moved from an address that is not known
// otherwise, what was found of our lines holds for the new one.
func (w *Watch) noteUsed(now int64, s Seen) {
	if s.Used == w.used {
		return
	}
	if w.used != (Path{}) {
		w.followedAt = now
		w.rename(w.used.Remote, s)
		// That the kernel's choice of an address has become known, or is no longer, is no change of the path.
		if w.used.Source.IsValid() && s.Used.Source.IsValid() && s.Heard != 0 {
			w.noteMove(Move{At: now, From: w.used, To: s.Used, Why: WhyFollowed})
		}
	}
	w.used = s.Used
}

func (w *Watch) rename(before netip.AddrPort, s Seen) {
	if before == s.Used.Remote || slices.ContainsFunc(s.Paths, func(p Path) bool { return p.Remote == before }) {
		return
	}
	for i := range w.probed {
		next := Path{w.probed[i].path.Source, s.Used.Remote}
		if w.probed[i].path.Remote == before && w.find(next) < 0 {
			w.probed[i].path = next
		}
	}
	if w.away.Remote == before {
		w.away.Remote = s.Used.Remote
	}
}

// noteHeard notes that something was received by the path that is used.
func (w *Watch) noteHeard(s Seen) {
	if s.Heard == 0 || s.Heard <= w.movedAt {
		return
	}
	w.moved, w.futile = false, 0
	if i := w.find(s.Used); i >= 0 {
		w.probed[i].ever = true
	}
}

// due reports whether a message is due by the path that is used. Where neither end has several lines there is
// nothing to find out, and nothing is sent.
func (w *Watch) due(now int64, s Seen, up, several bool) bool {
	since := now - w.sent
	switch {
	case !several && !(w.farLines && w.Knows(now)) && !w.tells(now):
		return false
	case !w.Knows(now):
		return up && (since >= int64(legacyEvery) || w.sent == 0)
	case !w.Active(now):
		return false
	case w.copies.takeHurry(now):
		return true
	case !several && !w.farLines: // no path is to be found silent: it is what is lost that is told
		return since >= int64(helloEvery)
	case up && w.promised && now-s.Heard > int64(w.Silence()): // media does not report that nothing is received
		return since >= int64(max(w.every, SendEvery))
	case s.Pace.Mute && w.farEvery > 0 && w.filling(now, s): // nothing is lost, and copied, where nothing is sent
		return since >= int64(helloEvery)*s.Pace.slow()
	case s.Pace.Mute && w.farEvery > 0:
		return since >= int64(helloOf(s.Pace.Slow))
	}
	return now-s.Sent >= int64(max(w.every, SendEvery)) || since >= int64(helloOf(s.Pace.Slow))
}

// Silence is the longest time in which nothing is received from the far end while it sends.
func (w *Watch) Silence() time.Duration { return silenceOf(w.farEvery) }

// slow is by how much slower than usual paths are probed.
func (w *Watch) slow(s Seen) int64 { return max(s.Pace.slow(), int64(w.farSlow)) }

// askLegacy finds out by a handshake whether a far end that does not know paths is still there.
func (w *Watch) askLegacy(now int64, s Seen) (handshake bool, move Path) {
	if now-s.Heard <= int64(legacySilence) {
		w.unanswered = false
		return false, move
	}
	if !w.unanswered {
		if !s.MayHandshake || w.handshake != 0 && now-w.handshake < int64(legacyEvery) {
			return false, move
		}
		w.unanswered, w.handshake = true, now
		return true, move
	}
	patience := answerTime
	if w.moved && w.movedAt > w.handshake {
		patience = max(nextLineAfter, w.patience())
	}
	if now-max(w.handshake, w.movedAt) > int64(patience) {
		move = w.move(now, s, WhySilent)
	}
	return false, move
}

// find is the index in probed of a path; -1: it was not probed.
func (w *Watch) find(p Path) int {
	return slices.IndexFunc(w.probed, func(u probed) bool { return u.path == p })
}

// Message is what is sent by the path that is used.
func (w *Watch) Message(now int64, s Seen) Message {
	m := Message{
		Promise: w.promises(now, s) && (len(s.Paths) > 1 || w.farLines), Lines: len(s.Paths) > 1,
		HeardAgo: time.Duration(now - s.Heard), Stamp: uint64(now), Loss: w.in.now(now),
		Every: max(w.every, SendEvery), Slow: s.Pace.Slow, CopyFlags: w.copies.flags(now),
	}
	if s.Heard == 0 {
		m.HeardAgo = never * time.Millisecond
	}
	return m
}

// Probe is what is sent by a path to find out whether it delivers.
func (w *Watch) Probe(now int64, s Seen) Message {
	return Message{
		Promise: w.promises(now, s), Probe: true, Lines: len(s.Paths) > 1, HeardAgo: never * time.Millisecond,
		Stamp: uint64(now), Loss: -1, Every: max(w.every, SendEvery), Slow: s.Pace.Slow,
	}
}

// promises reports whether something is sent every w.every.
func (w *Watch) promises(now int64, s Seen) bool {
	return now < w.active && !(s.Pace.Mute && w.farEvery > 0)
}

// Hear takes a message that arrived by a path. answer is to be sent back by it.
func (w *Watch) Hear(
	now int64, m Message, c Counts, at Path, s Seen,
) (act Act, answer Message, answered bool) {
	w.noteUsed(now, s)
	w.known, w.farLines, w.farEvery, w.farSlow = now, m.Lines, m.Every, m.Slow
	switch {
	case m.Probe:
		if now-w.second > int64(time.Second) {
			w.second, w.replies = now, 0
		}
		if w.replies++; w.replies > maxAnswers {
			return act, answer, false
		}
		answer = Message{
			Promise: w.promises(now, s), Answer: true, Lines: len(s.Paths) > 1, HeardAgo: never * time.Millisecond,
			Echo: m.Stamp, Loss: -1, Every: max(w.every, SendEvery), Slow: s.Pace.Slow,
		}
		return act, answer, true
	case m.Answer:
		w.hearAnswer(now, m, at)
		return act, answer, false
	}

	w.promised = m.Promise
	w.copies.hear(now, m.CopyFlags, m.Slow)
	w.in.hear(now, m, c)
	if m.Loss >= 0 {
		w.farLoss, w.farLossAt = m.Loss, now
	}
	reported := m.HeardAgo > silenceOf(w.every) && m.HeardAgo < never*time.Millisecond
	if reported && s.Session && now < w.active && len(s.Paths) > 1 &&
		now-w.movedAt > int64(w.reportHold()) && now-w.followedAt > int64(w.followHold(s)) {
		if act.Move = w.move(now, s, WhyReported); act.Move != (Path{}) {
			act.Send = true
			w.noteSent(now, s)
		}
	}
	return act, answer, false
}

// reportHold is how long after a move a report is not yet about the new path, longer with each move that did not
// help.
func (w *Watch) reportHold() time.Duration {
	return reportHold + min(settleTime<<min(w.futile, 8), longestSettle)
}

// followHold is how long after the far end was followed to another path a report is not yet about that: a round trip,
// and a few messages.
func (w *Watch) followHold(s Seen) time.Duration {
	i := w.find(s.Used)
	if i < 0 || w.probed[i].trip == 0 {
		return settleTime
	}
	return min(w.probed[i].trip+3*max(w.every, SendEvery), settleTime)
}

func (w *Watch) hearAnswer(now int64, m Message, at Path) {
	i := w.find(at)
	if i < 0 || !w.probed[i].history.answer(int64(m.Echo)) {
		return
	}
	u := &w.probed[i]
	u.answered, u.trip, u.missed, u.ever = now, time.Duration(now-int64(m.Echo)), 0, true
	if u.healthy == 0 {
		u.healthy = now
	}
}

// interval is how often a path is probed, where the lines have space for it.
func (w *Watch) interval(now int64, s Seen, p Path, up bool) time.Duration {
	switch {
	case !up || p == s.Used:
		return restProbeEvery
	case w.hurried():
		return hurriedProbeEvery
	case p == w.away && now-w.movedAt < int64(leftFor):
		return leftProbeEvery
	}
	return probeEvery
}

// probe returns the paths to probe now.
func (w *Watch) probe(now int64, s Seen, up bool) (by []Path) {
	w.probed = slices.DeleteFunc(w.probed, func(u probed) bool { return !slices.Contains(s.Paths, u.path) })
	for _, p := range s.Paths {
		i := w.find(p)
		if i < 0 {
			w.probed = append(w.probed, probed{path: p, phase: p.phase(), asked: now, answered: now})
			i = len(w.probed) - 1
		}
		u := &w.probed[i]
		if slices.Contains(s.Metered, p.Source) && !w.hurried() {
			// What was found once holds no longer, and what is not probed is not silent either.
			u.healthy, u.missed, u.asked, u.answered = 0, 0, now, now
			continue
		}
		every := int64(w.interval(now, s, p, up)) * w.slow(s)
		if (now+u.phase)/every == (u.asked+u.phase)/every {
			continue
		}
		if u.asked > u.answered && now-u.counted >= int64(max(leftProbeEvery, 2*u.trip)) {
			u.counted = now
			if u.missed++; u.missed >= lostProbes {
				u.healthy = 0
			}
		}
		u.asked = now
		u.history.ask(now)
		by = append(by, p)
	}
	return by
}

// State is how a path is.
type State string

// The states.
const (
	Unknown State = "unknown" // nothing was received by it yet, or the far end does not know paths
	Up      State = "up"
	Silent  State = "silent"
)

// Status is one path.
type Status struct {
	Path
	Used  bool
	State State
	Trip  time.Duration // the last round trip of a probe; 0: not known
}

// Status are the paths to a peer, in order of preference, and its last moves, the latest last.
func (w *Watch) Status(now int64, s Seen) (all []Status, moves []Move) {
	for _, p := range s.Paths {
		st := Status{Path: p, Used: p == s.Used, State: Unknown}
		if i := w.find(p); i >= 0 {
			st.Trip = w.probed[i].trip
		}
		switch {
		case !w.Knows(now):
		case st.Used && now < w.active && w.promised:
			if s.Heard > w.movedAt && now-s.Heard <= int64(w.Silence()) {
				st.State = Up
			} else if now-max(s.Heard, w.movedAt) > int64(desperateAfter) {
				st.State = Silent
			}
		default:
			st.State = w.byProbes(p)
		}
		all = append(all, st)
	}
	return all, slices.Clone(w.moves)
}
