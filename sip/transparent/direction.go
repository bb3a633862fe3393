package transparent

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"time"

	"ringway/sip/message"
)

// direction carries what one side of a pair sends to the other side.
type direction struct {
	p        *pair
	src, dst *side
	from, to netip.AddrPort
	fromNear bool

	transport Transport // TCP or TLS

	forward func([]byte) error // to dst
	reply   func([]byte) error // to src

	in     buffer // begins with the start of a message
	framer message.Framer
	since  int64 // when the message that in holds a part of began, as Relay.now says
	beat   beat
	ended  bool // src sends no more, and dst knows
}

func newDirection(p *pair, src, dst *side, from, to netip.AddrPort, fromNear bool) *direction {
	return &direction{
		p: p, src: src, dst: dst, from: from, to: to, fromNear: fromNear, transport: TCP,
		forward: dst.write, reply: src.write, in: buffer{from: &p.r.memory},
	}
}

// carry relays until src ends (nil), the pair is paused, or a failure ends it.
func (d *direction) carry() error {
	err := d.dst.flush()
	for err == nil {
		if err = d.deliver(); err == nil {
			err = d.read()
		}
	}
	if errors.Is(err, io.EOF) {
		err = d.finish()
	}
	if !errors.Is(err, errPaused) {
		d.in.consume(len(d.in.bytes()))
	}
	return err
}

// deliver relays all whole messages that have come.
func (d *direction) deliver() error {
	if d.in.empty() {
		return nil
	}
	s := d.p.r.scratch.Get().(*scratch)
	defer d.p.r.scratch.Put(s)
	for !d.in.empty() {
		n, err := d.next(s, d.in.bytes())
		d.in.consume(n)
		if n == 0 || err != nil {
			return err
		}
		d.since = d.p.r.now()
	}
	return nil
}

// next relays what b begins with. It takes n bytes of it, or none if more are needed.
func (d *direction) next(s *scratch, b []byte) (n int, err error) {
	carries := mode(d.p.mode.Load())
	if carries == undecided && !mayBeSIP(b) {
		carries = d.p.decide(carriesRaw)
	}
	if carries == carriesRaw {
		return len(b), d.forward(b)
	}

	n, why := d.framer.Next(b, &s.sip)
	switch {
	case n > 0 && why == message.KeepAlive:
	case n > 0:
		carries = d.p.decide(carriesSIP)
	case why == message.BadStartLine && carries == undecided:
		carries = d.p.decide(carriesRaw)
	}
	switch {
	case carries == carriesRaw: // decided just now, here or by the other direction
		return len(b), d.forward(b)
	case n == 0 && why != message.None:
		return 0, d.fault(s, b, why)
	case n == 0:
		return 0, nil
	}
	return n, d.pass(s, b[:n:n], why)
}

// pass shows a message to the Handler, and does what that says.
func (d *direction) pass(s *scratch, b []byte, why message.Reason) error {
	a := d.show(s, b, why)
	var err error
	if len(a.Reply) > 0 {
		d.p.r.counts.add(replies)
		err = d.reply(a.Reply)
	}
	switch {
	case a.Drop:
		d.p.r.counts.add(messagesDropped)
	case a.Raw != nil:
		d.p.r.counts.add(messagesPassed)
		err = worse(err, d.forward(a.Raw))
		a.overwrite()
	default:
		d.p.r.counts.add(messagesPassed)
		err = worse(err, d.forward(b))
	}
	if a.Close {
		return failure(closedByHandler)
	}
	return err
}

// show calls the Handler.
func (d *direction) show(s *scratch, b []byte, why message.Reason) Action {
	s.message = Message{
		From: d.from, To: d.to, Transport: d.transport, FromNear: d.fromNear, Raw: b, SIP: &s.sip, Reason: why,
	}
	d.beat.work(d.p.r.now())
	defer d.beat.wait()
	a := d.p.r.config.Handle(&s.message)
	if a.Wait != nil {
		a.Wait()
	}
	return a
}

// fault ends the pair: nothing that follows on this stream has a certain start. The Handler learns of it, since
// who sends such things is somebody to watch.
func (d *direction) fault(s *scratch, b []byte, why message.Reason) error {
	d.p.r.counts.faults[why].Add(1)
	d.show(s, b, why)
	return failure(framingFault)
}

// worse is the error that decides: a failure before errPaused.
func worse(a, b error) error {
	if a == nil || errors.Is(a, errPaused) && b != nil {
		return b
	}
	return a
}

// read waits for more, at most until a deadline passes.
func (d *direction) read() error {
	if err := d.arm(); err != nil {
		return err
	}
	fresh := d.in.empty()
	err := d.src.read(&d.in)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return d.expired()
	case err != nil:
		return err
	}
	d.p.touch()
	if fresh {
		d.since = d.p.r.now()
	}
	return nil
}

// arm sets until when to wait. In a stream that passes raw nothing may stay in the buffer: decide has woken the
// directions, and whichever comes here later must not undo that.
func (d *direction) arm() error {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.paused:
		return errPaused
	case !d.in.empty() && mode(p.mode.Load()) == carriesRaw:
		return d.src.conn.SetReadDeadline(time.Unix(1, 0))
	}
	return d.src.conn.SetReadDeadline(p.r.began.Add(time.Duration(d.deadline())))
}

// deadline is until when something has to come: the rest of a message, or anything on an idle connection.
func (d *direction) deadline() int64 {
	until := d.p.active.Load() + int64(d.p.r.config.Limits.Idle)
	if !d.in.empty() {
		until = min(until, d.since+int64(d.p.r.config.Limits.Message))
	}
	return until
}

// expired says what a deadline that passed means. nil: somebody has woken this direction, or something came from
// the other side meanwhile.
func (d *direction) expired() error {
	now := d.p.r.now()
	switch {
	case d.p.isPaused():
		return errPaused
	case now < d.deadline():
		return nil
	case d.in.empty():
		return failure(idle)
	}
	return failure(messageTimedOut)
}

// finish passes on the end of a stream. Part of a message does not go on: some servers would read it as a whole
// one, which nobody has looked at. What cannot be the start of one does.
func (d *direction) finish() error {
	if rest := d.in.bytes(); len(rest) > 0 {
		if mode(d.p.mode.Load()) == undecided && bytes.IndexByte(rest, '\n') < 0 {
			d.p.decide(carriesRaw)
		}
		if mode(d.p.mode.Load()) == carriesRaw {
			err := d.forward(rest)
			d.in.consume(len(rest))
			if err != nil {
				return err
			}
		} else {
			d.p.r.counts.add(messageCutOff)
			d.in.consume(len(rest))
		}
	}
	if err := d.dst.closeWrite(); err != nil {
		return err
	}
	d.ended = true
	return nil
}
