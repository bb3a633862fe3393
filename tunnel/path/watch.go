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
	// Silence is the longest time in which nothing is received from an end that sends at least every SendEvery: five
	// messages in a row are missing.
	Silence = 110 * time.Millisecond
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
	Sources []netip.Addr // our addresses in the peer's family, one for each line, in order of preference
	Source  netip.Addr   // where it is sent to from; zero: the kernel chooses
	Session bool         // something can be sent
	Heard   int64        // anything by the path that is used
	Sent    int64
	Packets uint64 // in both directions; messages of this package are not counted
	// MayHandshake is whether a handshake may be begun now.
	MayHandshake bool
}

// Act is what the engine is to do.
type Act struct {
	Move      netip.Addr   // send from this address from now on; zero: stay
	Send      bool         // send Message by the path that is used
	Probe     []netip.Addr // send Probe from these addresses
	Handshake bool         // begin a handshake by the path that is used: any far end answers
}

// Watch is what is known of the paths to one peer. The zero Watch knows nothing. It is not for several goroutines at
// once.
type Watch struct {
	known    int64 // when the far end last sent a message about paths
	promised bool  // it sends something at least every SendEvery
	farLines bool  // it has several lines
	replies  int   // to its probes, since second
	second   int64

	active  int64 // until when calls count as up
	packets uint64
	counted int64 // when packets was taken
	busy    bool  // there were enough packets in the last period

	sent       int64 // the last message
	handshake  int64 // the last one for a far end that does not know paths
	unanswered bool  // nothing was received since

	away    netip.Addr // the address that was left first of all, to which the peer returns; zero: none was
	movedAt int64
	moved   bool // and nothing was received since by the path that is used
	futile  int  // moves in a row after which nothing was received

	probed []probed
	moves  []Move

	in        incoming
	farLoss   int // per mille of what we send, as the far end reports
	farLossAt int64
	bad       bad
	badLeft   int64 // when a bad path was left; 0: never
	badTimes  int   // how often
}

// probed is a path as its probes find it.
type probed struct {
	source   netip.Addr
	asked    int64
	answered int64
	healthy  int64 // since when probes are answered; 0: they are not
	missed   int
	counted  int64 // when missed was
	ever     bool  // something was received by it once
	trip     time.Duration
	history  history
}

// Move is a change of the path that is used.
type Move struct {
	At       int64
	From, To netip.Addr
	Why      string
}

// Why a peer is sent to from another address.
const (
	WhySilent   = "nothing was received"
	WhyReported = "the far end received nothing"
	WhyBad      = "too much was lost"
	WhyBack     = "the line that was left is well again"
)

// Active reports whether calls count as up, or were until a moment ago: then Look is due every LookEvery.
func (w *Watch) Active(now int64) bool { return w.active != 0 && now < w.active+int64(activeFor) }

// Knows reports whether the far end knows paths.
func (w *Watch) Knows(now int64) bool { return w.known != 0 && now-w.known < int64(knownFor) }

// Futile is how many moves in a row have not helped.
func (w *Watch) Futile() int { return w.futile }

// Left notes that an address was left for a cause that is not found here: its line has gone.
func (w *Watch) Left(from netip.Addr) {
	if !w.away.IsValid() {
		w.away = from
	}
}

// Look takes a look at a peer. It is due every LookEvery while Active, else every 100 ms.
func (w *Watch) Look(now int64, s Seen) (a Act) {
	w.count(now, s.Packets)
	if !s.Session {
		return a
	}
	w.noteHeard(s)
	up, several := now < w.active, len(s.Sources) > 1
	a.Send = w.due(now, s, up, several)
	switch {
	case !several:
	case w.Knows(now):
		a.Probe = w.probe(now, s, up)
		a.Move = w.choose(now, s, up)
	case up && s.Heard != 0:
		a.Handshake, a.Move = w.askLegacy(now, s)
	}
	if a.Move.IsValid() && w.Knows(now) {
		a.Send = true
	}
	if a.Send {
		w.sent = now
	}
	return a
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

// noteHeard notes that something was received by the path that is used.
func (w *Watch) noteHeard(s Seen) {
	if s.Heard == 0 || s.Heard <= w.movedAt {
		return
	}
	w.moved, w.futile = false, 0
	if i := w.find(s.Source); i >= 0 {
		w.probed[i].ever = true
	}
}

// due reports whether a message is due by the path that is used. Where neither end has several lines there is
// nothing to find out, and nothing is sent.
func (w *Watch) due(now int64, s Seen, up, several bool) bool {
	since := now - w.sent
	switch {
	case !several && !(w.farLines && w.Knows(now)):
		return false
	case !w.Knows(now):
		return up && (since >= int64(legacyEvery) || w.sent == 0)
	case !w.Active(now):
		return false
	case up && w.promised && now-s.Heard > int64(Silence): // media does not report that nothing is received
		return since >= int64(SendEvery)
	}
	return now-s.Sent >= int64(SendEvery) || since >= int64(helloEvery)
}

// choose chooses another path; zero: the one that is used stays.
func (w *Watch) choose(now int64, s Seen, up bool) (to netip.Addr) {
	if w.silent(now, s) {
		return w.move(now, s, WhySilent)
	}
	if better := w.judge(now, s); up && better >= 0 {
		to = w.moveTo(now, s, w.probed[better].source, WhyBad)
		w.leaveBad(now)
		return to
	}
	if back := w.wellAgain(now, s); back.IsValid() {
		return w.moveTo(now, s, back, WhyBack)
	}
	return to
}

// silent reports whether the path that is used delivers nothing: while calls are up by what is received, and at
// rest by probes.
func (w *Watch) silent(now int64, s Seen) bool {
	if now < w.active {
		return w.promised && now-max(s.Heard, w.movedAt) > int64(w.patience())
	}
	i := w.find(s.Source)
	return i >= 0 && w.probed[i].missed >= lostProbes && now-w.movedAt > lostProbes*int64(restProbeEvery)
}

// patience is how long nothing has to be received.
func (w *Watch) patience() time.Duration {
	if w.moved {
		return min(settleTime<<max(0, w.futile-1), longestSettle)
	}
	return Silence
}

// askLegacy finds out by a handshake whether a far end that does not know paths is still there.
func (w *Watch) askLegacy(now int64, s Seen) (handshake bool, move netip.Addr) {
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

// find is the index in probed of the path from an address; -1: it was not probed.
func (w *Watch) find(a netip.Addr) int {
	return slices.IndexFunc(w.probed, func(u probed) bool { return u.source == a })
}

// Message is what is sent by the path that is used.
func (w *Watch) Message(now int64, s Seen) Message {
	m := Message{
		Promise: now < w.active, Lines: len(s.Sources) > 1, HeardAgo: time.Duration(now - s.Heard), Stamp: uint64(now),
		Loss: w.in.now(now),
	}
	if s.Heard == 0 {
		m.HeardAgo = never * time.Millisecond
	}
	return m
}

// Probe is what is sent by a path to find out whether it delivers.
func (w *Watch) Probe(now int64, s Seen) Message {
	return Message{
		Promise: now < w.active, Probe: true, Lines: len(s.Sources) > 1, HeardAgo: never * time.Millisecond,
		Stamp: uint64(now), Loss: -1,
	}
}

// Hear takes a message that arrived at an address of ours. answer is to be sent from there to where it came from.
func (w *Watch) Hear(
	now int64, m Message, c Counts, at netip.Addr, s Seen,
) (act Act, answer Message, answered bool) {
	w.known, w.farLines = now, m.Lines
	switch {
	case m.Probe:
		if now-w.second > int64(time.Second) {
			w.second, w.replies = now, 0
		}
		if w.replies++; w.replies > maxAnswers {
			return act, answer, false
		}
		answer = Message{
			Promise: now < w.active, Answer: true, Lines: len(s.Sources) > 1, HeardAgo: never * time.Millisecond,
			Echo: m.Stamp, Loss: -1,
		}
		return act, answer, true
	case m.Answer:
		w.hearAnswer(now, m, at)
		return act, answer, false
	}

	w.promised = m.Promise
	w.in.hear(now, m, c)
	if m.Loss >= 0 {
		w.farLoss, w.farLossAt = m.Loss, now
	}
	reported := m.HeardAgo > Silence && m.HeardAgo < never*time.Millisecond
	if reported && s.Session && now < w.active && len(s.Sources) > 1 && now-w.movedAt > int64(w.reportHold()) {
		if act.Move = w.move(now, s, WhyReported); act.Move.IsValid() {
			act.Send, w.sent = true, now
		}
	}
	return act, answer, false
}

// reportHold is how long after a move a report is not yet about the new path, longer with each move that did not
// help.
func (w *Watch) reportHold() time.Duration {
	return reportHold + min(settleTime<<min(w.futile, 8), longestSettle)
}

func (w *Watch) hearAnswer(now int64, m Message, at netip.Addr) {
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

// probe returns the addresses to probe from now.
func (w *Watch) probe(now int64, s Seen, up bool) (from []netip.Addr) {
	w.probed = slices.DeleteFunc(w.probed, func(u probed) bool { return !slices.Contains(s.Sources, u.source) })
	for _, a := range s.Sources {
		every := int64(restProbeEvery)
		if up && a != s.Source {
			every = int64(probeEvery)
			switch {
			case w.hurried():
				every = int64(hurriedProbeEvery)
			case a == w.away && now-w.movedAt < int64(leftFor):
				every = int64(leftProbeEvery)
			}
		}
		i := w.find(a)
		if i < 0 {
			w.probed = append(w.probed, probed{source: a})
			i = len(w.probed) - 1
		}
		u := &w.probed[i]
		if u.asked != 0 && now-u.asked < every {
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
		from = append(from, a)
	}
	return from
}

// move chooses another path: one whose probes are answered, else one of which nothing is known. One that is known
// to be silent is tried only when nothing was received for longer.
func (w *Watch) move(now int64, s Seen, why string) netip.Addr {
	i := slices.Index(s.Sources, s.Source)
	kinds := []State{Up, Unknown}
	if now-s.Heard > int64(desperateAfter) {
		kinds = append(kinds, Silent)
	}
	for _, kind := range kinds {
		for n := 1; n <= len(s.Sources); n++ {
			a := s.Sources[(i+n)%len(s.Sources)]
			if a != s.Source && w.byProbes(a) == kind {
				return w.moveTo(now, s, a, why)
			}
		}
	}
	return netip.Addr{}
}

// byProbes is how a path is by its probes. One by which nothing was ever received may lead to a far end behind a NAT,
// which lets nothing in from there: that is not the line's fault.
func (w *Watch) byProbes(a netip.Addr) State {
	i := w.find(a)
	switch {
	case i < 0:
		return Unknown
	case w.probed[i].healthy != 0:
		return Up
	case w.probed[i].missed >= lostProbes && w.probed[i].ever:
		return Silent
	}
	return Unknown
}

func (w *Watch) moveTo(now int64, s Seen, to netip.Addr, why string) netip.Addr {
	if i := w.find(s.Source); i >= 0 { // what probes have found is of before
		w.probed[i].healthy, w.probed[i].missed, w.probed[i].counted = 0, 0, now
	}
	switch {
	case why == WhyBack:
		w.away = netip.Addr{}
	case !w.away.IsValid():
		w.away = s.Source
	}
	if w.moved {
		w.futile = min(w.futile+1, 16)
	}
	w.movedAt, w.moved = now, true
	w.moves = append(w.moves, Move{At: now, From: s.Source, To: to, Why: why})
	w.moves = w.moves[max(0, len(w.moves)-maxMoves):]
	return to
}

// wellAgain is the path that was left and has answered for long enough since; zero: there is none. Where the peer
// itself has chosen by which line it calls it stays there. If the address that was left has gone, a preferred one
// is as good.
func (w *Watch) wellAgain(now int64, s Seen) (to netip.Addr) {
	if !w.away.IsValid() {
		return to
	}
	if s.Source == w.away {
		w.away = netip.Addr{}
		return to
	}
	candidates := []netip.Addr{w.away}
	if !slices.Contains(s.Sources, w.away) {
		candidates = s.Sources[:max(0, slices.Index(s.Sources, s.Source))]
	}
	for _, a := range candidates {
		j := w.find(a)
		if j < 0 || w.probed[j].healthy == 0 || now-w.probed[j].healthy < int64(w.backAfter(now)) {
			continue
		}
		if lost, _ := w.probed[j].history.count(64); lost == 0 || w.badTimes == 0 {
			return a
		}
	}
	return to
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
	Source netip.Addr
	Used   bool
	State  State
	Trip   time.Duration // the last round trip of a probe; 0: not known
}

// Status are the paths to a peer, in order of preference, and its last moves, the latest last.
func (w *Watch) Status(now int64, s Seen) (all []Status, moves []Move) {
	for _, a := range s.Sources {
		st := Status{Source: a, Used: a == s.Source, State: Unknown}
		if i := w.find(a); i >= 0 {
			st.Trip = w.probed[i].trip
		}
		switch {
		case !w.Knows(now):
		case st.Used && now < w.active && w.promised:
			if s.Heard > w.movedAt && now-s.Heard <= int64(Silence) {
				st.State = Up
			} else if now-max(s.Heard, w.movedAt) > int64(desperateAfter) {
				st.State = Silent
			}
		default:
			st.State = w.byProbes(a)
		}
		all = append(all, st)
	}
	return all, slices.Clone(w.moves)
}
