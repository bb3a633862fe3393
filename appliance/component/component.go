// Package component defines what a long-lived part of the daemon implements, and the list that drives all of them.
package component

import (
	"context"
	"fmt"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/appliance/task"
)

// Component is a long-lived part of the daemon. What else it can do is found by the optional interfaces below.
type Component interface {
	// Name is the component's name in logs and problems, and of its field in the status.
	Name() string

	// Run works until ctx ends, then returns nil once all it started has stopped. It calls ready when the component
	// does what it is for. An error ends the daemon: what can be tried again is a problem instead.
	Run(ctx context.Context, ready func()) error

	// Follow takes up what cfg asks for. It is called before the first round of reconciliation, with each config, and
	// after every round, since the kernel may have changed. It must not block: the daemon holds its lock.
	Follow(cfg *config.Config)

	// Status is the component's part of the status: a type of its own for JSON, whose String is a line of the text.
	Status() fmt.Stringer
}

// Reporter is a component that knows what is wrong with it.
type Reporter interface {
	// Problems lists everything that is wrong now. Component and Since may be left out.
	Problems() []problem.Problem
}

// Metered is a component with metrics of its own. They show the section of the status that its Status returned.
type Metered interface {
	exposition.Source
}

// List is the components of a daemon, in the order in which the status shows them.
type List []Component

// Tasks are the components as tasks.
func (l List) Tasks() (tasks []task.Task) {
	for _, c := range l {
		tasks = append(tasks, task.Task{Name: c.Name(), Run: c.Run})
	}
	return tasks
}

// Follow has every component take up a config.
func (l List) Follow(cfg *config.Config) {
	for _, c := range l {
		c.Follow(cfg)
	}
}

// AddTo adds every component's part to the status.
func (l List) AddTo(st *status.Status) {
	st.Sections = status.Sections{}
	for _, c := range l {
		section := c.Status()
		st.Sections[c.Name()] = section
		st.Components = append(st.Components, status.Component{Name: c.Name(), Text: section.String()})
	}
}

// Reports are the components that report problems, each with the right to do so.
type Reports []report

type report struct {
	from Reporter
	to   *problem.Owner
}

// Own makes each component that reports problems the owner of its own. It fails if two have one name, or if something
// else has reported by it.
func (l List) Own(problems *problem.Set) (all Reports, err error) {
	for _, c := range l {
		if r, ok := c.(Reporter); ok {
			to, err := problems.Own(c.Name())
			if err != nil {
				return nil, err
			}
			all = append(all, report{r, to})
		}
	}
	return all, nil
}

// Update brings problems up to date with what the components report.
func (all Reports) Update() {
	for _, r := range all {
		r.to.Replace(r.from.Problems())
	}
}

// Sources are the components that have metrics.
func (l List) Sources() (sources []exposition.Source) {
	for _, c := range l {
		if m, ok := c.(Metered); ok {
			sources = append(sources, m)
		}
	}
	return sources
}
