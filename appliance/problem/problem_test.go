package problem

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func own(t *testing.T, s *Set, component string) *Owner {
	t.Helper()
	o, err := s.Own(component)
	require.NoError(t, err)
	return o
}

// Two owners of one name would resolve each other's problems: there is no second one.
func TestAComponentHasOneOwner(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	calls := own(t, s, "calls")
	_, err := s.Own("calls")
	assert.EqualError(t, err, `problems of the component "calls" have an owner already`)
	_, err = s.Own("")
	assert.Error(t, err)

	calls.Report(Problem{Component: "admission", Text: "signalling is not read"})
	own(t, s, "admission").Replace(nil)
	assert.Equal(t, []Key{{Component: "calls"}}, keys(s), "whatever the problem says")
}

// clock advances by a minute at each reading.
type clock struct{ at time.Time }

func (c *clock) now() time.Time {
	c.at = c.at.Add(time.Minute)
	return c.at
}

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func TestAProblemKeepsItsTimeWhileItLasts(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	leases := own(t, s, "leases")
	lost := Problem{Subject: "wan0", Severity: Critical, Text: "no lease"}

	assert.True(t, leases.Report(lost))
	since := s.List()[0].Since
	assert.Equal(t, noon.Add(time.Minute), since)

	assert.False(t, leases.Report(lost), "nothing new")
	lost.Text = "lease ran out"
	assert.True(t, leases.Report(lost), "another text is news")
	assert.Equal(t, since, s.List()[0].Since)
	assert.Equal(t, "lease ran out", s.List()[0].Text)

	leases.Resolve("wan0")
	assert.Empty(t, s.List())
	leases.Report(lost)
	assert.Greater(t, s.List()[0].Since, since, "a problem that comes back is a new one")
}

func TestReplaceResolvesWhatIsNotListed(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	own(t, s, "network").Report(Problem{Text: "stays"})
	metrics := own(t, s, "metrics")
	both := []Problem{{Subject: "10.1.20.1:9586", Text: "a"}, {Subject: "127.0.0.1:9586", Text: "b"}}
	news := metrics.Replace(both)
	assert.Len(t, news, 2)
	first := s.List()
	require.Len(t, first, 3)

	assert.Empty(t, metrics.Replace(both))
	assert.Len(t, metrics.Replace([]Problem{{Subject: "127.0.0.1:9586", Text: "c"}}), 1, "another text is news")
	left := s.List()
	require.Len(t, left, 2)
	assert.Equal(t, first[1].Since, left[0].Since)
	assert.Equal(t, "metrics 127.0.0.1:9586: c", left[0].String())

	metrics.Replace(nil)
	assert.Equal(t, []Key{{Component: "network"}}, keys(s))
}

func TestTwoProblemsOfOneSubjectAreJoined(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	own(t, s, "queues").Replace([]Problem{
		{Subject: "wan0", Severity: Critical, Text: "cannot be read", Action: "look at dmesg"},
		{Subject: "wan0", Severity: Warning, Text: "is full"},
	})
	list := s.List()
	require.Len(t, list, 1)
	assert.Equal(t, "queues wan0: cannot be read; is full; look at dmesg", list[0].String())
	assert.Equal(t, Critical, list[0].Severity)
}

// A component that knows since when, as from a counter of the kernel's, is believed.
func TestATimeThatIsKnownIsTaken(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	own(t, s, "tunnel").Report(Problem{Text: "down", Since: noon.Add(-time.Hour)})
	assert.Equal(t, noon.Add(-time.Hour), s.List()[0].Since)
}

func TestTheListIsSortedAndNeverNull(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	empty, err := json.Marshal(s.List())
	require.NoError(t, err)
	assert.Equal(t, "[]", string(empty))

	own(t, s, "a").Report(Problem{Severity: Warning, Text: "limit"})
	own(t, s, "z").Report(Problem{Severity: Critical, Text: "down", Action: "start it"})
	own(t, s, "b").Report(Problem{Subject: "x", Severity: Critical, Text: "down"})
	assert.Equal(t, "[b x: down z: down; start it a: limit]", fmt.Sprint(s.List()))

	line, err := json.Marshal(s.List()[1])
	require.NoError(t, err)
	assert.JSONEq(t, `{"component": "z", "severity": "critical", "subject": "", "text": "down",
		"since": "2026-11-28T12:02:00Z", "action": "start it"}`, string(line))
}

func TestTextOfAnEarlierReleaseIsRead(t *testing.T) {
	var list []Problem
	require.NoError(t, json.Unmarshal([]byte(`["wan0 has no DHCP lease", {"component": "a", "text": "b"}]`), &list))
	assert.Equal(t, []Problem{{Severity: Critical, Text: "wan0 has no DHCP lease"}, {Component: "a", Text: "b"}}, list)
	assert.Equal(t, "wan0 has no DHCP lease", list[0].String())
	assert.Error(t, json.Unmarshal([]byte(`[1]`), &list))
}

func TestASetIsSafeForConcurrentUse(t *testing.T) {
	s := NewSet(time.Now)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			o, err := s.Own(fmt.Sprint(i))
			if !assert.NoError(t, err) {
				return
			}
			for n := range 100 {
				o.Report(Problem{Subject: fmt.Sprint(n)})
				o.Replace([]Problem{{Subject: "kept"}})
				s.List()
			}
		})
	}
	wg.Wait()
	assert.Len(t, s.Keys(), 8)
}

func keys(s *Set) (out []Key) {
	for key := range s.Keys() {
		out = append(out, key)
	}
	return out
}
