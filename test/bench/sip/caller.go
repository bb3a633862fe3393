package sip

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/bench/cost"
)

// state is how far a call is.
type state uint8

const (
	unplaced state = iota
	placed
	answered
	ending
	ended
	failed // refused
)

// call is one call of the caller.
type call struct {
	state  state
	routes string
}

// caller places the calls of a trial, in two threads: one sends by the clock, the other receives.
type caller struct {
	socket  socket
	phones  []string // addresses
	pbx     string
	next    unix.SockaddrInet4 // hop
	trial   string
	rate    int
	count   int
	hold    time.Duration
	phone   func(call int) int
	port    func(call int) int
	sources [][]byte

	delays  delays // of the receiver
	dropped uint32
	late    time.Duration // by which the sender was late at most
	over    atomic.Bool

	mu     sync.Mutex // guards what follows
	calls  []call
	byes   []due // in the order of their time
	done   int   // calls that ended
	up     int   // calls that were answered
	refuse map[string]int
}

// due is when a call is ended.
type due struct {
	at   time.Duration
	call int
}

func (c *caller) prepare() error {
	c.calls, c.refuse = make([]call, c.count), map[string]int{}
	for _, p := range c.phones {
		a, err := netip.ParseAddr(p)
		if err != nil {
			return err
		}
		c.sources = append(c.sources, source(a))
	}
	return nil
}

// party is call n.
func (c *caller) party(n int) party {
	p := party{trial: c.trial, number: n, phone: c.phones[c.phone(n)], pbx: c.pbx, port: c.port(n)}
	if s := c.calls[n]; s.state >= answered {
		p.tag, p.routes = fmt.Sprintf(";tag=p%d", n), s.routes
	}
	return p
}

func (c *caller) send(n int, b []byte) error {
	if err := c.socket.send(b, c.sources[c.phone(n)], &c.next); err != nil {
		return fmt.Errorf("send a message of a call: %w", err)
	}
	return nil
}

// place sends INVITEs and BYEs at their times, until all calls are over or over is set.
func (c *caller) place() error {
	const idle = time.Millisecond // between two looks for calls to end, once all are placed
	out := make([]byte, 0, maxBytes)
	start, interval := cost.Monotonic(), time.Second/time.Duration(c.rate)
	for n := 0; !c.over.Load(); {
		at := start + time.Duration(n)*interval
		if n == c.count {
			at = cost.Monotonic() + idle
		}
		if err := c.endUntil(at, out); err != nil {
			return err
		}
		cost.Until(at)
		if n == c.count {
			continue
		}
		c.late = max(c.late, cost.Monotonic()-at)
		c.mu.Lock()
		c.calls[n].state = placed
		p := c.party(n)
		c.mu.Unlock()
		if err := c.send(n, p.invite(out)); err != nil {
			return err
		}
		n++
	}
	return nil
}

// endUntil sends the BYEs that are due before a time.
func (c *caller) endUntil(t time.Duration, out []byte) error {
	for {
		c.mu.Lock()
		if len(c.byes) == 0 || c.byes[0].at > t {
			c.mu.Unlock()
			return nil
		}
		next := c.byes[0]
		c.byes = c.byes[1:]
		c.calls[next.call].state = ending
		p := c.party(next.call)
		c.mu.Unlock()
		cost.Until(next.at)
		if err := c.send(next.call, p.bye(out)); err != nil {
			return err
		}
	}
}

// receive takes the answers, until over is set.
func (c *caller) receive() error {
	b, control, out := make([]byte, maxBytes), make([]byte, 128), make([]byte, 0, maxBytes)
	for !c.over.Load() {
		r, overflow, err := c.socket.receive(b, control)
		if err != nil {
			return err
		}
		c.dropped = max(c.dropped, overflow)
		n := number(r.b, c.trial)
		if n < 0 || n >= c.count || len(r.b) < 12 {
			continue
		}
		if err := c.take(n, r, out); err != nil {
			return err
		}
	}
	return nil
}

// take takes one answer.
func (c *caller) take(n int, r received, out []byte) error {
	ofBye := bytes.HasSuffix(header(r.b, headerCSeq), []byte("BYE"))
	c.mu.Lock()
	defer c.mu.Unlock()
	x := &c.calls[n]
	switch status := string(r.b[8:11]); {
	case status == "100":
	case status == "180":
		c.delays.add(ringing, r)
	case status == "200" && ofBye && x.state == ending:
		c.delays.add(byeAnswer, r)
		x.state, x.routes = ended, ""
		c.done++
	case status == "200" && !ofBye && x.state == placed:
		c.delays.add(answer, r)
		x.state, x.routes = answered, routes(r.b)
		c.up++
		if err := c.send(n, c.party(n).ack(out)); err != nil {
			return err
		}
		c.byes = append(c.byes, due{cost.Monotonic() + c.hold, n})
	case status >= "300" && x.state < ended:
		c.refuse[status]++
		x.state = failed
	}
	return nil
}

// progress is how many calls were answered, and how many of all are over.
func (c *caller) progress() (up, over int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	over = c.done
	for _, n := range c.refuse {
		over += n
	}
	return c.up, over
}
