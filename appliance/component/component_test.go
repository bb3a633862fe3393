package component

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/appliance/task"
)

// plain is a component with no optional interface.
type plain struct {
	name  string
	sites []string // of the configs it followed
}

type text string

func (t text) String() string { return string(t) }

func (p *plain) Name() string              { return p.name }
func (p *plain) Follow(cfg *config.Config) { p.sites = append(p.sites, cfg.Site) }
func (p *plain) Status() fmt.Stringer      { return text("status of " + p.name) }

func (p *plain) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

// reporting is one with problems and metrics.
type reporting struct {
	plain
	problems []problem.Problem
}

func (r *reporting) Problems() []problem.Problem            { return r.problems }
func (r *reporting) Families() exposition.Families          { return nil }
func (r *reporting) Collect(status.Status, exposition.Sink) {}

func TestTheListServesWhatEachComponentHas(t *testing.T) {
	a := &plain{name: "a"}
	b := &reporting{plain{name: "b"}, []problem.Problem{{Subject: "x", Text: "is broken"}}}
	list := List{a, b}

	list.Follow(&config.Config{Site: "berlin"})
	list.Follow(&config.Config{Site: "munich"})
	assert.Equal(t, []string{"berlin", "munich"}, a.sites)
	assert.Equal(t, []string{"berlin", "munich"}, b.sites)

	var st status.Status
	list.AddTo(&st)
	assert.Equal(t, status.Sections{"a": text("status of a"), "b": text("status of b")}, st.Sections)
	assert.Equal(t, []status.Component{{Name: "a", Text: "status of a"}, {Name: "b", Text: "status of b"}}, st.Components)

	assert.Equal(t, []exposition.Source{b}, list.Sources())

	problems := problem.NewSet(time.Now)
	reports, err := list.Own(problems)
	require.NoError(t, err)
	reports.Update()
	require.Len(t, problems.List(), 1)
	assert.Equal(t, "b x: is broken", problems.List()[0].String())
	b.problems = nil
	reports.Update()
	assert.Empty(t, problems.List())
	_, err = list.Own(problems)
	assert.ErrorContains(t, err, `"b" have an owner`)

	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, task.RunAll(ctx, list.Tasks(), cancel), "both run, are ready, and stop")
}
