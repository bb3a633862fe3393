package path

import (
	"net/netip"
	"slices"

	"ringway/tunnel"
)

// Path is an address of ours and one of the far end's.
type Path struct {
	Source netip.Addr // zero: the kernel chooses
	Remote netip.AddrPort
}

// apart reports whether two paths share neither end: what is wrong with one is least likely wrong with the other.
func (p Path) apart(o Path) bool { return p.Source != o.Source && p.Remote != o.Remote }

// Pairs are the paths to a far end that is sent to at remote, in order of preference. sources are our addresses, one
// for each line and family, and remotes the far end's as configured, both in order of preference.
//
// A far end with fewer than two configured addresses has one path from each of our lines to where it is heard. One with
// several has at most tunnel.MaxPaths: the first line with the first address, the second with the second and so on, the
// shorter list from its start again, until each line and each address is in one; then what is left, the nearest in both
// lists first. If it is heard at an address that is not configured (a NAT, a third line), the path to there from used
// is one more, the first.
func Pairs(sources []netip.Addr, remotes []netip.AddrPort, used Path) (all []Path) {
	ours := ofFamily(sources, used.Remote.Addr())
	if len(remotes) < 2 {
		for _, s := range ours {
			all = append(all, Path{s, used.Remote})
		}
		return all
	}
	first := remotes[0].Addr().Is4()
	for _, v4 := range []bool{first, !first} {
		var theirs []netip.AddrPort
		for _, r := range remotes {
			if r.Addr().Is4() == v4 {
				theirs = append(theirs, r)
			}
		}
		if len(theirs) > 0 {
			all = append(all, pairsOf(ofFamily(sources, theirs[0].Addr()), theirs)...)
		}
	}
	all = all[:min(len(all), tunnel.MaxPaths)]
	if !slices.Contains(remotes, used.Remote) {
		all = slices.Insert(all, 0, used)
	}
	return all
}

func ofFamily(sources []netip.Addr, a netip.Addr) (all []netip.Addr) {
	for _, s := range sources {
		if s.Is4() == a.Is4() {
			all = append(all, s)
		}
	}
	return all
}

// pairsOf are all pairs of one family.
func pairsOf(sources []netip.Addr, remotes []netip.AddrPort) (all []Path) {
	if len(sources) == 0 {
		return nil
	}
	for n := range max(len(sources), len(remotes)) {
		all = append(all, Path{sources[n%len(sources)], remotes[n%len(remotes)]})
	}
	for distance := range len(sources) + len(remotes) {
		for i, s := range sources {
			for j, r := range remotes {
				if p := (Path{s, r}); i+j == distance && !slices.Contains(all, p) {
					all = append(all, p)
				}
			}
		}
	}
	return all
}
