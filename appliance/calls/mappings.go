package calls

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/firewall/conntrack"
	"ringway/sip/registrar"
	"ringway/sip/relay"
)

const (
	// mappingEvery is how often it is looked. Each packet sets the connection's life to the kernel's: 30 s, or 120 s
	// once both ends have sent again after two seconds, which a registration alone does not make them do.
	mappingEvery = 12 * time.Second
	// mappingLife is how long a connection that a registration needs is kept without packets: until it is looked
	// again, also by the daemon that replaces this one.
	mappingLife = 2 * time.Minute
	// movedPause is how long after a change of the config or of a lease it is looked as well: NAT forgets the
	// connections of an address a moment after it is gone.
	movedPause = time.Second
)

// runMappings keeps mappings until ctx ends.
func (c *Calls) runMappings(ctx context.Context) {
	timer := time.NewTimer(mappingEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.moved:
			timer.Reset(movedPause)
			continue
		case <-timer.C:
		}
		c.keepMappings(ctx)
		timer.Reset(mappingEvery)
	}
}

// keepMappings keeps what NAT does for phones that are registered with a server in the internet: without it, the
// kernel forgets the connection, and calls from there no longer arrive.
func (c *Calls) keepMappings(ctx context.Context) {
	c.mu.Lock()
	off := c.cfg.Mode == config.SIPOff || !c.applied
	c.mu.Unlock()
	if off {
		return
	}
	phones, err := c.relay.Phones(ctx)
	if err != nil {
		return // the supervision says so
	}
	gone := map[mapping]bool{}
	for _, m := range c.mappings(phones, registrar.UDP) {
		err := c.o.Extend(m.phone, m.server, mappingLife)
		switch {
		case errors.Is(err, conntrack.ErrGone):
			gone[m] = true
		case err != nil:
			c.log.Warn("calls to a registered phone may not arrive", "phone", m.phone, "server", m.server, "error", err)
		}
	}
	c.resetStranded(ctx, phones)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unmapped = gone
}

// resetStranded ends the connections of registrations that NAT has forgotten, as it does when a WAN loses its address:
// the phone connects and registers again then, while it would learn of it only with the next message.
func (c *Calls) resetStranded(ctx context.Context, phones []registrar.Binding) {
	var stranded []relay.Ends
	for _, m := range c.mappings(phones, registrar.TCP, registrar.TLS) {
		err := c.o.FindTCP(m.phone, m.server)
		switch {
		case errors.Is(err, conntrack.ErrGone):
			stranded = append(stranded, relay.Ends{From: m.phone, To: m.server})
		case err != nil:
			c.log.Warn("calls to a registered phone may not arrive", "phone", m.phone, "server", m.server, "error", err)
		}
	}
	if len(stranded) == 0 {
		return
	}
	n, err := c.relay.Reset(ctx, stranded)
	switch {
	case err != nil:
		c.log.Warn("connections over a line that is gone are not reset", "connections", len(stranded), "error", err)
	case n > 0:
		c.log.Info("connections of registered phones were reset: the line that they went over is gone", "connections", n)
	}
}

// mapping is the connection by which a server in the internet calls a phone.
type mapping struct{ phone, server netip.AddrPort }

// mappings are those of registrations that are in force, by these transports, each once.
func (c *Calls) mappings(phones []registrar.Binding, by ...registrar.Transport) (all []mapping) {
	seen := map[mapping]bool{}
	now := time.Now()
	for _, b := range phones {
		m := mapping{b.Phone, b.PBX}
		if !slices.Contains(by, b.Transport) || b.Expires.Before(now) || seen[m] || !c.holes.overWAN(b.PBX.Addr()) {
			continue
		}
		seen[m] = true
		all = append(all, m)
	}
	return all
}

// overWAN reports whether an address is reached over a WAN, without a tunnel.
func (h *holes) overWAN(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.world.side(a) == internet
}

// lostMappings is the problem of registrations over a line that is gone. It is called with c.mu held.
func (c *Calls) lostMappings() []problem.Problem {
	if len(c.unmapped) == 0 {
		return nil
	}
	return []problem.Problem{{
		Subject: "registrations", Severity: problem.Warning,
		Text: fmt.Sprintf(
			"phones that are registered over a line that is gone: %d. Calls to them do not arrive", len(c.unmapped)),
		Action: "have them register again, or wait until they do (ringway phones lists them)",
	}}
}
