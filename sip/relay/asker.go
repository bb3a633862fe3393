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
	// openAfter is how long what opens for a message that goes on at once waits for one that has to wait: the daemon then
	// has one request for both. It is less than a called phone takes to send media after an INVITE.
	openAfter = 2 * time.Millisecond
	// maxAtOnce bounds the changes that go with a message which waits. More are a burst, and a burst has to wait.
	maxAtOnce = 64
	// maxSent bounds the requests without an answer yet.
	maxSent = 16
	// maxQueued bounds the changes that wait for the daemon. Beyond, they are told it as a whole.
	maxQueued = 4096
	// askLimit bounds a request to the daemon; retryAfter is the pause after one that failed.
	askLimit   = time.Second
	retryAfter = 200 * time.Millisecond
)

// asker tells the daemon which flows calls need, in the order of the changes. What closes is told a moment later than
// what opens, since nobody waits for it. After a failure, and to a new daemon, it tells the whole.
//
// Where there is a channel, whoever has a message sends the request itself, with all that is queued, and reads the
// answers up to its own if it has to wait: no other goroutine has to be woken on the way. What nobody waits for,
// answers that did not come in time and the whole are the business of run.
type asker struct {
	send  func(ctx context.Context, r flowsRequest) error
	open  func(ctx context.Context) (*channel, error) // nil: there are no channels
	whole func() []Change                             // that open all flows which are needed now

	wake chan struct{}
	late atomic.Bool // a message has given up waiting: the others do not wait either until an answer comes

	planned    atomic.Bool // start is called within openAfter
	collecting atomic.Bool // run is to look for answers in a moment

	asking  sync.Mutex      // held while the daemon is asked; before mu. It guards:
	channel *channel        // nil: it has to be opened
	sent    []chan struct{} // for each request by the channel without an answer yet: closed when it has come

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
	case len(c.Open)+len(c.Places) == 0 && !c.hasMedia():
		return a.next, false
	case len(a.queue) < maxQueued:
		a.queue = append(a.queue, c)
	default:
		WipeKeys(append(a.queue, c))
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
	WipeKeys(a.queue)
	a.queue, a.all = nil, true
	a.kick()
}

func (a *asker) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// wait sends what is queued, and returns when the daemon has what done stands for, or after a moment. It reports
// whether it has.
func (a *asker) wait(done <-chan struct{}) bool {
	switch {
	case isClosed(done):
		return true
	case a.late.Load():
		a.kick()
		return false
	case a.askNow(done):
		return isClosed(done)
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

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// askNow sends what is queued by the channel, and reads answers for a moment until done is closed. It reports whether
// it could: nobody else asks, and it is not for run to do.
func (a *asker) askNow(done <-chan struct{}) bool {
	if !a.asking.TryLock() {
		return false
	}
	defer a.asking.Unlock()
	if !a.post() {
		return false
	}
	for began := time.Now(); !isClosed(done) && len(a.sent) > 0; {
		if errors.Is(a.read(0), errLate) || time.Since(began) >= patience {
			a.late.Store(!isClosed(done))
			a.kick()
			break
		}
	}
	return true
}

// soon sends what is queued within openAfter. Nobody waits for it.
func (a *asker) soon() {
	if !a.planned.Swap(true) {
		time.AfterFunc(openAfter, a.start)
	}
}

// start sends what is queued, and does not wait for the answer.
func (a *asker) start() {
	a.planned.Store(false)
	if a.late.Load() || !a.asking.TryLock() {
		a.kick()
		return
	}
	defer a.asking.Unlock()
	if len(a.sent) >= maxSent && errors.Is(a.read(0), errLate) || !a.post() {
		a.kick()
		return
	}
	if len(a.sent) > 0 && !a.collecting.Swap(true) { // the next request reads the answer, or else run does
		time.AfterFunc(closeAfter, func() {
			a.collecting.Store(false)
			a.kick()
		})
	}
}

// post sends what is queued by the channel, if that is not for run to do. The caller holds asking.
func (a *asker) post() bool {
	if a.channel == nil {
		return false
	}
	a.mu.Lock()
	switch {
	case a.all || len(a.queue) > maxAtOnce:
		a.mu.Unlock()
		return false
	case len(a.queue) == 0: // somebody else has sent it
		a.mu.Unlock()
		return true
	}
	r, done := a.take(false)
	a.mu.Unlock()
	err := a.channel.send(r.Changes)
	WipeKeys(r.Changes)
	if errors.Is(err, errTooLong) {
		a.tellAll() // by the control connection, with what was taken
		close(done)
		return false
	}
	a.sent = append(a.sent, done)
	if err != nil {
		a.failed(err)
	}
	return err == nil
}

// read takes the answer to the oldest request: one that comes in a moment, or with a limit. It fails with errLate
// while there is none; with a limit, that ends the channel. The caller holds asking.
func (a *asker) read(limit time.Duration) (err error) {
	if limit == 0 {
		if err = a.channel.answer(short); errors.Is(err, errLate) {
			return err
		}
	} else {
		err = a.channel.collect(limit)
	}
	if err == nil || errors.Is(err, errRefused) {
		close(a.sent[0])
		a.sent = a.sent[1:]
	}
	if err != nil {
		a.failed(err)
	} else {
		a.late.Store(false)
	}
	return err
}

// failed has the daemon told of everything, since it may have missed something. What a channel still brings that did
// not carry a request or its answer belongs to nothing any more. The caller holds asking.
func (a *asker) failed(err error) {
	if a.channel != nil && !errors.Is(err, errRefused) {
		a.channel.close()
		a.channel = nil
		for _, done := range a.sent {
			close(done)
		}
		a.sent = nil
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

// round reads answers that are due, and sends what is queued.
func (a *asker) round(ctx context.Context) error {
	a.asking.Lock()
	defer a.asking.Unlock()
	for len(a.sent) > 0 {
		_ = a.read(askLimit) // after an error the whole is queued
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
	return a.ask(ctx, r, done)
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
func (a *asker) ask(ctx context.Context, r flowsRequest, done chan struct{}) error {
	defer WipeKeys(r.Changes)
	if a.channel != nil && !r.Whole {
		err := a.channel.send(r.Changes)
		switch {
		case err == nil:
			a.sent = append(a.sent, done)
			if err = a.read(0); errors.Is(err, errLate) {
				err = a.read(askLimit)
			}
			return err
		case !errors.Is(err, errTooLong):
			close(done)
			a.failed(err)
			return err
		}
	}
	defer close(done)
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if err := a.send(ctx, r); err != nil {
		a.failed(fmt.Errorf("%w: %w", errRefused, err))
		return err
	}
	a.late.Store(false)
	return nil
}
