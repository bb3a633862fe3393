package dhcp6

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"ringway/boottime"
)

// Client keeps the lease of one interface. The states are those of RFC 8415, section 18.2:
//
//	lease of this boot ─────────────────────────┐
//	last lease, cable plugged in ── rebind ──┐  │
//	                                         ▼  ▼
//	solicit ─ advertise ─ request ─ reply ─ BOUND ─ T1 ─ renew ─ T2 ─ rebind ─ expiry ─ solicit
//	                         ▲                ▲───── reply ──┴──────────┤
//	                         └───────────── no binding ─────────────────┘
//
// All messages are multicast: the option that allows unicast to a server is never asked for.
type Client struct {
	Interface string
	Want      Want
	DUID      dhcpv6.DUID
	File      string      // holds the last lease; empty: none is saved
	Report    func(Lease) // called from Run when something is granted, changes, is deprecated or ends
	Log       *slog.Logger

	// Refuse and RefuseAddress say why a prefix, or an address on the link, must not be used; nil: any may be.
	Refuse        func(netip.Prefix) error
	RefuseAddress func(netip.Addr) error
	// Note, if set, is called from Run with what keeps the client from a lease, from a part of it, or from renewing it;
	// empty: nothing.
	Note func(string)

	// Second is what the timeouts of RFC 8415, section 7.6, count; 0: a second.
	Second time.Duration

	lease    Lease
	solMaxRT time.Duration // as a server has set it; 0: none has
	noted    string
	notedAt  time.Time
	once     sync.Once
	recheck  chan struct{}
}

// Transmission parameters of RFC 8415, section 7.6, in seconds.
var (
	soliciting = timing{initial: 1, longest: 3600}
	requesting = timing{initial: 1, longest: 30, count: 10}
	renewing   = timing{initial: 10, longest: 600}
	rebinding  = timing{initial: 10, longest: 600}
	// confirming is of a Rebind after a start or a change of the link, which has the timing of a Confirm (section
	// 18.2.12).
	confirming = timing{initial: 1, longest: 4, duration: 10}
	releasing  = timing{initial: 1, count: 4}
)

const (
	pause      = 10 // seconds, after a failure
	shortPause = 1  // seconds, until an interface is looked at again that is down, or has no address yet
	notePause  = 2 * time.Second
)

func (c *Client) String() string { return "DHCPv6 client on " + c.Interface }

// Run keeps the lease until ctx ends. It does not release it then: the next start goes on with it.
func (c *Client) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.init()
	c.lease = Lease{Interface: c.Interface}
	c.recall(ctx)
	for ctx.Err() == nil {
		if len(c.lease.Server) == 0 {
			c.obtain(ctx)
		} else {
			c.keep(ctx)
		}
	}
	return nil
}

// recall takes up the lease of an earlier run: what is still held is reported at once, anything else is asked for
// again.
func (c *Client) recall(ctx context.Context) {
	if c.File == "" {
		return
	}
	last, held, err := recall(c.File, c.Interface)
	if err != nil || len(last.Server) == 0 && !held {
		return
	}
	last = c.usable(last)
	if held {
		c.set(last)
		return
	}
	// Another boot: how long it is valid is not known, so nothing of it counts before a server confirms it.
	now := boottime.Now()
	g, err := c.ask(ctx, dhcpv6.MessageTypeRebind, confirming, last, time.Time{})
	for errors.Is(err, errNotReady) {
		c.note(err.Error())
		if woken, _ := c.waitOrRecheck(ctx, c.second()*shortPause); !woken {
			return
		}
		now = boottime.Now()
		g, err = c.ask(ctx, dhcpv6.MessageTypeRebind, confirming, last, time.Time{})
	}
	if err != nil || g.empty() {
		c.Log.Info("last DHCPv6 lease not confirmed", "interface", c.Interface, "error", err)
		return
	}
	c.bind(merge(Lease{Interface: c.Interface}, g, now), g)
}

// obtain goes from solicit to bound. What is left of an earlier lease is valid until its end.
func (c *Client) obtain(ctx context.Context) {
	limited, cancel := c.untilEnd(ctx)
	defer cancel()
	c.expire()
	offer, err := c.ask(limited, dhcpv6.MessageTypeSolicit, c.soliciting(), c.hint(), time.Time{})
	if err != nil {
		c.failed(ctx, limited, err)
		return
	}
	if offer.solMaxRT > 0 {
		c.solMaxRT = offer.solMaxRT
	}

	now := boottime.Now()
	chosen := merge(Lease{Interface: c.Interface}, offer, now)
	g, err := c.ask(limited, dhcpv6.MessageTypeRequest, requesting, chosen, time.Time{})
	if err == nil && g.empty() {
		err = cmp.Or(errors.Join(g.refusals...), errors.New("nothing was granted"))
	}
	if err != nil {
		c.failed(ctx, limited, err)
		return
	}
	c.bind(merge(c.lease, g, now), g)
}

// failed waits before the next try, unless what is left of the lease has to be looked at.
func (c *Client) failed(ctx, limited context.Context, err error) {
	if limited.Err() != nil {
		return
	}
	d := c.second() * pause
	if errors.Is(err, errNotReady) {
		d = c.second() * shortPause
	}
	c.note(err.Error())
	c.waitOrRecheck(ctx, spread(d))
}

func (c *Client) soliciting() timing {
	t := soliciting
	if c.solMaxRT > 0 {
		t.longest = int(c.solMaxRT / time.Second)
	}
	return t
}

// hint is what is asked for by name: the last prefixes.
func (c *Client) hint() Lease {
	l := Lease{Interface: c.Interface}
	if last, _, err := recall(c.File, c.Interface); c.File != "" && err == nil {
		l.Prefixes = c.usable(last).Prefixes
	}
	return l
}

// untilEnd ends when something of the lease does, or when the link has changed.
func (c *Client) untilEnd(ctx context.Context) (context.Context, func()) {
	now := boottime.Now()
	limited, cancel := context.WithTimeout(ctx, c.lease.nextEnd(now)-now)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-limited.Done():
		case <-c.recheck: // taken up by that: the next try begins again
			cancel()
		}
	}()
	return limited, func() {
		cancel()
		<-done
	}
}

// keep stays bound, renews and rebinds.
func (c *Client) keep(ctx context.Context) {
	now := boottime.Now()
	c.expire()
	if len(c.lease.Server) == 0 {
		return
	}
	end := c.lease.nextEnd(now)
	woken, recheck := c.waitOrRecheck(ctx, min(end, c.lease.Renew)-now)
	if !woken {
		return
	}

	now = boottime.Now()
	c.expire()
	kind, t, until := dhcpv6.MessageTypeRenew, renewing, min(c.lease.Rebind, c.lease.nextEnd(now))
	switch {
	case recheck:
		kind, t = dhcpv6.MessageTypeRebind, confirming
		until = c.lease.nextEnd(now)
	case now < c.lease.Renew || len(c.lease.Server) == 0:
		return
	case now >= c.lease.Rebind:
		kind, t, until = dhcpv6.MessageTypeRebind, rebinding, c.lease.nextEnd(now)
	}
	g, err := c.ask(ctx, kind, t, c.lease, time.Now().Add(until-now))
	switch {
	case ctx.Err() != nil:
	case err != nil && recheck: // without an answer the lease is held until its time
	case err != nil:
		c.note("not renewed: " + err.Error())
		c.waitOrRecheck(ctx, c.second()*shortPause)
	case g.noBinding:
		c.requestAgain(ctx, g)
	default:
		c.bind(merge(c.lease, g, now), g)
	}
}

// requestAgain asks the server that does not know the lease for one (RFC 8415, section 18.2.10.1).
func (c *Client) requestAgain(ctx context.Context, said granted) {
	again := c.lease
	again.Server = said.server
	now := boottime.Now()
	g, err := c.ask(ctx, dhcpv6.MessageTypeRequest, requesting, again, time.Time{})
	switch {
	case ctx.Err() != nil:
	case err == nil && !g.empty():
		c.bind(merge(c.lease, g, now), g)
	case !said.empty(): // a part of the lease goes on
		c.bind(merge(c.lease, said, now), said)
	default:
		c.abandon(errors.Join(append(said.refusals, err)...).Error())
	}
}

// bind takes up what was granted.
func (c *Client) bind(l Lease, g granted) {
	if l.Empty() {
		c.lose("the server has taken it away")
		return
	}
	if err := errors.Join(g.refusals...); err != nil {
		c.noteLines(g.refusals)
	} else {
		c.note("")
	}
	c.set(l)
}

// set makes l the lease, keeps it for the next start, and reports it.
func (c *Client) set(l Lease) {
	old := c.lease
	c.lease = l
	if err := remember(c.File, l); err != nil {
		c.Log.Warn("lease not saved for the next start", "interface", c.Interface, "error", err)
	}
	if !sameNames(old, l) {
		c.Log.Info("DHCPv6 lease", "interface", c.Interface, "prefixes", l.names(), "addresses", l.Addresses,
			"server", duidText(l.Server))
	}
	c.Report(l)
}

// names are the prefixes as text, for the log.
func (l Lease) names() (names []string) {
	for _, p := range l.Prefixes {
		names = append(names, p.Prefix.String())
	}
	return names
}

func sameNames(a, b Lease) bool {
	addresses := func(x, y Address) bool { return x.Address == y.Address }
	return slices.Equal(a.names(), b.names()) && slices.EqualFunc(a.Addresses, b.Addresses, addresses)
}

// expire drops what has ended, and what must not be used any more since the config has changed. What is not preferred
// any more is reported likewise.
func (c *Client) expire() {
	l := c.usable(c.lease.At(boottime.Now()))
	if l.Empty() && !c.lease.Empty() {
		c.lose("it has expired")
		return
	}
	if !sameNames(l, c.lease) {
		c.set(l)
	} else if len(l.Prefixes) > 0 {
		c.Report(l)
	}
}

// usable is the lease without what must not be used.
func (c *Client) usable(l Lease) Lease {
	var errs []error
	l.Prefixes = slices.DeleteFunc(slices.Clone(l.Prefixes), func(p Prefix) bool {
		if c.Refuse == nil {
			return false
		}
		err := c.Refuse(p.Prefix)
		if err != nil {
			errs = append(errs, fmt.Errorf("refused the delegated prefix %s: %w", p.Prefix, err))
		}
		return err != nil
	})
	l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a Address) bool {
		return c.RefuseAddress != nil && c.RefuseAddress(a.Address) != nil
	})
	if len(errs) > 0 {
		c.noteLines(errs)
	}
	return l
}

// lose ends the lease.
func (c *Client) lose(why string) {
	c.Log.Error("DHCPv6 lease lost", "interface", c.Interface, "reason", why)
	c.note("the last lease was lost: " + why)
	c.set(Lease{Interface: c.Interface})
}

// abandon keeps what its server does not know any more until its end, and begins again.
func (c *Client) abandon(why string) {
	c.Log.Error("DHCPv6 lease lost", "interface", c.Interface, "reason", why)
	c.note("the last lease was lost: " + why)
	c.set(c.lease.abandoned(boottime.Now()))
}

// Release gives the last lease back. It must be used no more by then, and Run must have ended.
func (c *Client) Release(ctx context.Context) {
	l, held, err := recall(c.File, c.Interface)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.init()
	if err == nil && held && len(l.Server) > 0 {
		if _, err := c.ask(ctx, dhcpv6.MessageTypeRelease, releasing, l, time.Time{}); err != nil {
			c.Log.Info("DHCPv6 lease not released", "interface", c.Interface, "error", err)
		}
	}
	forget(c.File)
}

// noteRefusal says why a message is not taken while a better one is waited for. A stranger can cause any number.
func (c *Client) noteRefusal(err error) {
	if now := time.Now(); now.Sub(c.notedAt) > notePause {
		c.notedAt = now
		c.note(err.Error())
	}
}

func (c *Client) noteLines(errs []error) {
	text := ""
	for i, err := range errs {
		if i > 0 {
			text += "; "
		}
		text += err.Error()
	}
	c.note(text)
}

func (c *Client) note(text string) {
	if text != c.noted && text != "" {
		c.Log.Warn("DHCPv6", "interface", c.Interface, "problem", text)
	}
	if text != c.noted && c.Note != nil {
		c.Note(text)
	}
	c.noted = text
}

func (c *Client) second() time.Duration { return cmp.Or(c.Second, time.Second) }

// spread keeps many clients from asking at the same time after a power cut.
func spread(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// Recheck makes Run have the lease confirmed soon, or solicit at once if there is none: after a cable was pulled, the
// machine may be in another network. It does not block, and may be called before Run.
func (c *Client) Recheck() {
	c.init()
	select {
	case c.recheck <- struct{}{}:
	default:
	}
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

// errNotReady is why nothing can be sent yet.
var errNotReady = errors.New("not ready")

// linkLocal is the address that messages are sent from.
func linkLocal(name string) (*net.Interface, netip.Addr, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("%s: %w (%w)", name, err, errNotReady)
	}
	if ifc.Flags&net.FlagUp == 0 {
		return nil, netip.Addr{}, fmt.Errorf("%s is down (%w)", name, errNotReady)
	}
	addresses, err := ifc.Addrs()
	if err != nil {
		return nil, netip.Addr{}, err
	}
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Is6() && ip.IsLinkLocalUnicast() {
			return ifc, ip, nil
		}
	}
	return nil, netip.Addr{}, fmt.Errorf("%s has no link-local IPv6 address (%w)", name, errNotReady)
}
