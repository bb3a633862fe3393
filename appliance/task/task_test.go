package task

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestReadyWhenEveryTaskIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		slow := Task{"slow", func(ctx context.Context, ready func()) error {
			time.Sleep(time.Second) // the bubble's clock: no time passes
			ready()
			ready() // the second call does not stand for another task
			<-ctx.Done()
			return nil
		}}
		rounds := 0
		quick := Every("quick", 100*time.Millisecond, func(context.Context) { rounds++ })
		third := Task{"third", func(ctx context.Context, ready func()) error {
			time.Sleep(2 * time.Second)
			ready()
			<-ctx.Done()
			return ctx.Err()
		}}

		start := time.Now()
		var after time.Duration
		err := RunAll(ctx, []Task{slow, quick, third}, func() { after = time.Since(start); cancel() })
		assert.NoError(t, err)
		assert.Equal(t, 2*time.Second, after)
		assert.GreaterOrEqual(t, rounds, 19)
	})
}

func TestOneFailureEndsAllAndIsNamed(t *testing.T) {
	ended := false
	boom := Task{"control socket", func(context.Context, func()) error { return errors.New("address in use") }}
	wait := Task{"wait", func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		ended = true
		return nil
	}}
	err := RunAll(t.Context(), []Task{boom, wait}, func() { t.Error("never ready") })
	assert.EqualError(t, err, "control socket: address in use")
	assert.True(t, ended)
}

func TestATaskThatJustEndsIsAFailure(t *testing.T) {
	quits := Task{"watch", func(context.Context, func()) error { return nil }}
	assert.EqualError(t, RunAll(t.Context(), []Task{quits}, func() {}), "watch: ended unexpectedly")
}

func TestARunThatFailsIsRestartedAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start, runs, failures := time.Now(), 0, 0
		Restart(ctx, time.Second, func(ctx context.Context) error {
			if runs++; runs == 3 {
				cancel()
			}
			return errors.New("no")
		}, func(error) { failures++ })
		assert.Equal(t, 3, runs)
		assert.Equal(t, 2, failures, "the end of the context is no failure")
		assert.Equal(t, 2*time.Second, time.Since(start))
	})
}

func TestSignalsRaisedWhileLookingAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := NewSignal()
		looks, readyAfter := 0, -1
		done := make(chan error)
		go func() {
			done <- s.Loop(ctx, func() { readyAfter = looks }, func(context.Context) {
				if looks++; looks == 1 {
					s.Raise()
					s.Raise()
				}
			})
		}()
		synctest.Wait()
		assert.Equal(t, 1, readyAfter)
		assert.Equal(t, 2, looks)

		s.Raise()
		synctest.Wait()
		assert.Equal(t, 3, looks)
		cancel()
		assert.NoError(t, <-done)
	})
}
