package exposition

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ringway/appliance/status"
)

// minInterval is the shortest time between two readings of the status. Each reading makes garbage in the planes, and a
// client must not be able to delay calls by scraping faster. Within that time it gets the same numbers again.
const minInterval = time.Second

// readTimeout bounds one reading of the status.
const readTimeout = 5 * time.Second

// Source shows a part of the status.
type Source interface {
	// Families are all metrics that Collect may put.
	Families() Families
	// Collect puts the numbers of st. It is called with the same st for all sources of a scrape.
	Collect(st status.Status, to Sink)
}

// Collector reads the status once for each scrape, and has every source show its part of it.
type Collector struct {
	Build   string
	Status  func(context.Context) (status.Status, error)
	Now     func() time.Time
	Sources []Source

	mu     sync.Mutex // held over a reading: a scrape that comes meanwhile takes its result
	readAt time.Time
	last   status.Status
	err    error
}

// What is shown even where the status cannot be read.
var (
	always Families

	buildInfo = always.Gauge("ringway_build_info",
		"Always 1; the daemon's build is in the labels.", "version", "goversion")
	scrapeSuccess = always.Gauge("ringway_scrape_success",
		"Whether the status could be read for this scrape. If 0, only this and ringway_build_info are shown.")
)

// Families are the metrics of the collector itself and of all its sources.
func (c *Collector) Families() Families {
	all := append(Families{}, always...)
	for _, s := range c.Sources {
		all = append(all, s.Families()...)
	}
	return all
}

// Describe sends every metric that there is.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.Families() {
		ch <- f.desc
	}
}

// Collect reads the status and sends all of it.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	sink := Sink{ch}
	st, err := c.read()
	sink.Put(buildInfo, 1, c.Build, runtime.Version())
	sink.Put(scrapeSuccess, Bool(err == nil))
	if err != nil {
		return
	}

	for _, s := range c.Sources {
		if err := collect(s, st, sink); err != nil {
			// The HTTP handler logs it and shows the metrics of the other sources.
			ch <- prometheus.NewInvalidMetric(scrapeSuccess.desc, err)
		}
	}
}

// read returns the status, at most minInterval old.
func (c *Collector) read() (status.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if !c.readAt.IsZero() && c.Now().Sub(c.readAt) < minInterval {
		return c.last, c.err
	}

	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	c.err = recovered("read the status", func() (err error) {
		c.last, err = c.Status(ctx)
		return err
	})
	c.readAt = c.Now()
	return c.last, c.err
}

func collect(s Source, st status.Status, to Sink) error {
	return recovered("collect metrics", func() error {
		s.Collect(st, to)
		return nil
	})
}

// recovered turns a panic of f into an error: a scrape must not end the daemon.
func recovered(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", what, p)
		}
	}()
	return f()
}

// Handler answers GET with everything that c has. A metric that cannot be shown is left out and logged.
func Handler(log *slog.Logger, c *Collector) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	opts := promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, ErrorLog: gatherLog{log}}
	return promhttp.HandlerFor(registry, opts)
}

// gatherLog takes promhttp's errors. They are mistakes in this program and would be repeated with each scrape, so they
// are logged at debug level only.
type gatherLog struct{ log *slog.Logger }

func (g gatherLog) Println(v ...any) { g.log.Debug("metrics", "error", fmt.Sprint(v...)) }
