package tunnel

import (
	"fmt"
	"net/netip"

	"ringway/units"
)

// Flow is one direction of a media stream inside the tunnel: UDP packets with these addresses and ports.
type Flow struct {
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
}

func (f Flow) String() string { return fmt.Sprintf("%s to %s", f.Source, f.Destination) }

// Reservation asks an engine that admits flows (Admission) to keep a place in the voice budget for one,
// through hold and silence, until it is released.
type Reservation struct {
	Flow Flow          `json:"flow"`
	Site PublicKey     `json:"site"`
	Rate units.BitRate `json:"rate_bps"` // on the provider's meter; what the flow is measured to take counts if it is more
}

// Check refuses what cannot be reserved.
func (r Reservation) Check() error {
	const maxRate = 1 << 40 // bit/s, as for a budget
	from, to := r.Flow.Source.Addr().Unmap(), r.Flow.Destination.Addr().Unmap()
	switch {
	case !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4():
		return fmt.Errorf("reserve for %s: not two addresses of one family", r.Flow)
	case r.Flow.Source.Port() == 0 || r.Flow.Destination.Port() == 0:
		return fmt.Errorf("reserve for %s: a port is missing", r.Flow)
	case from.IsUnspecified() || from.IsMulticast() || to.IsUnspecified() || to.IsMulticast():
		return fmt.Errorf("reserve for %s: not two unicast addresses", r.Flow)
	case r.Rate == 0 || r.Rate > maxRate:
		return fmt.Errorf("reserve %d bit/s for %s (allowed 1-%d)", uint64(r.Rate), r.Flow, uint64(maxRate))
	}
	return nil
}

// ReservationState is whether a reservation is held, or why it is not: "held", or one of the reasons below.
type ReservationState string

// The states of a reservation.
const (
	ReservationHeld ReservationState = "held"
	SiteBudgetFull  ReservationState = "site_budget"  // the site's voice budget is full, or has shrunk
	LineBudgetFull  ReservationState = "line_budget"  // that of the WAN with all sites together
	SiteUnknown     ReservationState = "site_removed" // no such peer, or the network belongs to another one now
	TooManyFlows    ReservationState = "table_full"   // more flows or reservations than the engine keeps
)

// ReservationStatus is a reservation and how it is.
type ReservationStatus struct {
	Reservation
	State ReservationState `json:"state"`
}

// ReservationCounts say how requests for reservations were answered, and what became of them.
type ReservationCounts struct {
	Held    int                         `json:"held"`    // now
	Refused map[ReservationState]uint64 `json:"refused"` // in all, by reason
	Lost    map[ReservationState]uint64 `json:"lost"`    // of those that were held once
}
