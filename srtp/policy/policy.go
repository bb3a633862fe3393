// Package policy says what an address needs of SRTP, and where the box is for it: by the networks of the config. A
// call's media is terminated where one of its two ends needs something.
package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"ringway/srtp/offer"
)

// Network is a network whose hosts are alike.
type Network struct {
	Prefix netip.Prefix `json:"prefix"`
	Place  offer.Place  `json:"place"`
}

// Table is what every address needs. Its zero value needs nothing anywhere. It does not change, so several goroutines
// may use it.
type Table struct {
	networks  []Network // as given
	elsewhere offer.Place
	places    map[netip.Prefix]offer.Place
	lengths   [2][]int // of prefixes by family, the longest first
}

// New makes a table of networks. elsewhere is what an address needs that is in none of them: a trunk on the internet.
// Of two networks with one prefix the first counts.
func New(networks []Network, elsewhere offer.Place) (*Table, error) {
	t := &Table{networks: slices.Clone(networks), elsewhere: elsewhere, places: map[netip.Prefix]offer.Place{}}
	for _, n := range networks {
		p := n.Prefix.Masked()
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("SRTP policy: %s is not a network", n.Prefix)
		}
		if _, dup := t.places[p]; dup {
			continue
		}
		t.places[p] = n.Place
		if lengths := &t.lengths[family(p.Addr())]; !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
	}
	for _, lengths := range t.lengths {
		slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	}
	return t, nil
}

// Of is what an end at an address needs: that of the longest prefix. ChannelUp is false; whoever knows the channel sets
// it.
func (t *Table) Of(a netip.Addr) offer.Place {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return t.elsewhere
	}
	for _, bits := range t.lengths[family(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if place, ok := t.places[p]; ok {
			return place
		}
	}
	return t.elsewhere
}

// Networks are those that New was given.
func (t *Table) Networks() []Network { return slices.Clone(t.networks) }

// Elsewhere is what an address needs that is in none of them.
func (t *Table) Elsewhere() offer.Place { return t.elsewhere }

// Terminates reports whether the media of a call between two addresses is terminated here.
func (t *Table) Terminates(a, b netip.Addr) bool {
	return t.Of(a).Level != offer.Off || t.Of(b).Level != offer.Off
}

// Anywhere reports whether media is terminated for any address.
func (t *Table) Anywhere() bool {
	if t.elsewhere.Level != offer.Off {
		return true
	}
	for _, p := range t.places {
		if p.Level != offer.Off {
			return true
		}
	}
	return false
}

// Local reports whether an address is one that the box has towards somebody, where its media ports are.
func (t *Table) Local(a netip.Addr) bool {
	a = a.Unmap()
	is := func(p offer.Place) bool { return a.IsValid() && (p.IPv4 == a || p.IPv6 == a) }
	return is(t.elsewhere) || slices.ContainsFunc(t.networks, func(n Network) bool { return is(n.Place) })
}

// All are the networks in the order in which they are looked up, and what is elsewhere as the networks that hold every
// address.
func (t *Table) All() []Network {
	all := make([]Network, 0, len(t.places)+2)
	for p, place := range t.places {
		all = append(all, Network{p, place})
	}
	for _, every := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if p := netip.PrefixFrom(every, 0); !slices.ContainsFunc(all, func(n Network) bool { return n.Prefix == p }) {
			all = append(all, Network{p, t.elsewhere})
		}
	}
	slices.SortFunc(all, func(a, b Network) int {
		return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return all
}

// written is a table as one process tells another.
type written struct {
	Networks  []Network   `json:"networks"`
	Elsewhere offer.Place `json:"elsewhere"`
}

// MarshalJSON writes what New is given. It holds no secrets.
func (t *Table) MarshalJSON() ([]byte, error) { return json.Marshal(written{t.networks, t.elsewhere}) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Table) UnmarshalJSON(b []byte) error {
	var w written
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	next, err := New(w.Networks, w.Elsewhere)
	if err != nil {
		return err
	}
	*t = *next
	return nil
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}
