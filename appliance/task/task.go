// Package task runs the long-lived parts of a program: started together, stopped together, ready when every one is.
package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Task is a long-lived part of a program.
type Task struct {
	Name string // in logs and errors

	// Run works until ctx ends, then returns nil, or until it cannot go on. It calls ready once it does what it is for.
	Run func(ctx context.Context, ready func()) error
}

// Every calls f each interval until ctx ends. It is ready at once. Errors are f's own to report: a failed round is no
// reason to end the program.
func Every(name string, interval time.Duration, f func(ctx context.Context)) Task {
	return Task{name, func(ctx context.Context, ready func()) error {
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
	}}
}

// RunAll runs all tasks and calls ready once every one is ready. It returns when all have ended: the first failure ends
// the others and is the error.
func RunAll(ctx context.Context, tasks []Task, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	waiting := make(chan struct{}, len(tasks))

	for _, t := range tasks {
		group.Go(func() error {
			err := t.Run(ctx, sync.OnceFunc(func() { waiting <- struct{}{} }))
			switch {
			case err != nil && !errors.Is(err, context.Canceled):
				return fmt.Errorf("%s: %w", t.Name, err)
			case ctx.Err() == nil:
				return fmt.Errorf("%s: ended unexpectedly", t.Name)
			}
			return nil
		})
	}
	group.Go(func() error {
		for range tasks {
			select {
			case <-ctx.Done():
				return nil
			case <-waiting:
			}
		}
		ready()
		return nil
	})
	return group.Wait()
}
