// Package config turns the one config file into validated values: file, yaml tree, raw
// structs, then the types that the domains own. It is the only importer of viper and yaml,
// it reports every problem at once with file and line, and it is imported by appliance
// and cmd/ringway alone.
package config

import (
	"net/netip"
	"time"

	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// Config is a valid configuration. Every value has its unit as a type and its default filled in.
type Config struct {
	Path    string // of the file, absolute
	Site    string // this box's own name
	WANs    []WAN
	Voice   []routing.LAN
	Data    []routing.LAN
	KeyFile string // absolute, or relative to the config file's folder and made absolute
	// PublicKey is this box's own; zero where the key file was not read (no permission, WithoutKeyFiles).
	PublicKey tunnel.PublicKey
	Tunnels   map[tunnel.Class]tunnel.Settings
	Sites     []Site      // in the file's order
	Classes   []qos.Class // in order of urgency, all four
	Control   Control
	Machine   Machine
	Warnings  []Problem // what is allowed but deserves a word
}

// WAN is an uplink: how it is addressed and how fast it is.
type WAN struct {
	routing.WAN
	Uplink        qos.BitRate // 0 = not known: nothing is shaped
	Downlink      qos.BitRate // 0 = not known
	ShapeDownlink bool        // what comes in by it in clear is held to the downlink on the LANs
	Margin        int         // percent of the uplink (and of what is held to the downlink) left unused, so that the queue stays here and not at the provider
	qos.LinkLayer             // how the provider's meter counts
	// Serialization is how long one packet of data may keep the line busy while a call's packet waits behind it; 0 = no bound.
	Serialization time.Duration
	TakeOver      bool // a queue that somebody else made on the interface, or on a LAN's for the downlink, is replaced, and given back at stop
}

// Site is another branch: its tunnels, and what its line carries.
type Site struct {
	tunnel.Site
	Downlink qos.BitRate // 0 = not known: what is sent to it is bounded by the uplink alone
}

// Control says who may ask the running daemon, and who reaches the box.
type Control struct {
	Group     string          // members of this group may read status; empty: root alone
	Services  []qos.PortMatch // what the box itself serves to data networks, here and at the sites, besides DHCP and ICMP
	Reflector bool            // sites' probes (RFC 8762) are answered
	// Metrics are the addresses on which Prometheus is answered, each loopback or this box's own in a data network.
	Metrics []netip.AddrPort
}

// Machine says what of the machine as a whole, beyond its network, may be changed while Ringway runs.
type Machine struct {
	Tune bool // what makes calls wait less (appliance/machine.go)
}

// Problem is one thing wrong with the file.
type Problem struct {
	File    string
	Line    int    // 1-based, 0 where the file as a whole is meant
	Key     string // dotted path with list positions by name or number: sites[munich].public_key
	Message string // what is wrong (what is allowed)
}
