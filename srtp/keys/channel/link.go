package channel

import (
	"context"
	"net"
	"sync"
	"time"

	"ringway/srtp/keys"
	"ringway/srtp/suite"
)

// Media is the media plane's side. Carry may neither block nor call the Link: the media plane answers later, by Held,
// NotHeld, Sent and Count.
type Media interface {
	// Carry has the media plane do something with a key, which it wipes when it has passed it on.
	Carry(keys.Action)
}

// LinkConfig is what a Link needs.
type LinkConfig struct {
	Keys    keys.Config
	Channel Config
	Media   Media
	// State is what the Link of the process before has saved; nil: nothing.
	State []byte
	// Save, if it is set, is given the state after every change, before anything is carried out or sent. It overwrites
	// what it was given when it needs it no more, and is bound as Media is.
	Save func(state []byte)
}

// Link agrees keys with one far site, over connections that follow each other. It may be used by several goroutines.
type Link struct {
	config LinkConfig
	began  time.Time // what its clock counts from

	mu       sync.Mutex
	exchange *keys.Exchange
	conn     *Conn

	serving chan struct{} // held by the connection in use
}

// NewLink makes a Link without a connection. After State was given, bring the media plane to Wanted first.
func NewLink(c LinkConfig) (*Link, error) {
	l := &Link{config: c, began: time.Now(), serving: make(chan struct{}, 1)}
	var err error
	if c.State != nil {
		l.exchange, err = keys.Restore(c.Keys, c.State, l.now())
	} else {
		l.exchange, err = keys.New(c.Keys, l.now())
	}
	return l, err
}

// now is the time on the Link's monotonic clock.
func (l *Link) now() int64 { return int64(time.Since(l.began)) }

// Dials says whether this end opens the connection.
func (l *Link) Dials() bool { return Dials(l.config.Channel.Own.public, l.config.Channel.Far) }

// Up says whether there is a connection whose far end has proved its identity.
func (l *Link) Up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// Run does what time asks for, until the context ends.
func (l *Link) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			l.do(func(x *keys.Exchange, now int64) { x.Tick(now) })
		}
	}
}

// Serve uses a connection until it ends, and returns why. It takes the place of the one before as soon as the far end
// has proved its identity: where that one is half-open, only one end may know. conn is closed at the end.
func (l *Link) Serve(ctx context.Context, conn net.Conn) error {
	c, err := Open(ctx, conn, l.config.Channel)
	if err != nil {
		return err
	}
	l.mu.Lock()
	before := l.conn
	l.mu.Unlock()
	if before != nil {
		before.Close()
	}
	select {
	case l.serving <- struct{}{}:
	case <-ctx.Done():
		c.Close()
		return ctx.Err()
	}
	defer func() { <-l.serving }()
	l.do(func(x *keys.Exchange, now int64) {
		l.conn = c
		x.Connected(now)
	})
	err = c.Run(ctx, func(m []byte) (err error) {
		l.do(func(x *keys.Exchange, now int64) { err = x.Receive(m, now) })
		return err
	})
	l.do(func(x *keys.Exchange, now int64) {
		l.conn = nil
		x.Disconnected(now)
	})
	return err
}

// do calls the exchange, and passes on what comes of it.
func (l *Link) do(what func(x *keys.Exchange, now int64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.now()
	what(l.exchange, at)
	actions, messages := l.exchange.Actions(), l.exchange.Messages()
	if l.config.Save != nil {
		l.config.Save(l.exchange.Save(at))
	}
	for _, a := range actions {
		l.config.Media.Carry(a)
	}
	if l.conn != nil && len(messages) > 0 {
		_ = l.conn.Send(messages...) // an error has ended the connection: Serve sees it
	}
}

// Begin agrees keys of a leg: see keys.Exchange.Begin.
func (l *Link) Begin(leg keys.Leg, s suite.Suite) (err error) {
	l.do(func(x *keys.Exchange, now int64) { err = x.Begin(leg, s, now) })
	return err
}

// Renew offers the next keys of legs now: the media plane does not use those in use any more.
func (l *Link) Renew(legs []keys.Leg) {
	l.do(func(x *keys.Exchange, now int64) {
		for _, leg := range legs {
			x.Renew(leg, now)
		}
	})
}

// End gives a leg up.
func (l *Link) End(leg keys.Leg) { l.do(func(x *keys.Exchange, now int64) { x.End(leg, now) }) }

// Held says that the media plane has carried Hold out.
func (l *Link) Held(leg keys.Leg, mki keys.MKI) {
	l.do(func(x *keys.Exchange, now int64) { x.Held(leg, mki, now) })
}

// NotHeld says that it could not.
func (l *Link) NotHeld(leg keys.Leg, mki keys.MKI) {
	l.do(func(x *keys.Exchange, now int64) { x.NotHeld(leg, mki, now) })
}

// Sent says that the media plane has carried Use out.
func (l *Link) Sent(leg keys.Leg, mki keys.MKI) {
	l.do(func(x *keys.Exchange, now int64) { x.Sent(leg, mki, 0, now) })
}

// Count is how many packets the media plane has sent with a key, or opened, since it said so last.
type Count struct {
	Leg     keys.Leg
	MKI     keys.MKI
	Opened  bool
	Packets uint64
}

// Count takes counts of many keys at once: after each call of the exchange all of its state is saved.
func (l *Link) Count(all []Count) {
	l.do(func(x *keys.Exchange, now int64) {
		for _, c := range all {
			if c.Opened {
				x.Opened(c.Leg, c.MKI, c.Packets, now)
			} else {
				x.Sent(c.Leg, c.MKI, c.Packets, now)
			}
		}
	})
}

// Wanted returns what the media plane is to have: see keys.Exchange.Wanted.
func (l *Link) Wanted() (all []keys.Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exchange.Wanted()
}

// Save returns the state for the next process: see keys.Exchange.Save.
func (l *Link) Save() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exchange.Save(l.now())
}

// Status returns how it stands with a leg; ok is false where this end has not begun it.
func (l *Link) Status(leg keys.Leg) (s keys.Status, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exchange.Status(leg)
}

// Legs returns the status of every leg, what is wrong now, and the time on the clock of Problem.Since.
func (l *Link) Legs() (legs []keys.Status, problems []keys.Problem, at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at = l.now()
	return l.exchange.Legs(), l.exchange.Problems(at), at
}

// Counters returns the counters.
func (l *Link) Counters() keys.Counters {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exchange.Counters()
}
