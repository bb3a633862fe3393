package terminate

import (
	"net/netip"
	"slices"

	"ringway/srtp/offer"
)

// Place is what is at the addresses of a network.
type Place struct {
	Network netip.Prefix `json:"network"`
	offer.Place
}

// Places are looked up by the longest network that an address is in.
type Places []Place

// Sorted are the places in the order in which they are looked at.
func (p Places) Sorted() Places {
	all := slices.Clone(p)
	slices.SortStableFunc(all, func(a, b Place) int { return b.Network.Bits() - a.Network.Bits() })
	return all
}

// At is the place of an address. Where none is known, media is not relayed for its sake, and the box has no address
// towards it.
func (p Places) At(a netip.Addr) offer.Place {
	a = a.Unmap().WithZone("")
	for i := range p {
		if p[i].Network.Contains(a) {
			return p[i].Place
		}
	}
	return offer.Place{}
}
