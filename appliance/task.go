package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// task is everything long-lived in the daemon: started together, stopped together, and
// the daemon is ready when every one of them is.
type task interface {
	// Run works until ctx ends (then it returns nil) or it cannot go on.
	Run(ctx context.Context) error
	// Ready is closed when the task does what it is for.
	Ready() <-chan struct{}
	// String names the task in logs and errors.
	String() string
}

// funcTask makes a task of a function; ready is closed by the function through the callback.
type funcTask struct {
	name  string
	run   func(ctx context.Context, ready func()) error
	ready chan struct{}
	once  sync.Once
}

func newTask(name string, run func(ctx context.Context, ready func()) error) *funcTask {
	return &funcTask{name: name, run: run, ready: make(chan struct{})}
}

func (t *funcTask) Run(ctx context.Context) error {
	return t.run(ctx, func() { t.once.Do(func() { close(t.ready) }) })
}
func (t *funcTask) Ready() <-chan struct{} { return t.ready }
func (t *funcTask) String() string         { return t.name }

// every calls f each interval until ctx ends; it is ready at once. Errors are f's own to report:
// a failed round must not take the daemon with it.
func every(name string, interval time.Duration, f func(ctx context.Context)) *funcTask {
	return newTask(name, func(ctx context.Context, ready func()) error {
		ready()
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				f(ctx)
			}
		}
	})
}

// runTasks runs all tasks and calls ready once every one is ready. It returns when all have ended:
// the first failure ends the others and is the error.
func runTasks(ctx context.Context, tasks []task, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", t, err)
			}
			if ctx.Err() == nil {
				return fmt.Errorf("%s: ended without being asked to", t)
			}
			return nil
		})
	}
	g.Go(func() error {
		for _, t := range tasks {
			select {
			case <-ctx.Done():
				return nil
			case <-t.Ready():
			}
		}
		ready()
		return nil
	})
	return g.Wait()
}
