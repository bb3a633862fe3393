package path

import (
	"slices"
	"time"
)

// Which path a peer is sent to by, and when it is left for another one.

// Move is a change of the path that is used.
type Move struct {
	At       int64
	From, To Path
	Why      string
}

// Why a peer is sent to from another address.
const (
	WhySilent   = "nothing was received"
	WhyReported = "the far end received nothing"
	WhyBad      = "too much was lost"
	WhyBack     = "the line that was left is well again"
	WhyFollowed = "the far end is heard there"
)

// Left notes that a path was left for a cause that is not found here: its line has gone.
func (w *Watch) Left(from Path) {
	if w.away == (Path{}) {
		w.away = from
	}
}

// choose chooses another path; zero: the one that is used stays.
func (w *Watch) choose(now int64, s Seen, up bool) (to Path) {
	if w.silent(now, s) {
		return w.move(now, s, WhySilent)
	}
	if better := w.judge(now, s); up && better >= 0 {
		to = w.moveTo(now, s, w.probed[better].path, WhyBad)
		w.leaveBad(now)
		return to
	}
	if back := w.wellAgain(now, s); back != (Path{}) {
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
	i := w.find(s.Used)
	return i >= 0 && w.probed[i].missed >= lostProbes &&
		now-w.movedAt > lostProbes*int64(restProbeEvery)*w.slow(s)
}

// patience is how long nothing has to be received.
func (w *Watch) patience() time.Duration {
	if w.moved {
		return max(min(settleTime<<max(0, w.futile-1), longestSettle), w.Silence())
	}
	return w.Silence()
}

// move chooses another path: one whose probes are answered, else one of which nothing is known. One that is known
// to be silent is tried only when nothing was received for longer. Of several it is the next one that shares neither
// end with the one that is used, else the next one.
func (w *Watch) move(now int64, s Seen, why string) Path {
	i := slices.Index(s.Paths, s.Used)
	kinds := []State{Up, Unknown}
	if now-s.Heard > int64(desperateAfter) {
		kinds = append(kinds, Silent)
	}
	for _, kind := range kinds {
		var next Path
		for n := 1; n <= len(s.Paths); n++ {
			p := s.Paths[(i+n)%len(s.Paths)]
			if p == s.Used || w.byProbes(p) != kind {
				continue
			}
			if p.apart(s.Used) {
				return w.moveTo(now, s, p, why)
			}
			if next == (Path{}) {
				next = p
			}
		}
		if next != (Path{}) {
			return w.moveTo(now, s, next, why)
		}
	}
	return Path{}
}

// byProbes is how a path is by its probes. One by which nothing was ever received may lead to a far end behind a NAT,
// which lets nothing in from there: that is not the line's fault.
func (w *Watch) byProbes(p Path) State {
	i := w.find(p)
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

func (w *Watch) moveTo(now int64, s Seen, to Path, why string) Path {
	if i := w.find(s.Used); i >= 0 { // what probes have found is of before
		w.probed[i].healthy, w.probed[i].missed, w.probed[i].counted = 0, 0, now
	}
	switch {
	case why == WhyBack:
		w.away = Path{}
	case w.away == (Path{}):
		w.away = s.Used
	}
	if w.moved {
		w.futile = min(w.futile+1, 16)
	}
	w.movedAt, w.moved, w.used = now, true, to
	w.noteMove(Move{At: now, From: s.Used, To: to, Why: why})
	return to
}

func (w *Watch) noteMove(m Move) {
	w.moves = append(w.moves, m)
	w.moves = w.moves[max(0, len(w.moves)-maxMoves):]
}

// wellAgain is the path that was left and has answered for long enough since; zero: there is none. Where the peer
// itself has chosen by which line it calls it stays there. If the address that was left has gone, a preferred one
// is as good.
func (w *Watch) wellAgain(now int64, s Seen) (to Path) {
	if w.away == (Path{}) {
		return to
	}
	if s.Used == w.away {
		w.away = Path{}
		return to
	}
	candidates := []Path{w.away}
	if !slices.Contains(s.Paths, w.away) {
		candidates = s.Paths[:max(0, slices.Index(s.Paths, s.Used))]
	}
	for _, p := range candidates {
		j := w.find(p)
		if j < 0 || w.probed[j].healthy == 0 || now-w.probed[j].healthy < int64(w.backAfter(now)) {
			continue
		}
		if lost, _ := w.probed[j].history.count(64); lost == 0 || w.badTimes == 0 {
			return p
		}
	}
	return to
}
