package lease

import (
	"net/netip"
	"strings"
	"time"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
)

// Status is the section of the status: the WANs whose address comes from DHCP. Fields are added, never renamed.
type Status []WAN

// WAN is one WAN and its lease; without one, all but the interface is empty.
type WAN struct {
	Interface   string       `json:"interface"`
	Address     netip.Prefix `json:"address,omitzero"`
	Gateways    []netip.Addr `json:"gateways,omitempty"`
	NameServers []netip.Addr `json:"name_servers,omitempty"`
	Expiry      time.Time    `json:"expiry,omitzero"` // zero: the lease does not expire
	// Note says why there is no lease, why it was not renewed, or what it lacks.
	Note string `json:"note,omitempty"`

	Advertised []netip.Prefix `json:"advertised_addresses,omitempty"` // by IPv6 routers
	Router     netip.Addr     `json:"advertised_router,omitzero"`
	Refused    string         `json:"advertised_refused,omitempty"` // what overlaps own or site networks

	Delegated   []Delegated  `json:"delegated,omitempty"` // prefixes, by DHCPv6
	Assigned    []netip.Addr `json:"assigned_addresses,omitempty"`
	WantsPrefix bool         `json:"wants_prefix,omitempty"`
	Static      bool         `json:"static_ipv4,omitempty"` // its IPv4 address is not of DHCP
	DHCP6Note   string       `json:"dhcp6_note,omitempty"`  // why there is no prefix or address, or why not another one
}

// String is one line of the status, empty where no WAN uses DHCP.
func (s Status) String() string {
	if len(s) == 0 {
		return ""
	}

	var wans []string
	for _, w := range s {
		text := w.Interface + " no lease"
		if w.Static {
			text = w.Interface
		}
		if w.Address.IsValid() {
			text = w.Interface + " " + w.Address.String()
		}
		if len(w.Gateways) > 0 {
			text += " via " + w.Gateways[0].String()
		}
		if w.Note != "" {
			text += " (" + w.Note + ")"
		}
		for _, a := range w.Advertised {
			text += " and " + a.String()
		}
		if w.Router.IsValid() {
			text += " via " + w.Router.String()
		}
		if w.Refused != "" {
			text += " (" + w.Refused + ")"
		}
		text += w.text6()
		wans = append(wans, text)
	}
	return "DHCP leases: " + strings.Join(wans, ", ")
}

var (
	families exposition.Families

	leaseHeld   = families.Gauge("ringway_dhcp_lease", "Whether a WAN that uses DHCP has a valid lease.", "wan")
	leaseExpiry = families.Gauge("ringway_dhcp_lease_expiry_timestamp_seconds",
		"When the WAN's lease expires unless it is renewed, Unix time; 0: never, or no lease.", "wan")
)

var prefixHeld = families.Gauge("ringway_delegated_prefix",
	"Whether a WAN that asks for an IPv6 prefix has one.", "wan")

var advertsRefused = families.Gauge("ringway_advertisement_refused",
	"Whether a router on a WAN that uses DHCP advertises a network or route that overlaps own or site networks.", "wan")

// Families are the metrics of leases.
func (k *Keeper) Families() exposition.Families { return families }

// Collect shows the leases in the status.
func (k *Keeper) Collect(st status.Status, to exposition.Sink) {
	s, _ := status.Section[Status](st, Name)
	for _, w := range s {
		if !w.Static {
			to.Put(leaseHeld, exposition.Bool(w.Address.IsValid()), w.Interface)
			to.Put(leaseExpiry, exposition.Time(w.Expiry), w.Interface)
		}
		if w.WantsPrefix {
			to.Put(prefixHeld, exposition.Bool(len(w.Delegated) > 0), w.Interface)
		}
		to.Put(advertsRefused, exposition.Bool(w.Refused != ""), w.Interface)
	}
}
