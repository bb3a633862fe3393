package plan

import (
	"slices"

	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// Observed is what the machine shows of what a wanted state is about.
type Observed struct {
	Firewall Seen[firewall.State]
	Routing  Seen[routing.State]
	Queues   Seen[qos.State]
	Tunnels  []Tunnel // in the order of the wanted devices
}

// Seen is a part of the machine, or why it could not be observed.
type Seen[S any] struct {
	State S
	Err   error
}

// See is for a function that observes.
func See[S any](state S, err error) Seen[S] { return Seen[S]{state, err} }

// Tunnel is what an engine has to change for one device.
type Tunnel struct {
	Lines []string // in words of wg(8), without keys
	Made  bool     // the device is made again, bare: what was attached to the old one is lost
	Note  string   // what could not be compared, and why; empty: nothing
}

// Before is what Ringway found on the machine, and what it applied last.
type Before struct {
	Routing, Last routing.State
	Queues        qos.State
}

// Difference is what leads from the observed state to the wanted one. `ringway plan` prints it and a reload
// applies it.
type Difference struct {
	Firewall []firewall.Change
	Routing  []routing.Change // those of devices in Made can be applied when the tunnels' engines have made them
	Queues   []qos.Change
	Tunnels  []Tunnel
	Made     []string // tunnel devices that are made
}

// Compare computes the difference. A part that could not be observed has none.
func Compare(w wanted.State, have Observed, before Before) Difference {
	d := Difference{Tunnels: have.Tunnels}
	for i, t := range have.Tunnels {
		name := w.Devices[i].Settings.Interface
		there := slices.ContainsFunc(have.Routing.State.Links, func(l routing.Link) bool { return l.Name == name })
		if t.Made || !there {
			d.Made = append(d.Made, name)
		}
	}

	if have.Firewall.Err == nil {
		d.Firewall = firewall.Diff(w.Firewall, have.Firewall.State)
	}
	if have.Routing.Err == nil {
		d.Routing = Routing(w, have.Routing.State, before, d.Made)
	}
	if have.Queues.Err == nil {
		d.Queues = qos.Diff(w.Queues.Over(before.Queues), have.Queues.State)
	}
	return d
}

// Routing is the difference in links, addresses, routes, rules and sysctls. Values of the whole machine that
// are not wanted any more go back to what they were before.
func Routing(w wanted.State, have routing.State, before Before, made []string) []routing.Change {
	return routing.DiffMade(w.Routing.WithRestored(before.Last, before.Routing), have, made)
}

// Device is a whole device in words of the tools, without keys.
func Device(d tunnel.Device) []string {
	words := d.Words()
	if d.Settings.Engine == tunnel.EngineKernel {
		return append([]string{"ip link add " + d.Settings.Interface + " type wireguard"}, words...)
	}
	return words
}
