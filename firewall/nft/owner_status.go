package nft

import "time"

// SetCounters count what happened to the elements of a dynamic set; Refused… are elements that were not
// added, by reason.
type SetCounters struct {
	Added     uint64 `json:"added"`
	Refreshed uint64 `json:"refreshed"`
	Deleted   uint64 `json:"deleted"`
	Expired   uint64 `json:"expired"`
	Adopted   uint64 `json:"adopted"`  // found in the kernel at start
	Restored  uint64 `json:"restored"` // put into a table that was replaced

	RefusedFull    uint64 `json:"refused_full"`    // the set had as many as it may
	RefusedBacklog uint64 `json:"refused_backlog"` // too many changes waited for the kernel
	RefusedInvalid uint64 `json:"refused_invalid"` // a key or life that the set cannot have
	RefusedExpired uint64 `json:"refused_expired"` // refreshed after its end
	RefusedKernel  uint64 `json:"refused_kernel"`

	Late    uint64 `json:"late"`     // calls that did not wait until the kernel had the change
	NoTable uint64 `json:"no_table"` // changes that found no table; they go in with it
	Retried uint64 `json:"retried"`  // changes that the kernel could not take at once
}

// SetStatus is how a dynamic set is.
type SetStatus struct {
	Set      string      `json:"set"`
	Owner    string      `json:"owner"`
	Elements int         `json:"elements"`
	Max      int         `json:"max"`
	Unsent   int         `json:"unsent"`            // changes that the kernel does not have yet
	Full     bool        `json:"full"`              // now, or within the last minute
	Error    string      `json:"error,omitempty"`   // the last one of the kernel's
	FullAt   *time.Time  `json:"full_at,omitempty"` // when an element was last refused because the set was full
	Counters SetCounters `json:"counters"`
}

// Elements are the keys that are in the set, and until when. The set has no ranges. They are what the owner remembers,
// with those of an earlier owner: the kernel may be a moment behind.
func (o *SetOwner) Elements() map[string]time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.elements.expire(now)

	all := make(map[string]time.Time, len(o.elements.elements))
	for k, e := range o.elements.elements {
		all[k.Text(o.set.Type)] = e.deadline
	}
	return all
}

// fullFor is how long a set is shown as full after it refused an element.
const fullFor = time.Minute

// Status tells how the set is. It reads what the owner remembers, not the kernel.
func (o *SetOwner) Status() SetStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.elements.expire(now)

	s := SetStatus{
		Set: o.set.Name, Owner: o.set.Owner, Elements: len(o.elements.elements), Max: o.set.MaxElements,
		Unsent: len(o.elements.changed), Error: o.lastErr, Counters: o.counters,
	}
	s.Counters.Expired = o.elements.expired
	if !o.fullAt.IsZero() {
		at := o.fullAt
		s.FullAt = &at
	}
	s.Full = s.Elements == s.Max || s.FullAt != nil && now.Sub(o.fullAt) < fullFor
	return s
}
