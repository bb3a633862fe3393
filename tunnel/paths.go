package tunnel

import (
	"net/netip"
	"slices"

	"ringway/units"
)

// MaxPaths bounds the paths to a far end that may be reached at several addresses, and the addresses.
const MaxPaths = 4

// Paths is what an engine has to know of the paths to far ends besides its lines' addresses (Device.Sources).
type Paths struct {
	Lines []PathLine  `json:"lines,omitempty"` // in the order of Device.Sources; one that is missing has no bound
	Peers []PeerPaths `json:"peers,omitempty"` // those with several addresses, or a known rate, sorted by site
}

// PathLine is what holds for the paths from an address of ours.
type PathLine struct {
	Source netip.Addr `json:"source"`
	// Rate is the line's: messages about paths take a hundredth of it at most. 0: not known, they are not bounded.
	Rate units.BitRate `json:"rate,omitempty"`
	// Metered: it is paid by volume, and its paths are not probed while they are not used.
	Metered bool `json:"metered,omitempty"`
}

// PeerPaths is what holds for the paths to a peer.
type PeerPaths struct {
	Key PublicKey `json:"key"`
	// Remotes are the peer's addresses as configured, in order of preference. Fewer than two: it is sent to where it is
	// heard.
	Remotes []netip.AddrPort `json:"remotes,omitempty"`
	Rate    units.BitRate    `json:"rate,omitempty"` // of its line towards it; 0: not known
}

// Equal compares all of it; no list and an empty one are the same.
func (p Paths) Equal(o Paths) bool {
	return slices.Equal(p.Lines, o.Lines) && slices.EqualFunc(p.Peers, o.Peers, func(a, b PeerPaths) bool {
		return a.Key == b.Key && a.Rate == b.Rate && slices.Equal(a.Remotes, b.Remotes)
	})
}
