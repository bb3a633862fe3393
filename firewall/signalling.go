package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/qos"
)

// Signalling says which SIP messages a relay on this box takes, and which media of calls may pass. The zero value:
// none are taken, and the policy between the networks alone decides.
type Signalling struct {
	Mode    SignallingMode
	Ports   []qos.PortMatch // SIP ports of whatever address, both directions
	Servers []SignallingServer

	Unread bool           // Enforce: media that voice networks mark by DSCP passes without a hole, as without SIP
	Allow  []AllowedMedia // Enforce: UDP that passes without a hole

	// Required are networks of which SIP must not pass unread, here and at sites: their calls need SRTP.
	Required []netip.Prefix

	LANLimit MessageLimit // of an address in a voice LAN; zero: 10 a second, 40 at once
	FarLimit MessageLimit // of a far address, and of Servers wherever they are; zero: 200 a second, 400 at once
}

// SignallingMode says what becomes of what the relay reads.
type SignallingMode string

// The modes. "" is off: nothing is taken.
const (
	Observe SignallingMode = "observe" // messages are read; nothing is blocked
	Enforce SignallingMode = "enforce" // UDP from and to phones needs a hole, or a port that is open anyway
)

// SignallingServer is a PBX or trunk with SIP ports of its own. It may open TCP connections to any port of a phone
// from 1024 up, and it may send more than a phone (Signalling.FarLimit). Each port is an element of a set, so ranges
// should be short; without ports it has those of everybody.
type SignallingServer struct {
	Address netip.Addr
	Ports   []qos.PortMatch
}

// AllowedMedia is UDP between voice networks and ports of Network: what phones send there, and the answers to it.
type AllowedMedia struct {
	Network netip.Prefix
	Ports   []qos.PortMatch // of UDP
}

// MessageLimit is a token bucket for one source address. It counts datagrams and new TCP connections.
type MessageLimit struct {
	Rate  uint64 // a second
	Burst uint32 // at once
}

var (
	defaultLANLimit = MessageLimit{Rate: 10, Burst: 40}
	defaultFarLimit = MessageLimit{Rate: 200, Burst: 400}
)

func (l MessageLimit) or(d MessageLimit) MessageLimit {
	if l.Rate == 0 {
		l.Rate = d.Rate
	}
	if l.Burst == 0 { // the kernel would make it 5
		l.Burst = d.Burst
	}
	return l
}

// The relay's ports, of UDP and TCP, on which TPROXY delivers what it takes. They are two because a listener's mark
// (SO_MARK) becomes that of the connections that it accepts, and an answer into a tunnel needs another one than an
// answer to a LAN.
const (
	SignallingPortLAN = 5271 // what arrives from LANs
	SignallingPortFar = 5272 // what arrives from tunnels and WANs
)

// Names of the dynamic sets of SignallingSets, those of addresses without the suffix of their family.
const (
	SetSIPUDP    = "sip_udp"
	SetSIPTCP    = "sip_tcp"
	SetEnforced  = "sip_enforced"
	setBanned    = "banned"
	setSIPBypass = "sip_bypass"
)

// SignallingBounds bound the sets of SignallingSets. A life is the longest that an element may have.
type SignallingBounds struct {
	Devices    int
	DeviceLife time.Duration
	Bans       int // in each family
	BanLife    time.Duration
	Bypasses   int // in each family
	BypassLife time.Duration
}

// SignallingSets are the sets by which owner steers what the relay takes:
//
//   - sip_udp, sip_tcp: the devices whose SIP goes to the relay. owner renews the elements while the relay answers;
//     a device that is not in them forwards its SIP unread. They are two because a datagram may pass unread at any
//     time, while a connection through the relay cannot continue without it: sip_tcp is emptied only when the relay
//     is dead
//   - banned4, banned6: source addresses whose SIP is dropped
//   - sip_bypass4, sip_bypass6: destination address and port of TCP connections that pass unread
func SignallingSets(owner string, b SignallingBounds) []DynamicSet {
	device := func(name string, use Use) DynamicSet {
		return DynamicSet{
			Name: name, Owner: owner, Use: use, Type: "ifname", MaxElements: b.Devices, MaxLife: b.DeviceLife,
		}
	}
	sets := []DynamicSet{device(SetSIPUDP, UseInterceptUDP), device(SetSIPTCP, UseInterceptTCP)}
	for _, f := range families {
		address := fmt.Sprintf("ipv%s_addr", f.suffix())
		sets = append(sets,
			DynamicSet{
				Name: setBanned + f.suffix(), Owner: owner, Use: UseBan, Type: address,
				MaxElements: b.Bans, MaxLife: b.BanLife,
			},
			DynamicSet{
				Name: setSIPBypass + f.suffix(), Owner: owner, Use: UseBypass, Type: address + " . inet_service",
				MaxElements: b.Bypasses, MaxLife: b.BypassLife,
			})
	}
	return sets
}

// EnforcedSet is the set of UseEnforce.
func EnforcedSet(owner string, max int, maxLife time.Duration) DynamicSet {
	return DynamicSet{
		Name: SetEnforced, Owner: owner, Use: UseEnforce, Type: "ifname", MaxElements: max, MaxLife: maxLife,
	}
}

// Ban is the set, and the key there, of a source address.
func Ban(source netip.Addr) (set, key string) {
	source = source.Unmap()
	return setBanned + familyOf(source).suffix(), source.String()
}

// Bypass is the set, and the key there, of a destination of TCP connections.
func Bypass(to netip.AddrPort) (set, key string) {
	a := to.Addr().Unmap()
	return setSIPBypass + familyOf(a).suffix(), fmt.Sprintf("%s . %d", a, to.Port())
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// family is that of the addresses that a key of d begins with.
func (d DynamicSet) family() family {
	if strings.HasPrefix(d.Type, "ipv6_addr") {
		return ipv6
	}
	return ipv4
}

// used are the dynamic sets of one use.
func (p *plan) used(u Use) []DynamicSet {
	return slices.DeleteFunc(slices.Clone(p.Dynamic), func(d DynamicSet) bool { return d.Use != u })
}

// intercepts says whether a relay can be given anything.
func (p *plan) intercepts() bool {
	return p.Signalling.Mode != "" && len(p.used(UseInterceptUDP))+len(p.used(UseInterceptTCP)) > 0
}

// signallingSets declares the sets that the rules about signalling look up.
func (p *plan) signallingSets() {
	s := p.Signalling
	if s.Mode == "" && len(s.Required) == 0 {
		return
	}
	p.requiredSets()
	add := func(sets ...Set) { p.state.Sets = append(p.state.Sets, sets...) }
	add(portSet("sip_ports_udp", qos.UDP, s.Ports), portSet("sip_ports_tcp", qos.TCP, s.Ports))
	if len(s.Servers) > 0 {
		add(serverSets(s.Servers)...) // beside voiceNetworks
	}
	if p.intercepts() && !p.lacks(FeatureFlowLimit) {
		for _, f := range families {
			for _, name := range []string{"sip_rate_lan", "sip_rate_far"} {
				add(Set{
					Name: name + f.suffix(), Type: fmt.Sprintf("ipv%s_addr", f.suffix()),
					Size: maxSources, Timeout: sourcePause,
				})
			}
		}
	}
	if s.Mode == Enforce {
		p.enforcementSets()
	}
}

// maxSources addresses are limited at a time. One that sends nothing for sourcePause seconds is forgotten; by then
// its bucket is full again.
const (
	maxSources  = 16384
	sourcePause = 10
)

// serverSets are the addresses of servers, and their own ports.
func serverSets(servers []SignallingServer) []Set {
	var sets []Set
	for _, f := range families {
		address := fmt.Sprintf("ipv%s_addr", f.suffix())
		all := Set{Name: "sip_servers" + f.suffix(), Type: address}
		ports := map[qos.Protocol]*Set{}
		for _, proto := range []qos.Protocol{qos.UDP, qos.TCP} {
			ports[proto] = &Set{
				Name: "sip_servers_" + string(proto) + f.suffix(), Type: address + " . inet_service",
			}
		}
		for _, s := range servers {
			a := s.Address.Unmap().WithZone("")
			if !a.IsValid() || familyOf(a) != f {
				continue
			}
			all.Elements = append(all.Elements, Element{Key: a.String()})
			for _, m := range s.Ports {
				for n := int(m.Low); n <= int(m.High); n++ {
					set := ports[m.Protocol]
					set.Elements = append(set.Elements, Element{Key: fmt.Sprintf("%s . %d", a, n)})
				}
			}
		}
		sets = append(sets, all.Canonical(), ports[qos.UDP].Canonical(), ports[qos.TCP].Canonical())
	}
	return sets
}

// ownPorts says whether a server has SIP ports of its own over proto.
func (s Signalling) ownPorts(proto qos.Protocol) bool {
	return slices.ContainsFunc(s.Servers, func(v SignallingServer) bool { return hasPorts(proto, v.Ports) })
}

func hasPorts(proto qos.Protocol, ports []qos.PortMatch) bool {
	return slices.ContainsFunc(ports, func(m qos.PortMatch) bool { return m.Protocol == proto })
}
