package firewall

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"ringway/qos"
)

// Media that this box terminates, to encrypt it on one side, is for addresses of the box itself in LANs, and for a
// range of ports there that nothing else uses. In the order of the hooks:
//
//	guard            no conntrack: two legs of a call may have the same addresses and ports
//	intercept_media  by port and address; then by device, so that both sides may have one address
//	media_port_…     the limit of the port: a socket is one queue for all calls
//	media_take_…     TPROXY to the side's socket, MarkRelayed
//	input            accepted by the mark
//	(media process)
//	sent             by the mark of its raw sockets: our addresses and ports alone, only to that side's devices
//	own              leaves it alone: it has its class
//	egress           DSCP and queue
//
// What goes to a WAN, for a trunk, has the address of a LAN as a phone has, and is translated by NAT; so it is tracked,
// and of what comes by a WAN only answers are taken. No port of the WAN is open for it.
//
// A raw socket may claim any source, and meta skuid does not match it. Its mark is what it cannot change.

// Terminated is where media arrives that this box terminates. The zero value: nowhere.
type Terminated struct {
	Ports qos.PortMatch // of UDP, of the addresses below
	LAN   []netip.Addr  // of this box in LANs
	// Tunnel are those of LAN that sites send to, and that trunks are sent to from.
	Tunnel []netip.Addr
	// PacketsPerPort is how many packets a second one port takes.
	PacketsPerPort int
	// LANSockets and TunnelSockets are the ports of the media process's sockets on loopback, of IPv4 and IPv6; 0:
	// MediaPortLAN, MediaPortTunnel.
	LANSockets, TunnelSockets [2]uint16
}

// The ports of the media process's sockets, on 127.0.0.1 and ::1, while it has none. They are no others' than TPROXY's:
// loopback keeps everybody else away.
const (
	MediaPortLAN    = 5273 // what arrives from LANs and WANs
	MediaPortTunnel = 5274 // what arrives from tunnels
)

// KeyChannelPort is that of TCP between the boxes' own addresses, inside the tunnel, where keys of media are agreed.
const KeyChannelPort = 5275

// Counters of media that is terminated.
const (
	CounterMediaFlood   = "media_flood"   // beyond the limit of its port
	CounterMediaStrayed = "media_strayed" // for a media port, from nowhere that a call has media from, or nobody takes it
	CounterMediaForeign = "media_foreign" // from the media process, with an address or port that is not media's
	CounterSIPWaits     = "sip_waits"     // SIP where SRTP is required, and nothing reads it
)

func terminatedCounters() []string {
	return []string{CounterMediaFlood, CounterMediaStrayed, CounterMediaForeign}
}

const setMediaPorts = "media_ports"

// minMediaBurst is how many packets one port takes at once, whatever the rate: half a second of voice, after a line was
// silent.
const minMediaBurst = 25

// ForTerminated are the features without which there are no rules for Terminated.
func ForTerminated() []Feature { return []Feature{FeatureTProxy, FeatureFlowLimit} }

// terminates says whether the plan has rules for media. Without a limit for each port there are none: one flood would
// delay every call.
func (p *plan) terminates() bool {
	return p.Terminated.Ports.Low > 0 && !slices.ContainsFunc(ForTerminated(), p.lacks)
}

func (t Terminated) has(f family) bool {
	return slices.ContainsFunc(t.LAN, func(a netip.Addr) bool { return familyOf(a) == f })
}

// eachMedia makes rules for the families that media has addresses of.
func (p *plan) eachMedia(rules func(family) []Rule) (all []Rule) {
	for _, f := range families {
		if p.terminates() && p.Terminated.has(f) {
			all = append(all, rules(f)...)
		}
	}
	return all
}

func (p *plan) terminatedSets() {
	if !p.terminates() {
		return
	}
	t := p.Terminated
	add := func(s ...Set) { p.state.Sets = append(p.state.Sets, s...) }
	add(portSet(setMediaPorts, qos.UDP, []qos.PortMatch{t.Ports}))
	for _, f := range families {
		if !t.has(f) {
			continue
		}
		add(addressSet("media_lan", f, t.LAN), addressSet("media_tunnel", f, t.Tunnel))
		// A port that found no place would have no packet taken: so there is one for each of them, twice. The size grows in
		// powers of two, since with another one the whole table is made again.
		size, need := uint32(1<<12), 2*uint32(t.Ports.High-t.Ports.Low+1)*uint32(max(len(t.LAN), 4))
		for size < need {
			size *= 2
		}
		add(Set{
			Name: "media_rate" + f.suffix(), Type: fmt.Sprintf("ipv%s_addr . inet_service", f.suffix()),
			Size: size, Timeout: sourcePause,
		})
	}
}

// addressSet is a set of single addresses of a family.
func addressSet(name string, f family, all []netip.Addr) Set {
	var keys []string
	for _, a := range all {
		if familyOf(a) == f {
			keys = append(keys, a.String())
		}
	}
	return nameSet(name+f.suffix(), fmt.Sprintf("ipv%s_addr", f.suffix()), keys...)
}

// untrackMedia keeps what LANs and tunnels send out of conntrack.
func (p *plan) untrackMedia() []Rule {
	return p.eachMedia(func(f family) []Rule {
		of := func(devices, addresses string) Rule {
			return rule(iifIn(devices), addrIn(f, "daddr", addresses), portIn(qos.UDP, "dport", setMediaPorts), notrack)
		}
		return []Rule{of("lan", "media_lan"), of("tunnel", "media_tunnel")}
	})
}

// interceptMedia gives media to the process that terminates it.
func (p *plan) interceptMedia() {
	if !p.terminates() {
		return
	}
	p.base("intercept_media", "filter", "prerouting", hookIntercept, "accept",
		p.eachMedia(func(f family) []Rule {
			return one(portIn(qos.UDP, "dport", setMediaPorts), addrIn(f, "daddr", "media_lan"),
				goTo("media_arrived"+f.suffix()))
		}))
	for _, f := range families {
		if !p.Terminated.has(f) {
			continue
		}
		lan, tunnel := goTo("media_port_lan"+f.suffix()), goTo("media_port_tunnel"+f.suffix())
		p.chain("media_arrived"+f.suffix(),
			one(iifIn("tunnel"), addrIn(f, "daddr", "media_tunnel"), tunnel),
			one(iifIn("lan"), lan),
			one(iifIn("wan"), ctState("established"), lan),
			one(iifIn("named"), counter(CounterMediaStrayed), drop))
		for _, side := range []struct {
			name    string
			sockets [2]uint16
			port    uint16
		}{{"lan", p.Terminated.LANSockets, MediaPortLAN}, {"tunnel", p.Terminated.TunnelSockets, MediaPortTunnel}} {
			port := side.sockets[0]
			if f == ipv6 {
				port = side.sockets[1]
			}
			if port == 0 {
				port = side.port
			}
			take := "media_take_" + side.name + f.suffix()
			p.chain("media_port_"+side.name+f.suffix(),
				one(p.portLimit(f), goTo(take)), one(counter(CounterMediaFlood), drop))
			p.chain(take, one(tproxyLoopback(f, port), toRelay, accept), one(counter(CounterMediaStrayed), drop))
		}
	}
}

// sentMedia is what the media process may send.
func (p *plan) sentMedia() []Rule {
	if !p.terminates() {
		return nil
	}
	pass := func(devices, addresses string) []Rule {
		return p.eachMedia(func(f family) []Rule {
			return one(oifIn(devices), addrIn(f, "saddr", addresses), portIn(qos.UDP, "sport", setMediaPorts), notrack, accept)
		})
	}
	// Without a mark for tunnels a site's address leads to a WAN, until the chain own has seen it.
	trunks := p.eachMedia(func(f family) []Rule {
		return one(oifIn("wan"), addrIn(f, "saddr", "media_tunnel"), addrNotIn(f, "daddr", "sites"),
			portIn(qos.UDP, "sport", setMediaPorts), accept)
	})
	closed := one(counter(CounterMediaForeign), drop)
	p.chain("media_to_lan", pass("lan", "media_lan"), trunks, closed)
	p.chain("media_to_tunnel", pass("tunnel", "media_tunnel"), closed)

	const mask = qos.MarkRelayed | qos.MarkInner | qos.MarkClassMask
	return []Rule{
		rule(markIs("meta", mask, qos.MarkMediaLAN), goTo("media_to_lan")),
		rule(markIs("meta", mask, qos.MarkMediaTunnel), goTo("media_to_tunnel")),
	}
}

// terminatedFirst chooses the queue on LANs of what the media process sends there.
func (p *plan) terminatedFirst() []Rule {
	if !p.terminates() || len(p.Downlink.WANs) == 0 || len(p.Downlink.LANs) == 0 {
		return nil
	}
	const mask = qos.MarkRelayed | qos.MarkInner | qos.MarkClassMask
	return one(oifIn("shaped_lan"), markIs("meta", mask, qos.MarkMediaLAN), priority(p.Downlink.CallsID))
}

// keyChannelSets are the boxes with which keys of media are agreed.
func (p *plan) keyChannelSets() {
	if len(p.Boxes) == 0 {
		return
	}
	for _, f := range families {
		p.state.Sets = append(p.state.Sets, addressSet("boxes", f, p.Boxes))
	}
}

// keyChannel lets the boxes of sites open it.
func (p *plan) keyChannel() []Rule {
	if len(p.Boxes) == 0 {
		return nil
	}
	return both(func(f family) Rule {
		return rule(addrIn(f, "saddr", "boxes"), portIs(qos.TCP, "dport", KeyChannelPort), accept)
	})
}

// keyChannelSent is the daemon's half, whose sockets have the class signalling as the relay's have.
func (p *plan) keyChannelSent() (rules []Rule) {
	if len(p.Boxes) == 0 {
		return nil
	}
	for _, port := range []string{"dport", "sport"} {
		rules = append(rules, both(func(f family) Rule {
			return rule(addrIn(f, "daddr", "boxes"), portIs(qos.TCP, port, KeyChannelPort), leave)
		})...)
	}
	return rules
}

// Where SRTP is required a call whose signalling nobody reads would be one in clear: its messages wait, as its sender
// repeats them, until something reads them again.

func (p *plan) requiredSets() {
	if len(p.Signalling.Required) > 0 {
		p.state.Sets = append(p.state.Sets, networkSets("required", p.Signalling.Required)...)
	}
}

// requiredWaits sends what nothing has taken to the chain that drops it if SRTP is required at one end.
func (p *plan) requiredWaits() []Rule {
	if len(p.Signalling.Required) == 0 {
		return nil
	}
	return one(goTo("signalling_waits"))
}

// waitingBypass is for TCP to a destination that does not answer the relay.
func (p *plan) waitingBypass() (rules []Rule) {
	if len(p.Signalling.Required) == 0 {
		return nil
	}
	for _, d := range p.used(UseBypass) {
		rules = append(rules, rule(endpointIn(d.family(), "daddr", qos.TCP, setSIPBypass), jump("signalling_waits")))
	}
	return rules
}

// unread does so in forward, where the kernel has nothing that could read it.
func (p *plan) unread() []Rule {
	if len(p.Signalling.Required) == 0 || p.intercepts() {
		return nil
	}
	var rules []Rule
	for _, proto := range []qos.Protocol{qos.UDP, qos.TCP} {
		for _, side := range []string{"dport", "sport"} {
			rules = append(rules, rule(portIn(proto, side, "sip_ports_"+string(proto)), goTo("signalling_waits")))
		}
	}
	p.chain("unread", rules)
	p.waits()
	return one(jump("unread"))
}

// requiredClosed closes UDP between voice LANs where SRTP is required: such media is the box's own, or in clear.
func (p *plan) requiredClosed() (rules []Rule) {
	if len(p.Signalling.Required) == 0 {
		return nil
	}
	for _, side := range []string{"saddr", "daddr"} {
		rules = append(rules, both(func(f family) Rule {
			return rule(iifIn("voice_lan"), oifIn("voice_lan"), addrIn(f, side, "required"), goTo("no_hole"))
		})...)
	}
	return rules
}

// waits is that chain.
func (p *plan) waits() {
	if len(p.Signalling.Required) == 0 {
		return
	}
	var rules []Rule
	for _, side := range []string{"saddr", "daddr"} {
		rules = append(rules, both(func(f family) Rule {
			return rule(addrIn(f, side, "required"), counter(CounterSIPWaits), drop)
		})...)
	}
	p.chain("signalling_waits", rules)
}

// Statements that only media needs.

// portLimit holds for what the bucket of an address and port has room for. It does not hold where the set has no place:
// what follows drops that.
func (p *plan) portLimit(f family) statement {
	rate := p.Terminated.PacketsPerPort
	burst := max(minMediaBurst, rate/4)
	return func(l *line) {
		l.isFamily(f)
		l.isL4(protoUDP)
		set := "media_rate" + f.suffix()
		l.say("update @%s { %s daddr . udp dport limit rate %d/second burst %d packets }", set, f.ip(), rate, burst)
		second := uint32(9) // the 32-bit register after an IPv4 address in register 1
		if f == ipv6 {
			second = 2 // an IPv6 address fills register 1
		}
		l.add(addrLoad(f, "daddr", 1), portLoad("dport", second), Expr{
			Op: "dynset", Key: DynsetWithin, Reg: 1, Name: set, Rate: uint64(rate), Burst: uint32(burst),
		})
	}
}

// tproxyLoopback gives the packet to the socket on loopback that has the port, and matches where there is one.
func tproxyLoopback(f family, port uint16) statement {
	return func(l *line) { // in a chain that the other family does not reach: nft makes no test of its own
		loopback, word := netip.AddrFrom4([4]byte{127, 0, 0, 1}), "127.0.0.1"
		if f == ipv6 {
			loopback, word = netip.IPv6Loopback(), "[::1]"
		}
		l.isL4(protoUDP)
		l.say("meta l4proto udp tproxy %s to %s:%d", f.ip(), word, port)
		l.add(
			Expr{Op: "immediate", Reg: 1, Data: hex.EncodeToString(loopback.AsSlice())},
			Expr{Op: "immediate", Reg: 2, Data: hex.EncodeToString(net16(port))},
			Expr{Op: "tproxy", Key: f.ip(), Reg: 2, Dest: 1},
		)
	}
}
