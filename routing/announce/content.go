// Package announce sends router advertisements (RFC 4861) to a LAN, for networks that come and go with prefixes that a
// provider delegates: hosts are told at once when one is not to be used any more (RFC 9096).
package announce

import (
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
)

// Content is what hosts are told. Its times are those of the clock since boot.
type Content struct {
	Prefixes []Prefix
	DNS      []netip.Addr
}

// Prefix is a network of the LAN, a /64.
type Prefix struct {
	Prefix    netip.Prefix
	Preferred time.Duration // until when new connections may begin with it
	Valid     time.Duration // until when it is in use; noEnd of both: as long as it is announced
}

// NoEnd is the end of what is configured.
const NoEnd = time.Duration(1<<63 - 1)

func (c Content) equal(o Content) bool {
	return slices.Equal(c.Prefixes, o.Prefixes) && slices.Equal(c.DNS, o.DNS)
}

// Lifetimes.
const (
	preferredLife = 45 * time.Minute // at most (RFC 9096, section 3.3: ND_PREFERRED_LIMIT)
	validLife     = 90 * time.Minute // at most (ND_VALID_LIMIT)
	routerLife    = 30 * time.Minute // three times the longest interval (RFC 4861, section 6.2.1)
	goneLife      = 2 * time.Hour    // hosts let nobody shorten a lifetime to less (RFC 4862, section 5.5.3)
)

// maxGone bounds how many networks that are gone are still spoken of.
const maxGone = 8

// Known are the networks that hosts have heard of, each with the end of the longest life that it was announced with.
type Known map[netip.Prefix]time.Duration

// forget drops what no host can have any more, and what is beyond the bound: the oldest.
func (k Known) forget(now time.Duration, current []Prefix) {
	var gone []netip.Prefix
	for p, until := range k {
		if slices.ContainsFunc(current, func(c Prefix) bool { return c.Prefix == p }) {
			continue
		}
		if until <= now {
			delete(k, p)
			continue
		}
		gone = append(gone, p)
	}
	slices.SortFunc(gone, func(a, b netip.Prefix) int { return int(k[b]/time.Second) - int(k[a]/time.Second) })
	for i, p := range gone {
		if i >= maxGone {
			delete(k, p)
		}
	}
}

// Advertisement is what is sent now. It notes in k what hosts learn from it. Networks of k that are not in c are
// deprecated (RFC 9096, section 3.5). Without a network that new connections may begin with, this machine is no
// router (RFC 7084, G-4); a host keeps what it has.
func (c Content) Advertisement(now time.Duration, k Known) *ndp.RouterAdvertisement {
	ra := &ndp.RouterAdvertisement{CurrentHopLimit: 64}
	k.forget(now, c.Prefixes)
	for _, p := range c.Prefixes {
		preferred, valid := min(p.Preferred-now, preferredLife), min(p.Valid-now, validLife)
		if p.Valid == NoEnd {
			preferred, valid = preferredLife, validLife
		}
		if valid <= 0 {
			continue
		}
		preferred = max(min(preferred, valid), 0).Truncate(time.Second)
		if preferred > 0 {
			ra.RouterLifetime = routerLife
		}
		ra.Options = append(ra.Options, option(p.Prefix, preferred, valid))
		k[p.Prefix] = max(k[p.Prefix], now+valid)
	}
	for _, p := range sorted(k) {
		if !slices.ContainsFunc(c.Prefixes, func(c Prefix) bool { return c.Prefix == p && c.Valid > now }) {
			ra.Options = append(ra.Options, option(p, 0, min(k[p]-now, goneLife)))
		}
	}
	if len(c.DNS) > 0 && ra.RouterLifetime > 0 {
		ra.Options = append(ra.Options, &ndp.RecursiveDNSServer{Lifetime: routerLife, Servers: c.DNS})
	}
	return ra
}

func sorted(k Known) (all []netip.Prefix) {
	for p := range k {
		all = append(all, p)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

func option(p netip.Prefix, preferred, valid time.Duration) ndp.Option {
	return &ndp.PrefixInformation{
		Prefix: p.Addr(), PrefixLength: uint8(p.Bits()), OnLink: true, AutonomousAddressConfiguration: true,
		PreferredLifetime: preferred, ValidLifetime: valid.Truncate(time.Second),
	}
}
