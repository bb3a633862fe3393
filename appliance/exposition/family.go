// Package exposition shows numbers of the daemon's status to Prometheus. A component names its metrics and their
// values, and does not see how they are encoded.
package exposition

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Family is one metric with its labels.
type Family struct {
	Name   string
	Help   string
	Labels []string
	Kind   Kind

	desc *prometheus.Desc
}

// Kind is the type of a metric.
type Kind string

const (
	CounterKind Kind = "counter"
	GaugeKind   Kind = "gauge"
)

// Families are the metrics of one source, in the order in which they were made.
type Families []*Family

// Counter adds a counter.
func (f *Families) Counter(name, help string, labels ...string) *Family {
	return f.add(CounterKind, name, help, labels)
}

// Gauge adds a gauge.
func (f *Families) Gauge(name, help string, labels ...string) *Family {
	return f.add(GaugeKind, name, help, labels)
}

func (f *Families) add(kind Kind, name, help string, labels []string) *Family {
	family := &Family{name, help, labels, kind, prometheus.NewDesc(name, help, labels, nil)}
	*f = append(*f, family)
	return family
}

// Sink takes the values of one scrape.
type Sink struct{ metrics chan<- prometheus.Metric }

// Put adds a value of f. labels are the values of f's labels, in their order.
func (s Sink) Put(f *Family, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if f.Kind == CounterKind {
		kind = prometheus.CounterValue
	}

	m, err := prometheus.NewConstMetric(f.desc, kind, value, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(f.desc, err) // it is left out; the others are shown
	}
	s.metrics <- m
}

// Bool is 1 for true.
func Bool(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Time is a time in Unix seconds; 0 for the zero time.
func Time(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
