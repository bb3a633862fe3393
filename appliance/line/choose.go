package line

import (
	"net/netip"
	"slices"
	"time"

	"ringway/routing/rtnl"
	"ringway/tunnel"
)

const (
	// healthTime is how long a line has to be well before sites return to it.
	healthTime = 30 * time.Second
	// maxGone bounds the addresses that are remembered as gone.
	maxGone = 32
)

// chooser finds out which addresses of ours tunnels are to leave. It is pure.
type chooser struct {
	looked  bool
	usable  []netip.Addr // on lines with a carrier, at the last look
	gone    []netip.Addr // were usable once and are not now, the latest last
	best    []string     // the preferred usable line of each family, at the last look
	healthy time.Time    // when sites return to the preferred lines; zero: they need not
}

// move is what engines are to be told.
type move struct {
	tunnel.Reroute
	Dialled bool // only the sites that this box dials: the others choose by which line they call
}

// look takes a look at the lines, in order of preference. moves are what follows from it.
func (c *chooser) look(now time.Time, lines []rtnl.Line) (moves []move) {
	var usable []netip.Addr
	for _, l := range lines {
		if l.Carrier {
			usable = append(usable, l.Addresses...)
		}
	}
	best := preferred(lines)
	before := *c
	c.usable, c.best = usable, best
	if !c.looked {
		// Nobody knows what happened while no daemon ran. Engines that were taken over say where we are, and sites that
		// an earlier daemon would have had return to the preferred line do.
		c.looked = true
		if len(lines) > 1 {
			c.healthy = now.Add(healthTime)
		}
		return []move{{}}
	}

	c.gone = slices.DeleteFunc(c.gone, func(a netip.Addr) bool { return slices.Contains(usable, a) })
	changed := slices.ContainsFunc(usable, func(a netip.Addr) bool { return !slices.Contains(before.usable, a) })
	for _, a := range before.usable {
		if !slices.Contains(usable, a) {
			c.gone = append(c.gone, a)
			changed = true
		}
	}
	c.gone = c.gone[max(0, len(c.gone)-maxGone):]

	if changed && len(usable) > 0 {
		moves = append(moves, move{Reroute: tunnel.Reroute{From: slices.Clone(c.gone)}})
	}
	switch {
	case !slices.Equal(best, before.best):
		c.healthy = now.Add(healthTime)
	case !c.healthy.IsZero() && !now.Before(c.healthy):
		c.healthy = time.Time{}
		if from := others(lines, best); len(from) > 0 {
			moves = append(moves, move{Reroute: tunnel.Reroute{From: from}, Dialled: true})
		}
	}
	return moves
}

// next is when to look again although nothing has changed; zero: never.
func (c *chooser) next() time.Time { return c.healthy }

// preferred is the first usable line of each family, IPv4's first; "": none.
func preferred(lines []rtnl.Line) []string {
	best := make([]string, 2)
	for _, l := range lines {
		for _, a := range l.Addresses {
			family := 0
			if a.Is6() {
				family = 1
			}
			if l.Carrier && best[family] == "" {
				best[family] = l.Name
			}
		}
	}
	return best
}

// others are the usable addresses on lines that are not the preferred one of their family.
func others(lines []rtnl.Line, best []string) (all []netip.Addr) {
	for _, l := range lines {
		for _, a := range l.Addresses {
			family := 0
			if a.Is6() {
				family = 1
			}
			if l.Carrier && l.Name != best[family] {
				all = append(all, a)
			}
		}
	}
	return all
}
