package wanted

import (
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/tunnel"
)

// Bounds of the sets that change with every call.
const (
	callsOwner      = "calls"
	maxHoles        = 65536
	maxNetworkHoles = 4096
	maxHoleLife     = 5 * time.Minute
	maxDevices      = 4096 // more than a config can have: a set that is full takes none
	maxBypasses     = 1024
)

// MaxBans is how many addresses of a family the firewall can ban at a time.
const MaxBans = 4096

// DynamicSets describes the sets of the firewall whose elements components add and remove.
func DynamicSets(cfg *config.Config) []firewall.DynamicSet {
	if cfg.SIP.Mode == config.SIPOff {
		return nil
	}
	sets := slices.Concat(
		firewall.SignallingSets(callsOwner, firewall.SignallingBounds{
			Devices: maxDevices, DeviceLife: time.Minute,
			Bans: MaxBans, BanLife: 24 * time.Hour,
			Bypasses: maxBypasses, BypassLife: time.Minute,
		}),
		firewall.HoleSets(callsOwner, maxHoles, maxNetworkHoles, maxHoleLife, networks(cfg)),
	)
	if cfg.SIP.Mode == config.SIPEnforce && !cfg.SIP.Closed {
		sets = append(sets, firewall.EnforcedSet(callsOwner, maxDevices, time.Minute))
	}
	return sets
}

// networks are those that media may come from: of the box's own LANs and of the sites.
func networks(cfg *config.Config) (all []netip.Prefix) {
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		all = append(all, l.Networks()...)
		if l.Subnet.WAN != "" { // what follows from a network is its length: it is the same before a prefix comes
			all = append(all, netip.PrefixFrom(netip.IPv6Unspecified(), 64))
		}
	}
	for _, x := range cfg.Sites {
		all = append(all, x.Networks()...)
	}
	return all
}

// SignallingDevices are the devices on which signalling is taken.
func SignallingDevices(cfg *config.Config) (names []string) {
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		names = append(names, l.Device())
	}
	for _, c := range tunnel.Classes {
		names = append(names, cfg.Tunnels[c].Interface)
	}
	for _, w := range cfg.WANs {
		names = append(names, w.Interface)
	}
	return names
}

// PhoneDevices are the devices of voice networks.
func PhoneDevices(cfg *config.Config) (names []string) {
	for _, l := range cfg.Voice {
		names = append(names, l.Device())
	}
	return names
}

// signalling is what the firewall has to know of it.
func signalling(cfg *config.Config) (s firewall.Signalling) {
	if cfg.SIP.Mode == config.SIPOff {
		return s
	}
	s = firewall.Signalling{
		Mode: firewall.Observe, Ports: cfg.SIP.Ports, Unread: cfg.SIP.Unread, Required: requiredNetworks(cfg),
	}
	s.LANLimit = limit(cfg.SIP.PhoneLimit, phoneBurst)
	s.FarLimit = limit(cfg.SIP.ServerLimit, serverBurst)
	if cfg.SIP.Mode == config.SIPEnforce {
		s.Mode = firewall.Enforce
	}
	for _, x := range cfg.SIP.Servers {
		for _, a := range x.Addresses {
			s.Servers = append(s.Servers, firewall.SignallingServer{Address: a, Ports: x.Ports})
		}
	}
	for _, x := range cfg.SIP.Allow {
		s.Allow = append(s.Allow, firewall.AllowedMedia{Network: x.Network, Ports: x.Ports})
	}
	return s
}

// How many seconds' messages may come at once: phones that start together register together.
const (
	phoneBurst  = 4
	serverBurst = 2
)

func limit(rate, burst int) firewall.MessageLimit {
	return firewall.MessageLimit{Rate: uint64(rate), Burst: uint32(rate * burst)}
}
