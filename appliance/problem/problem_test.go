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

// clock advances by a minute at each reading.
type clock struct{ at time.Time }

func (c *clock) now() time.Time {
	c.at = c.at.Add(time.Minute)
	return c.at
}

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func TestAProblemKeepsItsTimeWhileItLasts(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	lost := Problem{Component: "leases", Subject: "wan0", Severity: Critical, Text: "no lease"}

	assert.True(t, s.Report(lost))
	since := s.List()[0].Since
	assert.Equal(t, noon.Add(time.Minute), since)

	assert.False(t, s.Report(lost), "nothing new")
	lost.Text = "lease ran out"
	assert.True(t, s.Report(lost), "another text is news")
	assert.Equal(t, since, s.List()[0].Since)
	assert.Equal(t, "lease ran out", s.List()[0].Text)

	s.Resolve("leases", "wan0")
	assert.Empty(t, s.List())
	s.Report(lost)
	assert.Greater(t, s.List()[0].Since, since, "a problem that comes back is a new one")
}

func TestReplaceResolvesWhatIsNotListed(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	s.Report(Problem{Component: "network", Text: "stays"})
	both := []Problem{{Subject: "10.1.20.1:9586", Text: "a"}, {Subject: "127.0.0.1:9586", Text: "b"}}
	news := s.Replace("metrics", both)
	assert.Len(t, news, 2)
	first := s.List()
	require.Len(t, first, 3)

	assert.Empty(t, s.Replace("metrics", both))
	assert.Len(t, s.Replace("metrics", []Problem{{Subject: "127.0.0.1:9586", Text: "c"}}), 1, "another text is news")
	left := s.List()
	require.Len(t, left, 2)
	assert.Equal(t, first[1].Since, left[0].Since)
	assert.Equal(t, "metrics 127.0.0.1:9586: c", left[0].String())

	s.Replace("metrics", nil)
	assert.Equal(t, []Key{{Component: "network"}}, keys(s))
}

func TestTwoProblemsOfOneSubjectAreJoined(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	s.Replace("queues", []Problem{
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
	s.Report(Problem{Component: "tunnel", Text: "down", Since: noon.Add(-time.Hour)})
	assert.Equal(t, noon.Add(-time.Hour), s.List()[0].Since)
}

func TestTheListIsSortedAndNeverNull(t *testing.T) {
	s := NewSet((&clock{noon}).now)
	empty, err := json.Marshal(s.List())
	require.NoError(t, err)
	assert.Equal(t, "[]", string(empty))

	s.Report(Problem{Component: "a", Severity: Warning, Text: "limit"})
	s.Report(Problem{Component: "z", Severity: Critical, Text: "down", Action: "start it"})
	s.Report(Problem{Component: "b", Subject: "x", Severity: Critical, Text: "down"})
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
			for n := range 100 {
				s.Report(Problem{Component: fmt.Sprint(i), Subject: fmt.Sprint(n)})
				s.Replace(fmt.Sprint(i), []Problem{{Subject: "kept"}})
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
