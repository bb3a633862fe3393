package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrLost means that the control connection ended.
	ErrLost = errors.New("control connection lost")
	// ErrNoAnswer means that the other end is there and did not answer in time.
	ErrNoAnswer = errors.New("no answer in time")
	// ErrBusy means that as many requests as may be in flight are.
	ErrBusy = errors.New("too many requests in flight")
)

const (
	// sendTimeout bounds how long an answer or an event waits for a reader.
	sendTimeout = time.Second
	// lostGrace is how long a failed write waits for the reader, which may know why.
	lostGrace = 50 * time.Millisecond
	// maxWithin bounds what a process may ask a handler of the daemon to take.
	maxWithin = 30 * time.Second
)

// Request is a message that expects an answer.
type Request struct {
	Type  string
	Body  any    // a struct whose fields go into the message, or nil
	Files []File // sent as duplicates; the caller keeps its own

	// Attached goes beside the fields as it is, where JSON would cost more than what is done about it.
	Attached []byte

	// Long marks a request that may take longer, as one that changes everything (Timing.Change instead of
	// Timing.Answer).
	Long bool
	// Within is the longest that the answer may take, whatever the context allows: a peer that hangs would
	// hold up everything that waits for the call. 0: the connection's limit.
	Within time.Duration
}

// Reply is the answer of a Handler. Files are sent as duplicates.
type Reply struct {
	Body     any
	Attached []byte // as a Request's
	Files    []File

	After func() // called once the answer was sent, or could not be; nil: nothing to do
}

// Handler answers one type of request. It must return soon after ctx ends. Descriptors that it does not take
// from m are closed when it returns.
type Handler func(ctx context.Context, m *Message) (Reply, error)

// Conn is one end of a control connection. Requests go both ways over it.
type Conn struct {
	w *wire
	o connOptions

	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	queue  chan *Message
	large  atomic.Int32 // requests longer than maxRequest that wait or are worked on

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan *Message
	lost    error // set when the connection ends

	gone    chan struct{} // closed with lost set
	reading sync.WaitGroup
	workers sync.WaitGroup
}

// connOptions says which end a Conn is.
type connOptions struct {
	peer    string // the other end, for errors
	daemon  bool   // this end is the daemon's
	version int    // major version of the kind's protocol
	timing  Timing

	serve      func(ctx context.Context, m *Message) (Reply, error)
	pushed     func(m *Message)
	inOrder    bool     // answer one request after the other
	maxWaiting int      // requests of the other end that are worked on or wait for it
	large      []string // types of requests to the daemon that may be longer than maxRequest
}

// newConn takes over c, also on error.
func newConn(c *net.UnixConn, o connOptions) (*Conn, error) {
	w, err := newWire(c, o.daemon)
	if err != nil {
		c.Close()
		return nil, err
	}
	k := &Conn{
		w: w, o: o,
		queue:   make(chan *Message, o.maxWaiting),
		waiting: map[uint64]chan *Message{},
		gone:    make(chan struct{}),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k, nil
}

// openConn makes a Conn of c and starts it. It takes over c, also on error.
func openConn(c *net.UnixConn, o connOptions) (*Conn, error) {
	k, err := newConn(c, o)
	if err == nil {
		k.start()
	}
	return k, err
}

// start begins to read. What serve and pushed refer to must be complete by then.
func (c *Conn) start() {
	c.reading.Go(c.read)
	workers := c.o.maxWaiting
	if c.o.inOrder {
		workers = min(workers, 1)
	}
	for range workers {
		c.workers.Go(c.work)
	}
}

// read takes messages in until the connection ends.
func (c *Conn) read() {
	defer c.cancel()
	for {
		m, err := c.w.read()
		if err == nil && m.Type == typeRefused {
			m.Close()
			err = errors.New(m.env.Error)
		}
		if err != nil {
			c.mu.Lock()
			c.lost = fmt.Errorf("%w: %w", ErrLost, err)
			c.mu.Unlock()
			close(c.gone)
			return
		}
		switch {
		case m.env.ID == 0:
			if c.o.pushed != nil {
				c.o.pushed(m)
			}
			m.Close()
		case c.isRequest(m):
			c.enqueue(m)
		default:
			c.answered(m)
		}
	}
}

// isRequest tells requests of the other end from answers to our own.
func (c *Conn) isRequest(m *Message) bool {
	if c.o.daemon {
		return m.env.Asks
	}
	return !m.env.Reply
}

// enqueue hands a request to the workers. The reader never waits for them: an answer to a request of ours may
// be what a worker waits for.
func (c *Conn) enqueue(m *Message) {
	m.conn = c
	err := c.admit(m)
	if err == nil {
		select {
		case c.queue <- m:
			return
		default:
		}
		c.done(m)
		err = fmt.Errorf("%w (at most %d)", ErrBusy, c.o.maxWaiting)
	}
	m.Close()
	if c.o.maxWaiting == 0 {
		err = fmt.Errorf("unknown request %q (no requests are answered here)", m.Type)
	}
	c.answer(m, Reply{}, err)
}

// admit says whether a request of a process may wait, by its length. done must follow.
func (c *Conn) admit(m *Message) error {
	switch {
	case !c.o.daemon || m.size() <= maxRequest:
		return nil
	case !slices.Contains(c.o.large, m.Type):
		return fmt.Errorf("request %q has %d bytes (allowed: %d)", m.Type, m.size(), maxRequest)
	case c.large.Add(1) > maxLarge:
		c.large.Add(-1)
		return fmt.Errorf("%w (at most %d of more than %d bytes)", ErrBusy, maxLarge, maxRequest)
	}
	m.large = true
	return nil
}

// done makes room for the next request.
func (c *Conn) done(m *Message) {
	if m.large {
		c.large.Add(-1)
	}
	m.large, m.body, m.attached = false, nil, nil
}

func (c *Conn) work() {
	for {
		select {
		case <-c.ctx.Done():
			c.discardQueue()
			return
		case m := <-c.queue:
			reply, err := c.dispatch(m)
			m.Close()
			c.done(m)
			c.answer(m, reply, err)
			if reply.After != nil {
				reply.After()
			}
		}
	}
}

// discardQueue closes the descriptors of requests that nobody will answer.
func (c *Conn) discardQueue() {
	for {
		select {
		case m := <-c.queue:
			m.Close()
			c.done(m)
		default:
			return
		}
	}
}

// dispatch has a request answered. A handler that panics costs its request alone.
func (c *Conn) dispatch(m *Message) (reply Reply, err error) {
	if m.filesErr != nil {
		return Reply{}, m.filesErr
	}
	ctx := c.ctx
	if m.env.WithinMS > 0 {
		within := min(time.Duration(min(m.env.WithinMS, maxWithin.Milliseconds()))*time.Millisecond, maxWithin)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, within)
		defer cancel()
	}
	if c.o.daemon {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the daemon failed to answer %q: %v", m.Type, p)
			}
		}()
	}
	return c.o.serve(ctx, m)
}

// answer sends the answer to m. A caller that does not read is disconnected.
func (c *Conn) answer(m *Message, reply Reply, err error) {
	env := envelope{Version: c.o.version, Type: m.Type, ID: m.env.ID, Reply: c.o.daemon}
	if err != nil {
		env.Error, reply = err.Error(), Reply{}
	}
	if h, ok := reply.Body.(helloBody); ok {
		env.Hello, reply.Body = h.json, nil
	}
	err = c.w.write(env, reply.Body, reply.Attached, reply.Files, sendTimeout)
	if errors.Is(err, errNotSent) {
		env.Error, env.Hello = err.Error(), nil
		err = c.w.write(env, nil, nil, nil, sendTimeout)
	}
	if err != nil {
		c.w.close()
	}
}

// push sends an event.
func (c *Conn) push(env envelope, body any, attached []byte) error {
	env.Version = c.o.version
	return c.w.write(env, body, attached, nil, sendTimeout)
}

// answered gives an answer to the call that waits for it.
func (c *Conn) answered(m *Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.waiting[m.env.ID]
	if ch == nil { // the caller gave up
		m.Close()
		return
	}
	delete(c.waiting, m.env.ID)
	ch <- m // has room; with mu held, so that forget either finds the answer or prevents it
}

// Call sends a request and waits for its answer. The caller closes the answer.
func (c *Conn) Call(caller context.Context, r Request) (*Message, error) {
	return c.call(caller, envelope{}, r)
}

func (c *Conn) call(caller context.Context, env envelope, r Request) (*Message, error) {
	within := r.Within
	switch {
	case within == 0 && r.Long:
		within = c.o.timing.Change
	case within == 0:
		within = c.o.timing.Answer
	}
	ctx, cancel := context.WithTimeoutCause(caller, within, ErrNoAnswer)
	defer cancel()
	deadline, _ := ctx.Deadline()

	env.Version, env.Type, env.Asks = c.o.version, r.Type, !c.o.daemon
	if !c.o.daemon {
		env.WithinMS = max(1, time.Until(deadline).Milliseconds())
	}
	ch, err := c.expect(&env)
	if err != nil {
		return nil, err
	}
	if err := c.w.write(env, r.Body, r.Attached, r.Files, time.Until(deadline)); err != nil {
		c.forget(env.ID, ch)
		return nil, c.writeFailed(caller, r.Type, err)
	}

	select {
	case m := <-ch:
		return c.result(m)
	case <-c.gone:
		select { // the answer may have come just before the end
		case m := <-ch:
			return c.result(m)
		default:
		}
		c.forget(env.ID, ch)
		return nil, c.whyLost()
	case <-ctx.Done():
		c.forget(env.ID, ch)
		return nil, fmt.Errorf("%s did not answer %q: %w", c.o.peer, r.Type, context.Cause(ctx))
	}
}

// expect draws an id for a request and makes room for its answer.
func (c *Conn) expect(env *envelope) (chan *Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return nil, c.lost
	}
	c.last++
	env.ID = c.last
	ch := make(chan *Message, 1)
	c.waiting[env.ID] = ch
	return ch, nil
}

// forget gives up an answer.
func (c *Conn) forget(id uint64, ch chan *Message) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
	select { // it may have come at the same time
	case m := <-ch:
		m.Close()
	default:
	}
}

// writeFailed says what a failed write means.
func (c *Conn) writeFailed(caller context.Context, request string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && caller.Err() == nil { // the peer does not even read
		return fmt.Errorf("%s did not read %q: %w: %w", c.o.peer, request, ErrNoAnswer, err)
	}
	if errors.Is(err, errNotSent) {
		return err
	}
	select {
	case <-c.gone:
		return c.whyLost()
	case <-time.After(lostGrace):
		return err
	}
}

func (c *Conn) whyLost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// result turns a refusal into an error.
func (c *Conn) result(m *Message) (*Message, error) {
	switch {
	case m.env.Error != "":
		m.Close()
		return nil, fmt.Errorf("%s refused %q: %s", c.o.peer, m.Type, m.env.Error)
	case m.filesErr != nil:
		return nil, fmt.Errorf("answer of %s to %q: %w", c.o.peer, m.Type, m.filesErr)
	}
	return m, nil
}

// hello asks a process who it is. The second result is its pid according to the kernel.
func (c *Conn) hello(ctx context.Context, env envelope, within time.Duration) (about []byte, pid int, err error) {
	m, err := c.call(ctx, env, Request{Type: typeHello, Within: within})
	if err != nil {
		return nil, 0, err
	}
	defer m.Close()
	if len(m.env.Hello) == 0 {
		return nil, 0, fmt.Errorf("%s answered hello without saying who it is", c.o.peer)
	}
	return m.env.Hello, m.Sender.PID, nil
}

// close ends the connection and waits for its reader. Handlers that run end with their context.
func (c *Conn) close() {
	c.w.close()
	c.reading.Wait()
}
