package line

import (
	"net/netip"
	"slices"
	"time"

	"ringway/tunnel"
)

const (
	// samples is how many looks in a row find a line silent until it counts as silent.
	samples = 2
	// heardLately is how long it holds that a peer has found a line silent. Then nobody looks any more: the sites are
	// gone, or their engine is another one.
	heardLately = time.Minute
	// heardNow is how long it holds that a site is heard by a line. The engine is asked every second.
	heardNow = 3 * time.Second
)

// deliveries is which lines deliver, by what the engine of the voice tunnel finds on the paths to the sites: a line is
// silent when sites are silent by it and none is heard by it, while another hears an address at which one is silent:
// else it may be a line of the far end that is dead. It delivers again after healthTime of answers. It is pure.
type deliveries struct {
	lines map[netip.Addr]*delivery // by an address of ours; those that are, or may be, silent
	heard map[netip.Addr]bool      // by which sites were heard at the last look
	seen  time.Time                // the last look
}

type delivery struct {
	found  int // looks in a row that found it silent
	silent bool
	last   time.Time // when a peer last found it silent
	up     time.Time // since when sites are heard by it; zero: they are not
}

// observe takes what the engine says of its peers, for our addresses. It reports whether the silent lines have changed.
func (d *deliveries) observe(now time.Time, ours map[netip.Addr]bool, peers []tunnel.PeerStatus) (changed bool) {
	if d.lines == nil {
		d.lines = map[netip.Addr]*delivery{}
	}
	heard, silent, blamed := map[netip.Addr]bool{}, map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, p := range peers {
		answers := map[netip.AddrPort]bool{}
		for _, path := range p.Paths {
			if path.State == tunnel.PathUp {
				answers[path.Remote] = true
			}
		}
		for _, path := range p.Paths {
			switch path.State {
			case tunnel.PathUp:
				heard[path.Source] = true
			case tunnel.PathSilent:
				silent[path.Source] = ours[path.Source]
				blamed[path.Source] = blamed[path.Source] || answers[path.Remote]
			}
		}
	}
	d.heard, d.seen = heard, now
	for a, is := range silent {
		if is && d.lines[a] == nil {
			d.lines[a] = &delivery{last: now}
		}
	}
	for a, l := range d.lines {
		if silent[a] {
			l.last = now
		}
		// Where no line is heard, or none by the same address, it is the far ends that do not answer.
		if silent[a] && !heard[a] && blamed[a] {
			l.found++
		} else {
			l.found = 0
		}
		switch {
		case !heard[a]:
			l.up = time.Time{}
		case l.up.IsZero():
			l.up = now
		}
		if l.found >= samples && !l.silent {
			l.silent, changed = true, true
		}
		over := !ours[a] || now.Sub(l.last) > heardLately && !heard[a] || !l.up.IsZero() && now.Sub(l.up) >= healthTime
		if over || !l.silent && l.found == 0 {
			changed = changed || l.silent
			delete(d.lines, a)
		}
	}
	return changed
}

// isSilent reports whether nothing is heard by a line with these addresses.
func (d *deliveries) isSilent(addresses []netip.Addr) bool {
	for _, a := range addresses {
		if l := d.lines[a]; l != nil && l.silent {
			return true
		}
	}
	return false
}

// isHeard reports whether a site is heard by a line with these addresses.
func (d *deliveries) isHeard(now time.Time, addresses []netip.Addr) bool {
	return now.Sub(d.seen) < heardNow && slices.ContainsFunc(addresses, func(a netip.Addr) bool { return d.heard[a] })
}

// all are the silent addresses.
func (d *deliveries) all() (silent []netip.Addr) {
	for a, l := range d.lines {
		if l.silent {
			silent = append(silent, a)
		}
	}
	return silent
}

// restore takes over what an earlier daemon has found.
func (d *deliveries) restore(now time.Time, silent []netip.Addr) {
	d.lines = map[netip.Addr]*delivery{}
	for _, a := range silent {
		d.lines[a] = &delivery{silent: true, last: now}
	}
}
