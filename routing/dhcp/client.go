package dhcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Client keeps the lease of one interface. The states are those of RFC 2131, figure 5:
//
//	lease of this boot ───────────────────┐
//	last lease ── INIT-REBOOT ── ack ──┐  │
//	                   │ nak, silence  ▼  ▼
//	INIT ─ discover, offer, request ─ BOUND ─ T1 ─ RENEWING ─ T2 ─ REBINDING ─ expiry ─ lost ─ INIT
//	  ▲                                 ▲────── ack ───┴──────────────┘ │
//	  └──────────────────────────── nak: lost ──────────────────────────┘
type Client struct {
	Interface string
	File      string      // holds the last lease; empty: none is saved
	Report    func(Lease) // called from Run when a lease is granted, renewed, changed or lost
	Options   []Option    // sent with every message
	Log       *slog.Logger

	// Refuse says why a lease must not be used; nil: any may be. It is asked before a lease is requested, and again
	// before it is reported.
	Refuse func(Lease) error
	// Note, if set, is called from Run with what keeps the client from a lease, or from renewing it; empty: nothing.
	Note func(string)

	// Timeout is how long to wait for a first answer; it doubles with each try. 0: the 4 s of RFC 2131.
	Timeout time.Duration
	// MaxHold is the longest that a lease is held without asking again. 0: a day.
	MaxHold time.Duration

	reported Lease     // the last one
	noted    string    // the last one
	notedAt  time.Time // of a refusal
	once     sync.Once
	recheck  chan struct{}
}

const (
	firstTimeout    = 4 * time.Second // RFC 2131, section 4.1
	tries           = 4               // after 4, 8, 16, 32 s
	rebootTries     = 2               // a server that does not know the client is silent: do not wait a minute for it
	pause           = 10 * time.Second
	notePause       = 2 * time.Second  // between refusals that are said: a stranger can cause any number of them
	nakPatience     = time.Second      // for an acknowledgement, after another server than the lease's has refused
	minRenewalPause = 60 * time.Second // RFC 2131, section 4.4.5: half of the time left, but at least a minute
)

func (c *Client) String() string { return "DHCP client on " + c.Interface }

// Run keeps the lease until ctx ends. It does not release it then: the next start goes on with it until it
// expires. After a release the server may grant another address, and the other sites would have to find this
// one again.
func (c *Client) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.init()
	lease, ok := c.recalled(ctx)
	for ctx.Err() == nil {
		if !ok {
			if lease, ok = c.obtain(ctx); !ok {
				c.waitOrRecheck(ctx, c.spread(min(pause, 3*c.timeout()))) // a carrier that comes back ends the pause
				continue
			}
			c.bind(lease)
		}

		lease, ok = c.keep(ctx, lease)
	}
	return nil
}

// recalled returns the lease of an earlier run: one that is still held is reported at once, any other is
// asked for again (INIT-REBOOT).
func (c *Client) recalled(ctx context.Context) (Lease, bool) {
	if c.File == "" {
		return Lease{}, false
	}
	last, held, err := recall(c.File, c.Interface)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.Log.Warn("last lease not read", "interface", c.Interface, "error", err)
		}
		return Lease{}, false
	}
	if err := c.refuse(last); err != nil {
		c.note(fmt.Sprintf("last lease of %s refused: %v", last.Address, err))
		return Lease{}, false
	}
	if held {
		c.bind(last)
		return last, true
	}

	lease, err := c.ask(ctx, reboot, last)
	if err != nil {
		c.Log.Info("last lease not confirmed", "interface", c.Interface, "address", last.Address, "error", err)
		return Lease{}, false
	}
	c.bind(lease)
	return lease, true
}

// obtain goes from INIT to BOUND. A lease that must not be used is refused as an offer, before it is requested: there
// is nothing to release then. DHCPDECLINE would be wrong, it says that another host uses the address (RFC 2131,
// section 3.1).
func (c *Client) obtain(ctx context.Context) (Lease, bool) {
	ctx, stop := c.untilRecheck(ctx)
	defer stop()
	var lease Lease
	refusals := refusals{note: c.noteRefusal}
	given := time.Now()
	err := c.exchange(initial, Lease{}, tries, func(x *nclient4.Client, mac net.HardwareAddr) error {
		discover, err := dhcpv4.NewDiscovery(mac, c.modifiers()...)
		if err != nil {
			return err
		}

		// A bad offer is skipped: another server may make a good one.
		offer, err := x.SendAndRead(ctx, nclient4.DefaultServers, discover, func(p *dhcpv4.DHCPv4) bool {
			return p.MessageType() == dhcpv4.MessageTypeOffer && c.acceptable(p, given, &refusals)
		})
		if err != nil {
			return fmt.Errorf("discover: %w", err)
		}

		given = time.Now()
		lease, err = c.selectOffer(ctx, x, offer, given, &refusals)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			c.note(refusals.reason(err))
		}
		return Lease{}, false
	}
	return lease, true
}

// selectOffer requests what a server has offered.
func (c *Client) selectOffer(
	ctx context.Context, x *nclient4.Client, offer *dhcpv4.DHCPv4, given time.Time, refusals *refusals,
) (lease Lease, err error) {
	request, err := dhcpv4.NewRequestFromOffer(offer, c.modifiers()...)
	if err != nil {
		return Lease{}, err
	}
	fromServer := nclient4.IsCorrectServer(offer.ServerIdentifier())
	answer, err := x.SendAndRead(ctx, nclient4.DefaultServers, request, func(p *dhcpv4.DHCPv4) bool {
		switch {
		case !fromServer(p):
			return false
		case p.MessageType() == dhcpv4.MessageTypeAck:
			lease, err = c.check(p, given)
			return refusals.accept(err)
		}
		return p.MessageType() == dhcpv4.MessageTypeNak
	})
	switch {
	case err != nil:
		return Lease{}, fmt.Errorf("request %s: %w", offer.YourIPAddr, err)
	case answer.MessageType() == dhcpv4.MessageTypeNak:
		return Lease{}, nakOf(answer)
	}
	return lease, nil
}

// check reads an offer or acknowledgement, and refuses what is not valid or must not be used. The lease is returned
// in any case, as far as it could be read.
func (c *Client) check(p *dhcpv4.DHCPv4, given time.Time) (Lease, error) {
	l, err := leaseOf(c.Interface, p, given, c.maxHold())
	if err == nil {
		err = c.refuse(l)
	}
	if err != nil {
		from := cmp.Or(addrOf(p.ServerIdentifier()), addrOf(p.ServerIPAddr))
		return l, fmt.Errorf("refused %s by server %s: %w", p.YourIPAddr, from, err)
	}
	return l, nil
}

func (c *Client) acceptable(p *dhcpv4.DHCPv4, given time.Time, refusals *refusals) bool {
	_, err := c.check(p, given)
	return refusals.accept(err)
}

func (c *Client) refuse(l Lease) error {
	if c.Refuse == nil {
		return nil
	}
	return c.Refuse(l)
}

// refusals keeps the last reason for which a message was not accepted while the client waits for a better one.
type refusals struct {
	last error
	note func(error)
}

func (r *refusals) accept(err error) bool {
	if err != nil {
		r.last = err
		r.note(err)
	}
	return err == nil
}

// reason is the text of an exchange's error.
func (r *refusals) reason(err error) string {
	silent := errors.Is(err, nclient4.ErrNoResponse) || errors.Is(err, context.DeadlineExceeded)
	switch {
	case silent && r.last != nil:
		return r.last.Error()
	case silent:
		return "no server answers"
	}
	return err.Error()
}

// noteRefusal says why a message was not accepted, also while a better one is waited for.
func (c *Client) noteRefusal(err error) {
	if now := time.Now(); now.Sub(c.notedAt) > notePause {
		c.notedAt = now
		c.note(err.Error())
	}
}

func (c *Client) note(text string) {
	if text != c.noted && text != "" {
		c.Log.Warn("DHCP", "interface", c.Interface, "problem", text)
	}
	if text != c.noted && c.Note != nil {
		c.Note(text)
	}
	c.noted = text
}

// keep stays BOUND, renews and rebinds. It returns the lease to go on with, or false when it is lost.
func (c *Client) keep(ctx context.Context, lease Lease) (Lease, bool) {
	at := lease.given.Add(lease.Renew)
	for {
		woken, recheck := c.waitOrRecheck(ctx, time.Until(at))
		if !woken {
			return lease, true
		}

		if err := c.refuse(lease); err != nil { // since the config has changed
			c.lose(fmt.Sprintf("%s refused: %v", lease.Address, err))
			return Lease{}, false
		}

		asking, until := reboot, lease.Expiry
		if !recheck {
			asking, until = lease.stateNow()
		}
		if asking == expired {
			c.lose("it has expired")
			return Lease{}, false
		}

		limited, cancel := context.WithDeadline(ctx, until)
		next, err := c.ask(limited, asking, lease)
		cancel()
		var nak *nakError
		switch {
		case err == nil:
			c.bind(next)
			return next, true
		case ctx.Err() != nil:
			return lease, true
		case errors.As(err, &nak):
			c.lose(nak.Error())
			return Lease{}, false
		case recheck:
			continue // without an answer the lease is held until its time
		}
		c.note("not renewed: " + err.Error())
		at = lease.nextTry(until)
	}
}

// stateNow is the state that the lease's times have led to, and the end of it.
func (l Lease) stateNow() (state, time.Time) {
	now, rebindAt := time.Now(), l.given.Add(l.Rebind)
	switch {
	case now.Before(rebindAt):
		return renew, rebindAt
	case now.Before(l.Expiry):
		return rebind, l.Expiry
	}
	return expired, l.Expiry
}

// nextTry is half of the time left in a state later, at least a minute, but not after the state's end (RFC
// 2131, section 4.4.5).
func (l Lease) nextTry(until time.Time) time.Time {
	wait := max(time.Until(until)/2, min(minRenewalPause, l.Duration/20))
	at := time.Now().Add(wait)
	if at.After(until) {
		return until
	}
	return at
}

func (c *Client) bind(l Lease) {
	if err := remember(c.File, l); err != nil {
		c.Log.Warn("lease not saved for the next start", "interface", c.Interface, "error", err)
	}
	if !c.reported.same(l) {
		c.Log.Info("lease", "interface", c.Interface, "address", l.Address, "gateways", l.Gateways,
			"server", l.Server, "expiry", l.Expiry)
		if w := l.Warning(); w != "" {
			c.Log.Warn(w, "interface", c.Interface, "server", l.Server)
		}
	}
	c.note("")
	c.reported = l
	c.Report(l)
}

func (c *Client) lose(why string) {
	c.Log.Error("lease lost", "interface", c.Interface, "address", c.reported.Address, "reason", why)
	c.reported = Lease{}
	c.note("the last lease was lost: " + why)
	if c.File != "" {
		_ = os.Remove(c.File) // otherwise a restart would go on with it
	}
	c.Report(Lease{Interface: c.Interface, Lost: true})
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return firstTimeout
}

func (c *Client) maxHold() time.Duration {
	if c.MaxHold > 0 {
		return c.MaxHold
	}
	return maxHold
}

// spread keeps many clients from asking at the same time after a power cut (RFC 2131, section 4.1).
func (c *Client) spread(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

// Recheck makes Run have the lease confirmed soon, or ask for one at once if there is none: after a cable was
// pulled, the machine may be in another network. It does not block, and may be called before Run.
func (c *Client) Recheck() {
	c.init()
	select {
	case c.recheck <- struct{}{}:
	default:
	}
}

// untilRecheck returns a context that ends at a Recheck, which is still to be taken then: whoever waits half a minute
// for an answer need not wait that long once there is a carrier.
func (c *Client) untilRecheck(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case <-c.recheck:
			c.Recheck()
			cancel()
		}
	}()
	return ctx, func() { cancel(); <-done }
}

func (c *Client) init() { c.once.Do(func() { c.recheck = make(chan struct{}, 1) }) }

func (c *Client) waitOrRecheck(ctx context.Context, d time.Duration) (woken, recheck bool) {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-c.recheck:
		return ctx.Err() == nil, true
	case <-t.C:
		return ctx.Err() == nil, false
	}
}

func (c *Client) nakPatience() time.Duration { return min(nakPatience, c.timeout()) }
