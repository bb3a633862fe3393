package calls

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/firewall/conntrack"
	"ringway/sip/registrar"
)

const (
	// mappingEvery is how often it is looked. Each packet sets the connection's life to the kernel's: 30 s, or 120 s
	// once both ends have sent again after two seconds, which a registration alone does not make them do.
	mappingEvery = 12 * time.Second
	// mappingLife is how long a connection that a registration needs is kept without packets: until it is looked
	// again, also by the daemon that replaces this one.
	mappingLife = 2 * time.Minute
)

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
	gone := 0
	for _, m := range c.mappings(phones) {
		err := c.o.Extend(m.phone, m.server, mappingLife)
		switch {
		case errors.Is(err, conntrack.ErrGone):
			gone++
		case err != nil:
			c.log.Warn("calls to a registered phone may not arrive", "phone", m.phone, "server", m.server, "error", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unmapped = gone
}

// mapping is the connection by which a server in the internet calls a phone.
type mapping struct{ phone, server netip.AddrPort }

// mappings are those of registrations that are in force, each once.
func (c *Calls) mappings(phones []registrar.Binding) (all []mapping) {
	seen := map[mapping]bool{}
	now := time.Now()
	for _, b := range phones {
		m := mapping{b.Phone, b.PBX}
		if b.Transport != registrar.UDP || b.Expires.Before(now) || seen[m] || !c.holes.overWAN(b.PBX.Addr()) {
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
	if c.unmapped == 0 {
		return nil
	}
	return []problem.Problem{{
		Subject: "registrations", Severity: problem.Warning,
		Text:   fmt.Sprintf("%d phones are registered over a line that is gone: calls to them do not arrive", c.unmapped),
		Action: "have them register again, or wait until they do (ringway phones lists them)",
	}}
}
