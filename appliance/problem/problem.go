// Package problem describes what is not as the config wants it: which component reports it, since when, and what an
// operator can do about it.
package problem

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Severity says how bad a problem is. The two levels are those of monitoring plugins.
type Severity string

const (
	Warning  Severity = "warning"  // a limit is reached or something optional is missing; what is configured works
	Critical Severity = "critical" // something that the config asks for does not work
)

// Problem is one thing that is wrong now. Fields are added, never renamed: they are part of `ringway status --json`.
type Problem struct {
	Component string    `json:"component"` // reports it: network, tunnel, reflector, ...
	Severity  Severity  `json:"severity"`
	Subject   string    `json:"subject"` // an interface, a site, an address; empty if the component says it all
	Text      string    `json:"text"`
	Since     time.Time `json:"since"`
	Action    string    `json:"action"` // what to do; empty only where the text says it
}

// UnmarshalJSON also reads the bare text that daemons of earlier releases report: after an upgrade the command line is
// newer than the daemon until that restarts.
func (p *Problem) UnmarshalJSON(b []byte) error {
	*p = Problem{}
	if json.Unmarshal(b, &p.Text) == nil {
		p.Severity = Critical
		return nil
	}

	type fields Problem
	return json.Unmarshal(b, (*fields)(p))
}

// String is the problem in one line, without its times.
func (p Problem) String() string {
	text := p.Text
	if name := p.Name(); name != "" {
		text = name + ": " + text
	}
	if p.Action != "" {
		text += "; " + p.Action
	}
	return text
}

// Name is the component with the subject.
func (p Problem) Name() string { return strings.TrimSpace(p.Component + " " + p.Subject) }

// Key identifies a problem while its text changes: one component has at most one problem about one subject.
type Key struct{ Component, Subject string }

// Key returns the key of p.
func (p Problem) Key() Key { return Key{p.Component, p.Subject} }

// Set holds the problems that exist now. A problem that is reported again keeps the time of its first report. Only the
// owner of a component changes its problems. A Set is safe for concurrent use; the zero Set is not usable.
type Set struct {
	now func() time.Time

	mu    sync.Mutex
	held  map[Key]Problem
	owned map[string]bool // components
}

// NewSet returns an empty set. now is the clock that Since is read from.
func NewSet(now func() time.Time) *Set {
	return &Set{now: now, held: map[Key]Problem{}, owned: map[string]bool{}}
}

// Owner reports the problems of one component.
type Owner struct {
	set       *Set
	component string
}

// Own makes the caller the owner of a component, which has one at most: two would resolve each other's problems.
func (s *Set) Own(component string) (*Owner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if component == "" || s.owned[component] {
		return nil, fmt.Errorf("problems of the component %q have an owner already", component)
	}
	s.owned[component] = true
	return &Owner{s, component}, nil
}

// Report adds p or, where its key is known, replaces all of it but the time since when. It tells whether the operator
// learns something new: the problem was not there, or its text was another one.
func (o *Owner) Report(p Problem) (news bool) {
	o.set.mu.Lock()
	defer o.set.mu.Unlock()

	p.Component = o.component
	return o.set.reportLocked(p)
}

func (s *Set) reportLocked(p Problem) (news bool) {
	old, known := s.held[p.Key()]

	switch {
	case known:
		p.Since = old.Since
	case p.Since.IsZero():
		p.Since = s.now().Round(0) // without the monotonic reading, which JSON loses
	}

	s.held[p.Key()] = p
	return !known || old.Text != p.Text
}

// Resolve removes the problem about a subject.
func (o *Owner) Resolve(subject string) {
	o.set.mu.Lock()
	defer o.set.mu.Unlock()

	delete(o.set.held, Key{o.component, subject})
}

// Replace makes current the component's only problems: those not listed are resolved. Several problems about one
// subject are joined, since each key holds one. It returns those that are news, as Report does.
func (o *Owner) Replace(current []Problem) (news []Problem) {
	s := o.set
	s.mu.Lock()
	defer s.mu.Unlock()

	joined := map[Key]Problem{}
	for _, p := range current {
		p.Component = o.component
		joined[p.Key()] = join(joined[p.Key()], p)
	}

	for key := range s.held {
		if _, still := joined[key]; key.Component == o.component && !still {
			delete(s.held, key)
		}
	}
	for _, p := range joined {
		if s.reportLocked(p) {
			news = append(news, p)
		}
	}
	return news
}

// join makes one problem of two about the same subject. a may be the zero Problem.
func join(a, b Problem) Problem {
	if a.Component == "" {
		return b
	}

	b.Text = a.Text + "; " + b.Text
	if a.Severity == Critical {
		b.Severity = Critical
	}
	switch {
	case b.Action == "":
		b.Action = a.Action
	case a.Action != "" && a.Action != b.Action:
		b.Action = a.Action + "; " + b.Action
	}
	if !a.Since.IsZero() && (b.Since.IsZero() || a.Since.Before(b.Since)) {
		b.Since = a.Since
	}
	return b
}

// Keys returns the keys of all problems.
func (s *Set) Keys() map[Key]bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	keys := map[Key]bool{}
	for key := range s.held {
		keys[key] = true
	}
	return keys
}

// List returns all problems, the critical ones first. It is never nil: JSON shows an empty list.
func (s *Set) List() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()

	list := make([]Problem, 0, len(s.held))
	for _, p := range s.held {
		list = append(list, p)
	}

	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(
			strings.Compare(string(a.Severity), string(b.Severity)), // "critical" sorts before "warning"
			strings.Compare(a.Component, b.Component),
			strings.Compare(a.Subject, b.Subject))
	})
	return list
}
