package path

import (
	"slices"
	"time"
)

// Copies of voice: the ciphertext of media is sent twice, the second time by another path or, where there is none, a
// moment later by the same one. The replay window of any WireGuard removes what arrives twice. An end that knows copies
// is told before they come: its peer is heard by two paths then, and it stays with the one that it has.
//
// Both ends tell each other in the upper half of the flags what they want and do.
const (
	flagKnowsCopies = 1 << iota // the sender knows these flags
	flagWantsCopies             // it sends copies when there is a reason: it is to be told what is lost
	flagSendsCopies             // it sends copies now, or is about to
	flagKeepsPath               // it has heard so, and stays with the path that it has
)

// CopyMode is when copies are sent.
type CopyMode uint8

// The modes.
const (
	CopyOff CopyMode = iota
	CopyOnLoss
	CopyAlways
)

const (
	// CopyDelay is how much later a copy by the same path is sent, at the least: bursts of loss on lines are shorter
	// often, and a phone's jitter buffer is longer.
	CopyDelay = 20 * time.Millisecond

	// copyLoss is the loss, per mille of two windows together, from which copies are sent with CopyOnLoss, and
	// copyClean, how long it has to be below.
	copyLoss  = 5
	copyClean = 60 * time.Second
	// copyAnswer is how long the far end has to say that it keeps its path until copies are sent to it regardless, as to
	// any WireGuard.
	copyAnswer = time.Second
	// copyShort is how long no copies are sent after they did not fit into the voice budget.
	copyShort = 5 * time.Second
	// copiesKnown is how long the far end's word holds that it sends copies, as long again for each step by which it is
	// slower, and copiesEnd, for how long some may be on their way when it says that it has stopped.
	copiesKnown = 4 * helloEvery
	copiesEnd   = 500 * time.Millisecond

	// heardFor is for how long a path by which the far end has probed us is one to send copies by, and maxHeard, how many
	// of them are known.
	heardFor = 3 * time.Second
	maxHeard = 8
)

// CopyState is what becomes of copies.
type CopyState string

// The states.
const (
	CopiesRest    CopyState = "rest"     // there is no call
	CopiesClean   CopyState = "clean"    // on_loss: nothing is lost that copies could save
	CopiesUnknown CopyState = "unknown"  // on_loss: the far end does not tell what it loses
	CopiesBegin   CopyState = "begin"    // the far end is told that they come
	CopiesSent    CopyState = "sent"     // they are sent
	CopiesNoRoom  CopyState = "no_room"  // the voice budget has no room for them
	CopiesNoRoute CopyState = "no_route" // the far end is not heard
)

// copies is what is known of copies to a peer and from it.
type copies struct {
	mode  CopyMode
	state CopyState
	since int64 // of state

	begun  int64 // when the far end was told; 0: they are not sent
	on     bool
	short  int64 // when they did not fit; 0: they do
	lossy  bool
	lossAt int64 // when loss was last above copyLoss
	sample int64 // when the latter of the two was taken
	losses [2]int

	knows   bool // the far end
	wants   bool
	kept    int64 // when it last said so
	coming  int64 // until when copies come from it
	hurry   bool  // a message is due at once
	by      Path
	later   bool // by the same path
	heardBy []heardBy
	told    int64
}

// heardBy is a path by which the far end has probed us.
type heardBy struct {
	Path
	at int64
}

// HearBy notes that a probe of the far end arrived by a path. Only what is authentic and new says so: a message that
// was recorded and sent again is neither.
func (w *Watch) HearBy(now int64, r Path) {
	c := &w.copies
	c.heardBy = slices.DeleteFunc(c.heardBy, func(h heardBy) bool { return h.Path == r || now-h.at > int64(heardFor) })
	c.heardBy = append(c.heardBy, heardBy{r, now})
	c.heardBy = c.heardBy[max(0, len(c.heardBy)-maxHeard):]
}

// CopyRoute chooses by which path copies go from now on. later is that there is none but the one that is used.
func (w *Watch) CopyRoute(now int64, s Seen) (r Path, later bool) {
	used := s.Used
	if !used.Source.IsValid() && len(s.Paths) > 0 {
		used.Source = s.Paths[0].Source // which the kernel chooses
	}
	best, most := Path{}, 0
	consider := func(r Path, rank int) {
		if r == w.copies.by && !w.copies.later { // of two that are alike the one that was chosen stays
			rank++
		}
		if rank > most {
			best, most = r, rank
		}
	}
	for _, p := range s.Paths {
		if p == used || slices.Contains(s.Metered, p.Source) {
			continue
		}
		apart := 0 // what is wrong with one is least likely wrong with the other
		if p.apart(used) {
			apart = 10
		}
		switch w.byProbes(p) {
		case Up:
			rank := 1000
			if i := w.find(p); i >= 0 {
				if lost, of := w.probed[i].history.count(64); of > 0 {
					rank -= 500 * lost / of
				}
			}
			consider(p, rank+apart)
		case Unknown:
			consider(p, 100+apart)
		case Silent:
		}
	}
	for _, h := range w.copies.heardBy {
		// By which of our lines the far end can be reached there is known of the one where it was heard. That it probes
		// by a path does not mean that it hears us there.
		if w.byProbes(h.Path) == Silent || h.Source != used.Source && slices.Contains(s.Metered, h.Source) {
			continue
		}
		if now-h.at <= int64(heardFor) && h.Remote != used.Remote && h.Remote.Addr().Is4() == used.Remote.Addr().Is4() {
			consider(h.Path, 300)
		}
	}
	if most == 0 {
		return used, true
	}
	return best, false
}

// Copies decides whether copies are sent, by a route that CopyRoute has chosen. fits finds out whether the voice budget
// has room for them; it is asked only if they would be sent otherwise.
func (w *Watch) Copies(now int64, s Seen, mode CopyMode, r Path, later bool, fits func() bool) (on bool) {
	c := &w.copies
	if c.mode != mode {
		c.mode, c.lossy, c.losses = mode, false, [2]int{}
		c.hurry = mode != CopyOff
	}
	w.sampleLoss(now)
	state := CopiesSent
	switch {
	case mode == CopyOff || now >= w.active:
		state = CopiesRest
	case !s.Session || s.Heard == 0:
		state = CopiesNoRoute
	case mode == CopyOnLoss && !(c.knows && w.Knows(now)):
		state = CopiesUnknown
	case mode == CopyOnLoss && !c.lossy:
		state = CopiesClean
	case !c.room(now, fits()):
		state = CopiesNoRoom
	}
	if state != CopiesSent {
		c.hurry = c.hurry || c.begun != 0
		c.begun, c.on = 0, false
	} else {
		if c.begun == 0 {
			c.begun, c.hurry = now, true
		}
		c.on = c.on || c.kept >= c.begun || now-c.begun >= int64(copyAnswer)
		if !c.on {
			state = CopiesBegin
		}
	}
	if c.state != state {
		c.state, c.since = state, now
	}
	c.by, c.later = r, later
	return c.on
}

// room reports whether copies fit into the voice budget, and did for copyShort.
func (c *copies) room(now int64, fits bool) bool {
	switch {
	case !fits:
		c.short = now
	case c.short != 0 && now-c.short > int64(copyShort):
		c.short = 0
	}
	return c.short == 0
}

// sampleLoss takes the loss of what we send, as the far end reports it, once in a window, and decides whether there is
// enough of it for copies.
func (w *Watch) sampleLoss(now int64) {
	c := &w.copies
	if now-c.sample < int64(lossWindow) {
		return
	}
	c.sample = now
	c.losses[0], c.losses[1] = c.losses[1], 0
	if w.farLossAt != 0 && now-w.farLossAt < 2*int64(helloOf(w.farSlow)) {
		c.losses[1] = w.farLoss
	}
	switch {
	case c.losses[0]+c.losses[1] >= 2*copyLoss:
		c.lossy, c.lossAt = true, now
	case c.lossy && now-c.lossAt >= int64(copyClean):
		c.lossy = false
	}
}

// Coming is until when copies may come from the far end, of the engine's clock; 0: none.
func (w *Watch) Coming() int64 { return w.copies.coming }

// CopiesTo is how copies to the peer are: the state, since when, and by which route; later, by the path that is used.
func (w *Watch) CopiesTo() (state CopyState, since int64, by Path, later bool) {
	c := &w.copies
	return c.state, c.since, c.by, c.later
}

// tells reports whether either end is to be told what is lost although neither may have several lines.
func (w *Watch) tells(now int64) bool {
	return w.copies.mode != CopyOff || w.copies.wants && w.Knows(now) || now < w.copies.coming
}

// flags are the octet for a message.
func (c *copies) flags(now int64) (f uint8) {
	f = flagKnowsCopies
	if c.mode != CopyOff {
		f |= flagWantsCopies
	}
	if c.begun != 0 {
		f |= flagSendsCopies
	}
	if now < c.coming {
		f |= flagKeepsPath
	}
	return f
}

// hear takes what the far end says of copies. slow is its pace: without media it sends as seldom as that.
func (c *copies) hear(now int64, f uint8, slow int) {
	c.knows, c.wants = f&flagKnowsCopies != 0, f&flagWantsCopies != 0
	if f&flagKeepsPath != 0 {
		c.kept = now
	}
	switch {
	case f&flagSendsCopies != 0:
		c.hurry = c.hurry || now >= c.coming
		c.coming = now + int64(copiesKnown)*int64(max(slow, 1))
	case now < c.coming:
		c.coming = min(c.coming, now+int64(copiesEnd))
	}
}

// takeHurry reports whether a message is due at once, and that it is sent.
func (c *copies) takeHurry(now int64) bool {
	hurry := c.hurry && (c.told == 0 || now-c.told >= int64(SendEvery))
	if hurry {
		c.hurry, c.told = false, now
	}
	return hurry
}
