package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ringway/qos"
	"ringway/tunnel"
)

// mediaNotes says where signalling passes between voice and data networks and the media of the same calls does not: a
// phone rings there, and nobody hears anything. By default that is so wherever there are both; it deserves a word where
// the file says that calls are meant to pass there.
func (c *checker) mediaNotes(raw *rawFile, cfg *Config) {
	signalling := cfg.Class(qos.Signalling).Ports
	if len(cfg.Voice) == 0 || len(signalling) == 0 || hasUDP(cfg.Class(qos.Media).Ports) {
		return
	}
	if cfg.SIP.Mode != SIPOff {
		c.unreadPorts(raw, cfg)
		return
	}

	const consequence = "calls between voice networks and %s are set up and have no sound: their signalling passes, " +
		"their media does not (set sip.mode: observe, or list the UDP ports of that media in classes[media].ports; " +
		"docs/media.md)"
	for i, s := range cfg.SIP.Servers {
		for _, a := range s.Addresses {
			if where := cfg.dataNetworkOf(a); where != "" {
				c.warn(raw.SIP.Servers.items[i].Address.at,
					"%s is in a data network, and sip.mode is off: "+consequence, a, where)
				return
			}
		}
	}
	if r := signallingPorts(raw); r != nil && !slices.Equal(signalling, defaultSignalling()) {
		if names := cfg.dataNetworks(); len(names) > 0 {
			c.warn(r.Ports.at, "sip.mode is off: "+consequence, "data networks ("+shorten(names, 3)+")")
			return
		}
	}
	for i, s := range cfg.Sites {
		if len(s.DataNetworks) > 0 && len(s.VoiceNetworks)+len(s.FlatNetworks) == 0 && s.Tunnels != tunnel.CarriedBoth {
			c.warn(raw.Sites.items[i].DataNetworks.at, "is all that %s has, and sip.mode is off: "+consequence+
				"; where phones and PCs share a network there, say networks", s.Name, "site "+s.Name)
		}
	}
}

// unreadPorts are those of class signalling that nothing reads where signalling is read.
func (c *checker) unreadPorts(raw *rawFile, cfg *Config) {
	unread := slices.DeleteFunc(slices.Clone(cfg.Class(qos.Signalling).Ports), cfg.SIP.reads)
	names := cfg.dataNetworks()
	if len(unread) == 0 || len(names) == 0 {
		return
	}
	pos := at{raw.SIP.line, "sip.ports"}
	if r := signallingPorts(raw); r != nil {
		pos = r.Ports.at
	}
	c.warn(pos, "%s: not in sip.ports, so nobody reads it: calls by it between voice networks and data networks (%s) "+
		"have no sound (add it to sip.ports, or list the UDP ports of that media in classes[media].ports; docs/media.md)",
		joinedPorts(unread), shorten(names, 3))
}

// signallingPorts is the class signalling where the file gives its ports.
func signallingPorts(raw *rawFile) *rawClass {
	for i, r := range raw.Classes.items {
		if r.Name.text == string(qos.Signalling) && r.Ports.set {
			return &raw.Classes.items[i]
		}
	}
	return nil
}

func defaultSignalling() []qos.PortMatch {
	classes := DefaultClasses()
	return classes[slices.IndexFunc(classes, func(c qos.Class) bool { return c.Name == qos.Signalling })].Ports
}

// dataNetworkOf names the data network that a is in; empty: none.
func (cfg *Config) dataNetworkOf(a netip.Addr) string {
	in := func(networks []netip.Prefix) bool {
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, l := range cfg.Data {
		if in(l.Networks()) {
			return l.Device()
		}
	}
	for _, s := range cfg.Sites {
		if in(s.DataNetworks) {
			return "site " + s.Name
		}
	}
	return ""
}

// reads says whether signalling on the ports of m is read. SIP over TLS is another matter: whether it is depends on
// certificates, and its port is one of class signalling by default.
func (s SIP) reads(m qos.PortMatch) bool {
	const sipTLS = 5061
	if m == (qos.PortMatch{Protocol: qos.TCP, Low: sipTLS, High: sipTLS}) {
		return true
	}
	has := func(p qos.PortMatch) bool { return p.Protocol == m.Protocol && p.Low <= m.Low && m.High <= p.High }
	return slices.ContainsFunc(s.Ports, has) ||
		slices.ContainsFunc(s.Servers, func(v SIPServer) bool { return slices.ContainsFunc(v.Ports, has) })
}

func hasUDP(ports []qos.PortMatch) bool {
	return slices.ContainsFunc(ports, func(m qos.PortMatch) bool { return m.Protocol == qos.UDP })
}

// dataNetworks names what has data networks, here and at the sites.
func (cfg *Config) dataNetworks() (names []string) {
	for _, l := range cfg.Data {
		names = append(names, l.Device())
	}
	for _, s := range cfg.Sites {
		if len(s.DataNetworks) > 0 {
			names = append(names, "site "+s.Name)
		}
	}
	return names
}

// shorten lists the first few of many.
func shorten(names []string, few int) string {
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
