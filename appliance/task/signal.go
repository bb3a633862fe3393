package task

import "context"

// Signal asks a task to look at something again. Raising it never blocks; several raises before the task looks are one.
type Signal chan struct{}

// NewSignal returns a signal that is not raised.
func NewSignal() Signal { return make(Signal, 1) }

// Raise asks for a look.
func (s Signal) Raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Loop calls look once, then after each Raise, until ctx ends. It is ready after the first look.
func (s Signal) Loop(ctx context.Context, ready func(), look func(ctx context.Context)) error {
	look(ctx)
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s:
			look(ctx)
		}
	}
}
