package plane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"ringway/tunnel"
)

// Settings are everything of a running plane, besides keys and peers, that can be changed in place. A nil
// field is one that a change does not touch, or that a plane does not know.
//
// A plane's hello holds every setting that it knows. So a newer daemon can tell an older plane from one that
// knows the new setting, and tells each what it knows. To add a setting, add a field here and a line in
// settingsOf, changes, with and apply; the protocol stays as it is. The field's own JSON form is part of the
// protocol.
type Settings struct {
	MTU       *int              `json:"mtu,omitempty"` // of the tunnel device
	Bounds    *tunnel.Bounds    `json:"bounds,omitempty"`
	Outer     *tunnel.Outer     `json:"outer,omitempty"`     // how packets look from outside
	Admission *tunnel.Admission `json:"admission,omitempty"` // how much media may leave for each site
	Measured  *tunnel.Measured  `json:"measured,omitempty"`  // which media is counted
	Sources   *[]netip.Addr     `json:"sources,omitempty"`   // addresses of our lines
	ProbeMTU  *int              `json:"probe_mtu,omitempty"` // as in tunnel.Device
	Paths     *tunnel.Paths     `json:"paths,omitempty"`     // what else there is to know of paths
	Copies    *tunnel.Copies    `json:"copies,omitempty"`    // to which peers media is sent twice
}

// marker is an engine that marks and pads packet by packet. An engine that is none is left alone: what a
// whole socket's TOS can say is set from outside.
type marker interface {
	SetOuter(o tunnel.Outer) error
}

// admitter is an engine that admits calls up to a site's budget. An engine that is none is left alone.
type admitter interface {
	SetAdmission(a tunnel.Admission) error
}

// measurer is an engine that counts media by flow. An engine that is none is left alone.
type measurer interface {
	SetMeasured(m tunnel.Measured) error
}

// pathfinder is an engine that chooses by which line it sends. An engine that is none is left alone.
type pathfinder interface {
	SetSources(all []netip.Addr) error
	SetPaths(p tunnel.Paths) error
}

// mtuProber is an engine that finds out how long packets may be. An engine that is none is left alone.
type mtuProber interface {
	SetProbeMTU(most int) error
	ConfirmMTU(keys ...tunnel.PublicKey)
}

// copier is an engine that can send media twice. An engine that is none is left alone.
type copier interface {
	SetCopies(c tunnel.Copies) error
}

// settingsOf is what a device wants.
func settingsOf(d tunnel.Device) Settings {
	mtu := int(d.Settings.MTU)
	sources := append([]netip.Addr{}, d.Sources...) // none is a list, too: null would be a setting that is not known
	return Settings{
		MTU: &mtu, Bounds: &d.Bounds, Outer: &d.Outer, Admission: &d.Admission, Measured: &d.Measured,
		Sources: &sources, ProbeMTU: &d.ProbeMTU, Paths: &d.Paths, Copies: &d.Copies,
	}
}

// changes is what a plane that holds have has to be told: settings that it knows and that are not as wanted.
func (s Settings) changes(have Settings) Settings {
	return Settings{
		MTU:       changed(s.MTU, have.MTU, equal),
		Bounds:    changed(s.Bounds, have.Bounds, equal),
		Outer:     changed(s.Outer, have.Outer, tunnel.Outer.Equal),
		Admission: changed(s.Admission, have.Admission, tunnel.Admission.Equal),
		Measured:  changed(s.Measured, have.Measured, equal),
		Sources:   changed(s.Sources, have.Sources, slices.Equal),
		ProbeMTU:  changed(s.ProbeMTU, have.ProbeMTU, equal),
		Paths:     changed(s.Paths, have.Paths, tunnel.Paths.Equal),
		Copies:    changed(s.Copies, have.Copies, tunnel.Copies.Equal),
	}
}

// with is s after a change.
func (s Settings) with(change Settings) Settings {
	return Settings{
		MTU:       cmp.Or(change.MTU, s.MTU),
		Bounds:    cmp.Or(change.Bounds, s.Bounds),
		Outer:     cmp.Or(change.Outer, s.Outer),
		Admission: cmp.Or(change.Admission, s.Admission),
		Measured:  cmp.Or(change.Measured, s.Measured),
		Sources:   cmp.Or(change.Sources, s.Sources),
		ProbeMTU:  cmp.Or(change.ProbeMTU, s.ProbeMTU),
		Paths:     cmp.Or(change.Paths, s.Paths),
		Copies:    cmp.Or(change.Copies, s.Copies),
	}
}

// apply makes an engine hold a change. done is what it holds by now, also on error.
func (s Settings) apply(e Engine) (done Settings, err error) {
	if v := s.MTU; v != nil {
		if *v <= 0 {
			return done, fmt.Errorf("mtu: %d is not positive", *v)
		}
		if err := e.SetMTU(*v); err != nil {
			return done, fmt.Errorf("mtu: %w", err)
		}
		done.MTU = v
	}
	if v := s.Bounds; v != nil {
		if err := e.SetBounds(*v); err != nil {
			return done, fmt.Errorf("bounds: %w", err)
		}
		done.Bounds = v
	}
	if v := s.Outer; v != nil {
		if m, ok := e.(marker); ok {
			if err := m.SetOuter(*v); err != nil {
				return done, fmt.Errorf("outer: %w", err)
			}
		}
		done.Outer = v
	}
	if v := s.Admission; v != nil {
		if a, ok := e.(admitter); ok {
			if err := a.SetAdmission(*v); err != nil {
				return done, fmt.Errorf("admission: %w", err)
			}
		}
		done.Admission = v
	}
	if v := s.Measured; v != nil {
		if a, ok := e.(measurer); ok {
			if err := a.SetMeasured(*v); err != nil {
				return done, fmt.Errorf("measured: %w", err)
			}
		}
		done.Measured = v
	}
	if v := s.Sources; v != nil {
		if f, ok := e.(pathfinder); ok {
			if err := f.SetSources(*v); err != nil {
				return done, fmt.Errorf("sources: %w", err)
			}
		}
		done.Sources = v
	}
	if v := s.ProbeMTU; v != nil {
		if f, ok := e.(mtuProber); ok {
			if err := f.SetProbeMTU(*v); err != nil {
				return done, fmt.Errorf("probe_mtu: %w", err)
			}
		}
		done.ProbeMTU = v
	}
	if v := s.Paths; v != nil {
		if f, ok := e.(pathfinder); ok {
			if err := f.SetPaths(*v); err != nil {
				return done, fmt.Errorf("paths: %w", err)
			}
		}
		done.Paths = v
	}
	if v := s.Copies; v != nil {
		if c, ok := e.(copier); ok {
			if err := c.SetCopies(*v); err != nil {
				return done, fmt.Errorf("copies: %w", err)
			}
		}
		done.Copies = v
	}
	return done, nil
}

// empty says that nothing is set.
func (s Settings) empty() bool { return s == Settings{} }

// mtu and bounds are zero where they are not known.
func (s Settings) mtu() int              { return valueOf(s.MTU) }
func (s Settings) bounds() tunnel.Bounds { return valueOf(s.Bounds) }

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func equal[T comparable](a, b T) bool { return a == b }

// changed is want where the plane knows the setting and has it otherwise.
func changed[T any](want, have *T, same func(a, b T) bool) *T {
	if want == nil || have == nil || same(*want, *have) {
		return nil
	}
	return want
}
