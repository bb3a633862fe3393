package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ringway/qos"
)

// networkSets makes the pair name4, name6 of interval sets. A network inside another one is
// left out: the kernel refuses intervals that overlap.
func networkSets(name string, networks ...[]netip.Prefix) []Set {
	all := slices.Concat(networks...)
	for i, p := range all {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	sets := make([]Set, 0, 2)
	for _, f := range families {
		s := Set{Name: name + f.suffix(), Type: fmt.Sprintf("ipv%s_addr", f.suffix()), Interval: true}
		var last netip.Prefix
		for _, p := range all {
			if p.Addr().Is4() != (f == ipv4) || last.IsValid() && last.Overlaps(p) {
				continue
			}
			last = p
			s.Elements = append(s.Elements, Element{Key: PrefixText(p)})
		}
		sets = append(sets, s.Canonical())
	}
	return sets
}

// PrefixText is a network as an element of a set: a single address has no length.
func PrefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// portSet makes a set of port ranges, merged where they touch or overlap.
func portSet(name string, proto qos.Protocol, matches []qos.PortMatch) Set {
	var mine []qos.PortMatch
	for _, m := range matches {
		if m.Protocol == proto {
			mine = append(mine, m)
		}
	}
	slices.SortFunc(mine, func(a, b qos.PortMatch) int { return int(a.Low) - int(b.Low) })
	var merged []qos.PortMatch
	for _, m := range mine {
		if n := len(merged); n > 0 && int(m.Low) <= int(merged[n-1].High)+1 {
			merged[n-1].High = max(merged[n-1].High, m.High)
			continue
		}
		merged = append(merged, m)
	}
	s := Set{Name: name, Type: "inet_service", Interval: true}
	for _, m := range merged {
		s.Elements = append(s.Elements, Element{Key: PortText(m.Low, m.High)})
	}
	return s.Canonical()
}

// PortText is a range of ports as an element of a set.
func PortText(low, high uint16) string {
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d-%d", low, high)
}

func nameSet(name, typ string, keys ...string) Set {
	s := Set{Name: name, Type: typ}
	for _, k := range keys {
		s.Elements = append(s.Elements, Element{Key: k})
	}
	return s.Canonical()
}

// Canonical is t with its elements sorted and each once.
func (t Set) Canonical() Set {
	t.Elements = slices.Clone(t.Elements)
	slices.SortFunc(t.Elements, func(a, b Element) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
	t.Elements = slices.Compact(t.Elements)
	if len(t.Elements) == 0 {
		t.Elements = nil
	}
	return t
}

// priorityMaps are the maps from a peer to its queue, by class and family: prio_media4.
func priorityMaps(peers []Peer) []Set {
	var sets []Set
	for _, c := range qos.ClassNames {
		for _, f := range families {
			s := Set{
				Name: "prio_" + string(c) + f.suffix(),
				Type: fmt.Sprintf("ipv%s_addr . inet_service", f.suffix()), Data: "classid",
			}
			seen := map[string]bool{} // the kernel refuses the whole transaction for a key with two values
			for _, p := range peers {
				a := p.Endpoint.Addr().Unmap().WithZone("")
				if p.Class != c || !p.Endpoint.IsValid() || a.Is4() != (f == ipv4) {
					continue
				}
				if key := fmt.Sprintf("%s . %d", a, p.Endpoint.Port()); !seen[key] {
					seen[key] = true
					s.Elements = append(s.Elements, Element{Key: key, Value: ClassIDText(p.ClassID)})
				}
			}
			sets = append(sets, s.Canonical())
		}
	}
	return sets
}
