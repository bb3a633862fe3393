package relay

import (
	"context"
	"errors"
	"fmt"
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
	// maxAtOnce bounds the changes that go with a message which waits. More are a burst, and a burst has to wait.
	maxAtOnce = 64
	// maxQueued bounds the changes that wait for the daemon. Beyond, they are told it as a whole.
	maxQueued = 4096
	// askLimit bounds a request to the daemon; retryAfter is the pause after one that failed.
	askLimit   = time.Second
	retryAfter = 200 * time.Millisecond
)

// asker tells the daemon which flows calls need. It sends one request at a time, in the order of the changes;
// what comes meanwhile goes into the next. What closes is told a moment later than what opens, since nobody waits for
// it. After a failure, and to a new daemon, it tells the whole.
//
// Where there is a channel, whoever waits for an answer sends the request itself, with all that is queued, and reads
// the answer: no other goroutine has to be woken on the way. What nobody waits for, an answer that did not come in time
// and the whole are the business of run.
type asker struct {
	send  func(ctx context.Context, r flowsRequest) error
	open  func(ctx context.Context) (*channel, error) // nil: there are no channels
	whole func() []Change                             // that open all flows which are needed now

	wake chan struct{}
	late atomic.Bool // a message has given up waiting: the others do not wait either until an answer comes

	asking  sync.Mutex    // held by who asks the daemon, until it has the answer or gives up; before mu
	channel *channel      // with asking; nil: it has to be opened
	owed    chan struct{} // with asking; what the answer stands for that has not come; nil: none is to come

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

// tell queues a change for which nobody waits.
func (a *asker) tell(c Change) {
	if _, queued := a.put(c); queued {
		a.kick()
	}
}

// put queues a change. done is closed when the daemon has it. If something was queued, it is sent with the next
// request: that of wait, or after kick.
func (a *asker) put(c Change) (done <-chan struct{}, queued bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range c.Open {
		delete(a.closing, f) // the daemon has it open still
	}
	for _, f := range c.Close {
		if len(a.closing) == 0 {
			time.AfterFunc(closeAfter, a.closeNow)
		}
		a.closing[f] = struct{}{}
	}
	if len(a.closing) >= maxQueued {
		a.due = true
		a.kick()
	}
	c.Close = nil
	switch {
	case len(c.Open)+len(c.Places) == 0:
		return a.next, false
	case len(a.queue) < maxQueued:
		a.queue = append(a.queue, c)
	default:
		a.queue, a.all = nil, true
	}
	return a.next, true
}

func (a *asker) closeNow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due = true
	a.kick()
}

// take gives the next request, with what is to be closed if that is due. The caller holds the lock.
func (a *asker) take(closings bool) (r flowsRequest, done chan struct{}) {
	r, done = flowsRequest{Changes: a.queue, Whole: a.all}, a.next
	if closings && (a.due || a.all) {
		if len(a.closing) > 0 && !a.all {
			r.Changes = append(r.Changes, Change{Close: slices.Collect(maps.Keys(a.closing))})
		}
		clear(a.closing)
		a.due = false
	}
	a.queue, a.next, a.all = nil, make(chan struct{}), false
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
		a.kick()
		return false
	}
	if a.askNow() {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	a.kick()
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

// askNow sends what is queued by the channel, and waits a moment for the answer. It reports whether it could: nobody
// else asks, and it is not for run to do.
func (a *asker) askNow() bool {
	if !a.asking.TryLock() {
		return false
	}
	defer a.asking.Unlock()
	if a.channel == nil || a.owed != nil {
		return false
	}
	a.mu.Lock()
	if a.all || len(a.queue) > maxAtOnce {
		a.mu.Unlock()
		return false
	}
	r, done := a.take(false)
	a.mu.Unlock()
	if len(r.Changes) == 0 { // somebody else has sent it
		close(done)
		return true
	}
	switch err := a.channel.ask(r.Changes); {
	case errors.Is(err, errTooLong):
		a.tellAll() // by the control connection, with what was taken
		close(done)
	case errors.Is(err, errLate):
		a.owed = done
		a.late.Store(true)
		a.kick()
	default:
		a.answered(done, err)
	}
	return true
}

// answered lets those go on who wait for a request. The caller holds asking.
func (a *asker) answered(done chan struct{}, err error) {
	if err != nil {
		a.failed(err)
	} else {
		a.late.Store(false)
	}
	close(done)
}

// failed has the daemon told of everything, since it may have missed something. The caller holds asking.
func (a *asker) failed(err error) {
	if a.channel != nil && !errors.Is(err, errRefused) {
		a.channel.close() // what it still brings belongs to nothing any more
		a.channel = nil
	}
	a.tellAll()
}

// run sends until ctx ends.
func (a *asker) run(ctx context.Context) {
	defer a.end()
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

func (a *asker) end() {
	a.asking.Lock()
	defer a.asking.Unlock()
	if a.channel != nil {
		a.channel.close()
	}
	a.channel, a.open = nil, nil
}

// round sends what is queued.
func (a *asker) round(ctx context.Context) error {
	a.asking.Lock()
	defer a.asking.Unlock()
	if a.owed != nil {
		owed := a.owed
		a.owed = nil
		a.answered(owed, a.channel.collect(askLimit))
	}
	if a.channel == nil && a.open != nil {
		if err := a.reopen(ctx); err != nil {
			return err
		}
	}
	a.mu.Lock()
	r, done := a.take(true)
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
	err := a.ask(ctx, r)
	a.answered(done, err)
	return err
}

// reopen opens a channel. The daemon has given up the one before by then, so that nothing comes by it after the whole,
// which is told next.
func (a *asker) reopen(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if a.channel, err = a.open(ctx); err == nil {
		a.tellAll()
	}
	return err
}

// ask sends one request, and waits for its answer.
func (a *asker) ask(ctx context.Context, r flowsRequest) error {
	if a.channel != nil && !r.Whole {
		err := a.channel.ask(r.Changes)
		if errors.Is(err, errLate) {
			err = a.channel.collect(askLimit)
		}
		if !errors.Is(err, errTooLong) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if err := a.send(ctx, r); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}
