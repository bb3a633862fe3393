package nft

import "time"

// rawKey is an element's key in the kernel's bytes; end is its last key where the set has ranges.
type rawKey struct{ key, end string }

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
	widths   []int // bytes of each part of a key where parts are ranges; nil: keys are exact
	elements map[rawKey]*liveElement

	// changed are the keys whose state the kernel was not told yet: it gets them if they are in elements, else
	// it loses them.
	changed map[rawKey]struct{}

	earliest time.Time // no element ends before it
	expired  uint64    // elements whose life ended, in all
}

func newLiveSet(max int, widths []int) *liveSet {
	return &liveSet{
		max: max, widths: widths, elements: map[rawKey]*liveElement{}, changed: map[rawKey]struct{}{},
	}
}

// live gives the element with k unless it has expired.
func (s *liveSet) live(k rawKey, now time.Time) *liveElement {
	if e := s.elements[k]; e != nil && now.Before(e.deadline) {
		return e
	}
	return nil
}

// fits says whether the set can take keys, all together, and how many of them it does not have yet.
func (s *liveSet) fits(keys []rawKey, now time.Time) (fresh int, ok bool) {
	seen := map[rawKey]bool{}
	for _, k := range keys {
		if s.live(k, now) == nil && !seen[k] {
			fresh++
		}
		seen[k] = true
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
func (s *liveSet) put(k rawKey, life time.Duration, now time.Time) {
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
func (s *liveSet) remove(k rawKey, now time.Time) bool {
	alive := s.live(k, now) != nil
	if _, there := s.elements[k]; there {
		delete(s.elements, k)
		s.changed[k] = struct{}{}
	}
	return alive
}

// expire forgets the elements whose life is over. The kernel removes its own, some milliseconds later;
// until then it would refuse a range that overlaps one of them, so there they are deleted.
func (s *liveSet) expire(now time.Time) {
	if now.Before(s.earliest) {
		return
	}
	s.earliest = time.Time{}
	for k, e := range s.elements {
		if !now.Before(e.deadline) {
			delete(s.elements, k)
			s.expired++
			if s.widths != nil {
				s.changed[k] = struct{}{}
			}
			continue
		}
		if s.earliest.IsZero() || e.deadline.Before(s.earliest) {
			s.earliest = e.deadline
		}
	}
}

// overlap says whether k shares an address and port with another element of a set of ranges. The kernel would
// refuse it, and with it the whole transaction that it is part of.
func (s *liveSet) overlap(k rawKey, now time.Time) bool {
	if s.widths == nil {
		return false
	}
	s.expire(now)
	for other, e := range s.elements {
		if other != k && now.Before(e.deadline) && overlapping(k, other, s.widths) {
			return true
		}
	}
	return false
}

// overlapping compares the parts of two keys: they overlap where all of them do.
func overlapping(a, b rawKey, widths []int) bool {
	at := 0
	for _, w := range widths {
		if a.key[at:at+w] > b.end[at:at+w] || b.key[at:at+w] > a.end[at:at+w] {
			return false
		}
		at += w
	}
	return true
}

// take gives the keys of changed and forgets that they were changed.
func (s *liveSet) take() map[rawKey]struct{} {
	changed := s.changed
	s.changed = make(map[rawKey]struct{}, len(changed))
	return changed
}

// giveBack marks keys as changed again, after a transaction that did not come off.
func (s *liveSet) giveBack(keys map[rawKey]struct{}) {
	for k := range keys {
		s.changed[k] = struct{}{}
	}
}
