package config

import (
	"cmp"
	"net/netip"
	"slices"
)

// placedNet is a network and where the file says it.
type placedNet struct {
	at
	prefix netip.Prefix
	device string // of the LAN or WAN that it is on; empty for a site's
	wan    bool
}

// networkSet is every network that the file names: of WANs, LANs and sites. No address may lie in two of
// them, or packets would have two ways to go.
type networkSet struct {
	nets     []placedNet
	byPrefix map[netip.Prefix]placedNet
}

func (s *networkSet) addOwn(device string, wan bool, l scalars, addresses []netip.Prefix) {
	for _, a := range addresses {
		pos := l.at
		for _, item := range l.items {
			if p, err := netip.ParsePrefix(item.text); err == nil && p == a {
				pos = item.at
			}
		}
		s.nets = append(s.nets, placedNet{at: pos, prefix: a.Masked(), device: device, wan: wan})
	}
}

// overlaps reports every network that lies in another one, at the later of the two places. Prefixes are either
// nested or apart, so after sorting one pass with a stack of the enclosing ones finds all.
func (s *networkSet) overlaps(c *checker) {
	s.byPrefix = make(map[netip.Prefix]placedNet, len(s.nets))
	slices.SortStableFunc(s.nets, func(a, b placedNet) int {
		return cmp.Or(
			a.prefix.Addr().Compare(b.prefix.Addr()),
			cmp.Compare(a.prefix.Bits(), b.prefix.Bits()),
			cmp.Compare(a.line, b.line),
		)
	})
	var stack []placedNet
	for _, n := range s.nets {
		if _, ok := s.byPrefix[n.prefix]; !ok {
			s.byPrefix[n.prefix] = n
		}
		for len(stack) > 0 && !stack[len(stack)-1].prefix.Contains(n.prefix.Addr()) {
			stack = stack[:len(stack)-1]
		}
		if len(stack) > 0 {
			outer := stack[len(stack)-1]
			if n.device != "" && n.device == outer.device && n.prefix == outer.prefix {
				continue // two addresses of one box in one network
			}
			first, second := outer, n
			if first.line > second.line {
				first, second = second, first
			}
			c.wrong(second.at, "%s overlaps %s of %s in line %d (allowed: each network in one place)",
				second.prefix, first.prefix, first.key, first.line)
		}
		stack = append(stack, n)
	}
}

// holding finds the network that a lies in.
func (s *networkSet) holding(a netip.Addr) (placedNet, bool) {
	for bits := a.BitLen(); bits > 0; bits-- {
		p, err := a.Prefix(bits)
		if err != nil {
			break
		}
		if n, ok := s.byPrefix[p]; ok {
			return n, true
		}
	}
	return placedNet{}, false
}
