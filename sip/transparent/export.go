package transparent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Connection is a TCP connection of a relay, as it is handed to the next one: its descriptors, and all bytes that
// were read from one side and not written to the other. It can be sent as JSON; the descriptors go beside it.
type Connection struct {
	From     netip.AddrPort `json:"from"` // who connected
	To       netip.AddrPort `json:"to"`
	FromNear bool           `json:"from_near"`

	Dialed  bool      `json:"dialed"` // the far end has accepted it
	SIP     bool      `json:"sip"`    // it has carried a message
	Raw     bool      `json:"raw"`    // it passes unread
	Streams [2]Stream `json:"streams"`
}

// Stream is one side of a Connection: first the one of From, then the one of To.
type Stream struct {
	// FD is the side's socket; -1 if Connection.To has none yet.
	FD int `json:"-"`
	// Unread came from this side, and is the start of a message.
	Unread []byte `json:"unread,omitempty"`
	// Unsent was judged, and is still to be written to this side.
	Unsent []byte `json:"unsent,omitempty"`
}

// Close closes the descriptors of a connection that nobody takes over.
func (c *Connection) Close() {
	for i := range c.Streams {
		if fd := c.Streams[i].FD; fd > 2 {
			unix.Close(fd)
		}
		c.Streams[i].FD = -1
	}
}

// Export ends the relay and hands over its TCP connections, which go on in the relay that imports them: in another
// process, or in this one if that fails. New connections and datagrams wait in the listeners meanwhile. What a
// Handler keeps busy until ctx ends is not handed over: its connection is reset, and the error says how many were.
func (r *Relay) Export(ctx context.Context) ([]Connection, error) {
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	listening := make(chan struct{})
	go func() {
		r.stopListening()
		close(listening)
	}()
	late := 0
	if !endsBefore(ctx, listening) {
		late++
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	open := r.openPairs()
	for _, p := range open {
		p.pause()
	}

	var all []Connection
	var err error
	for _, p := range open {
		if !endsBefore(ctx, p.done) {
			late++
			continue
		}
		c, there, exportErr := p.export()
		err = errors.Join(err, exportErr)
		if there {
			all = append(all, c)
		}
	}
	if late == 0 {
		r.Close()
	} else {
		r.quitOnce.Do(func() { close(r.quit) }) // Run returns when the Handlers do
		err = errors.Join(err, fmt.Errorf("%d loops and connections are busy: %w", late, ctx.Err()))
	}
	if err != nil {
		err = fmt.Errorf("export connections of a transparent relay: %w", err)
	}
	return all, err
}

// endsBefore waits until done is closed; false: ctx ended first.
func endsBefore(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// export takes a paused pair apart, on which nothing works any more. there is false if it has ended.
func (p *pair) export() (c Connection, there bool, err error) {
	p.mu.Lock()
	if p.over {
		p.mu.Unlock()
		return c, false, nil
	}
	p.over = true
	p.mu.Unlock()
	p.r.forget(p)

	carries := mode(p.mode.Load())
	c = Connection{
		From: p.from, To: p.to, FromNear: p.fromNear, Dialed: p.dialed,
		SIP: carries == carriesSIP, Raw: carries == carriesRaw,
	}
	for i, s := range p.sides {
		d := p.directions[i]
		c.Streams[i] = Stream{Unread: append([]byte(nil), d.in.bytes()...), Unsent: s.unsent}
		d.in.consume(len(d.in.bytes()))
		var detachErr error
		c.Streams[i].FD, detachErr = s.detach()
		err = errors.Join(err, detachErr)
	}
	if err != nil {
		c.Close()
		for _, s := range p.sides {
			if s.conn != nil {
				reset(s.conn)
			}
		}
		return c, false, fmt.Errorf("connection from %s to %s: %w", p.from, p.to, err)
	}
	p.r.counts.add(exported)
	return c, true, nil
}

// Import takes over a connection, before Run or while it runs. Its descriptors are the relay's then; on error they
// are closed.
func (r *Relay) Import(c Connection) error {
	p, err := r.restore(&c)
	if err == nil {
		if why := r.admit(p, unlimited); why != none {
			err = errClosed
		}
	}
	if err != nil {
		c.Close()
		if p != nil {
			for _, s := range p.sides {
				if s.conn != nil {
					reset(s.conn)
				}
			}
		}
		return fmt.Errorf("import connection from %s to %s: %w", c.From, c.To, err)
	}
	r.counts.add(imported)
	return nil
}

// restore makes a pair of what export made of one. Descriptors that a side has taken are not in c any more. A direction
// that had ended reads the end of its stream once more.
func (r *Relay) restore(c *Connection) (*pair, error) {
	p, err := newPair(r, c.From, c.To, c.FromNear, nil)
	if err != nil {
		return nil, err
	}
	p.dialed = c.Dialed
	switch {
	case c.Raw:
		p.mode.Store(uint32(carriesRaw))
	case c.SIP:
		p.mode.Store(uint32(carriesSIP))
	}
	if c.Streams[near].FD < 0 || c.Dialed && c.Streams[far].FD < 0 {
		return p, errors.New("it has no descriptor")
	}
	for i, s := range p.sides {
		stream := &c.Streams[i]
		d := p.directions[i]
		s.unsent = stream.Unsent
		if !d.in.load(stream.Unread) {
			return p, errors.New("its unread bytes are more than a message")
		}
		d.since = r.now()
		if stream.FD < 0 {
			continue
		}
		fd := stream.FD
		stream.FD = -1
		conn, err := tcpConn(fd)
		if err != nil {
			return p, err
		}
		if err := p.setConn(i, conn); err != nil {
			return p, err
		}
	}
	return p, nil
}
