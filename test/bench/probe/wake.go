package probe

import (
	"encoding/json"
	"io"
	"runtime"
	"time"

	"ringway/quality"
	"ringway/test/lab/fifo"
)

// Wake is how late threads were woken that slept until a deadline, as cyclictest(8) measures it: what this
// machine, its kernel and its hypervisor add to every delay.
type Wake struct {
	Policy  string  `json:"policy"` // other, fifo
	Denied  string  `json:"denied,omitempty"`
	Samples int     `json:"samples"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p99_9_us"`
	Max     float64 `json:"max_us"`
}

// wakeEvery is cyclictest's default.
const wakeEvery = time.Millisecond

// WakeMain measures for the given time, one thread under the default policy and one under SCHED_FIFO, and
// prints both as JSON.
func WakeMain(length time.Duration, stdout io.Writer) error {
	quiet()
	w := [2]Wake{{Policy: "other"}, {Policy: "fifo"}}
	start := Monotonic() + wakeEvery
	done := make(chan struct{})
	for i := range w {
		go func() {
			runtime.LockOSThread()
			defer func() { done <- struct{}{} }()
			if w[i].Policy == "fifo" {
				if err := fifo.RealTime(); err != nil {
					w[i].Denied = err.Error()
					return
				}
			}
			w[i].measure(start+time.Duration(i)*wakeEvery/2, length)
		}()
	}
	for range w {
		<-done
	}
	return json.NewEncoder(stdout).Encode(w)
}

func (w *Wake) measure(start, length time.Duration) {
	late := quality.NewDistribution()
	for due := start; due < start+length; due += wakeEvery {
		sleepUntil(due)
		late.Record(Monotonic() - due)
	}
	w.Samples = int(late.Count())
	w.P50 = micros(late.Percentile(50))
	w.P99 = micros(late.Percentile(99))
	w.P999 = micros(late.Percentile(99.9))
	w.Max = micros(late.Max())
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
