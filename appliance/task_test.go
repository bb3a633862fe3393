package appliance

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
		slow := newTask("slow", func(ctx context.Context, ready func()) error {
			time.Sleep(time.Second) // the bubble's clock: no time passes
			ready()
			<-ctx.Done()
			return nil
		})
		rounds := 0
		quick := every("quick", 100*time.Millisecond, func(context.Context) { rounds++ })
		start := time.Now()
		var after time.Duration
		err := runTasks(ctx, []task{slow, quick}, func() { after = time.Since(start); cancel() })
		assert.NoError(t, err)
		assert.Equal(t, time.Second, after)
		assert.GreaterOrEqual(t, rounds, 9)
	})
}

func TestOneFailureEndsAllAndIsNamed(t *testing.T) {
	boom := newTask("control socket", func(context.Context, func()) error { return errors.New("address in use") })
	wait := newTask("wait", func(ctx context.Context, ready func()) error { ready(); <-ctx.Done(); return nil })
	err := runTasks(t.Context(), []task{boom, wait}, func() { t.Error("never ready") })
	assert.EqualError(t, err, "control socket: address in use")
}

func TestATaskThatJustEndsIsAFailure(t *testing.T) {
	quits := newTask("watch", func(context.Context, func()) error { return nil })
	assert.EqualError(t, runTasks(t.Context(), []task{quits}, func() {}), "watch: ended without being asked to")
}
