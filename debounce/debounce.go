// Package debounce turns bursts of events into single calls.
package debounce

import (
	"context"
	"time"
)

// Timing says how events are joined.
type Timing struct {
	Quiet   time.Duration // a burst is over when no event has come for this long
	Longest time.Duration // a burst is cut off after this long; at most Quiet: exactly so long after its first event
	Pause   time.Duration // the least time between the end of a call and the next burst
}

// Debouncer joins events. Any goroutine may call Trigger.
type Debouncer struct {
	timing  Timing
	trigger chan struct{}
}

// New returns a Debouncer that has seen no event.
func New(t Timing) *Debouncer {
	return &Debouncer{timing: t, trigger: make(chan struct{}, 1)}
}

// Trigger is an event. It does not block.
func (d *Debouncer) Trigger() {
	select {
	case d.trigger <- struct{}{}:
	default: // one is pending, and stands for both
	}
}

// Run calls f after each burst of events, one call at a time, until ctx ends. An event that comes during a
// call is the first of the next burst: no event before the start of a call is answered later than by that
// call.
func (d *Debouncer) Run(ctx context.Context, f func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.trigger:
		}
		d.settle(ctx)
		if ctx.Err() != nil {
			return
		}
		f()
		sleep(ctx, d.timing.Pause)
	}
}

// settle waits for the end of a burst that has begun.
func (d *Debouncer) settle(ctx context.Context) {
	longest := time.NewTimer(d.timing.Longest)
	defer longest.Stop()
	quiet := time.NewTimer(d.timing.Quiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-longest.C:
			d.clear()
			return
		case <-quiet.C:
			d.clear()
			return
		case <-d.trigger:
			quiet.Reset(d.timing.Quiet)
		}
	}
}

// clear drops an event that came at the very end of a burst: the call that follows answers it.
func (d *Debouncer) clear() {
	select {
	case <-d.trigger:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
