package unmarked

import (
	"net/netip"

	"ringway/appliance/config"
)

// kind is what the config says of a network.
type kind int

const (
	internet kind = iota // no network of the config
	voice
	data
	flat // of a site where phones and everything else share a network
)

// place is a network as an operator knows it.
type place struct {
	kind kind
	name string // a LAN's device, or a site
}

type placedNetwork struct {
	prefix netip.Prefix
	place
}

// places are the networks of a config, which do not overlap.
type places []placedNetwork

func placesOf(cfg *config.Config) (all places) {
	add := func(k kind, name string, networks []netip.Prefix) {
		for _, n := range networks {
			all = append(all, placedNetwork{n, place{k, name}})
		}
	}
	for _, l := range cfg.Voice {
		add(voice, l.Device(), l.Networks())
	}
	for _, l := range cfg.Data {
		add(data, l.Device(), l.Networks())
	}
	for _, s := range cfg.Sites {
		add(voice, "site "+s.Name, s.VoiceNetworks)
		add(data, "site "+s.Name, s.DataNetworks)
		add(flat, "site "+s.Name, s.FlatNetworks)
	}
	return all
}

func (all places) of(a netip.Addr) place {
	for _, n := range all {
		if n.prefix.Contains(a) {
			return n.place
		}
	}
	return place{internet, "internet"}
}
