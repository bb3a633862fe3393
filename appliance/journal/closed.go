package journal

import (
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/boottime"
	"ringway/firewall/conntrack"
	"ringway/routing"
)

// ClosedFor is how long a network that leaves the config stays closed. What flowed there through a tunnel ends
// meanwhile; it must not go on over a WAN in clear, where a public prefix would lead.
const ClosedFor = time.Hour

// Networks are those that a config keeps apart: of the sites, and of this box's LANs.
type Networks struct {
	Sites []netip.Prefix `json:"sites"`
	Own   []netip.Prefix `json:"own"`
}

// Closed is a network that was a site's or our own, and is nobody's now: it is not reached at all.
type Closed struct {
	Network netip.Prefix  `json:"network"`
	Until   time.Duration `json:"until_ns"` // since boot
}

// NetworksOf are those of a config.
func NetworksOf(cfg *config.Config) (n Networks) {
	for _, s := range cfg.Sites {
		for _, p := range s.Networks() {
			n.Sites = append(n.Sites, p.Masked())
		}
	}
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		n.Own = append(n.Own, l.Networks()...)
	}
	return n
}

// networks are those of the config that was applied last.
func (j *Journal) networks() (n Networks) {
	if j.content.Networks != nil {
		return *j.content.Networks
	}
	for _, r := range j.Last.Routes { // an earlier build applied it
		switch {
		case r.Table == routing.TableGuard:
			n.Sites = append(n.Sites, r.Prefix)
		case r.Table == routing.TableVoice && r.Type == routing.Throw:
			n.Own = append(n.Own, r.Prefix)
		}
	}
	return n
}

// Gone are the networks of the config applied last that are not of the same kind with cfg: their connections are those
// of another policy.
func (j *Journal) Gone(cfg *config.Config) []netip.Prefix {
	last, now := j.networks(), NetworksOf(cfg)
	without := func(all, some []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(all), func(p netip.Prefix) bool { return slices.Contains(some, p) })
	}
	return slices.Concat(without(last.Sites, now.Sites), without(last.Own, now.Own))
}

// Left is how long c stays closed from now on.
func (c Closed) Left() time.Duration { return c.Until - boottime.Now() }

// EndFlows removes the connections of the networks that are gone with cfg: the ruleset accepts what is established, and
// NAT does not look at it again.
func (j *Journal) EndFlows(cfg *config.Config) (gone []netip.Prefix, connections int, err error) {
	if gone = j.Gone(cfg); len(gone) == 0 {
		return nil, 0, nil
	}
	connections, err = conntrack.Flush(gone)
	return gone, connections, err
}

// Closing are the networks that stay closed with cfg: those that are gone, and those that went before and are not due
// yet.
func (j *Journal) Closing(cfg *config.Config) []Closed { return j.closingAt(cfg, boottime.Now()) }

func (j *Journal) closingAt(cfg *config.Config, now time.Duration) []Closed {
	closed := slices.DeleteFunc(slices.Clone(j.content.Closed), func(c Closed) bool { return c.Until <= now })
	for _, p := range j.Gone(cfg) {
		closed = slices.DeleteFunc(closed, func(c Closed) bool { return c.Network == p })
		closed = append(closed, Closed{Network: p, Until: now + ClosedFor})
	}
	held := NetworksOf(cfg)
	return slices.DeleteFunc(closed, func(c Closed) bool {
		return slices.Contains(held.Sites, c.Network) || slices.Contains(held.Own, c.Network)
	})
}

// Shut is what is left of closed networks without others that are in use now, and without those of reach that lie in
// them. A wider one, which may have been there before, does not say that it means the closed network, too.
func Shut(closed []Closed, used, reach []netip.Prefix) (shut []netip.Prefix) {
	for _, c := range closed {
		holes := slices.Clone(used)
		for _, r := range reach {
			if r.Bits() >= c.Network.Bits() {
				holes = append(holes, r)
			}
		}
		for _, p := range cut(c.Network, holes) {
			if !slices.Contains(shut, p) {
				shut = append(shut, p)
			}
		}
	}
	slices.SortFunc(shut, netip.Prefix.Compare)
	return shut
}

// cut is p without holes.
func cut(p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	holes = slices.DeleteFunc(slices.Clone(holes), func(h netip.Prefix) bool { return !h.Overlaps(p) })
	switch {
	case len(holes) == 0:
		return []netip.Prefix{p}
	case slices.ContainsFunc(holes, func(h netip.Prefix) bool { return h.Bits() <= p.Bits() }):
		return nil
	}
	lower, upper := halves(p)
	return append(cut(lower, holes), cut(upper, holes)...)
}

func halves(p netip.Prefix) (lower, upper netip.Prefix) {
	bits := p.Bits() + 1
	b := p.Addr().AsSlice()
	b[(bits-1)/8] |= 0x80 >> ((bits - 1) % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(a, bits)
}
