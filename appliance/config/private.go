package config

import (
	"slices"

	"ringway/routing"
)

// PrivateNetworks are this box's own networks and those of its sites. No WAN may claim an address of theirs; those of
// WANs are not among them, since two WANs may be in one network.
func (cfg *Config) PrivateNetworks() (networks []routing.Network) {
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		for _, n := range l.Networks() {
			networks = append(networks, routing.Network{Prefix: n, Name: l.Device()})
		}
	}
	for _, s := range cfg.Sites {
		for _, n := range s.Networks() {
			networks = append(networks, routing.Network{Prefix: n.Masked(), Name: "site " + s.Name})
		}
	}
	return networks
}
