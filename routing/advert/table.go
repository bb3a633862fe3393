// Package advert takes router advertisements on a WAN (RFC 4861, RFC 4862) in place of the kernel, which would set
// whatever routes they name. Of an advertisement come a default route and addresses, nothing else: no route to a
// prefix on the link, no more specific route (RFC 4191), no router's preference, no MTU and no hop limit. It does not
// touch the interface: addresses and routes are package routing's.
package advert

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
)

// Result is what a WAN gets from advertisements.
type Result struct {
	Addresses []netip.Prefix // with the length of the network where that is on the link, otherwise /128
	Gateway   netip.Addr     // link-local; zero: no router offers a default route
}

// Equal reports whether nothing differs.
func (r Result) Equal(o Result) bool {
	return r.Gateway == o.Gateway && slices.Equal(r.Addresses, o.Addresses)
}

// Bounds on what strangers can make this machine hold.
const (
	maxRouters  = 4
	maxPrefixes = 8
	maxRefusals = 8
)

// minRemaining is what an advertisement cannot shorten the life of an address to: otherwise one forged packet would
// take it away (RFC 4862, section 5.5.3).
const minRemaining = 2 * time.Hour

// Table holds what was advertised on one interface. Its times are those of the clock since boot.
type Table struct {
	Routers  []Router `json:"routers,omitempty"` // in the order in which they were heard first
	Prefixes []Prefix `json:"prefixes,omitempty"`

	refusals []refusal
}

// Router offers a default route.
type Router struct {
	Address netip.Addr    `json:"address"` // link-local, without a zone
	Until   time.Duration `json:"until_ns"`
	heard   time.Duration // when it was heard last
}

// Prefix gives an address.
type Prefix struct {
	Prefix    netip.Prefix  `json:"prefix"`
	OnLink    bool          `json:"on_link,omitempty"`
	Preferred time.Duration `json:"preferred_until_ns"`
	Valid     time.Duration `json:"valid_until_ns"`
	heard     time.Duration
}

type refusal struct {
	prefix netip.Prefix
	text   string
	until  time.Duration
}

// Hear takes an advertisement that came from a router's link-local address. refuse says why a prefix must not be used.
func (t *Table) Hear(now time.Duration, from netip.Addr, ra *ndp.RouterAdvertisement, refuse func(netip.Prefix) error) {
	from = from.WithZone("")
	t.hearRouter(now, from, ra.RouterLifetime)

	for _, o := range ra.Options {
		switch o := o.(type) {
		case *ndp.PrefixInformation:
			p := netip.PrefixFrom(o.Prefix, int(o.PrefixLength)).Masked()
			if p.IsValid() && !t.refused(now, from, "prefix", p, o.ValidLifetime, refuse) {
				t.hearPrefix(now, p, o)
			}
		case *ndp.RouteInformation: // never set; one into an own network is reported
			p := netip.PrefixFrom(o.Prefix, int(o.PrefixLength)).Masked()
			if p.IsValid() && p.Bits() > 0 {
				t.refused(now, from, "route", p, o.RouteLifetime, refuse)
			}
		}
	}
}

// hearRouter keeps the order in which routers were heard: a newcomer, whatever preference it claims, does not take
// over from one that is alive.
func (t *Table) hearRouter(now time.Duration, from netip.Addr, lifetime time.Duration) {
	i := slices.IndexFunc(t.Routers, func(r Router) bool { return r.Address == from })
	switch {
	case lifetime <= 0 && i >= 0:
		t.Routers = slices.Delete(t.Routers, i, i+1)
	case lifetime <= 0:
	case i >= 0:
		t.Routers[i].Until, t.Routers[i].heard = now+lifetime, now
	case len(t.Routers) < maxRouters:
		t.Routers = append(t.Routers, Router{Address: from, Until: now + lifetime, heard: now})
	}
}

func (t *Table) hearPrefix(now time.Duration, p netip.Prefix, o *ndp.PrefixInformation) {
	usable := o.AutonomousAddressConfiguration && p.Bits() == 64 && o.PreferredLifetime <= o.ValidLifetime &&
		!p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() && !p.Addr().Is4In6()
	if !usable {
		return
	}

	heard := Prefix{
		Prefix: p, OnLink: o.OnLink, Preferred: now + o.PreferredLifetime, Valid: now + o.ValidLifetime, heard: now,
	}
	i := slices.IndexFunc(t.Prefixes, func(k Prefix) bool { return k.Prefix == p })
	switch {
	case i >= 0:
		heard.Valid = max(heard.Valid, min(t.Prefixes[i].Valid, now+minRemaining))
		t.Prefixes[i] = heard
	case o.ValidLifetime > 0 && len(t.Prefixes) < maxPrefixes:
		t.Prefixes = append(t.Prefixes, heard)
	}
}

func (t *Table) refused(
	now time.Duration, from netip.Addr, what string, p netip.Prefix, lifetime time.Duration,
	refuse func(netip.Prefix) error,
) bool {
	err := refuse(p)
	if err == nil {
		return false
	}

	r := refusal{p, fmt.Sprintf("refused the %s that router %s advertises: %v", what, from, err), now + lifetime}
	i := slices.IndexFunc(t.refusals, func(k refusal) bool { return k.prefix == p })
	switch {
	case i >= 0:
		t.refusals[i] = r
	case len(t.refusals) < maxRefusals:
		t.refusals = append(t.refusals, r)
	}
	return true
}

// Expire forgets what is over, and what must not be used any more since the config has changed.
func (t *Table) Expire(now time.Duration, refuse func(netip.Prefix) error) {
	t.Routers = slices.DeleteFunc(t.Routers, func(r Router) bool { return r.Until <= now })
	t.Prefixes = slices.DeleteFunc(t.Prefixes, func(p Prefix) bool { return p.Valid <= now || refuse(p.Prefix) != nil })
	t.refusals = slices.DeleteFunc(t.refusals, func(r refusal) bool {
		return r.until <= now || refuse(r.prefix) == nil
	})
}

// Moved forgets what was not heard since a time at which the cable was plugged in, if some router was heard: the
// machine may be in another network. Where all are silent, it is taken for the same one.
func (t *Table) Moved(since time.Duration) {
	if !slices.ContainsFunc(t.Routers, func(r Router) bool { return r.heard >= since }) {
		return
	}
	t.Routers = slices.DeleteFunc(t.Routers, func(r Router) bool { return r.heard < since })
	t.Prefixes = slices.DeleteFunc(t.Prefixes, func(p Prefix) bool { return p.heard < since })
}

// left is how long everything in the table is valid.
func (t *Table) left(now time.Duration) time.Duration {
	until := now + minRemaining
	for _, r := range t.Routers {
		until = min(until, r.Until)
	}
	for _, p := range t.Prefixes {
		until = min(until, p.Valid)
	}
	return until - now
}

// Result is what the table amounts to now, with the interface identifier of the link-local address. An address that
// is not preferred any more is left out while another one is.
func (t *Table) Result(now time.Duration, linkLocal netip.Addr) Result {
	var r Result
	if len(t.Routers) > 0 {
		r.Gateway = t.Routers[0].Address
	}

	var old []netip.Prefix
	for _, p := range t.Prefixes {
		bits := 128
		if p.OnLink {
			bits = p.Prefix.Bits()
		}
		a := netip.PrefixFrom(join(p.Prefix.Addr(), linkLocal), bits)
		if p.Preferred > now {
			r.Addresses = append(r.Addresses, a)
		} else {
			old = append(old, a)
		}
	}
	if len(r.Addresses) == 0 {
		r.Addresses = old
	}
	return r
}

// join makes an address of a network and the identifier of another address.
func join(network, identifier netip.Addr) netip.Addr {
	a, id := network.As16(), identifier.As16()
	copy(a[8:], id[8:])
	return netip.AddrFrom16(a)
}

// Refusals says what was refused and is still advertised.
func (t *Table) Refusals() (texts []string) {
	for _, r := range t.refusals {
		texts = append(texts, r.text)
	}
	return texts
}
