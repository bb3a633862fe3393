package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/appliance/secrets"
	"ringway/qos"
	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
	"ringway/tunnel"
)

// Defaults of media that the box terminates.
const (
	DefaultIdentityFile   = "/etc/ringway/identity.key"
	DefaultFirstMediaPort = 20000
	DefaultLastMediaPort  = 29999
	DefaultMinimumSuite   = suite.AES128CMHMACSHA180 // the one that every implementation has (RFC 4568 section 6.2)
	DefaultRotateEvery    = 10 * time.Minute
	DefaultRotatePackets  = 1 << 20
	// DefaultPacketsPerPort is four times what a call sends with packets of 10 ms.
	DefaultPacketsPerPort = 400
)

// Bounds of media that the box terminates.
const (
	minMediaPorts     = 64
	minPacketsPerPort = 50
	maxPacketsPerPort = 100_000
	maxRotateEvery    = 24 * time.Hour
	maxRotatePackets  = 1_000_000_000
	// firstEphemeral begins the ports that Linux gives programs (ip_local_port_range).
	firstEphemeral = 32768
)

// Words of a level.
var levels = map[string]offer.Level{"off": offer.Off, "prefer": offer.Prefer, "require": offer.Require}

// LevelWord is a level as the file has it.
func LevelWord(l offer.Level) string {
	for word, level := range levels {
		if level == l {
			return word
		}
	}
	return fmt.Sprintf("level %d", l)
}

func (c *checker) level(s scalar) offer.Level {
	return levels[c.choice(s, "off", "require", "prefer", "off")]
}

// Terminates reports whether the box ends media anywhere, to encrypt it on one side.
func (cfg *Config) Terminates() bool {
	return cfg.hasLevel(func(l offer.Level) bool { return l != offer.Off })
}

// Requires reports whether a call somewhere must not be in clear.
func (cfg *Config) Requires() bool {
	return cfg.hasLevel(func(l offer.Level) bool { return l == offer.Require })
}

func (cfg *Config) hasLevel(test func(offer.Level) bool) bool {
	for _, l := range cfg.LANSRTP {
		if test(l) {
			return true
		}
	}
	return slices.ContainsFunc(cfg.Sites, func(s Site) bool { return test(s.SRTP) })
}

// Boxes reports whether keys are agreed with the box of some site.
func (cfg *Config) Boxes() bool {
	return slices.ContainsFunc(cfg.Sites, func(s Site) bool { return s.Identity != channel.PublicKey{} })
}

// VoiceAddress is this box's address towards sites in a family, which their configs have as `box`: the first one that a
// voice network has. It is invalid if there is none.
func (cfg *Config) VoiceAddress(six bool) netip.Addr {
	for _, l := range cfg.Voice {
		for _, p := range l.Addresses {
			if p.Addr().Is6() == six {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}

// srtp reads where media is encrypted, and how.
func (c *checker) srtp(raw *rawFile, cfg *Config) {
	cfg.LANSRTP = map[string]offer.Level{}
	for i, r := range raw.Voice.items {
		cfg.LANSRTP[cfg.Voice[i].Device()] = c.level(r.SRTP)
	}
	for i, r := range raw.Data.items {
		l := c.level(r.SRTP)
		if l == offer.Require {
			c.wrong(r.SRTP.at, "require is for voice networks: nothing keeps UDP of data networks to calls "+
				"(allowed: prefer, off)")
			l = offer.Off
		}
		cfg.LANSRTP[cfg.Data[i].Device()] = l
	}
	c.identities(raw, cfg)
	c.media(raw.SIP.Media, cfg)
	c.whereNeeded(raw, cfg)
	if cfg.Terminates() || raw.SIP.Media.Ports.set {
		c.mediaPortsApart(raw, cfg)
	}
}

// media reads how.
func (c *checker) media(r rawMedia, cfg *Config) {
	m := &cfg.SIP.Media
	m.Ports = c.mediaPorts(r.Ports)
	var names []string
	for _, s := range suite.All() {
		names = append(names, s.String())
	}
	if s, err := suite.Parse(c.choice(r.Minimum, DefaultMinimumSuite.String(), names...)); err == nil {
		m.Minimum = s
	}
	m.Methods = c.methods(r.Methods)
	m.RotateEvery = c.duration(r.Rotate.Every, DefaultRotateEvery, keys.MinEvery, maxRotateEvery, time.Second,
		"90s to 24h in whole seconds, like 10m")
	m.RotatePackets = uint64(c.integer(r.Rotate.Packets, DefaultRotatePackets, keys.MinPackets, maxRotatePackets))
	m.ClearSRTCP = c.yesNo(r.ClearSRTCP, false)
	m.RequireEmergency = c.yesNo(r.RequireEmergency, false)
	m.PacketsPerPort = c.integer(r.PacketsPerPort, DefaultPacketsPerPort, minPacketsPerPort, maxPacketsPerPort)
}

// mediaPorts reads a range of ports. RTP has the even one of a pair, RTCP the odd one (RFC 3550 section 11).
func (c *checker) mediaPorts(s scalar) qos.PortMatch {
	def := qos.PortMatch{Protocol: qos.UDP, Low: DefaultFirstMediaPort, High: DefaultLastMediaPort}
	if !s.ok() {
		return def
	}
	first, last, ok := strings.Cut(s.text, "-")
	low, err1 := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	switch {
	case !ok || err1 != nil || err2 != nil || !decimal.MatchString(first) || !decimal.MatchString(last):
		c.wrong(s.at, "%s is not a range of ports (allowed: like 20000-29999, within 1024-65535)", show(s.text))
	case low < 1024 || high < low:
		c.wrong(s.at, "%s is out of range (allowed: like 20000-29999, within 1024-65535)", s.text)
	case low%2 != 0:
		c.wrong(s.at, "%s begins with an odd port (allowed: an even one first, since RTP has even ports)", s.text)
	case high-low+1 < minMediaPorts:
		c.wrong(s.at, "%s are %d ports (allowed: at least %d; a call takes four)", s.text, high-low+1, minMediaPorts)
	default:
		return qos.PortMatch{Protocol: qos.UDP, Low: uint16(low), High: uint16(high)}
	}
	return def
}

func (c *checker) methods(l scalars) []offer.Keying {
	if !l.set || l.bad {
		return []offer.Keying{offer.SDES, offer.DTLS}
	}
	var out []offer.Keying
	for _, s := range l.items {
		m := map[string]offer.Keying{"sdes": offer.SDES, "dtls": offer.DTLS}[c.choice(s, "", "sdes", "dtls")]
		switch {
		case m == offer.Undecided:
		case slices.Contains(out, m):
			c.wrong(s.at, "%s is given twice (allowed: once)", s.text)
		default:
			out = append(out, m)
		}
	}
	if len(l.items) == 0 {
		c.wrong(l.at, "is empty (allowed: sdes, dtls or both, the one to be offered first)")
	}
	return out
}

// identities reads by which keys boxes know each other.
func (c *checker) identities(raw *rawFile, cfg *Config) {
	seen := map[channel.PublicKey]at{}
	boxes := map[netip.Addr]at{}
	for i, r := range raw.Sites.items {
		s := &cfg.Sites[i]
		s.SRTP = c.level(r.SRTP)
		s.Identity = c.identity(r.Identity, cfg, seen)
		s.Box = c.box(r.Box, *s, boxes)
		if r.Identity.set && !r.Box.set {
			c.missing(r.at, "box", "the address of its box in one of its networks, which it has as its first voice network's")
		}
		if r.Box.set && !r.Identity.set {
			c.wrong(r.Box.at, "is set, but identity is not (allowed: both, for a site that is a Ringway with identity_file)")
		}
		if s.Box.IsValid() && !cfg.VoiceAddress(s.Box.Is6()).IsValid() {
			c.wrong(r.Box.at, "%s is %s, and no voice network here has an address of that family (allowed: one of the family "+
				"that both boxes have)", s.Box, familyName(s.Box))
		}
	}
	if !cfg.Boxes() && !raw.IdentityFile.set {
		return
	}
	cfg.IdentityFile = c.keyPath(raw.IdentityFile, DefaultIdentityFile)
	c.ownIdentity(raw, cfg)
	for i, s := range cfg.Sites {
		if s.Identity != (channel.PublicKey{}) && s.Identity == cfg.Identity {
			c.wrong(raw.Sites.items[i].Identity.at, "is this box's own identity (allowed: the other site's)")
		}
	}
}

// ownIdentity reads this box's half.
func (c *checker) ownIdentity(raw *rawFile, cfg *Config) {
	if c.skip || raw.IdentityFile.set && !raw.IdentityFile.ok() || pastedKey.MatchString(raw.IdentityFile.text) {
		return
	}
	pos := pick(raw.IdentityFile, at{0, "identity_file"})
	k, err := secrets.ReadPrivate(c.keys, cfg.IdentityFile)
	c.checkKey(pos, err, "make it with: ringway keygen %s")
	if err != nil {
		return
	}
	if k == c.secrets.Private {
		c.wrong(pos, "%s holds the key of key_file (allowed: a key of its own; make it with: ringway keygen)",
			cfg.IdentityFile)
		return
	}
	c.secrets.Identity, cfg.Identity = k, channel.PublicKey(k.Public())
}

func (c *checker) identity(s scalar, cfg *Config, seen map[channel.PublicKey]at) channel.PublicKey {
	if !s.ok() {
		return channel.PublicKey{}
	}
	k, err := channel.ParsePublicKey(s.text)
	first, dup := seen[k]
	switch {
	case err != nil: // the text is not repeated: it may be a private key
		c.wrong(s.at, "is not a key (allowed: 44 characters of base64, as its `ringway keygen` printed it)")
	case k == channel.PublicKey{}:
		c.wrong(s.at, "is all zeros (allowed: the public half of the site's identity_file)")
	case dup:
		c.wrong(s.at, "is also the identity of %s in line %d (allowed: a different one for each site)", first.key, first.line)
	case tunnel.PublicKey(k) == cfg.PublicKey || slices.ContainsFunc(cfg.Sites, func(o Site) bool {
		return o.PublicKey == tunnel.PublicKey(k)
	}):
		c.wrong(s.at, "is a key of a tunnel (allowed: the public half of the site's identity_file)")
	default:
		seen[k] = s.at
		return k
	}
	return channel.PublicKey{}
}

// box reads where a site's box is.
func (c *checker) box(s scalar, site Site, seen map[netip.Addr]at) netip.Addr {
	a, ok := c.hostAddress(s)
	if !ok {
		return netip.Addr{}
	}
	if !slices.ContainsFunc(site.Networks(), func(p netip.Prefix) bool { return p.Contains(a) }) {
		c.wrong(s.at, "%s is in none of the site's networks (allowed: the address of its box in its first voice network)", a)
		return netip.Addr{}
	}
	if first, dup := seen[a]; dup {
		c.wrong(s.at, "%s is also the box of %s in line %d (allowed: a different one for each site)",
			a, first.key, first.line)
		return netip.Addr{}
	}
	seen[a] = s.at
	return a
}

// whereNeeded holds srtp to what it needs of the rest of the config. A call that nobody reads cannot be encrypted; one
// that has to be must not pass unread either.
func (c *checker) whereNeeded(raw *rawFile, cfg *Config) {
	needs := func(s scalar, l offer.Level) {
		sip := raw.SIP
		switch {
		case l == offer.Off || s.bad:
		case cfg.SIP.Mode == SIPOff:
			c.wrong(s.at, "%s needs calls that are read (allowed: with sip.mode: observe or enforce)", s.text)
		case l != offer.Require:
		case cfg.SIP.Mode != SIPEnforce:
			c.wrong(s.at, "require needs sip.mode: enforce, or media passes that no call explains, in clear "+
				"(allowed: prefer, or enforce in line %d)", sip.Mode.line)
		case cfg.SIP.Unread:
			c.wrong(s.at, "require needs sip.unread: deny, or media of calls that cannot be read passes in clear "+
				"(allowed: prefer, or deny in line %d)", sip.Unread.line)
		case !cfg.SIP.Closed:
			line := pick(sip.OnFailure, sip.at).line
			c.wrong(s.at, "require needs sip.on_failure: closed, or media passes in clear while nothing reads calls "+
				"(allowed: prefer, or on_failure: closed in sip, line %d)", line)
		case hasUDP(cfg.Class(qos.Media).Ports):
			c.wrong(s.at, "require needs classes[media] without UDP ports, which pass without a call, in clear "+
				"(allowed: prefer, or ports: [] in class media)")
		}
	}
	for i, r := range raw.Voice.items {
		needs(r.SRTP, cfg.LANSRTP[cfg.Voice[i].Device()])
	}
	for i, r := range raw.Data.items {
		needs(r.SRTP, cfg.LANSRTP[cfg.Data[i].Device()])
	}
	for i, r := range raw.Sites.items {
		needs(r.SRTP, cfg.Sites[i].SRTP)
	}
}

// mediaPortsApart refuses a range that has ports of something else: what comes there for an address of this box in a
// LAN goes to the media process alone.
func (c *checker) mediaPortsApart(raw *rawFile, cfg *Config) {
	mine := cfg.SIP.Media.Ports
	pos := pick(raw.SIP.Media.Ports, at{raw.SIP.line, "sip.media.ports"})
	apart := func(p qos.PortMatch, what string, line int) {
		if p.Protocol != qos.UDP || p.High < mine.Low || mine.High < p.Low {
			return
		}
		where := ""
		if line > 0 {
			where = fmt.Sprintf(" in line %d", line)
		}
		c.wrong(pos, "%d-%d overlaps %s of %s%s (allowed: ports of its own)", mine.Low, mine.High, p, what, where)
	}
	lineOf := func(l scalars) int {
		if l.set {
			return l.line
		}
		return 0
	}
	for _, cl := range cfg.Classes {
		line := 0
		for _, r := range raw.Classes.items {
			if r.Name.text == string(cl.Name) {
				line = lineOf(r.Ports)
			}
		}
		for _, p := range cl.Ports {
			apart(p, fmt.Sprintf("classes[%s].ports", cl.Name), line)
		}
	}
	for _, t := range tunnel.Classes {
		line := 0
		for _, r := range raw.Tunnels.items {
			if r.Name.text == string(t) && r.ListenPort.set {
				line = r.ListenPort.line
			}
		}
		n := cfg.Tunnels[t].ListenPort
		apart(qos.PortMatch{Protocol: qos.UDP, Low: n, High: n}, fmt.Sprintf("tunnels[%s].listen_port", t), line)
	}
	for _, p := range cfg.SIP.Ports {
		apart(p, "sip.ports", lineOf(raw.SIP.Ports))
	}
	for i, s := range cfg.SIP.Servers {
		for _, p := range s.Ports {
			apart(p, fmt.Sprintf("sip.servers[%s].ports", s.Name), lineOf(raw.SIP.Servers.items[i].Ports))
		}
	}
	for _, p := range cfg.Control.Services {
		apart(p, "control.services", lineOf(raw.Control.Services))
	}
}

// srtpNotes says what is allowed and may not be meant.
func (c *checker) srtpNotes(raw *rawFile, cfg *Config) {
	m := raw.SIP.Media
	if m.Ports.set && cfg.SIP.Media.Ports.High >= firstEphemeral {
		c.warn(m.Ports.at, "%s has ports that Linux gives programs of this box (from %d): answers to them do not arrive",
			m.Ports.text, firstEphemeral)
	}
}
