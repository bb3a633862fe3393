package exposition

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/status"
)

// source shows the site's name; its Collect may be replaced.
type source struct {
	families Families
	collect  func(status.Status, Sink)
}

func (s *source) Families() Families                { return s.families }
func (s *source) Collect(st status.Status, to Sink) { s.collect(st, to) }

func siteSource(name string) *source {
	s := &source{}
	site := s.families.Gauge(name, "Always 1; the name of the site is in the label.", "site")
	s.collect = func(st status.Status, to Sink) { to.Put(site, 1, st.Site) }
	return s
}

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, "%s", w.Body)
	return w.Body.String()
}

// All sources of a scrape show one reading, and a client that scrapes all the time causes no more than one reading a
// second.
func TestScrapesShareAReading(t *testing.T) {
	now, reads := time.Now(), 0
	h := Handler(slog.New(slog.DiscardHandler), &Collector{
		Now: func() time.Time { return now },
		Status: func(context.Context) (status.Status, error) {
			reads++
			return status.Status{Site: "berlin"}, nil
		},
		Sources: []Source{siteSource("ringway_a_info"), siteSource("ringway_b_info")},
	})
	for range 5 {
		text := scrape(t, h)
		assert.Contains(t, text, `ringway_a_info{site="berlin"} 1`)
		assert.Contains(t, text, `ringway_b_info{site="berlin"} 1`)
	}
	assert.Equal(t, 1, reads)

	now = now.Add(minInterval - 1)
	scrape(t, h)
	assert.Equal(t, 1, reads)
	now = now.Add(1)
	scrape(t, h)
	assert.Equal(t, 2, reads)
}

// A status that cannot be read is a number as well.
func TestAStatusThatCannotBeReadIsShown(t *testing.T) {
	for name, read := range map[string]func(context.Context) (status.Status, error){
		"error": func(context.Context) (status.Status, error) { return status.Status{}, errors.New("no") },
		"panic": func(context.Context) (status.Status, error) { panic("a bug") },
	} {
		t.Run(name, func(t *testing.T) {
			text := scrape(t, Handler(slog.New(slog.DiscardHandler), &Collector{
				Build: "1.2.3", Now: time.Now, Status: read, Sources: []Source{siteSource("ringway_a_info")},
			}))
			assert.Contains(t, text, "ringway_scrape_success 0\n")
			assert.Contains(t, text, `ringway_build_info{goversion="`)
			assert.NotContains(t, text, "ringway_a_info")
		})
	}
}

// A mistake in one source keeps no other from being shown.
func TestAPanicOfOneSourceIsItsOwn(t *testing.T) {
	broken := siteSource("ringway_a_info")
	broken.collect = func(status.Status, Sink) { panic("a bug") }
	mislabelled := siteSource("ringway_b_info")
	family := mislabelled.families[0]
	mislabelled.collect = func(_ status.Status, to Sink) { to.Put(family, 1) }
	text := scrape(t, Handler(slog.New(slog.DiscardHandler), &Collector{
		Now:     time.Now,
		Status:  func(context.Context) (status.Status, error) { return status.Status{Site: "berlin"}, nil },
		Sources: []Source{broken, mislabelled, siteSource("ringway_c_info")},
	}))
	assert.Contains(t, text, "ringway_scrape_success 1\n")
	assert.NotContains(t, text, "ringway_a_info")
	assert.NotContains(t, text, "ringway_b_info")
	assert.Contains(t, text, `ringway_c_info{site="berlin"} 1`)
}
