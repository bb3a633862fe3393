// Package channel carries the messages of srtp/keys between two sites: Noise_KK (noiseprotocol.org, revision 34) on one
// TCP connection, which the caller dials or accepts. Each site has a static identity, and knows the far site's.
//
//  1. Open: the site that dials sends a handshake, the other answers; each proves itself        session.go
//  2. Run: frames out, by one goroutine, and in, by another                                     conn.go, frame.go
//  3. hourly: the site that dials begins another handshake inside the session, and both switch to its keys
//  4. whatever is wrong ends the connection, and the caller dials again
//
// A Link ties a keys.Exchange to the connections that follow each other.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/flynn/noise"

	"ringway/srtp/keys"
)

// Why a connection ends. Errors of Open and Run are one of these, an error of srtp/keys, or the context's.
var (
	ErrIdentity = errors.New("far end does not have the identity that is configured, or it has another one for us")
	ErrVersion  = errors.New("far end speaks another version of the key channel")
	ErrFrame    = errors.New("malformed frame")
	ErrForged   = errors.New("frame is not authentic, or was replayed or reordered")
	ErrSilent   = errors.New("far end is silent")
	ErrBlocked  = errors.New("far end does not read what is sent to it")
	ErrFlood    = errors.New("far end sends too many messages")
	ErrRenewal  = errors.New("renewal of the session failed")
	ErrClosed   = errors.New("connection is closed")
)

// Times and bounds of ours.
const (
	openTimeout  = 5 * time.Second // for the whole handshake
	aliveEvery   = time.Second     // something is sent that often
	deadAfter    = 4 * time.Second // without a whole frame received, or with one that cannot be sent
	renewTimeout = 10 * time.Second
	defaultRenew = time.Hour
	maxQueue     = 4096 // messages to be sent
	maxMessages  = 2000 // received in a second
)

// Kinds of messages of the channel's own.
const (
	kindAlive   = keys.KindChannel     // nothing to say
	kindRenew   = keys.KindChannel + 1 // with the initiator's handshake message
	kindRenewed = keys.KindChannel + 2 // with the responder's
)

// Config is what a connection needs.
type Config struct {
	Own *Identity
	Far PublicKey
	// RenewEvery is how long a session's keys are used; 0: an hour. The end that dials counts.
	RenewEvery time.Duration
}

// Conn is a connection whose far end has proved its identity.
type Conn struct {
	config Config
	conn   net.Conn
	dials  bool
	buffer *[headLen + maxFrame]byte // of whoever reads

	mu      sync.Mutex
	out, in direction
	binding []byte // of the session (Noise section 11.2)
	// next is the session that a renewal has agreed, until both directions use it.
	next     *session
	renewing *handshake // of the end that dials: not answered
	renewAt  time.Time
	queue    [][]byte
	ended    bool

	wake chan struct{}
}

// direction is the cipher of one direction, and the number of its session.
type direction struct {
	cipher *noise.CipherState
	number byte
}

// change takes the next session's cipher, and wipes the one before.
func (d *direction) change(c *noise.CipherState) {
	wipe(d.cipher)
	d.cipher, d.number = c, d.following()
}

// following is the number of the next session.
func (d *direction) following() byte { return sessionType | (d.number+1)&sessionMask }

// Open has both ends prove their identities. It returns when the far end has, afresh: whoever replays a handshake of
// another connection gets no further. On an error conn is closed.
func Open(ctx context.Context, conn net.Conn, config Config) (*Conn, error) {
	if config.RenewEvery <= 0 {
		config.RenewEvery = defaultRenew
	}
	c := &Conn{
		config: config, conn: conn, dials: Dials(config.Own.public, config.Far), buffer: new([headLen + maxFrame]byte),
		wake: make(chan struct{}, 1),
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err := conn.SetDeadline(time.Now().Add(openTimeout))
	if err == nil {
		err = c.open()
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, c.why(ctx, err)
	}
	c.renewAt = time.Now().Add(config.RenewEvery)
	return c, nil
}

func (c *Conn) open() error {
	h, err := newHandshake(c.config.Own, c.config.Far, nil)
	if err != nil {
		return err
	}
	defer h.wipe()
	say := func() (*session, error) {
		m, s, err := h.write()
		if err != nil {
			return nil, err
		}
		frame := append(appendHead(nil, handshakeType, 1+len(m)), version)
		_, err = c.conn.Write(append(frame, m...))
		return s, err
	}
	if c.dials {
		if _, err := say(); err != nil {
			return err
		}
	}
	kind, body, err := readFrame(c.conn, c.buffer)
	if err != nil {
		return err
	}
	m, err := readHandshake(kind, body)
	if err != nil {
		return err
	}
	s, err := h.read(m)
	if err == nil && !c.dials {
		s, err = say()
	}
	if err != nil {
		return err
	}
	c.out, c.in = direction{s.send, sessionType}, direction{s.receive, sessionType}
	c.binding = s.binding
	if c.dials {
		return c.write([]byte{byte(kindAlive)})
	}
	// The first message may be a replay. Only who has made it can go on.
	_, err = c.read()
	return err
}

// Close ends the connection. Run returns.
func (c *Conn) Close() {
	_ = c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, m := range c.queue {
		clear(m)
	}
	c.queue = nil
	wipe(c.out.cipher)
	wipe(c.in.cipher)
	c.out.cipher, c.in.cipher = nil, nil
	if c.next != nil {
		wipe(c.next.send)
		wipe(c.next.receive)
	}
	if c.renewing != nil {
		c.renewing.wipe()
	}
}

// Send queues messages and overwrites them when they are sent. It does not block.
func (c *Conn) Send(messages ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return ErrClosed
	}
	if len(c.queue)+len(messages) > maxQueue {
		_ = c.conn.Close()
		return ErrBlocked
	}
	c.queue = append(c.queue, messages...)
	c.awake()
	return nil
}

func (c *Conn) awake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run sends what is queued and hands over what is received, until the connection ends, and returns why. A message is
// borrowed until receive returns; an error of receive ends the connection.
func (c *Conn) Run(ctx context.Context, receive func([]byte) error) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.conn.Close() })()
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return c.why(ctx, err)
	}
	// The first error is the cause: it has the connection closed, which is an error for the other goroutine.
	var cause error
	var once sync.Once
	end := func(err error) {
		once.Do(func() { cause = err })
		_ = c.conn.Close()
	}
	done := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		if err := c.sendAll(done); err != nil {
			end(err)
		}
	})
	end(c.receiveAll(receive))
	close(done)
	sender.Wait()
	return c.why(ctx, cause)
}

// why says in our words why the connection has ended.
func (c *Conn) why(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrSilent
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return ErrClosed
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w within a frame", ErrClosed)
	}
	return err
}

// sendAll is the sender.
func (c *Conn) sendAll(done <-chan struct{}) error {
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		idle := false
		select {
		case <-done:
			return nil
		case <-c.wake:
		case <-alive.C:
			idle = true
		}
		if err := c.renew(); err != nil {
			return err
		}
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		if idle && len(queue) == 0 {
			queue = [][]byte{{byte(kindAlive)}}
		}
		for _, m := range queue {
			err := c.conn.SetWriteDeadline(time.Now().Add(deadAfter))
			if err == nil {
				err = c.write(m)
			}
			clear(m)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return ErrBlocked
			}
			if err != nil {
				return err
			}
		}
	}
}

// renew begins a renewal when it is time to, and ends a connection whose session gets too old.
func (c *Conn) renew() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	late := time.Since(c.renewAt)
	switch {
	case c.ended || late < 0:
		return nil
	case !c.dials:
		if late > c.config.RenewEvery {
			return fmt.Errorf("%w: the far end does not begin one", ErrRenewal)
		}
		return nil
	case c.renewing != nil || c.next != nil:
		if late > renewTimeout {
			return fmt.Errorf("%w: no answer", ErrRenewal)
		}
		return nil
	}
	h, err := newHandshake(c.config.Own, c.config.Far, c.binding)
	if err != nil {
		return err
	}
	m, _, err := h.write()
	if err != nil {
		return err
	}
	c.renewing = h
	c.queue = append(c.queue, append([]byte{byte(kindRenew)}, m...))
	return nil
}

// renewAsked answers the end that dials. It switches first: until then this end sends under the session before.
func (c *Conn) renewAsked(m []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dials || c.next != nil {
		return fmt.Errorf("%w: not expected", ErrRenewal)
	}
	h, err := newHandshake(c.config.Own, c.config.Far, c.binding)
	if err != nil {
		return err
	}
	if _, err := h.read(m); err != nil {
		return fmt.Errorf("%w: %w", ErrRenewal, err)
	}
	answer, s, err := h.write()
	if err != nil {
		return err
	}
	c.next = s
	c.queue = append(c.queue, append([]byte{byte(kindRenewed)}, answer...))
	c.awake()
	return nil
}

// renewAnswered has this end send under the next session, and does so at once: that confirms it.
func (c *Conn) renewAnswered(m []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.renewing == nil {
		return fmt.Errorf("%w: not expected", ErrRenewal)
	}
	s, err := c.renewing.read(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRenewal, err)
	}
	c.renewing, c.next = nil, s
	c.out.change(s.send)
	c.queue = append(c.queue, []byte{byte(kindAlive)})
	c.awake()
	return nil
}

// received: the far end's first frame under the next session has come, which shows that it has its keys.
func (c *Conn) received() {
	c.in.change(c.next.receive)
	if !c.dials {
		c.out.change(c.next.send)
	}
	c.binding, c.next = c.next.binding, nil
	c.renewAt = time.Now().Add(c.config.RenewEvery)
}

// write sends one message.
func (c *Conn) write(m []byte) error {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return ErrClosed
	}
	head := appendHead(make([]byte, 0, headLen+len(m)+tagLen), c.out.number, len(m)+tagLen)
	frame, err := c.out.cipher.Encrypt(head, head[2:], m)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encrypt a message of the key channel: %w", err)
	}
	_, err = c.conn.Write(frame)
	return err
}

// read receives one message. It is borrowed until the next read.
func (c *Conn) read() ([]byte, error) {
	number, body, err := readFrame(c.conn, c.buffer)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, ErrClosed
	}
	cipher, over := c.in.cipher, false
	if number != c.in.number {
		if number != c.in.following() || c.next == nil {
			return nil, ErrForged
		}
		cipher, over = c.next.receive, true
	}
	m, err := cipher.Decrypt(body[:0], []byte{number}, body)
	if err != nil {
		return nil, ErrForged
	}
	if over {
		c.received()
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrFrame)
	}
	return m, nil
}

// receiveAll is the receiver.
func (c *Conn) receiveAll(receive func([]byte) error) error {
	second, count := time.Now(), 0
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(deadAfter)); err != nil {
			return err
		}
		m, err := c.read()
		if err != nil {
			return err
		}
		if now := time.Now(); now.Sub(second) >= time.Second {
			second, count = now, 0
		}
		if count++; count > maxMessages {
			return ErrFlood
		}
		switch kind := keys.Kind(m[0]); {
		case kind == kindRenew:
			err = c.renewAsked(m[1:])
		case kind == kindRenewed:
			err = c.renewAnswered(m[1:])
		case kind >= keys.KindChannel && kind <= keys.KindChannelEnd:
			// kindAlive, or of a later version
		default:
			err = receive(m)
			clear(m)
		}
		if err != nil {
			return err
		}
	}
}
