package dial

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
)

// Status is the section of the status: the WANs with PPPoE. Fields are added, never renamed.
type Status []WAN

// WAN is one WAN and its session.
type WAN struct {
	Interface   string       `json:"interface"`
	State       string       `json:"state"` // dialing, up, or waiting for the next try
	Since       time.Time    `json:"since,omitzero"`
	Dials       int          `json:"dials"` // since the daemon started
	Reason      string       `json:"reason,omitempty"`
	Address     netip.Addr   `json:"address,omitzero"`
	Peer        netip.Addr   `json:"peer,omitzero"`
	IPv6        bool         `json:"ipv6"` // negotiated
	NameServers []netip.Addr `json:"name_servers,omitempty"`

	Advertised []netip.Prefix `json:"advertised_addresses,omitempty"` // by IPv6 routers
	Router     netip.Addr     `json:"advertised_router,omitzero"`
	Refused    string         `json:"advertised_refused,omitempty"` // what overlaps own or site networks
}

// Status lists the WANs with PPPoE.
func (d *Dialer) Status() fmt.Stringer {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{}
	for _, device := range slices.Sorted(maps.Keys(d.running)) {
		known := d.running[device].state
		w := WAN{
			Interface: device, State: known.phase, Since: known.since, Dials: known.dials, Reason: known.reason,
			Advertised: known.advertised.Addresses, Router: known.advertised.Gateway, Refused: known.advertNote,
		}
		if known.phase == phaseUp {
			w.Address, w.Peer, w.IPv6 = known.progress.Address, known.progress.Peer, known.progress.IPv6
			w.NameServers = known.progress.DNS
		}
		st = append(st, w)
	}
	return st
}

// String is one line of the status, empty where no WAN has PPPoE.
func (s Status) String() string {
	if len(s) == 0 {
		return ""
	}
	var all []string
	for _, w := range s {
		text := w.Interface + " " + w.State
		if w.Address.IsValid() {
			text += fmt.Sprintf(" %s peer %s", w.Address, w.Peer)
		}
		for _, a := range w.Advertised {
			text += " and " + a.String()
		}
		if w.Router.IsValid() {
			text += " via " + w.Router.String()
		}
		if w.Reason != "" {
			text += " (" + w.Reason + ")"
		}
		all = append(all, text)
	}
	return "PPPoE: " + strings.Join(all, ", ")
}

var (
	families exposition.Families

	sessionUp    = families.Gauge("ringway_pppoe_up", "Whether a WAN with PPPoE has a session.", "wan")
	sessionDials = families.Counter("ringway_pppoe_dials_total",
		"How often a WAN with PPPoE has begun a session, successful or not.", "wan")
	sessionChanged = families.Gauge("ringway_pppoe_changed_timestamp_seconds",
		"When a WAN with PPPoE last got or lost its session, Unix time.", "wan")
)

// Families are the metrics of PPPoE.
func (d *Dialer) Families() exposition.Families { return families }

// Collect shows the sessions in the status.
func (d *Dialer) Collect(st status.Status, to exposition.Sink) {
	s, _ := status.Section[Status](st, Name)
	for _, w := range s {
		to.Put(sessionUp, exposition.Bool(w.State == phaseUp), w.Interface)
		to.Put(sessionDials, float64(w.Dials), w.Interface)
		to.Put(sessionChanged, exposition.Time(w.Since), w.Interface)
	}
}
