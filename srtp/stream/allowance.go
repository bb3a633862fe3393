package stream

import (
	"math/rand/v2"
	"time"
)

// allowance lets something happen a number of times a second, and as often at once. It is for packets of which nobody
// can say yet which are genuine. Where more come than may pass, chance decides: the first ones of each second would all
// be a flood's, and somebody who knew when the next one passes would be there. So a genuine packet has its share, and
// a source that goes on sending gets through.
type allowance struct {
	rate   int
	left   int
	at     int64  // since when packets are counted
	came   uint32 // packets since then
	before uint32 // and in as long a time before
	begun  bool
}

func (a *allowance) take(now int64) bool {
	every := int64(time.Second) / int64(a.rate)
	if !a.begun {
		a.begun, a.left, a.at = true, a.rate, now
	}
	if passed := (now - a.at) / every; passed > 0 {
		a.left = int(min(int64(a.left)+passed, int64(a.rate)))
		a.before, a.came = a.came, 0
		if passed > 1 {
			a.before = 0
		}
		a.at += passed * every
	}
	a.came++
	if a.left == 0 || rand.Uint32N(a.before+1) >= uint32(a.left) {
		return false
	}
	a.left--
	return true
}
