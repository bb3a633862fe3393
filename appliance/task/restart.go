package task

import (
	"context"
	"time"
)

// Restart calls run until ctx ends. After a failure it calls failed and pauses first.
func Restart(ctx context.Context, pause time.Duration, run func(context.Context) error, failed func(error)) {
	for ctx.Err() == nil {
		err := run(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}

		failed(err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
