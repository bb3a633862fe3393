package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"ringway/appliance/secrets"
	"ringway/qos"
	"ringway/tunnel"
)

// DefaultKeepalive keeps the holes of NATs open: most forget an idle UDP flow after 30 s.
const DefaultKeepalive = 25 * time.Second

func (c *checker) sites(raw *rawFile, cfg *Config, nets *networkSet) {
	names, keys, reached := map[string]int{}, map[tunnel.PublicKey]scalar{}, map[string]scalar{}
	for _, r := range raw.Sites.items {
		s := Site{}
		c.need(r.at, r.Name, "name", "the site's name, 1 to 63 of a-z, 0-9 and -")
		s.Name = c.siteName(r.Name)
		switch first := names[s.Name]; {
		case s.Name == "":
		case s.Name == qos.Local:
			c.wrong(r.Name.at, "%q is reserved for traffic that goes to no site (allowed: any other name)", s.Name)
		case s.Name == cfg.Site:
			c.wrong(r.Name.at, "%q is this box itself (allowed: the other sites)", s.Name)
		case first > 0:
			c.wrong(r.Name.at, "%q is given twice (first on line %d)", s.Name, first)
		default:
			names[s.Name] = r.Name.line
		}
		s.PublicKey = c.publicKey(r, cfg, keys)
		s.Endpoint, s.MoreEndpoints = c.siteEndpoints(r.Endpoint)
		s.Tunnels = tunnel.Carried(c.choice(r.Tunnels, string(tunnel.CarriedBoth),
			string(tunnel.CarriedBoth), string(tunnel.CarriedVoice), string(tunnel.CarriedData)))
		s.VoicePort, s.DataPort = c.port(r.VoicePort, DefaultVoicePort), c.port(r.DataPort, DefaultDataPort)
		if s.Tunnels == tunnel.CarriedBoth && s.VoicePort == s.DataPort {
			pos := pick(r.DataPort, r.VoicePort.at)
			c.wrong(
				pos,
				"%d is the site's port for both voice and data (allowed: a different port for each tunnel)",
				s.DataPort,
			)
		}
		c.distinctEndpoints(r, s, reached)
		s.Downlink = c.rate(r.Downlink)
		s.PresharedKeyFile = c.presharedKey(r.PresharedKeyFile, s.Name)
		s.Keepalive = c.duration(r.Keepalive, DefaultKeepalive, 0, 65535*time.Second, time.Second,
			"0s for off, or 1s to 65535s in whole seconds")
		s.Copies = c.copies(r.Copies, s, cfg)
		c.siteNetworks(r, &s, nets)
		cfg.Sites = append(cfg.Sites, s)
	}
}

// siteNetworks reads what lies behind a site.
func (c *checker) siteNetworks(r rawSite, s *Site, nets *networkSet) {
	voice, data, flat := c.networks(r.VoiceNetworks), c.networks(r.DataNetworks), c.networks(r.Networks)
	given := len(r.VoiceNetworks.items) + len(r.DataNetworks.items) + len(r.Networks.items)
	if given == 0 && !r.VoiceNetworks.bad && !r.DataNetworks.bad && !r.Networks.bad {
		if s.Tunnels == tunnel.CarriedBoth {
			c.missing(r.at, "voice_networks", "at least one network in voice_networks or data_networks")
		} else {
			c.missing(r.at, "networks", "at least one network in networks, voice_networks or data_networks")
		}
	}
	if len(flat) > 0 && s.Tunnels == tunnel.CarriedBoth {
		c.wrong(r.Networks.at, "is for a site with one tunnel, and this one has two, which tell its networks apart "+
			"(allowed: voice_networks and data_networks, or tunnels: data)")
	}
	s.VoiceNetworks, s.DataNetworks, s.FlatNetworks = prefixes(voice), prefixes(data), prefixes(flat)
	nets.nets = slices.Concat(nets.nets, voice, data, flat)
}

// copies is when voice is sent twice: what travels in the voice tunnel, by an engine that sees packets.
func (c *checker) copies(s scalar, site Site, cfg *Config) tunnel.CopiesWhen {
	when := tunnel.CopiesWhen(c.choice(s, string(tunnel.CopiesOff),
		string(tunnel.CopiesOff), string(tunnel.CopiesOnLoss), string(tunnel.CopiesAlways)))
	engine := cfg.Tunnels[tunnel.Voice].Engine
	switch {
	case when == tunnel.CopiesOff:
	case !site.Has(tunnel.Voice):
		c.wrong(s.at, "%s needs a voice tunnel, and the site has none (allowed: off, or tunnels: both)", when)
	case engine != tunnel.EngineAuto && !engine.PerPacket():
		c.wrong(s.at, "%s needs the engine realtime in the voice tunnel, which has %s "+
			"(allowed: off, or engine: realtime)", when, engine)
	}
	return when
}

// distinctEndpoints: behind one port of one address is one WireGuard with one key.
func (c *checker) distinctEndpoints(r rawSite, s Site, reached map[string]scalar) {
	if s.Endpoint == "" {
		return
	}
	ours := map[string]bool{}
	for _, item := range r.Endpoint.items {
		for _, class := range tunnel.Classes {
			if !s.Has(class) || !item.ok() {
				continue
			}
			where := fmt.Sprintf("%s port %d", hostKey(item.text), s.Port(class))
			if first, dup := reached[where]; dup && !ours[where] {
				c.wrong(
					item.at,
					"%s is already the address of %s in line %d (allowed: a different address or port for each site)",
					where,
					first.key,
					first.line,
				)
				return
			}
			reached[where], ours[where] = item, true
		}
	}
}

// hostKey is the same for two ways to write a name or an address.
func hostKey(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// maxEndpoints bounds the addresses of a site.
const maxEndpoints = tunnel.MaxPaths

// siteEndpoints reads where a site is reached: one name or address, or several in order of preference.
func (c *checker) siteEndpoints(r scalars) (first string, more []string) {
	if !r.set || r.bad {
		return "", nil
	}
	switch n := len(r.items); {
	case n == 0:
		c.wrong(r.at, "is an empty list (allowed: 1 to %d host names or addresses; omit the key for a site that dials in)",
			maxEndpoints)
		return "", nil
	case n > maxEndpoints:
		c.wrong(r.at, "has %d elements (allowed: up to %d host names or addresses, the preferred one first)",
			n, maxEndpoints)
		return "", nil
	}
	var all []string
	seen := map[string]bool{}
	for _, item := range r.items {
		host := c.endpoint(item)
		switch {
		case host == "":
		case seen[hostKey(host)]:
			c.wrong(item.at, "%s is given twice (allowed: a different one for each of the site's lines)", show(host))
		default:
			seen[hostKey(host)] = true
			all = append(all, host)
		}
	}
	switch len(all) {
	case 0:
		return "", nil
	case 1:
		return all[0], nil
	}
	return all[0], all[1:]
}

func (c *checker) publicKey(r rawSite, cfg *Config, seen map[tunnel.PublicKey]scalar) tunnel.PublicKey {
	c.need(r.at, r.PublicKey, "public_key", "the site's public key, as its `ringway keygen` printed it")
	if !r.PublicKey.ok() {
		return tunnel.PublicKey{}
	}
	k, err := tunnel.ParsePublicKey(r.PublicKey.text)
	first, dup := seen[k]
	switch {
	case err != nil: // the text is not repeated: it may be a private key
		c.wrong(r.PublicKey.at, "is not a key: %v", err)
	case k == tunnel.PublicKey{}:
		c.wrong(r.PublicKey.at, "is all zeros (allowed: the site's public key, as its `ringway keygen` printed it)")
	case k == cfg.PublicKey:
		c.wrong(r.PublicKey.at, "is this box's own key (allowed: the other site's)")
	case dup:
		c.wrong(
			r.PublicKey.at,
			"is also the key of %s in line %d (allowed: a different key for each site)",
			first.key,
			first.line,
		)
	default:
		seen[k] = r.PublicKey
	}
	return k
}

func (c *checker) presharedKey(s scalar, site string) string {
	path := c.keyPath(s, "")
	if path == "" || c.skip {
		return path
	}
	k, err := secrets.ReadPreshared(c.keys, path)
	if err == nil {
		c.secrets.Preshared[site] = k
	}
	c.checkKey(s.at, err, "make it with: ringway keygen --preshared %s, and copy it to the other site")
	return path
}

var (
	hostName = regexp.MustCompile(
		`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?$`,
	)
	withPort = regexp.MustCompile(`^(.*[^:]|\[.*\]):[0-9]+$`)
	dotted   = regexp.MustCompile(`(^|\.)[0-9]+\.?$`) // no top-level domain is a number, but a mistyped address is
)

// endpoint reads where a site is reached: a name or an address, never with a port, as there are two ports.
func (c *checker) endpoint(s scalar) string {
	if !s.ok() {
		return ""
	}
	if s.text == "" {
		c.wrong(s.at, "is empty (allowed: a host name or address; omit the key for a site that dials in)")
		return ""
	}
	a, err := netip.ParseAddr(s.text)
	if err == nil {
		switch {
		case a.Zone() != "" || a.Is4In6():
			c.wrong(s.at, "%s is not a reachable address (allowed: IPv4 or IPv6 without zone)", show(s.text))
			return ""
		case !c.usable(s, a):
			return ""
		}
		return a.String()
	}
	switch {
	case withPort.MatchString(s.text):
		c.wrong(
			s.at,
			"%s has a port (allowed: a host name or address; ports are voice_port and data_port)",
			show(s.text),
		)
	case strings.HasPrefix(s.text, "["):
		c.wrong(s.at, "%s has brackets (allowed: a host name or address, like 2001:db8::1)", show(s.text))
	case strings.Contains(s.text, "/"):
		c.wrong(s.at, "%s is a network or URL (allowed: a host name or address)", show(s.text))
	case len(s.text) > 253 || !hostName.MatchString(s.text) || dotted.MatchString(s.text):
		c.wrong(
			s.at,
			"%s is not a host name or address (allowed: like munich.example.net, 203.0.113.2 or 2001:db8::1)",
			show(s.text),
		)
	default:
		return s.text
	}
	return ""
}

// endpoints looks at addresses of sites when all networks are known.
func (c *checker) endpoints(raw *rawFile, cfg *Config, nets *networkSet) {
	own := map[netip.Addr]bool{}
	var v4, v6 bool
	for _, w := range cfg.WANs {
		v4, v6 = v4 || w.Leased(), v6 || w.Autoconf()
		for _, p := range w.Addresses {
			own[p.Addr()] = true
			v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
		}
	}
	for i, s := range cfg.Sites {
		for _, item := range raw.Sites.items[i].Endpoint.items {
			a, err := netip.ParseAddr(item.text)
			if err != nil || !slices.Contains(s.Endpoints(), a.String()) {
				continue // a name, or refused already
			}
			pos := item.at
			if own[a] {
				c.wrong(pos, "%s is this box's own address (allowed: the other site's)", a)
				continue
			}
			if n, ok := nets.holding(a); ok && !n.wan {
				c.wrong(
					pos,
					"%s is inside %s of %s, which is reached through tunnels or is local (allowed: an address on the WAN's side)",
					a,
					n.prefix,
					n.key,
				)
				continue
			}
			if (v4 || v6) && (a.Is4() && !v4 || a.Is6() && !v6) {
				c.wrong(
					pos,
					"%s is %s, and no WAN has an address of that family (allowed: an endpoint of a WAN's family)",
					a,
					familyName(a),
				)
			}
		}
	}
}
