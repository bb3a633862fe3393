package relay

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringway/sip/dialog"
)

const (
	// patience is how long a message waits until its flows are open. Then it goes on, and they follow.
	patience = 5 * time.Millisecond
	// closeAfter is how long what closes waits for others that close: the daemon then has one change, and the kernel
	// one transaction, for what many calls have left. It is part of the second within which media of an ended call
	// stops.
	closeAfter = 20 * time.Millisecond
	// maxQueued bounds the changes that wait for the daemon. Beyond, they are told it as a whole.
	maxQueued = 4096
	// askLimit bounds a request to the daemon; retryAfter is the pause after one that failed.
	askLimit   = time.Second
	retryAfter = 200 * time.Millisecond
)

// asker tells the daemon which flows calls need. It sends one request at a time, in the order of the changes;
// what comes meanwhile goes into the next. What closes is told a moment later than what opens, since nobody waits for
// it. After a failure, and to a new daemon, it tells the whole.
type asker struct {
	send  func(ctx context.Context, r flowsRequest) error
	whole func() []Change // that open all flows which are needed now

	wake chan struct{}
	late atomic.Bool // a message has given up waiting: the others do not wait either until an answer comes

	mu      sync.Mutex
	queue   []Change
	next    chan struct{} // closed when the daemon has the queue
	all     bool          // tell the whole
	closing map[dialog.Flow]struct{}
	due     bool // what closes goes with the next request
}

func newAsker(send func(context.Context, flowsRequest) error, whole func() []Change) *asker {
	return &asker{
		send: send, whole: whole, wake: make(chan struct{}, 1), next: make(chan struct{}),
		closing: map[dialog.Flow]struct{}{},
	}
}

// tell queues a change. The channel is closed when the daemon has it.
func (a *asker) tell(c Change) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range c.Open {
		delete(a.closing, f) // the daemon has it open still
	}
	c.Close = a.close(c.Close)
	switch {
	case len(c.Open)+len(c.Close)+len(c.Places) == 0:
		return a.next
	case len(a.queue) < maxQueued:
		a.queue = append(a.queue, c)
	default:
		a.queue, a.all = nil, true
	}
	a.kick()
	return a.next
}

// close has flows closed in a moment, or at once if too many wait. It returns those that do not wait: a flow from a
// whole network is an interval, and what one of those costs the kernel grows with the number of them in the set. The
// caller holds the lock.
func (a *asker) close(flows []dialog.Flow) (now []dialog.Flow) {
	for _, f := range flows {
		if !f.From.IsValid() {
			now = append(now, f)
			continue
		}
		if len(a.closing) == 0 {
			time.AfterFunc(closeAfter, a.closeNow)
		}
		a.closing[f] = struct{}{}
	}
	if len(a.closing) >= maxQueued {
		a.due = true
		a.kick()
	}
	return now
}

func (a *asker) closeNow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due = true
	a.kick()
}

// take gives the next request. The caller holds the lock.
func (a *asker) take() (r flowsRequest, done chan struct{}) {
	r, done = flowsRequest{Changes: a.queue, Whole: a.all}, a.next
	if a.due && len(a.closing) > 0 {
		r.Changes = append(r.Changes, Change{Close: slices.Collect(maps.Keys(a.closing))})
	}
	if a.due || a.all {
		clear(a.closing)
	}
	a.queue, a.next, a.all, a.due = nil, make(chan struct{}), false, false
	return r, done
}

// tellAll has the daemon told of every flow.
func (a *asker) tellAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue, a.all = nil, true
	a.kick()
}

func (a *asker) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// wait returns when the daemon has what done stands for, or after a moment; it reports whether it has.
func (a *asker) wait(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
	}
	if a.late.Load() {
		return false
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		a.late.Store(true)
		return false
	}
}

// run sends until ctx ends.
func (a *asker) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		if err := a.round(ctx); err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
			a.kick()
		}
	}
}

// round sends what is queued.
func (a *asker) round(ctx context.Context) error {
	a.mu.Lock()
	r, done := a.take()
	a.mu.Unlock()
	if r.Whole {
		// What is queued from now on comes after this snapshot, and may be part of it: opening what is open and
		// closing what is closed do no harm.
		r.Changes = a.whole()
	}
	if len(r.Changes) == 0 && !r.Whole {
		close(done)
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	err := a.send(ctx, r)
	if err != nil {
		a.tellAll()
	} else {
		a.late.Store(false)
	}
	close(done)
	return err
}
