// Package dhcp6 asks a provider for IPv6 prefixes (prefix delegation) and an address by DHCPv6 (RFC 8415), and keeps
// them. It does not touch the interface: addresses and routes are package routing's. Of the library only the messages
// serve. What a server says is input from an untrusted network.
package dhcp6

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// Bounds on what a server can make this machine hold.
const (
	maxPrefixes  = 4
	maxAddresses = 2
	maxServers   = 3 // for names
)

// Lifetimes (RFC 8415, section 7.7: 0xffffffff has no end).
const (
	// maxLife is the longest that a lifetime is believed: also one without an end is asked for again.
	maxLife = 30 * 24 * time.Hour
	// maxHold is the longest time without asking again.
	maxHold = 24 * time.Hour
	// minHold is the shortest: a server cannot make the client ask without a pause.
	minHold = time.Second
	// goneLife is how long a prefix still is valid that a server has replaced without saying so (RFC 9096,
	// section 3.5, of what a router advertises then).
	goneLife = 2 * time.Hour
)

// Lengths of prefixes that are believed. A shorter one than any provider delegates to a site would take a part of
// the internet away from this machine.
const (
	minBits = 32
	maxBits = 64
)

// global is what may be delegated (RFC 3587): with a unique local prefix nothing on the internet is reached.
var global = netip.MustParsePrefix("2000::/3")

// Want is what is asked for.
type Want struct {
	PrefixBits int // length of the prefix, a hint; 0: no prefix is asked for
	Address    bool
}

// Lease is what a server delegated and assigned. Its times are those of the clock since boot.
type Lease struct {
	Interface string        `json:"interface"`
	Server    []byte        `json:"server"` // DUID; empty: it has no server any more
	Prefixes  []Prefix      `json:"prefixes,omitempty"`
	Addresses []Address     `json:"addresses,omitempty"`
	DNS       []netip.Addr  `json:"dns,omitempty"`
	Renew     time.Duration `json:"renew_at_ns"`  // T1
	Rebind    time.Duration `json:"rebind_at_ns"` // T2
}

// Prefix was delegated.
type Prefix struct {
	Prefix    netip.Prefix  `json:"prefix"`
	Preferred time.Duration `json:"preferred_until_ns"` // nothing new begins with it afterwards
	Valid     time.Duration `json:"valid_until_ns"`
}

// Address was assigned.
type Address struct {
	Address netip.Addr    `json:"address"`
	Valid   time.Duration `json:"valid_until_ns"`
}

// Empty reports whether nothing is held.
func (l Lease) Empty() bool { return len(l.Prefixes) == 0 && len(l.Addresses) == 0 }

// At is the lease without what has expired.
func (l Lease) At(now time.Duration) Lease {
	l.Prefixes = slices.DeleteFunc(slices.Clone(l.Prefixes), func(p Prefix) bool { return p.Valid <= now })
	l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a Address) bool { return a.Valid <= now })
	return l
}

// Expiry is when the last of it ends.
func (l Lease) Expiry() (end time.Duration) {
	for _, p := range l.Prefixes {
		end = max(end, p.Valid)
	}
	for _, a := range l.Addresses {
		end = max(end, a.Valid)
	}
	return end
}

// nextEnd is when something of it ends next, or is not preferred any more.
func (l Lease) nextEnd(now time.Duration) time.Duration {
	end := now + maxHold
	for _, p := range l.Prefixes {
		if p.Preferred > now {
			end = min(end, p.Preferred)
		}
		end = min(end, p.Valid)
	}
	for _, a := range l.Addresses {
		end = min(end, a.Valid)
	}
	return end
}

// granted is what one message of a server offers or grants.
type granted struct {
	server     []byte
	preference uint8
	prefixes   []Prefix
	addresses  []Address
	dns        []netip.Addr
	t1, t2     time.Duration // from now; never 0
	solMaxRT   time.Duration // 0: not said

	noBinding bool    // the server does not know a lease
	refusals  []error // why something of it is not used, or was not granted
}

func (g granted) empty() bool {
	lives := func(p Prefix) bool { return p.Valid > 0 }
	return !slices.ContainsFunc(g.prefixes, lives) &&
		!slices.ContainsFunc(g.addresses, func(a Address) bool { return a.Valid > 0 })
}

// score orders offers: what is wanted counts first, then the server's preference.
func (g granted) score() int {
	score := int(g.preference)
	if slices.ContainsFunc(g.prefixes, func(p Prefix) bool { return p.Valid > 0 }) {
		score += 1000
	}
	if len(g.addresses) > 0 {
		score += 500
	}
	return score
}

// reader reads the messages of servers.
type reader struct {
	client dhcpv6.DUID
	iaid   [4]byte
	want   Want
	refuse func(netip.Prefix) error // nil: any prefix may be used
	// refuseAddress is the same for an address on the link.
	refuseAddress func(netip.Addr) error
}

var errNotForUs = errors.New("the message is for another client")

// read takes an advertisement or a reply apart. An error says why nothing of it counts. Times of what is granted are
// ends by the clock; a prefix or an address whose end is 0 is taken away (RFC 8415, section 18.2.10.1).
func (r reader) read(m *dhcpv6.Message, now time.Duration) (g granted, err error) {
	client, server := m.Options.ClientID(), m.Options.ServerID()
	if client == nil || !client.Equal(r.client) {
		return g, errNotForUs
	}
	if server == nil || len(server.ToBytes()) > 130 { // RFC 8415, section 11.1
		return g, errors.New("the message names no server")
	}
	g.server, g.preference = server.ToBytes(), m.Options.Preference()
	g.solMaxRT = solMaxRT(m)
	if s := m.Options.Status(); s != nil && s.StatusCode != iana.StatusSuccess {
		return g, statusError(s)
	}

	least := time.Duration(maxLife) // of what is granted
	for _, ia := range m.Options.IAPD() {
		if ia.IaId == r.iaid && r.want.PrefixBits > 0 {
			r.readPrefixes(&g, ia, now, &least)
		}
	}
	for _, ia := range m.Options.IANA() {
		if ia.IaId == r.iaid && r.want.Address {
			r.readAddresses(&g, ia, now, &least)
		}
	}
	g.setTimes(least)
	for _, ip := range m.Options.DNS() {
		a, _ := netip.AddrFromSlice(ip)
		if len(g.dns) < maxServers && global.Contains(a) && (r.refuseAddress == nil || r.refuseAddress(a) == nil) {
			g.dns = append(g.dns, a)
		}
	}
	return g, nil
}

// readPrefixes takes an IA_PD (RFC 8415, sections 21.21 and 21.22).
func (r reader) readPrefixes(g *granted, ia *dhcpv6.OptIAPD, now time.Duration, least *time.Duration) {
	if g.status(ia.Options.Status()) || !g.times(ia.T1, ia.T2) {
		return
	}
	for _, o := range ia.Options.Prefixes() {
		if len(g.prefixes) == maxPrefixes || g.status(o.Options.Status()) {
			continue
		}
		p, err := prefixOf(o.Prefix)
		if err == nil && o.ValidLifetime > 0 {
			err = r.checkPrefix(p, o)
		}
		if err != nil {
			g.refusals = append(g.refusals, fmt.Errorf("refused the prefix %s that server %s delegates: %w",
				prefixText(o.Prefix), duidText(g.server), err))
			continue
		}
		valid, preferred := min(o.ValidLifetime, maxLife), min(o.PreferredLifetime, maxLife)
		if valid == 0 {
			g.prefixes = append(g.prefixes, Prefix{Prefix: p})
			continue
		}
		*least = min(*least, cmp.Or(preferred, valid))
		g.prefixes = append(g.prefixes, Prefix{Prefix: p, Preferred: now + preferred, Valid: now + valid})
	}
}

func (r reader) checkPrefix(p netip.Prefix, o *dhcpv6.OptIAPrefix) error {
	switch {
	case !global.Contains(p.Addr()) || p.Bits() < global.Bits():
		return errors.New("it is not of the global unicast addresses (2000::/3)")
	case p.Bits() < minBits || p.Bits() > maxBits:
		return fmt.Errorf("its length is not %d to %d", minBits, maxBits)
	case o.PreferredLifetime > o.ValidLifetime:
		return errors.New("it is preferred for longer than it is valid")
	case r.refuse != nil:
		return r.refuse(p)
	}
	return nil
}

// readAddresses takes an IA_NA (RFC 8415, sections 21.4 and 21.6).
func (r reader) readAddresses(g *granted, ia *dhcpv6.OptIANA, now time.Duration, least *time.Duration) {
	if g.status(ia.Options.Status()) || !g.times(ia.T1, ia.T2) {
		return
	}
	for _, o := range ia.Options.Addresses() {
		a, ok := netip.AddrFromSlice(o.IPv6Addr.To16())
		if len(g.addresses) == maxAddresses || !ok {
			continue
		}
		var err error
		switch {
		case g.status(o.Options.Status()), o.ValidLifetime == 0: // also one that is not of this link
			g.addresses = append(g.addresses, Address{Address: a})
			continue
		case !usable(a):
			err = errors.New("no host can have it")
		case o.PreferredLifetime > o.ValidLifetime:
			err = errors.New("it is preferred for longer than it is valid")
		case r.refuseAddress != nil:
			err = r.refuseAddress(a)
		}
		if err != nil {
			g.refusals = append(g.refusals,
				fmt.Errorf("refused the address %s of server %s: %w", a, duidText(g.server), err))
			continue
		}
		valid := min(o.ValidLifetime, maxLife)
		*least = min(*least, cmp.Or(min(o.PreferredLifetime, maxLife), valid))
		g.addresses = append(g.addresses, Address{Address: a, Valid: now + valid})
	}
}

// usable reports whether a host can have this address.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && !a.IsMulticast() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast()
}

// status notes what a status code says. It reports whether what has it is not granted.
func (g *granted) status(s *dhcpv6.OptStatusCode) bool {
	if s == nil || s.StatusCode == iana.StatusSuccess {
		return false
	}
	g.noBinding = g.noBinding || s.StatusCode == iana.StatusNoBinding
	g.refusals = append(g.refusals, statusError(s))
	return true
}

// times takes T1 and T2 of one IA; the earliest of all count (RFC 8415, section 18.2.4). It reports whether the IA
// counts (section 21.4: T1 after T2 is not valid).
func (g *granted) times(t1, t2 time.Duration) bool {
	if t1 > t2 && t2 > 0 {
		g.refusals = append(g.refusals, fmt.Errorf("refused what server %s grants: T1 %s is after T2 %s",
			duidText(g.server), t1, t2))
		return false
	}
	for at, t := range map[*time.Duration]time.Duration{&g.t1: t1, &g.t2: t2} {
		if t > 0 && (*at == 0 || t < *at) {
			*at = t
		}
	}
	return true
}

// setTimes replaces T1 and T2 that the server leaves to the client (0), and those that are too late for the shortest
// lifetime, by what RFC 8415 recommends for servers: 0.5 and 0.8 of that (section 21.4).
func (g *granted) setTimes(least time.Duration) {
	if g.t2 == 0 || g.t2 >= least {
		g.t2 = least * 4 / 5
	}
	if g.t1 == 0 || g.t1 >= g.t2 {
		g.t1 = min(least/2, g.t2)
	}
	g.t1 = max(min(g.t1, maxHold), minHold)
	g.t2 = max(g.t2, g.t1)
}

// merge is what is held after g. What the server takes away goes at once. A prefix that it has replaced silently
// stays valid for a while, but nothing new begins with it (RFC 9096, section 3.5); an address does not stay.
func merge(old Lease, g granted, now time.Duration) Lease {
	l := Lease{Interface: old.Interface, Server: g.server, DNS: g.dns, Renew: now + g.t1, Rebind: now + g.t2}
	for _, p := range g.prefixes {
		if p.Valid > 0 {
			l.Prefixes = append(l.Prefixes, p)
		}
	}
	replaced := len(l.Prefixes) > 0
	for _, p := range old.Prefixes {
		if slices.ContainsFunc(g.prefixes, func(k Prefix) bool { return k.Prefix == p.Prefix }) {
			continue
		}
		if replaced {
			p = p.deprecated(now)
		}
		if len(l.Prefixes) < maxPrefixes {
			l.Prefixes = append(l.Prefixes, p)
		}
	}
	// What nothing new begins with comes last.
	slices.SortStableFunc(l.Prefixes, func(a, b Prefix) int {
		return cmp.Compare(order(a.Preferred > now), order(b.Preferred > now))
	})

	for _, a := range g.addresses {
		if a.Valid > 0 {
			l.Addresses = append(l.Addresses, a)
		}
	}
	if len(g.addresses) == 0 {
		l.Addresses = slices.Clone(old.Addresses)
	}
	return l
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}

func (p Prefix) deprecated(now time.Duration) Prefix {
	p.Preferred, p.Valid = min(p.Preferred, now), min(p.Valid, now+goneLife)
	return p
}

// abandoned is a lease that its server does not know any more.
func (l Lease) abandoned(now time.Duration) Lease {
	prefixes := slices.Clone(l.Prefixes)
	for i, p := range prefixes {
		prefixes[i] = p.deprecated(now)
	}
	return Lease{Interface: l.Interface, Prefixes: prefixes}.At(now)
}

// solMaxRT is the bound on the pause between solicitations that a server may set (RFC 8415, section 21.24).
func solMaxRT(m *dhcpv6.Message) time.Duration {
	o, ok := m.GetOneOption(dhcpv6.OptionSolMaxRT).(*dhcpv6.OptionGeneric)
	if !ok || len(o.OptionData) != 4 {
		return 0
	}
	b := o.OptionData
	d := time.Duration(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])) * time.Second
	if d < 60*time.Second || d > 86400*time.Second {
		return 0
	}
	return d
}

func prefixOf(n *net.IPNet) (netip.Prefix, error) {
	if n == nil {
		return netip.Prefix{}, errors.New("it has no length")
	}
	ones, size := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	if size != 128 || !ok || !a.Is6() {
		return netip.Prefix{}, errors.New("it is not a prefix")
	}
	return netip.PrefixFrom(a, ones).Masked(), nil
}

func prefixText(n *net.IPNet) string {
	if n == nil {
		return "::/0"
	}
	return n.String()
}

func duidText(d []byte) string { return hex.EncodeToString(d) }

// statusError is what a server says instead of granting something.
func statusError(s *dhcpv6.OptStatusCode) error {
	text := fmt.Sprintf("the server says %s", s.StatusCode)
	if s.StatusMessage != "" {
		text += fmt.Sprintf(" (%.100q)", s.StatusMessage)
	}
	return errors.New(text)
}
