package flowqueue

import "time"

// Limit decides how much may be under way behind the queues: as little as keeps busy what comes after them.
// It is the kernel's dynamic queue limits (lib/dynamic_queue_limits.c), which byte queue limits are made of:
// the limit grows when what was under way ran out although more would have come, and shrinks by the least
// that was to spare in a while. Where the kernel is told how much left, Limit is told how much has not.
//
// The unit is the caller's: bytes, or what the kernel charges for them.
type Limit struct {
	min, max int
	hold     time.Duration

	limit          int
	given, left    uint64 // in all
	before         uint64 // given, at the last look
	over           int    // how much was under way beyond the limit, then
	last, lastThen int    // size of the last that was given, now and then
	slack          int    // least that was to spare since
	since          time.Duration
}

const noSlack = int(^uint(0) >> 1)

// NewLimit begins with the lowest limit. hold is how long something has to be to spare until the limit shrinks.
func NewLimit(lowest, highest int, hold time.Duration) *Limit {
	l := &Limit{hold: hold, slack: noSlack}
	l.Set(lowest, highest)
	return l
}

// Set changes what the limit may be.
func (l *Limit) Set(lowest, highest int) {
	l.min, l.max = max(lowest, 1), max(lowest, highest, 1)
	l.limit = min(max(l.limit, l.min), l.max)
}

// Now is the current limit. More may be given as long as no more than this is under way.
func (l *Limit) Now() int { return l.limit }

// Give notes that so much was given.
func (l *Limit) Give(n int) {
	l.given += uint64(n)
	l.last = n
}

// Look notes how much is under way.
func (l *Limit) Look(now time.Duration, underWay int) {
	// The caller's figures may differ a little; nothing comes back.
	left := max(l.given-min(uint64(max(underWay, 0)), l.given), l.left)
	if left == l.left {
		return
	}
	beyond := func(a, b int) int { return max(a-b, 0) }
	over := beyond(int(l.given-l.left), l.limit)
	busy, busyThen := l.given > left, l.before > l.left
	allThen := left >= l.before
	limit := l.limit
	switch {
	case over > 0 && !busy || l.over > 0 && allThen:
		limit += beyond(int(left), int(l.before)) + l.over
		l.since, l.slack = now, noSlack
	case busy && busyThen && !allThen:
		slack := beyond(limit+l.over, 2*int(left-l.left))
		if l.over > 0 {
			slack = max(slack, beyond(l.lastThen, l.over))
		}
		l.slack = min(l.slack, slack)
		if now-l.since > l.hold {
			limit = beyond(limit, l.slack)
			l.since, l.slack = now, noSlack
		}
	}
	if limit = min(max(limit, l.min), l.max); limit != l.limit {
		l.limit, over = limit, 0
	}
	l.left, l.before, l.over, l.lastThen = left, l.given, over, l.last
}
