package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/appliance/secrets"
	"ringway/routing"
	"ringway/tunnel"
)

// Defaults of the file (configs/reference.yaml says why each is what it is).
const (
	DefaultKeyFile   = "/etc/ringway/private.key"
	DefaultGroup     = "ringway"
	DefaultService   = "tcp/22" // or the first start over SSH would be the last
	DefaultVoicePort = 51820
	DefaultDataPort  = 51821
	DefaultMTU       = 1420 // the largest that fits a WAN of 1500 over IPv6: 1500 - 80
	DefaultMargin    = 3
	minIPv6MTU       = 1280 // RFC 8200, section 5

	// DefaultSerialization is what link fragmentation is set to by custom: half a packet interval of a call.
	DefaultSerialization = 10 * time.Millisecond
)

// validate turns what is written into values with types. The order is the file's: who is here, what is
// connected, which tunnels, which sites, which classes; then what only shows when all is known.
func (c *checker) validate(raw *rawFile) *Config {
	cfg := &Config{}
	c.need(raw.at, raw.Site, "site", "this box's own name")
	cfg.Site = c.siteName(raw.Site)

	var nets networkSet
	devices := deviceSet{c: c, byName: map[string]at{}}
	c.wans(raw, cfg, &nets, &devices)
	cfg.Voice = c.lans(raw.Voice, &nets, &devices)
	cfg.Data = c.lans(raw.Data, &nets, &devices)
	if !raw.Voice.set {
		c.add(0, "voice", "is missing (allowed: at least one voice network with interface and address)")
	} else if !raw.Voice.bad && len(raw.Voice.items) == 0 {
		c.wrong(raw.Voice.at, "is empty (allowed: at least one voice network with interface and address)")
	}
	settings := c.tunnels(raw, cfg, &devices)
	c.ownKey(raw, cfg)
	c.sites(raw, cfg, &nets)
	nets.overlaps(c)
	c.subnets(raw, cfg)
	c.gateways(raw, cfg, &nets)
	c.reachOthers(raw, &nets)
	c.targetsOthers(raw, cfg, &nets)
	c.endpoints(raw, cfg, &nets)
	c.jumbo(raw, cfg)
	c.mtus(settings, cfg)
	c.classes(raw, cfg)
	c.sip(raw.SIP, cfg)
	c.calls(raw.Calls, cfg)
	c.control(raw.Control, cfg)
	c.srtp(raw, cfg)
	cfg.Machine.Tune = c.yesNo(raw.Machine.Tune, true)
	c.rates(raw, cfg)
	c.siteRates(raw, cfg)
	if len(c.problems) == 0 {
		c.notes(raw, cfg, &nets)
		c.reachNotes(raw, cfg)
		c.meteredNotes(raw, cfg)
	}
	return cfg
}

// need reports a key that has no default and is not there.
func (c *checker) need(parent at, s scalar, name, what string) {
	if !s.set {
		c.missing(parent, name, what)
	}
}

func (c *checker) missing(parent at, name, what string) {
	line := parent.line
	if parent.key == "" {
		line = 0 // of the file as a whole
	}
	c.add(line, join(parent.key, name), "is missing (allowed: %s)", what)
}

func (c *checker) ownKey(raw *rawFile, cfg *Config) {
	cfg.KeyFile = c.keyPath(raw.KeyFile, DefaultKeyFile)
	if c.skip || raw.KeyFile.set && !raw.KeyFile.ok() || pastedKey.MatchString(raw.KeyFile.text) {
		return
	}
	k, err := secrets.ReadPrivate(c.keys, cfg.KeyFile)
	pos := raw.KeyFile.at
	if !raw.KeyFile.set {
		pos = at{0, "key_file"}
	}
	c.checkKey(pos, err, "make it with: ringway keygen %s")
	if err == nil {
		c.secrets.Private, cfg.PublicKey = k, k.Public()
	}
}

// deviceSet is every network device that the file names.
type deviceSet struct {
	c      *checker
	byName map[string]at
}

func (d *deviceSet) add(name string, pos at) {
	if name == "" {
		return
	}
	if first, dup := d.byName[name]; dup {
		if first.line == 0 {
			d.c.wrong(pos, "%s is already used by %s (allowed: each device once)", name, first.key)
			return
		}
		if pos.line > 0 && pos.line < first.line {
			first, pos = pos, first
		}
		if pos.line == 0 {
			d.c.wrong(first, "%s is already used by %s (allowed: each device once)", name, pos.key)
			return
		}
		d.c.wrong(pos, "%s is already used by %s in line %d (allowed: each device once)", name, first.key, first.line)
		return
	}
	d.byName[name] = pos
}

func (c *checker) lans(l list[rawLAN], nets *networkSet, devices *deviceSet) []routing.LAN {
	var out []routing.LAN
	for _, r := range l.items {
		c.need(r.at, r.Interface, "interface", "the network interface, like lan0")
		lan := routing.LAN{Interface: c.netdev(r.Interface)}
		lan.VLAN = uint16(c.integer(r.VLAN, 0, 1, 4094))
		if dev := lan.Device(); lan.Interface != "" && len(dev) > maxInterface {
			c.wrong(r.Interface.at, "%s with its VLAN is %s, too long for an interface name: %d bytes (allowed: 1 to %d)",
				show(lan.Interface), dev, len(dev), maxInterface)
		} else if lan.Interface != "" && (lan.VLAN > 0 || !r.VLAN.set) {
			devices.add(dev, r.Interface.at)
		}
		if !r.Address.set || !r.Address.bad && len(r.Address.items) == 0 {
			c.missing(r.at, "address", "this box's address on it with prefix length, or a list of them")
		}
		lan.Addresses = c.addresses(r.Address, 30, 126)
		nets.addOwn(lan.Device(), false, r.Address, lan.Addresses)
		out = append(out, lan)
	}
	return out
}

// tunnelSettings keeps the positions of one tunnel's settings, for the checks that need the sites.
type tunnelSettings struct {
	port, mtu, padTo at
	auto             bool // the mtu
}

func (c *checker) tunnels(raw *rawFile, cfg *Config, devices *deviceSet) map[tunnel.Class]tunnelSettings {
	cfg.AutoMTU = map[tunnel.Class]bool{tunnel.Voice: true, tunnel.Data: true}
	cfg.Tunnels = map[tunnel.Class]tunnel.Settings{
		tunnel.Voice: {Interface: "rw-voice", ListenPort: DefaultVoicePort, Engine: tunnel.EngineAuto, MTU: DefaultMTU},
		tunnel.Data:  {Interface: "rw-data", ListenPort: DefaultDataPort, Engine: tunnel.EngineAuto, MTU: DefaultMTU},
	}
	where := map[tunnel.Class]tunnelSettings{}
	interfaces := map[tunnel.Class]at{}
	for _, t := range tunnel.Classes {
		key := fmt.Sprintf("tunnels[%s]", t)
		where[t] = tunnelSettings{port: at{0, key + ".listen_port"}, mtu: at{0, key + ".mtu"}, auto: true}
		interfaces[t] = at{0, key + ".interface"}
	}
	seen := map[string]int{}
	for _, r := range raw.Tunnels.items {
		c.need(r.at, r.Name, "name", "voice or data")
		name := c.choice(r.Name, "", string(tunnel.Voice), string(tunnel.Data))
		if first := seen[name]; name != "" && first > 0 {
			c.wrong(r.Name.at, "%q is given twice (first on line %d)", name, first)
			name = ""
		}
		seen[name] = r.Name.line
		class := tunnel.Class(name)
		s := tunnel.Settings{Interface: c.netdev(r.Interface)}
		def := cfg.Tunnels[class]
		s.ListenPort = c.port(r.ListenPort, def.ListenPort)
		s.Engine = tunnel.EngineName(c.choice(
			r.Engine,
			string(tunnel.EngineAuto),
			string(
				tunnel.EngineAuto,
			),
			string(tunnel.EngineRealtime),
			string(tunnel.EngineWireGuardGo),
			string(tunnel.EngineKernel),
		))
		s.MTU = c.mtu(r.MTU)
		s.PadTo = c.padding(r.PadTo, class, s)
		if s.Interface == "" {
			s.Interface = def.Interface
		}
		if name == "" {
			continue
		}
		cfg.Tunnels[class] = s
		w := where[class]
		w.port, w.mtu, w.padTo = pick(r.ListenPort, w.port), pick(r.MTU, w.mtu), r.PadTo.at
		w.auto = autoMTU(r)
		cfg.AutoMTU[class] = w.auto
		where[class], interfaces[class] = w, pick(r.Interface, interfaces[class])
	}
	for _, t := range tunnel.Classes {
		devices.add(cfg.Tunnels[t].Interface, interfaces[t])
	}
	if p := cfg.Tunnels[tunnel.Voice].ListenPort; p == cfg.Tunnels[tunnel.Data].ListenPort {
		first, second := where[tunnel.Voice].port, where[tunnel.Data].port
		if first.line > second.line {
			first, second = second, first
		}
		c.wrong(second, "%d is also the port of %s (allowed: a different port for each tunnel)", p, first.key)
	}
	return where
}

const leastPadding = 64 // below it hardly a packet is shorter

// padding reads what packets are padded to. Where nothing would be padded the setting is refused: its
// author relies on it.
func (c *checker) padding(r scalar, class tunnel.Class, s tunnel.Settings) int {
	n := c.integer(r, 0, 0, 9000)
	engine := s.Engine
	if engine == tunnel.EngineAuto {
		engine = tunnel.Auto(class, false) // nor does the kernel's, where it is that
	}
	switch {
	case n == 0 || class == "":
	case n < leastPadding || n > int(s.MTU):
		c.wrong(r.at, "%d is out of range (allowed: 0, or %d to %d, the tunnel's mtu)", n, leastPadding, s.MTU)
	case !engine.PerPacket():
		c.wrong(
			r.at,
			"%d is not available with the engine %s, which only pads to multiples of 16 bytes (allowed: 0, or engine: realtime)",
			n,
			engine,
		)
	}
	return n
}

func pick(s scalar, def at) at {
	if s.set {
		return s.at
	}
	return def
}

// mtu reads the largest packet inside; that of auto is not known before everything else is.
func (c *checker) mtu(s scalar) tunnel.InnerMTU {
	if !s.ok() || s.text == "auto" {
		return DefaultMTU
	}
	if !decimal.MatchString(s.text) {
		c.wrong(
			s.at,
			"%s is not a size (allowed: auto, or %d to 9000, decimal, no leading zero)",
			show(s.text),
			minIPv4MTU,
		)
		return DefaultMTU
	}
	n, err := strconv.Atoi(s.text)
	if err != nil || n < minIPv4MTU || n > 9000 {
		c.wrong(s.at, "%s is out of range (allowed: auto, or %d to 9000)", s.text, minIPv4MTU)
		return DefaultMTU
	}
	return tunnel.InnerMTU(n)
}

func autoMTU(r rawTunnel) bool { return !r.MTU.set || r.MTU.text == "auto" }

// mtus finds out what auto means, and checks the tunnels against what IPv6 needs of a link.
func (c *checker) mtus(where map[tunnel.Class]tunnelSettings, cfg *Config) {
	auto := cfg.OnWANs(nil)
	for _, t := range tunnel.Classes {
		s, most := cfg.Tunnels[t], auto.Tunnels[t].MTU
		if where[t].auto && s.PadTo > int(most) && s.PadTo <= DefaultMTU {
			c.wrong(
				where[t].padTo,
				"%d is out of range (allowed: 0, or %d to %d, the tunnel's mtu on these WANs)",
				s.PadTo,
				leastPadding,
				most,
			)
		}
		s.MTU = most
		cfg.Tunnels[t] = s
	}
	if cfg.leastMTU() < minIPv6MTU {
		return
	}
	for _, t := range tunnel.Classes {
		if m := cfg.Tunnels[t].MTU; m < minIPv6MTU {
			c.wrong(
				where[t].mtu,
				"%d is too small for IPv6 networks (allowed: auto, or %d to 9000)",
				m,
				minIPv6MTU,
			)
		}
	}
}

var groupName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func (c *checker) control(r rawControl, cfg *Config) {
	cfg.Control.Services = ports(DefaultService)
	if r.Services.set {
		cfg.Control.Services = c.portList(r.Services)
	}
	cfg.Control.Reflector = c.yesNo(r.Reflector, true)
	c.metrics(r.Metrics, cfg)
	cfg.Control.Group = DefaultGroup
	if !r.Group.ok() {
		return
	}
	if r.Group.text != "" && !groupName.MatchString(r.Group.text) {
		c.wrong(
			r.Group.at,
			`%s is not a valid group name (allowed: 1 to 32 of a-z, 0-9, _ and -, or "" for root alone)`,
			show(r.Group.text),
		)
		return
	}
	cfg.Control.Group = r.Group.text
}

// metrics reads where Prometheus is answered. Only addresses that nobody but the box and its data networks
// reaches may be named: neither every address nor one of a WAN or of the phones.
func (c *checker) metrics(l scalars, cfg *Config) {
	var own []netip.Addr
	for _, lan := range cfg.Data {
		for _, p := range lan.Addresses {
			own = append(own, p.Addr())
		}
	}
	for _, s := range l.items {
		if !s.ok() {
			continue
		}
		a, err := netip.ParseAddrPort(s.text)
		switch {
		case err != nil || a.Port() == 0 || a.Addr().Is4In6() || a.Addr().Zone() != "":
			c.wrong(s.at, `%s is not an address with a port (allowed: like 127.0.0.1:9586 or "[::1]:9586")`, show(s.text))
		case !a.Addr().IsLoopback() && !slices.Contains(own, a.Addr()):
			allowed := "127.0.0.1 or ::1"
			if len(own) > 0 {
				allowed = fmt.Sprintf("127.0.0.1, ::1, or of a data network: %s", joined(own))
			}
			c.wrong(
				s.at,
				"%s is neither loopback nor this box's address in a data network (allowed: %s)",
				a.Addr(),
				allowed,
			)
		case slices.Contains(cfg.Control.Metrics, a):
			c.wrong(s.at, "%s is given twice (allowed: once)", a)
		default:
			cfg.Control.Metrics = append(cfg.Control.Metrics, a)
		}
	}
}

func joined(addrs []netip.Addr) string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return strings.Join(out, ", ")
}
