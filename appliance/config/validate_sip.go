package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/qos"
	"ringway/sip/abuse"
	"ringway/sip/emergency"
)

// DefaultSIPPorts are those of RFC 3261, section 19.1.2. With certificates for it (sip.tls) that of TLS is one, too.
var DefaultSIPPorts = []string{"udp/5060", "tcp/5060"}

// Limits of messages a second from one address. A phone sends a few for each call; a PBX has many calls.
const (
	DefaultPhoneLimit  = 10
	DefaultServerLimit = 200
	maxMessageLimit    = 100_000
)

// sip reads what happens to the signalling of calls.
func (c *checker) sip(r rawSIP, cfg *Config) {
	cfg.SIP.Mode = SIPMode(c.choice(r.Mode, string(SIPOff), string(SIPOff), string(SIPObserve), string(SIPEnforce)))
	cfg.SIP.Unread = c.choice(r.Unread, "allow", "allow", "deny") == "allow"
	cfg.SIP.Closed = c.choice(r.OnFailure, "open", "open", "closed") == "closed"
	if cfg.SIP.Mode == SIPEnforce && !r.Unread.set {
		c.wrong(pick(r.Mode, r.at), "needs sip.unread: it says what becomes of media whose signalling cannot be read, "+
			"such as SIP over TLS (allowed: sip.unread: allow, by DSCP as before; or deny)")
	}

	cfg.SIP.Ports, cfg.SIP.TLSPorts = c.sipPorts(r.Ports, r.TLS)
	cfg.SIP.Emergency = slices.Clone(emergency.Defaults)
	if r.Emergency.set {
		cfg.SIP.Emergency = c.dialled(r.Emergency, func(n string) error {
			_, err := emergency.New([]string{n}, nil)
			return err
		})
	}
	cfg.SIP.Prefixes = c.dialled(r.Prefixes, func(n string) error {
		_, err := emergency.New(nil, []string{n})
		return err
	})
	if _, err := emergency.New(cfg.SIP.Emergency, cfg.SIP.Prefixes); err != nil {
		c.wrong(pick(scalar{at: r.Emergency.at, set: r.Emergency.set}, r.Prefixes.at), "%v", err)
	}
	cfg.SIP.PhoneLimit = c.integer(r.Limits.Phone, DefaultPhoneLimit, 1, maxMessageLimit)
	cfg.SIP.ServerLimit = c.integer(r.Limits.Server, DefaultServerLimit, 1, maxMessageLimit)
	cfg.SIP.Country = c.country(r.Country)
	cfg.SIP.Abuse = c.choice(r.Abuse, "block", "off", "warn", "block")
	cfg.SIP.AbuseLimits = c.abuseLimits(r)
	c.sipServers(r.Servers, r.TLS, cfg)
	c.sipTLS(r, cfg)
	c.sipAllow(r.Allow, cfg)
}

// country reads a country code.
func (c *checker) country(s scalar) string {
	if !s.ok() || s.text == "" {
		return ""
	}
	l := abuse.Defaults()
	l.Numbers.Country = s.text
	if l.Validate() != nil {
		c.wrong(s.at, `%s is not a country code (allowed: like "49", without + and 00, or "")`, show(s.text))
		return ""
	}
	return s.text
}

// sipNotes says what sip.mode: enforce does not close.
func (c *checker) sipNotes(raw *rawFile, cfg *Config) {
	c.tollNotes(raw.SIP.Toll, cfg)
	if cfg.SIP.Mode == SIPEnforce && len(cfg.Class(qos.Media).Ports) > 0 {
		c.warn(pick(raw.SIP.Mode, raw.SIP.at), "does not close the ports of class media (%s): remove them from classes "+
			"where all calls are read", joinedPorts(cfg.Class(qos.Media).Ports))
	}
}

func joinedPorts(all []qos.PortMatch) string {
	words := make([]string, len(all))
	for i, p := range all {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// Bounds of how long records of calls are kept.
const (
	DefaultKeep  = 7 * 24 * time.Hour
	DefaultHEPID = 2001
	minKeep      = time.Hour
	maxKeep      = 366 * 24 * time.Hour
)

// calls reads what is kept of calls.
func (c *checker) calls(r rawCalls, cfg *Config) {
	cfg.Records.Privacy = c.choice(r.Privacy, "mask", "mask", "show")
	cfg.Records.Recording = c.choice(r.Recording, "forbidden", "forbidden", "allowed") == "allowed"
	cfg.Records.HEPID = uint32(c.integer(r.HEPID, DefaultHEPID, 1, 999_999_999))
	if r.HEP.ok() && r.HEP.text != "" {
		a, err := netip.ParseAddrPort(r.HEP.text)
		if err != nil || a.Port() == 0 || a.Addr().Is4In6() || a.Addr().Zone() != "" {
			c.wrong(r.HEP.at, `%s is not an address with a port (allowed: like 10.1.20.9:9060, or "")`, show(r.HEP.text))
		} else if c.usable(r.HEP, a.Addr()) {
			cfg.Records.HEP = a
		}
	}
	cfg.Records.Keep = c.duration(r.Keep, DefaultKeep, minKeep, maxKeep, time.Hour, "1h to 8784h, whole hours")
}

// dialled reads numbers of which check has nothing to say.
func (c *checker) dialled(l scalars, check func(string) error) (out []string) {
	for _, s := range l.items {
		if !s.ok() {
			continue
		}
		if err := check(s.text); err != nil {
			c.wrong(s.at, "%v", err)
			continue
		}
		out = append(out, s.text)
	}
	return out
}

// portsThat reads ports of which wrong has nothing to say.
func (c *checker) portsThat(l scalars, wrong func(qos.PortMatch) string) (out []qos.PortMatch) {
	for _, item := range l.items {
		one := l
		one.items = []scalar{item}
		for _, p := range c.portList(one) {
			if why := wrong(p); why != "" {
				c.wrong(item.at, "%s %s", p, why)
				continue
			}
			out = append(out, p)
		}
	}
	return out
}

func (c *checker) sipServers(l list[rawSIPServer], tls list[rawSIPTLS], cfg *Config) {
	names, seen := map[string]int{}, map[netip.Addr]bool{}
	for _, r := range l.items {
		c.need(r.at, r.Name, "name", "a name for it, like pbx")
		s := SIPServer{Name: c.siteName(r.Name)}
		s.Ports, s.TLSPorts = c.sipPorts(r.Ports, tls)
		if first := names[s.Name]; s.Name != "" && first > 0 {
			c.wrong(r.Name.at, "%q is given twice (first on line %d)", s.Name, first)
		}
		names[s.Name] = r.Name.line
		if !r.Address.set || !r.Address.bad && len(r.Address.items) == 0 {
			c.missing(r.at, "address", "the address of the PBX or proxy, or a list of them")
		}
		for _, item := range r.Address.items {
			a, ok := c.hostAddress(item)
			switch {
			case !ok:
			case seen[a]:
				c.wrong(item.at, "%s is given twice (allowed: once)", a)
			default:
				seen[a] = true
				s.Addresses = append(s.Addresses, a)
			}
		}
		cfg.SIP.Servers = append(cfg.SIP.Servers, s)
	}
}

// hostAddress reads one address without a prefix length.
func (c *checker) hostAddress(s scalar) (netip.Addr, bool) {
	if !s.ok() {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s.text)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		c.wrong(s.at, "%s is not an IP address (allowed: like 10.2.20.5 or 2001:db8:2::5)", show(s.text))
		return netip.Addr{}, false
	}
	return a, c.usable(s, a)
}

func (c *checker) sipAllow(l list[rawSIPAllow], cfg *Config) {
	for _, r := range l.items {
		c.need(r.at, r.Network, "network", "the network that exchanges UDP with the voice networks")
		nets := c.networks(scalars{at: r.Network.at, items: []scalar{r.Network}, set: r.Network.set})
		if !r.Ports.set || !r.Ports.bad && len(r.Ports.items) == 0 {
			c.missing(r.at, "ports", "UDP ports of that network, like udp/20000-20100")
		}
		all := c.portsThat(r.Ports, func(p qos.PortMatch) string {
			if p.Protocol != qos.UDP {
				return "is not UDP, and sip.mode closes nothing else (allowed: like udp/20000-20100)"
			}
			return ""
		})
		if len(nets) == 1 {
			cfg.SIP.Allow = append(cfg.SIP.Allow, SIPAllow{Network: nets[0].prefix, Ports: all})
		}
	}
}
