package path

import (
	"math"
	"time"

	"ringway/quality"
)

// What a path that delivers is worth: a line that loses too much is left, too, for one that is better. Each end counts
// what it hears of what the other has sent, by the numbers of the messages in their session, and tells it; lines that
// are not used are judged by their probes.

const (
	// lossWindow is the time in which loss is counted, and lossKept, for how long what was found holds, where the far end
	// sends every helloEvery (keptOf).
	lossWindow = time.Second
	lossKept   = 3 * time.Second
	// leastExpected is how many messages a window has to have, and windowPackets, how many it has at the least with a
	// call.
	leastExpected = 20
	windowPackets = 50

	// goodRating is the least R with which a line is left alone: some users are dissatisfied below (ITU-T G.107, annex
	// B). betterBy is by how much another line has to be better, and certainty, in standard deviations, how little that
	// may be an accident of what was counted.
	goodRating = 80
	betterBy   = 5
	certainty  = 2.6
	// leastWindows is how many windows of loss decide.
	leastWindows = 2
	// hurriedProbeEvery is how often the other lines are probed while the one that is used is bad: 25 a second, with
	// which a line of 5 % can be distinguished from one of none in three seconds.
	hurriedProbeEvery = 40 * time.Millisecond
	// unjudged probes are the latest ones, whose answers may be on their way.
	unjudged = 8
	// A line that was left because it was bad has to be well for healthTime, and twice as long each time, up to
	// longestBack; as long no line is left for that cause. After longestBack without one the first is as before.
	longestBack = time.Hour
	firstHold   = 10 * time.Second
)

// Counts are what the engine knows of a message about paths that arrived by the path that is used.
type Counts struct {
	Session uint64 // which session it was in
	Counter uint64 // its number there
	// Got are the messages that had arrived in the session by then, this one included, but no probes or answers. While
	// copies come, by the path that is used alone, copies included.
	Got uint64
}

// incoming is the loss of what is sent to us.
type incoming struct {
	at        int64         // the window's begin; 0: there is none
	kept      time.Duration // for how long what is found holds
	from      Counts
	elsewhere uint32
	copies    uint16

	loss   int   // per mille
	lossAt int64 // when it was found; 0: never
}

// hear takes a message that arrived by the path that is used.
func (l *incoming) hear(now int64, m Message, c Counts) {
	expected := int64(c.Counter-l.from.Counter) - int64(m.Elsewhere-l.elsewhere) + int64(m.Copies-l.copies)
	got := int64(c.Got - l.from.Got)
	l.kept = keptOf(m.Slow)
	switch {
	case l.at == 0 || c.Session != l.from.Session || now-l.at > int64(l.kept) || expected < 0 || got < 0:
	case now-l.at < int64(lossWindow):
		return
	case expected >= leastExpected:
		l.loss, l.lossAt = int(1000*max(0, expected-got)/expected), now
	}
	l.at, l.from, l.elsewhere, l.copies = now, c, m.Elsewhere, m.Copies
}

// keptOf is for how long loss holds that is found from messages of a far end that is so much slower.
func keptOf(slow int) time.Duration { return lossKept * helloOf(slow) / helloEvery }

// now is the loss at present; -1: it is not known.
func (l *incoming) now(now int64) int {
	if l.lossAt == 0 || now-l.lossAt > int64(l.kept) {
		return -1
	}
	return l.loss
}

// history is which of the last probes of a path were answered.
type history struct {
	answered [256]bool // ring
	stamps   [64]int64 // of the latest, ring; 0: answered
	n        int
}

func (h *history) ask(now int64) {
	h.answered[h.n%len(h.answered)] = false
	h.stamps[h.n%len(h.stamps)] = now
	h.n++
}

// answer marks the probe of a stamp; false: there is no such probe that waits for one.
func (h *history) answer(stamp int64) bool {
	for i := h.n - 1; i >= max(0, h.n-len(h.stamps)); i-- {
		if at := &h.stamps[i%len(h.stamps)]; *at == stamp && stamp != 0 {
			h.answered[i%len(h.answered)] = true
			*at = 0
			return true
		}
	}
	return false
}

// count counts the latest n probes, and those that were lost.
func (h *history) count(n int) (lost, of int) {
	last := h.n - unjudged
	for i := max(0, last-n, h.n-len(h.answered)); i < last; i++ {
		of++
		if !h.answered[i%len(h.answered)] {
			lost++
		}
	}
	return lost, of
}

// rating is R of a call with G.711 and packet loss concealment (ITU-T G.113, appendix I) by a path.
func rating(perMille int, trip time.Duration) float64 {
	m := quality.DefaultEModel()
	m.Bpl, m.Ppl = 25.1, float64(perMille)/10
	oneWay := float64(trip) / 2 / float64(time.Millisecond)
	m.T, m.Ta, m.Tr = oneWay, oneWay, 2*oneWay
	return m.R()
}

// bad is what is known of a path that is used and bad.
type bad struct {
	since   int64
	looked  int64
	windows int
	sum     int // of their loss, per mille
}

// judge notes whether the path that is used is bad, and chooses a better one. The answer is its index in probed; -1:
// there is none. It looks once in a window.
func (w *Watch) judge(now int64, s Seen) (better int) {
	if now-w.bad.looked < int64(lossWindow) {
		return -1
	}
	w.bad.looked = now
	worst := w.in.now(now)
	if w.farLossAt != 0 && now-w.farLossAt <= int64(keptOf(w.farSlow)) {
		worst = max(worst, w.farLoss)
	}
	trip := time.Duration(0)
	if i := w.find(s.Used); i >= 0 {
		trip = w.probed[i].trip
	}
	if worst < 0 || now-w.movedAt < 2*int64(lossWindow) {
		w.bad.since = 0
		return -1
	}
	if w.bad.since == 0 {
		w.bad.since, w.bad.windows, w.bad.sum = now, 0, 0
	}
	w.bad.windows++
	w.bad.sum += worst
	loss := w.bad.sum / w.bad.windows
	used := rating(loss, trip)
	if used >= goodRating {
		w.bad.since = 0
		return -1
	}
	if w.bad.windows < leastWindows || w.badLeft != 0 && now-w.badLeft < int64(w.hold()) {
		return -1
	}
	best, most := -1, used+betterBy
	for i := range w.probed {
		u := &w.probed[i]
		lost, of := u.history.count(len(u.history.answered))
		if u.path == s.Used || u.healthy == 0 || of == 0 ||
			!distinct(loss*w.bad.windows*windowPackets/1000, w.bad.windows*windowPackets, lost, of) {
			continue
		}
		if r := rating(1000*lost/of, u.trip); r >= most {
			best, most = i, r
		}
	}
	return best
}

// distinct reports whether the loss of the first is above that of the second, by more than an accident.
func distinct(lost, of, lostHere, ofHere int) bool {
	a, b := float64(lost)/float64(of), float64(lostHere)/float64(ofHere)
	both := float64(lost+lostHere) / float64(of+ofHere)
	deviation := math.Sqrt(both * (1 - both) * (1/float64(of) + 1/float64(ofHere)))
	return a-b > certainty*deviation
}

// hurried reports whether the other lines are probed more often, to find out whether one is better.
func (w *Watch) hurried() bool { return w.bad.since != 0 }

// hold is for how long no line is left because it is bad after one was.
func (w *Watch) hold() time.Duration { return min(firstHold<<(w.badTimes-1), longestBack) }

// leaveBad notes that a path was left because it was bad.
func (w *Watch) leaveBad(now int64) {
	if w.badLeft != 0 && now-w.badLeft > int64(longestBack) {
		w.badTimes = 0
	}
	w.badLeft = now
	w.badTimes = min(w.badTimes+1, 8)
	w.bad.since = 0
}

// backAfter is for how long a preferred path has to be well until it is taken again.
func (w *Watch) backAfter(now int64) time.Duration {
	if w.badLeft == 0 || now-w.badLeft > int64(longestBack) {
		return healthTime
	}
	return min(healthTime<<w.badTimes, longestBack)
}
