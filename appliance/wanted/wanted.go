// Package wanted computes what one config makes of the machine: it turns the config, and what the daemon
// knows of the machine and of its peers, into the state of tunnels, queues, firewall and routing. It is pure.
package wanted

import (
	"net/netip"

	"ringway/appliance/config"
	"ringway/appliance/secrets"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// State is everything that the kernel and the engines are told, so that it can be printed before it is done.
type State struct {
	Routing    routing.State
	Firewall   firewall.State
	Queues     qos.State
	QueueInput qos.Input       // what Queues was computed from
	Devices    []tunnel.Device // in the order of tunnel.Classes; they hold keys and are never printed whole
	MTUs       []SiteMTU       // in the order of the config's sites
}

// Facts is what the wanted state depends on besides the config.
type Facts struct {
	Leases     map[string]routing.Lease      // by WAN interface
	Advertised map[string]routing.Advertised // likewise
	// Delegated are the prefixes that were delegated to WANs, by interface.
	Delegated       map[string][]routing.Delegation
	Silent          []string // interfaces of WANs that have a carrier and deliver nothing
	Queues          qos.Features
	FirewallMissing []firewall.Feature
	KernelWireGuard bool
	WANMTU          map[string]int        // of each WAN's interface as it is; absent: 1500
	WireMTU         map[string]int        // longest packet that may leave by a WAN, by interface; absent: 1500
	PathMTU         map[string]int        // longest outer packet that a site's path was found to take; absent: not known
	OtherChains     []firewall.OtherChain // of other programs, that may drop packets
	Keys            secrets.Keys
	Refused         map[string]string // interfaces whose queue somebody else made: what it is
	// MediaSockets are the ports of the media process's sockets, for LANs and for tunnels, of IPv4 and IPv6; 0: there is
	// none yet.
	MediaSockets [2][2]uint16
	Closed       []netip.Prefix // networks that were a site's or our own: they lead nowhere

	// Endpoint is what an engine is to be told of a site; zero: not known.
	Endpoint func(tunnel.Class, tunnel.Site) (at netip.AddrPort, revision int)
	// Remotes are where the configured endpoints of a site lead, in order of preference; those that are not known are left
	// out.
	Remotes func(tunnel.Class, tunnel.Site) []netip.AddrPort
	// Heard is where a site is now, the later the higher; zero: not known.
	Heard func(tunnel.Class, tunnel.Site) (at netip.AddrPort, when uint64)
	// Through is the WAN's interface that a site's ciphertext leaves by; "": not known.
	Through func(tunnel.Class, tunnel.Site) string
}

// From computes the wanted state. It is the only place where the domains' plans meet.
func From(cfg *config.Config, f Facts) State {
	cfg = onLANs(cfg.OnWANs(f.WireMTU), f)
	mtus := siteMTUs(cfg, f)
	queues := queueInput(cfg, f)
	devices := devices(cfg, f, queues, mtus)
	return State{
		Routing:    routing.Want(routingInput(cfg, f, queues, devices, mtus)),
		Firewall:   firewall.Want(firewallInput(cfg, f, queues, mtus)),
		Queues:     qos.Want(queues),
		QueueInput: queues,
		Devices:    devices,
		MTUs:       mtus,
	}
}

// Firewall is the part of From that changes when a site roams.
func Firewall(cfg *config.Config, f Facts) firewall.State {
	cfg = onLANs(cfg.OnWANs(f.WireMTU), f)
	return firewall.Want(firewallInput(cfg, f, queueInput(cfg, f), siteMTUs(cfg, f)))
}

// onLANs is cfg with the networks that its LANs have by delegated prefixes.
func onLANs(cfg *config.Config, f Facts) *config.Config {
	cfg, _ = cfg.Delegated(f.Delegated)
	return cfg
}
