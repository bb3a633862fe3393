package wanted

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/srtp/keys/channel"
	"ringway/srtp/offer"
	"ringway/srtp/policy"
)

// Media is what the processes of calls and of media have to know of media that the box terminates.
type Media struct {
	// Missing is what the kernel lacks for it. If it lacks anything nothing is terminated, and there are no Ports: who
	// prefers SRTP has calls without, who requires it has none.
	Missing []firewall.Feature
	Ports   qos.PortMatch // the first one is even
	Policy  *policy.Table
	Boxes   []Box // in the config's order
	// How long a key between boxes is used, whichever comes first.
	RotateEvery   time.Duration
	RotatePackets uint64
}

// Box is the far end of a key channel.
type Box struct {
	Site     string
	Identity channel.PublicKey
	Own, Far netip.Addr // of the two boxes, inside the tunnel
}

// MediaOf says what is terminated, by the config and by the networks that LANs have by delegated prefixes; nil: the
// config has nothing terminated.
func MediaOf(cfg *config.Config, f Facts) (*Media, error) {
	if !cfg.Terminates() {
		return nil, nil
	}
	cfg = onLANs(cfg, f)
	m := &Media{
		Ports: cfg.SIP.Media.Ports, RotateEvery: cfg.SIP.Media.RotateEvery, RotatePackets: cfg.SIP.Media.RotatePackets,
		Boxes: boxes(cfg),
	}
	networks := srtpNetworks(cfg)
	for _, n := range firewall.ForTerminated() {
		if slices.Contains(f.FirewallMissing, n) {
			m.Missing = append(m.Missing, n)
		}
	}
	if m.Missing != nil {
		m.Ports = qos.PortMatch{}
		for i := range networks {
			if p := &networks[i].Place; p.Level == offer.Prefer {
				p.Level = offer.Off
			}
		}
	}
	var err error
	if m.Policy, err = policy.New(networks, far(cfg, offer.Off)); err != nil {
		return nil, fmt.Errorf("media of calls: %w", err)
	}
	return m, nil
}

func boxes(cfg *config.Config) (all []Box) {
	for _, s := range cfg.Sites {
		if s.Box.IsValid() {
			all = append(all, Box{Site: s.Name, Identity: s.Identity, Own: cfg.VoiceAddress(s.Box.Is6()), Far: s.Box})
		}
	}
	return all
}

// srtpPlace is what an end of that level needs, without addresses.
func srtpPlace(cfg *config.Config, l offer.Level) offer.Place {
	m := cfg.SIP.Media
	return offer.Place{Policy: offer.Policy{
		Level: l, Minimum: m.Minimum, Methods: m.Methods, ClearSRTCP: m.ClearSRTCP, RequireEmergency: m.RequireEmergency,
	}}
}

// far is srtpPlace with this box's addresses towards who is in none of its LANs. A trunk is sent to from such an
// address, too, which NAT translates as a phone's.
func far(cfg *config.Config, l offer.Level) offer.Place {
	p := srtpPlace(cfg, l)
	p.IPv4, p.IPv6 = cfg.VoiceAddress(false), cfg.VoiceAddress(true)
	return p
}

// srtpNetworks are those of the LANs and of the sites.
func srtpNetworks(cfg *config.Config) (all []policy.Network) {
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		p := srtpPlace(cfg, cfg.LANSRTP[l.Device()])
		for _, a := range lanAddresses(l) {
			// In a network of several the box's own address is the one in it.
			q := p
			for _, other := range lanAddresses(l) {
				setMissing(&q, other.Addr(), a)
			}
			if a.Addr().Is4() {
				q.IPv4 = a.Addr()
			} else {
				q.IPv6 = a.Addr()
			}
			all = append(all, policy.Network{Prefix: a.Masked(), Place: q})
		}
	}
	for _, s := range cfg.Sites {
		p := far(cfg, s.SRTP)
		if s.Box.IsValid() {
			p.Box = s.Box
			if s.Box.Is6() { // one address knows a box: media to it has that family, whatever the phones have
				p.IPv4 = netip.Addr{}
			} else {
				p.IPv6 = netip.Addr{}
			}
		}
		for _, n := range s.Networks() {
			all = append(all, policy.Network{Prefix: n, Place: p})
		}
	}
	return all
}

// setMissing fills in an address of the other family than that of network.
func setMissing(p *offer.Place, a netip.Addr, network netip.Prefix) {
	switch {
	case a.Is4() == network.Addr().Is4():
	case a.Is4() && !p.IPv4.IsValid():
		p.IPv4 = a
	case a.Is6() && !p.IPv6.IsValid():
		p.IPv6 = a
	}
}

// lanAddresses are this box's addresses on a LAN, configured ones first.
func lanAddresses(l routing.LAN) []netip.Prefix { return slices.Concat(l.Addresses, l.Delegated) }

// terminated is what the firewall has to know of it.
func terminated(cfg *config.Config, f Facts) (t firewall.Terminated) {
	if !cfg.Terminates() {
		return t
	}
	t.Ports, t.PacketsPerPort = cfg.SIP.Media.Ports, cfg.SIP.Media.PacketsPerPort
	t.LANSockets, t.TunnelSockets = f.MediaSockets[0], f.MediaSockets[1]
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		for _, a := range lanAddresses(l) {
			t.LAN = append(t.LAN, a.Addr())
		}
	}
	for _, six := range []bool{false, true} {
		if a := cfg.VoiceAddress(six); a.IsValid() {
			t.Tunnel = append(t.Tunnel, a)
		}
	}
	return t
}

// farBoxes are those with which keys are agreed.
func farBoxes(cfg *config.Config) (all []netip.Addr) {
	for _, b := range boxes(cfg) {
		all = append(all, b.Far)
	}
	return all
}

// requiredNetworks are those whose calls must not be in clear.
func requiredNetworks(cfg *config.Config) (all []netip.Prefix) {
	for _, l := range cfg.Voice {
		if cfg.LANSRTP[l.Device()] == offer.Require {
			all = append(all, l.Networks()...)
		}
	}
	for _, s := range cfg.Sites {
		if s.SRTP == offer.Require {
			all = append(all, s.Networks()...)
		}
	}
	return all
}
