package nft

import (
	"slices"
	"time"
)

// Key is an element's key in the kernel's bytes.
type Key string

// liveElement is an element that has not been deleted.
type liveElement struct {
	life      time.Duration
	deadline  time.Time
	installed time.Time // when the kernel's copy ends; zero: it has none that is known of
}

// liveSet is what an owner knows of its set, and the truth about it: the kernel's copy follows. It is not
// safe for concurrent use.
type liveSet struct {
	max      int
	elements map[Key]*liveElement

	// changed are the keys whose state the kernel was not told yet: it gets them if they are in elements, else
	// it loses them.
	changed map[Key]struct{}

	earliest time.Time // no element ends before it
	expired  uint64    // elements whose life ended, in all
}

func newLiveSet(max int) *liveSet {
	return &liveSet{max: max, elements: map[Key]*liveElement{}, changed: map[Key]struct{}{}}
}

// live gives the element with k unless it has expired.
func (s *liveSet) live(k Key, now time.Time) *liveElement {
	if e := s.elements[k]; e != nil && now.Before(e.deadline) {
		return e
	}
	return nil
}

// fits says whether the set can take keys, all together, and how many of them it does not have yet.
func (s *liveSet) fits(keys []Key, now time.Time) (fresh int, ok bool) {
	for i, k := range keys {
		if s.live(k, now) == nil && !slices.Contains(keys[:i], k) {
			fresh++
		}
	}
	if len(s.elements)+fresh > s.max {
		s.expire(now)
	}
	return fresh, len(s.elements)+fresh <= s.max
}

// backlog says that the kernel is so far behind that no more changes may be kept for it: each change is of
// another element, so that the additions are bounded by max, but not the deletions between them.
func (s *liveSet) backlog() bool { return len(s.changed) >= 2*s.max }

// put adds an element or gives it another life.
func (s *liveSet) put(k Key, life time.Duration, now time.Time) {
	e := s.elements[k]
	if e == nil {
		e = &liveElement{}
		s.elements[k] = e
	}
	e.life, e.deadline = life, now.Add(life)
	s.changed[k] = struct{}{}
	if s.earliest.IsZero() || e.deadline.Before(s.earliest) {
		s.earliest = e.deadline
	}
}

// remove deletes an element, and says whether it was there.
func (s *liveSet) remove(k Key, now time.Time) bool {
	alive := s.live(k, now) != nil
	if _, there := s.elements[k]; there {
		delete(s.elements, k)
		s.changed[k] = struct{}{}
	}
	return alive
}

// expire forgets the elements whose life is over. The kernel removes its own, some milliseconds later.
func (s *liveSet) expire(now time.Time) {
	if now.Before(s.earliest) {
		return
	}
	s.earliest = time.Time{}
	for k, e := range s.elements {
		if !now.Before(e.deadline) {
			delete(s.elements, k)
			s.expired++
			continue
		}
		if s.earliest.IsZero() || e.deadline.Before(s.earliest) {
			s.earliest = e.deadline
		}
	}
}

// take gives the keys of changed and forgets that they were changed.
func (s *liveSet) take() map[Key]struct{} {
	changed := s.changed
	s.changed = make(map[Key]struct{}, len(changed))
	return changed
}

// giveBack marks keys as changed again, after a transaction that did not come off.
func (s *liveSet) giveBack(keys map[Key]struct{}) {
	for k := range keys {
		s.changed[k] = struct{}{}
	}
}
