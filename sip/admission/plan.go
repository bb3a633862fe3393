package admission

import (
	"net/netip"

	"ringway/qos"
	"ringway/tunnel"
)

// Plan is a World in numbers alone, as one process tells another: how packets are counted on a line follows from
// the line.
type Plan struct {
	Own   []netip.Prefix `json:"own,omitempty"`
	Lines []PlanLine     `json:"lines,omitempty"`
	Sites []PlanSite     `json:"sites,omitempty"`
}

// PlanLine is a WAN. Rates are in bits a second on the provider's meter.
type PlanLine struct {
	Name  string      `json:"name"`
	Line  qos.Line    `json:"line"`
	Pool  qos.BitRate `json:"pool,omitempty"`  // Line.Pool
	Local qos.BitRate `json:"local,omitempty"` // of calls that go to no site, sent; 0: no bound
}

// PlanSite is a peer with a tunnel.
type PlanSite struct {
	Name     string           `json:"name"`
	Key      tunnel.PublicKey `json:"key"`
	Networks []netip.Prefix   `json:"networks"`
	Line     int              `json:"line"`
	Ringway  bool             `json:"ringway"`
	Rate     qos.BitRate      `json:"rate,omitempty"`    // of what is sent to the site
	Inbound  qos.BitRate      `json:"inbound,omitempty"` // of what comes from it; 0: no bound

	// The tunnel around the packets.
	IPv6  bool          `json:"ipv6,omitempty"`
	PadTo qos.ByteCount `json:"pad_to,omitempty"`
	MTU   qos.ByteCount `json:"mtu,omitempty"`
}

// World is what a Ledger is made with.
func (p Plan) World() World {
	w := World{Own: p.Own}
	for _, l := range p.Lines {
		w.Lines = append(w.Lines, Line{
			Name: l.Name, Pool: l.Pool,
			Out: qos.Budget{Rate: l.Local, Envelope: qos.Envelope{Wire: l.Line.Metered}},
			In:  qos.Budget{Envelope: qos.Envelope{Wire: l.Line.Metered}},
		})
	}
	for _, s := range p.Sites {
		e := qos.Envelope{IPv6: s.IPv6, PadTo: s.PadTo, MTU: s.MTU}
		if s.Line >= 0 && s.Line < len(p.Lines) {
			e.Wire = p.Lines[s.Line].Line.Metered
		}
		w.Sites = append(w.Sites, Site{
			Name: s.Name, Key: s.Key, Networks: s.Networks, Line: s.Line, Ringway: s.Ringway,
			Out: qos.Budget{Rate: s.Rate, Envelope: e}, In: qos.Budget{Rate: s.Inbound, Envelope: e},
		})
	}
	return w
}
