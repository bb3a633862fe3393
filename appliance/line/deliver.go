package line

import (
	"net/netip"
	"time"

	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// deliveries is which lines deliver, by what the engine of the voice tunnel finds on the paths to the sites: a line is
// silent when sites that know paths are heard by none of its paths, and delivers again after healthTime of answers.
// It is pure.
type deliveries struct {
	silent map[netip.Addr]bool      // addresses of ours by which nothing is heard
	up     map[netip.Addr]time.Time // since when something is heard by a silent one
}

// observe takes what the engine says of its peers. It reports whether anything has changed.
func (d *deliveries) observe(now time.Time, peers []tunnel.PeerStatus) (changed bool) {
	if d.silent == nil {
		d.silent, d.up = map[netip.Addr]bool{}, map[netip.Addr]time.Time{}
	}
	heard, silent := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, p := range peers {
		for _, path := range p.Paths {
			switch path.State {
			case tunnel.PathUp:
				heard[path.Source] = true
			case tunnel.PathSilent:
				silent[path.Source] = true
			}
		}
	}
	// If all are silent it is the far ends that do not answer.
	for a := range silent {
		if len(heard) > 0 && !heard[a] && !d.silent[a] {
			d.silent[a], changed = true, true
		}
	}
	for a := range d.silent {
		since, there := d.up[a]
		switch {
		case !heard[a]:
			delete(d.up, a)
		case !there:
			d.up[a] = now
		case now.Sub(since) >= healthTime:
			delete(d.silent, a)
			delete(d.up, a)
			changed = true
		}
	}
	return changed
}

// isSilent reports whether nothing is heard by a line.
func (d *deliveries) isSilent(l rtnl.Line) bool {
	for _, a := range l.Addresses {
		if d.silent[a] {
			return true
		}
	}
	return false
}
