package path

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// LookEvery is how often to look while calls are up.
	LookEvery = 10 * time.Millisecond
	// SayEvery is for how long at most nothing is sent while calls are up.
	SayEvery = 20 * time.Millisecond
	// Silence is for how long nothing may be heard from an end that has promised to send: five messages in a row.
	Silence = 110 * time.Millisecond
	// settleTime is how long a path that was moved to has until it is judged: a round trip, and what Silence takes.
	settleTime = 250 * time.Millisecond

	// activeFor is how long after the last packets calls count as up. As long again it is said that they are not.
	activeFor = 2 * time.Second
	// activePackets in activeIn are a call: ten a second and more, whatever signalling there is.
	activePackets = 3
	activeIn      = 250 * time.Millisecond
	// helloEvery is how often the promise is renewed where media goes; strangerEvery, where the far end has not said that
	// it knows paths.
	helloEvery    = 500 * time.Millisecond
	strangerEvery = 10 * time.Second
	// knownFor is for how long a silent far end still knows paths.
	knownFor = 5 * time.Minute

	// probeEvery is how often an unused path is probed while calls are up, and restProbeEvery, every path at rest. The
	// path that is used is probed as rarely during calls: for its round trip alone.
	probeEvery     = 500 * time.Millisecond
	restProbeEvery = 5 * time.Second
	// lostProbes in a row without an answer and a path is down.
	lostProbes = 3
	// healthTime is how long a preferred path has to answer until it is taken again.
	healthTime = 30 * time.Second

	// strangerSilence is for how long nothing may be heard from an end that does not know paths until it is asked by a
	// handshake: it may have nothing to send. It has answerTime to answer, and nextLineAfter by each further line.
	strangerSilence = 500 * time.Millisecond
	answerTime      = 600 * time.Millisecond
	nextLineAfter   = 2 * time.Second

	// maxAnswers bounds the answers to probes in a second: those for eight lines, and more.
	maxAnswers = 50

	maxMoves = 10
)

// Seen is what the engine knows of a peer. Times are in ns of its clock; 0: never.
type Seen struct {
	Sources []netip.Addr // our addresses in the peer's family, one for each line, in order of preference
	Source  netip.Addr   // where it is sent to from; zero: the kernel chooses
	Session bool         // something can be sent
	Heard   int64        // anything by the path that is used
	Sent    int64
	Packets uint64 // in both directions, ours and messages of this package included
	MayAsk  bool   // a handshake may be begun now
}

// Act is what the engine is to do.
type Act struct {
	Move  netip.Addr   // send from this address from now on; zero: stay
	Say   bool         // send Message by the path that is used
	Probe []netip.Addr // send Probe from these addresses
	Ask   bool         // begin a handshake by the path that is used: any far end answers
}

// Watch is what is known of the paths to one peer. The zero Watch knows nothing. It is not for several goroutines at
// once.
type Watch struct {
	known    int64 // when the far end last said something
	replies  int   // to probes, since second
	second   int64
	promised bool // as it last said

	active  int64 // until when calls count as up
	packets uint64
	counted int64 // when packets was taken

	said    int64
	asked   int64 // the last handshake for a far end that does not know paths
	asking  bool  // it has not been heard since
	movedAt int64
	moved   bool // since something was last heard by the path that is used

	probed []probed
	moves  []Move

	in        incoming
	farLoss   int // per mille of what we send, as the far end says
	farLossAt int64
	bad       bad
	badLeft   int64 // when a bad one was left; 0: never
	badTimes  int   // how often
}

// probed is a path as its probes find it.
type probed struct {
	source   netip.Addr
	asked    int64
	answered int64
	healthy  int64 // since when every probe is answered; 0: it is not
	missed   int
	counted  int64 // when missed was
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
	WhySilent = "nothing was heard"
	WhyTold   = "the far end heard nothing"
	WhyBad    = "too much was lost"
	WhyBack   = "the preferred line is well again"
)

// Active reports whether calls count as up, or were until a moment ago: then Look is due every LookEvery.
func (w *Watch) Active(now int64) bool { return w.active != 0 && now < w.active+int64(activeFor) }

// Knows reports whether the far end knows paths.
func (w *Watch) Knows(now int64) bool { return w.known != 0 && now-w.known < int64(knownFor) }

// Look takes a look at a peer. It is due every LookEvery while Active, else every 100 ms.
func (w *Watch) Look(now int64, s Seen) (a Act) {
	w.count(now, s.Packets)
	if !s.Session {
		return a
	}
	if w.moved && s.Heard > w.movedAt {
		w.moved = false
	}
	up := now < w.active
	switch {
	case up && !w.Knows(now):
		a.Say = now-w.said >= int64(strangerEvery) || w.said == 0
	case w.Active(now):
		a.Say = now-s.Sent >= int64(SayEvery) || now-w.said >= int64(helloEvery)
		if w.promised && now-s.Heard > int64(Silence) { // our own media does not tell that we hear nothing
			a.Say = a.Say || now-w.said >= int64(SayEvery)
		}
	}
	if w.Knows(now) && len(s.Sources) > 1 {
		a.Probe = w.probe(now, s, up)
		if w.silent(now, s) {
			a.Move = w.move(now, s, WhySilent)
		} else if better := w.judge(now, s); up && better >= 0 {
			a.Move = w.moveTo(now, s, w.probed[better].source, WhyBad)
			w.leaveBad(now)
		} else if back := w.preferred(now, s); back.IsValid() {
			a.Move = w.moveTo(now, s, back, WhyBack)
		}
	}
	if up && !w.Knows(now) && len(s.Sources) > 1 && s.Heard != 0 {
		a.Ask, a.Move = w.stranger(now, s)
	}
	a.Say = a.Say || a.Move.IsValid() && w.Knows(now)
	if a.Say {
		w.said = now
	}
	return a
}

// silent reports whether the path that is used delivers nothing: while calls are up by what is heard, and at rest by
// probes.
func (w *Watch) silent(now int64, s Seen) bool {
	if now < w.active {
		return w.promised && now-max(s.Heard, w.movedAt) > int64(w.patience())
	}
	i := w.find(s.Source)
	return i >= 0 && w.probed[i].missed >= lostProbes && now-w.movedAt > lostProbes*int64(restProbeEvery)
}

// stranger finds out whether an end that does not know paths is still there.
func (w *Watch) stranger(now int64, s Seen) (ask bool, move netip.Addr) {
	if now-s.Heard <= int64(strangerSilence) {
		w.asking = false
		return false, move
	}
	if !w.asking {
		if !s.MayAsk || w.asked != 0 && now-w.asked < int64(strangerEvery) {
			return false, move
		}
		w.asking, w.asked = true, now
		return true, move
	}
	patience := answerTime
	if w.moved && w.movedAt > w.asked {
		patience = nextLineAfter
	}
	if now-max(w.asked, w.movedAt) > int64(patience) {
		move = w.move(now, s, WhySilent)
	}
	return false, move
}

func (w *Watch) find(a netip.Addr) int {
	return slices.IndexFunc(w.probed, func(u probed) bool { return u.source == a })
}

// patience is how long nothing may be heard.
func (w *Watch) patience() time.Duration {
	if w.moved {
		return settleTime
	}
	return Silence
}

// count finds out whether calls are up.
func (w *Watch) count(now int64, packets uint64) {
	elapsed := now - w.counted
	if w.counted != 0 && elapsed < int64(activeIn) {
		return
	}
	if w.counted != 0 && elapsed < 2*int64(activeIn) && int64(packets-w.packets) >= activePackets {
		w.active = now + int64(activeFor)
	}
	w.counted, w.packets = now, packets
}

// Message is what to say by the path that is used.
func (w *Watch) Message(now int64, s Seen) Message {
	m := Message{
		Promise: now < w.active, HeardAgo: time.Duration(now - s.Heard), Stamp: uint64(now), Loss: w.in.now(now),
	}
	if s.Heard == 0 {
		m.HeardAgo = never * time.Millisecond
	}
	return m
}

// Probe is what to say by a path that is not used.
func (w *Watch) Probe(now int64) Message {
	return Message{
		Promise: now < w.active, Probe: true, HeardAgo: never * time.Millisecond, Stamp: uint64(now), Loss: -1,
	}
}

// Hear takes a message that arrived at an address of ours. answer is to be sent from there to where it came from.
func (w *Watch) Hear(
	now int64, m Message, c Counts, at netip.Addr, s Seen,
) (act Act, answer Message, answered bool) {
	w.known = now
	switch {
	case m.Probe:
		if now-w.second > int64(time.Second) {
			w.second, w.replies = now, 0
		}
		if w.replies++; w.replies > maxAnswers {
			return act, answer, false
		}
		answer = Message{
			Promise: now < w.active, Answer: true, HeardAgo: never * time.Millisecond, Echo: m.Stamp, Loss: -1,
		}
		return act, answer, true
	case m.Answer:
		w.hearAnswer(now, m, at)
		return act, answer, false
	}
	w.packets++ // it is no call; probes and answers are not counted in the first place
	w.promised = m.Promise
	w.in.hear(now, m, c)
	if m.Loss >= 0 {
		w.farLoss, w.farLossAt = m.Loss, now
	}
	told := m.HeardAgo > Silence && m.HeardAgo < never*time.Millisecond
	if told && now < w.active && !w.moved && now-w.movedAt > 2*int64(settleTime) && len(s.Sources) > 1 {
		if act.Move = w.move(now, s, WhyTold); act.Move.IsValid() {
			act.Say, w.said = true, now
		}
	}
	return act, answer, false
}

func (w *Watch) hearAnswer(now int64, m Message, at netip.Addr) {
	i := w.find(at)
	if i < 0 || !w.probed[i].history.answer(int64(m.Echo)) {
		return
	}
	u := &w.probed[i]
	u.answered, u.trip, u.missed = now, time.Duration(now-int64(m.Echo)), 0
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
			if w.hurried() {
				every = int64(hurriedProbeEvery)
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
		if u.asked > u.answered && now-u.counted >= int64(probeEvery) {
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

// move chooses another address: one whose probes are answered, else the next in order.
func (w *Watch) move(now int64, s Seen, why string) netip.Addr {
	i := max(0, slices.Index(s.Sources, s.Source))
	for _, healthy := range []bool{true, false} {
		for n := 1; n < len(s.Sources); n++ {
			a := s.Sources[(i+n)%len(s.Sources)]
			if a != s.Source && (!healthy || w.answers(a)) {
				return w.moveTo(now, s, a, why)
			}
		}
	}
	return netip.Addr{}
}

func (w *Watch) answers(a netip.Addr) bool {
	return slices.ContainsFunc(w.probed, func(u probed) bool { return u.source == a && u.healthy != 0 })
}

func (w *Watch) moveTo(now int64, s Seen, to netip.Addr, why string) netip.Addr {
	if i := w.find(s.Source); i >= 0 && why != WhyBack { // what its probes said is no longer true
		w.probed[i].healthy, w.probed[i].missed = 0, lostProbes
	}
	w.movedAt, w.moved = now, true
	w.moves = append(w.moves, Move{At: now, From: s.Source, To: to, Why: why})
	w.moves = w.moves[max(0, len(w.moves)-maxMoves):]
	return to
}

// preferred is the first address in order that is better than the one that is used, and has answered for long enough;
// zero: there is none.
func (w *Watch) preferred(now int64, s Seen) (best netip.Addr) {
	i := slices.Index(s.Sources, s.Source)
	for _, a := range s.Sources[:max(0, i)] {
		j := w.find(a)
		if j < 0 || w.probed[j].healthy == 0 || now-w.probed[j].healthy < int64(w.backAfter(now)) {
			continue
		}
		if lost, _ := w.probed[j].history.count(64); lost == 0 || w.badTimes == 0 {
			return a
		}
	}
	return best
}

// State is how a path is.
type State string

// The states.
const (
	Unknown State = "unknown" // nothing was sent by it, or the far end does not know paths
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
		i := w.find(a)
		if i >= 0 {
			st.Trip = w.probed[i].trip
		}
		switch {
		case st.Used && now < w.active && w.promised && w.Knows(now):
			st.State = Up
			if w.silent(now, s) {
				st.State = Silent
			}
		case i >= 0 && w.probed[i].missed >= lostProbes:
			st.State = Silent
		case i >= 0 && w.probed[i].healthy != 0:
			st.State = Up
		}
		all = append(all, st)
	}
	return all, slices.Clone(w.moves)
}
