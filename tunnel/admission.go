package tunnel

import (
	"fmt"
	"slices"

	"ringway/units"
)

// Admission says how much media may leave for each site. An engine that sees packets (EngineName.PerPacket)
// admits flows up to it, first come first, and drops the others; the zero value bounds nothing.
type Admission struct {
	Media uint64 // inner code points that are media: bit n is DSCP n
	Lines []AdmissionLine
	Sites []AdmissionSite // sorted by Key, each once; a peer that is not there has no bound
}

// AdmissionLine is a WAN: what it carries of calls with all sites together, and how its provider counts.
type AdmissionLine struct {
	Rate     units.BitRate // on the provider's meter; 0: the sites' budgets fit, each is a site's own
	Overhead int           // bytes a packet beyond the IP packet, -64 to 256
	MPU      int           // the least that a packet counts, overhead included; 0 = no least
	ATM      bool          // counted in cells of 53 bytes for 48
}

// AdmissionSite is what calls with one peer may take, RTCP included.
type AdmissionSite struct {
	Key  PublicKey
	Rate units.BitRate // on the provider's meter
	Line int           // index into Lines
}

// Equal compares all of it; none and an empty list are the same.
func (a Admission) Equal(b Admission) bool {
	return a.Media == b.Media && slices.Equal(a.Lines, b.Lines) && slices.Equal(a.Sites, b.Sites)
}

// Check says what no engine can work with.
func (a Admission) Check() error {
	const maxRate = 1 << 40
	for i, l := range a.Lines {
		if l.Rate > maxRate || l.Overhead < -64 || l.Overhead > 256 || l.MPU < 0 || l.MPU > 1500 {
			return fmt.Errorf("admit calls: line %d is %+v "+
				"(allowed: up to %d bit/s, an overhead of -64 to 256, an mpu of 0 to 1500)", i, l, uint64(maxRate))
		}
	}
	for _, s := range a.Sites {
		if s.Line < 0 || s.Line >= len(a.Lines) || s.Rate > maxRate {
			return fmt.Errorf("admit calls with %s: %d bit/s on line %d of %d (allowed: up to %d bit/s, a line that exists)",
				s.Key, s.Rate, s.Line, len(a.Lines), uint64(maxRate))
		}
	}
	return nil
}

// MediaStatus is how much of a peer's voice budget is taken, in this direction. Rates are in bits a second on
// the provider's meter.
type MediaStatus struct {
	Budget units.BitRate `json:"budget_bps"`
	// LineBudget is for calls with all sites together, where that is a bound of its own.
	LineBudget units.BitRate `json:"line_budget_bps,omitempty"`
	Taken      units.BitRate `json:"taken_bps"`
	Flows      int           `json:"flows"`              // admitted now, RTCP apart
	Reserved   int           `json:"reserved,omitempty"` // of Flows, those whose place is reserved
	Refused    uint64        `json:"refused_packets"`    // in all
	Refusing   bool          `json:"refusing"`           // within the last seconds
	LineFull   bool          `json:"line_full"`          // it is the line's budget that is full
}
