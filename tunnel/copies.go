package tunnel

import (
	"fmt"
	"net/netip"
	"slices"

	"ringway/units"
)

// Copies says to which peers media is sent twice, and how much of the voice budgets copies may take: what calls leave.
// An engine that sees packets (EngineName.PerPacket) sends the second one by another line, or a moment later by the
// same one. The zero value copies nothing.
type Copies struct {
	Media uint64 // inner code points that are media: bit n is DSCP n
	Lines []CopyLine
	Sites []CopySite // sorted by Key, each once; to a peer that is not there nothing is copied
}

// CopyLine is a WAN: what it carries of calls, how its provider counts, and our addresses on it.
type CopyLine struct {
	AdmissionLine
	Sources []netip.Addr
}

// CopySite is when media to a peer is sent twice.
type CopySite struct {
	Key   PublicKey
	When  CopiesWhen
	Line  int             // index into Lines of the one that leads to the peer
	Rates []units.BitRate // what calls with the peer may take on each line, on the provider's meter; 0: no bound
}

// CopiesWhen is when copies are sent.
type CopiesWhen string

// When copies are sent. OnLoss is from 0.5 % on, until there was less for a minute.
const (
	CopiesOff    CopiesWhen = "off"
	CopiesOnLoss CopiesWhen = "on_loss"
	CopiesAlways CopiesWhen = "always"
)

// Equal compares all of it; none and an empty list are the same.
func (c Copies) Equal(d Copies) bool {
	return c.Media == d.Media && slices.EqualFunc(c.Lines, d.Lines, func(a, b CopyLine) bool {
		return a.AdmissionLine == b.AdmissionLine && slices.Equal(a.Sources, b.Sources)
	}) && slices.EqualFunc(c.Sites, d.Sites, func(a, b CopySite) bool {
		return a.Key == b.Key && a.When == b.When && a.Line == b.Line && slices.Equal(a.Rates, b.Rates)
	})
}

// Check says what no engine can work with.
func (c Copies) Check() error {
	for _, l := range c.Lines {
		if err := (Admission{Lines: []AdmissionLine{l.AdmissionLine}}).Check(); err != nil {
			return err
		}
	}
	for _, s := range c.Sites {
		switch s.When {
		case CopiesOff, CopiesOnLoss, CopiesAlways:
		default:
			return fmt.Errorf("copy voice to %s: %q (allowed: off, on_loss, always)", s.Key, s.When)
		}
		if s.Line < 0 || s.Line >= len(c.Lines) || len(s.Rates) != len(c.Lines) {
			return fmt.Errorf("copy voice to %s: line %d and %d rates for %d lines (allowed: a line that exists, and a rate "+
				"for each)", s.Key, s.Line, len(s.Rates), len(c.Lines))
		}
	}
	return nil
}

// CopiesStatus is how copies of media to a peer and from it are.
type CopiesStatus struct {
	When  CopiesWhen `json:"when"`
	State string     `json:"state"` // rest, clean, unknown, begin, sent, no_room or no_route (tunnel/path)
	Why   string     `json:"why"`   // the state in words
	// By and To are where copies are sent from and to, while they are; Later is that they go by the path that is used, a
	// moment later.
	By    netip.Addr     `json:"by,omitzero"`
	To    netip.AddrPort `json:"to,omitzero"`
	Later bool           `json:"later,omitempty"`

	Sent    uint64 `json:"sent"`    // copies, in all
	Unsent  uint64 `json:"unsent"`  // that could not be sent
	Removed uint64 `json:"removed"` // messages from the peer that had arrived already, in all
}

// Active reports whether copies are sent now.
func (c CopiesStatus) Active() bool { return c.Later || c.By.IsValid() }
