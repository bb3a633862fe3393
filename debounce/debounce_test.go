package debounce

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

const ms = time.Millisecond

// calls returns when f was called, counted from the start, if the events come at the given times. A call
// takes as long as busy says.
func calls(t *testing.T, timing Timing, busy time.Duration, events ...time.Duration) (at []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		d := New(timing)
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.Run(ctx, func() {
				at = append(at, time.Since(start))
				time.Sleep(busy)
			})
		}()

		for _, e := range events {
			time.Sleep(e - time.Since(start))
			d.Trigger()
		}
		time.Sleep(time.Minute)
		cancel()
		<-done
	})
	return at
}

func every(interval, end time.Duration) (events []time.Duration) {
	for e := time.Duration(0); e <= end; e += interval {
		events = append(events, e)
	}
	return events
}

func TestABurstIsOneCall(t *testing.T) {
	timing := Timing{Quiet: 50 * ms, Longest: 500 * ms}
	assert.Empty(t, calls(t, timing, 0))
	assert.Equal(t, []time.Duration{50 * ms}, calls(t, timing, 0, 0))
	assert.Equal(t, []time.Duration{130 * ms}, calls(t, timing, 0, 0, 10*ms, 40*ms, 80*ms))
	assert.Equal(t, []time.Duration{50 * ms, 151 * ms}, calls(t, timing, 0, 0, 101*ms), "two bursts")
}

func TestABurstWithoutAnEndIsCutOff(t *testing.T) {
	timing := Timing{Quiet: 50 * ms, Longest: 500 * ms}
	assert.Equal(t, []time.Duration{500 * ms, 1010 * ms, 1130 * ms}, calls(t, timing, 0, every(30*ms, 1100*ms)...))
}

func TestWithoutALongerBoundTheFirstEventCounts(t *testing.T) {
	timing := Timing{Quiet: 50 * ms, Longest: 50 * ms}
	assert.Equal(t, []time.Duration{50 * ms}, calls(t, timing, 0, 0, 10*ms, 40*ms))
}

func TestAPauseLimitsTheRate(t *testing.T) {
	timing := Timing{Quiet: 50 * ms, Longest: 50 * ms, Pause: time.Second}
	assert.Equal(t, []time.Duration{50 * ms, 1100 * ms, 2150 * ms}, calls(t, timing, 0, every(10*ms, 2000*ms)...))
}

// What comes during a call may have been too late for it.
func TestAnEventDuringACallIsAnsweredByTheNext(t *testing.T) {
	timing := Timing{Quiet: 50 * ms, Longest: 50 * ms}
	assert.Equal(t, []time.Duration{50 * ms, 400 * ms}, calls(t, timing, 300*ms, 0, 60*ms, 70*ms))
}

func TestTheEndOfTheContextEndsABurstWithoutACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Timing{Quiet: time.Hour, Longest: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.Run(ctx, func() { t.Error("called") })
		}()
		d.Trigger()
		synctest.Wait()
		cancel()
		<-done
	})
}
