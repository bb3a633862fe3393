package firewall

import (
	"net/netip"
	"slices"
	"sort"
	"strings"

	"ringway/qos"
	"ringway/units"
)

// Names of the counters, shown by status.
const (
	CounterLeakWAN         = "leak_wan"          // unencrypted to a site over the WAN
	CounterOwnWAN          = "own_wan"           // to a network of ours over the WAN
	CounterPrivateWAN      = "private_wan"       // to a private address over the WAN, not in reach
	CounterSourceWAN       = "source_wan"        // to the WAN with a private source that NAT did not translate
	CounterMeteredWAN      = "metered_wan"       // data, over a WAN that carries calls only
	CounterParentLAN       = "parent_lan"        // untagged, on a network card whose LANs are all VLANs
	CounterSpoofWAN        = "spoof_wan"         // from the WAN with an address of ours or of a site
	CounterSpoofLAN        = "spoof_lan"         // from a LAN with an address that is not the LAN's
	CounterSpoofTunnel     = "spoof_tunnel"      // from a tunnel with an address that no site has
	CounterInputWANDrop    = "input_wan_drop"    // from the WAN to the box, not wanted
	CounterInputLANDrop    = "input_lan_drop"    // from a LAN to the box, not served
	CounterInputTunnelDrop = "input_tunnel_drop" // from a site to the box, not served
	CounterVoiceDataApart  = "voice_data_apart"  // between voice and data networks, no service
	CounterHairpinWAN      = "hairpin_wan"       // from a tunnel to the WAN
	CounterInvalidWAN      = "invalid_wan"       // to the WAN, of no connection: NAT would not translate it
	CounterForwardDrop     = "forward_drop"      // anything else that may not be forwarded
	CounterMediaFlow       = "media_flow"        // beyond the rate limit of one media flow
	CounterSIPBanned       = "sip_banned"        // SIP from a banned address
	CounterSIPFlood        = "sip_flood"         // SIP beyond the rate limit of its source
	CounterSIPClosed       = "sip_closed"        // UDP from or to a phone, without a hole or an open port
	CounterSIPStrayed      = "sip_strayed"       // from the relay, but no signalling
)

// DropCounters lists the counters of dropped packets. Those of signalling are in the table only if it is taken, those
// of terminated media if there is any, sip_waits if SRTP is required somewhere.
func DropCounters() []string {
	return slices.Concat(policyCounters(), signallingCounters(), terminatedCounters(), []string{CounterSIPWaits})
}

func policyCounters() []string {
	return []string{
		CounterLeakWAN, CounterOwnWAN, CounterPrivateWAN, CounterSourceWAN, CounterMeteredWAN, CounterParentLAN,
		CounterSpoofWAN, CounterSpoofLAN, CounterSpoofTunnel, CounterInputWANDrop, CounterInputLANDrop,
		CounterInputTunnelDrop, CounterVoiceDataApart, CounterHairpinWAN, CounterInvalidWAN, CounterForwardDrop,
		CounterMediaFlow,
	}
}

func signallingCounters() []string {
	return []string{CounterSIPBanned, CounterSIPFlood, CounterSIPClosed, CounterSIPStrayed}
}

// ClassCounter names the counter of packets that were put into class c.
func ClassCounter(c qos.ClassName) string { return "class_" + string(c) }

// The packet size that every host (IPv4: RFC 791, section 3.1) or link (IPv6: RFC 8200, section 5) accepts.
const (
	minMTU4 = 576
	minMTU6 = 1280
)

// Priorities of nf_tables hooks by number (nft prints names for them).
const (
	hookRaw    = -300 // before conntrack: spoofed packets create no state
	hookMangle = -150 // after conntrack, before routing
	hookFilter = 0
	hookSrcNAT = 100
)

// plan is the state that Want builds.
type plan struct {
	Input
	state State
	own   []netip.Prefix
}

// Want computes the table for in.
//
// A packet passes the base chains in this order: guard (prerouting: is the source address possible?),
// classify (prerouting: class, inner bit, class of the connection) or own (output: the same for the box's
// own packets); intercept (prerouting: SIP for a relay on this box); routing by mark; clamp, flows, downlink
// (the queue on a LAN) and forward, or input; then egress (postrouting: leak check, DSCP, queue), nat, and fence
// (postrouting: what NAT did not translate).
//
// No rule assigns a conntrack helper: the kernel's SIP helper would rewrite SDP and open holes.
func Want(in Input) State {
	p := plan{Input: in, state: State{Present: true}}
	if p.lacks(FeatureTProxy) { // nobody could open a hole
		p.Signalling = Signalling{Ports: in.Signalling.Ports, Required: in.Signalling.Required}
	}
	for _, l := range slices.Concat(in.Voice, in.Data) {
		p.own = append(p.own, l.Networks...)
	}
	p.sets()
	p.guard()
	p.classify()
	p.intercept()
	p.interceptMedia()
	p.outgoing()
	p.clamp()
	p.flows()
	p.refuse()
	p.metered()
	p.unmarked()
	p.downlink()
	p.forward()
	p.input()
	p.egress()
	p.nat()
	p.fenceSources()

	p.state.Counters = append(p.state.Counters, policyCounters()...)
	if p.terminates() {
		p.state.Counters = append(p.state.Counters, terminatedCounters()...)
	}
	if len(p.Signalling.Required) > 0 {
		p.state.Counters = append(p.state.Counters, CounterSIPWaits)
	}
	if p.Signalling.Mode != "" {
		p.state.Counters = append(p.state.Counters, append(signallingCounters(), seenCounters()...)...)
	}
	for _, c := range qos.ClassNames {
		p.state.Counters = append(p.state.Counters, ClassCounter(c))
	}
	sort.Strings(p.state.Counters)
	slices.SortFunc(p.state.Sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return p.state
}

// shapedPeers says whether peers have queues of their own. If not, no packet is looked up.
func (p *plan) shapedPeers() bool {
	return len(p.Priorities) > 0 && (len(p.Peers) > 0 || p.PeerQueues)
}

func (p *plan) lacks(f Feature) bool { return slices.Contains(p.Missing, f) }

func (p *plan) chain(name string, rules ...[]Rule) {
	p.state.Chains = append(p.state.Chains, Chain{Name: name, Rules: slices.Concat(rules...)})
}

func (p *plan) base(name, typ, hook string, priority int, policy string, rules ...[]Rule) {
	p.state.Chains = append(p.state.Chains, Chain{
		Name: name, Type: typ, Hook: hook, Priority: priority, Policy: policy, Rules: slices.Concat(rules...),
	})
}

// one is a list of one rule.
func one(sts ...statement) []Rule { return []Rule{rule(sts...)} }

func (p *plan) devices(class string) []string {
	var out []string
	for _, t := range p.Tunnels {
		if t.Class == class || class == "" {
			out = append(out, t.Device)
		}
	}
	return out
}

func lanDevices(lans []LAN) []string {
	var out []string
	for _, l := range lans {
		out = append(out, l.Device)
	}
	return out
}

func (p *plan) sets() {
	add := func(s ...Set) { p.state.Sets = append(p.state.Sets, s...) }
	voice, data := lanDevices(p.Voice), lanDevices(p.Data)
	add(nameSet("wan", "ifname", p.WANs...), nameSet("wan_dhcp", "ifname", p.DHCP...),
		nameSet(
			"voice_lan", "ifname", voice...,
		), nameSet("data_lan", "ifname", data...), nameSet("lan", "ifname", slices.Concat(voice, data)...),
		nameSet("tunnel", "ifname", p.devices("")...), nameSet("voice_tunnel", "ifname", p.devices("voice")...))
	add(nameSet("named", "ifname", slices.Concat(p.WANs, voice, data, p.devices(""))...))
	var listen []string
	for _, t := range p.Tunnels {
		if t.ListenPort != 0 {
			listen = append(listen, PortText(t.ListenPort, t.ListenPort))
		}
	}
	add(nameSet("listen", "inet_service", listen...))
	if p.Subnets {
		var delegated []netip.Prefix
		for _, l := range slices.Concat(p.Voice, p.Data) {
			delegated = append(delegated, l.Delegated...)
		}
		add(networkSets("delegated", delegated)[1])
	}
	for _, e := range p.Elsewhere {
		add(networkSets("elsewhere_"+chainName(e.Device)+"_", e.Networks)[1])
	}
	if len(p.Parents) > 0 {
		add(nameSet("parent_lan", "ifname", p.Parents...))
	}

	add(networkSets("own", p.own)...)
	add(networkSets("sites", p.SiteNetworks, p.SiteVoiceNetworks, p.SiteDataNetworks, p.SingleSiteNetworks,
		p.SiteFlatNetworks)...)
	if len(p.SiteFlatNetworks) > 0 {
		add(networkSets("sites_flat", p.SiteFlatNetworks)...)
	}
	add(networkSets("sites_voice", p.SiteVoiceNetworks)...)
	add(networkSets("sites_data", p.SiteDataNetworks)...)
	add(networkSets("single", p.SingleSiteNetworks)...)
	for _, s := range p.ShortPaths {
		add(networkSets(s.set(), s.Networks)...)
	}
	var nat []netip.Prefix
	for _, n := range p.own {
		// RFC 1918 and RFC 6598: the internet has no route back.
		if n.Addr().Is4() && (n.Addr().IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(n.Addr())) {
			nat = append(nat, n)
		}
	}
	add(networkSets("nat", nat)[0])

	for _, c := range p.Classes {
		add(portSet(string(c.Name)+"_udp", qos.UDP, c.Ports), portSet(string(c.Name)+"_tcp", qos.TCP, c.Ports))
	}
	all, calls := p.classPorts()
	add(portSet("services_udp", qos.UDP, all), portSet("services_tcp", qos.TCP, all),
		portSet("calls_udp", qos.UDP, calls), portSet("calls_tcp", qos.TCP, calls),
		portSet("served_udp", qos.UDP, p.LocalServices), portSet("served_tcp", qos.TCP, p.LocalServices))

	// Unreachable (with packet too big), time exceeded, parameter problem: without them path
	// MTU discovery breaks (RFC 1191, RFC 8201).
	add(
		nameSet("icmp_errors4", "icmp_type", "3", "11", "12"),
		nameSet("icmp_errors6", "icmpv6_type", "1", "2", "3", "4"),
	)
	// Router and neighbour discovery (RFC 4861).
	add(nameSet("nd", "icmpv6_type", "133", "134", "135", "136"))
	if len(p.Downlink.WANs) > 0 {
		add(nameSet("shaped_lan", "ifname", p.Downlink.LANs...))
	}
	if p.shapedPeers() {
		add(priorityMaps(p.Peers)...)
	}
	for _, d := range p.Dynamic {
		add(d.Declaration())
	}
	p.voiceNetworks()
	p.tftpSets()
	p.signallingSets()
	p.terminatedSets()
	p.keyChannelSets()
}

// classPorts are the ports of all classes, and of those that are calls.
func (p *plan) classPorts() (all, calls []qos.PortMatch) {
	for _, c := range p.Classes {
		all = append(all, c.Ports...)
		if c.Name == qos.Media || c.Name == qos.Signalling {
			calls = append(calls, c.Ports...)
		}
	}
	return all, calls
}

// guard drops packets whose source address is impossible on the device they arrive by, before conntrack
// sees them. The sets of networks are stricter than a reverse path lookup (`fib`), for IPv6 too: a LAN has
// exactly its networks, a tunnel exactly those of the sites, the WAN everything but both.
//
// Ciphertext stays out of conntrack in both directions: tracking costs time for every packet of every call,
// and a flood of forged packets to the listen ports would fill the table that new calls need.
func (p *plan) guard() {
	var rules []Rule
	for _, f := range families {
		rules = append(rules,
			rule(iifIn("wan"), addrIn(f, "saddr", "sites"), counter(CounterSpoofWAN), drop),
			rule(iifIn("wan"), addrIn(f, "saddr", "own"), counter(CounterSpoofWAN), drop),
			rule(iifIn("tunnel"), addrNotIn(f, "saddr", "sites"), counter(CounterSpoofTunnel), drop))
	}
	if len(p.Parents) > 0 { // tagged packets arrive by the VLAN's device
		rules = append(one(iifIn("parent_lan"), counter(CounterParentLAN), drop), rules...)
	}
	// An ICMP error to a private address as it stands is about no flow of the WAN, whose errors come to the WAN's
	// address. Conntrack would take it for a part of a flow through a tunnel, and a phone be told that its call's far
	// end is unreachable.
	rules = append(rules, rule(iifIn("wan"), icmpIn(ipv4, "icmp_errors4"), addrIn(ipv4, "daddr", "nat"),
		counter(CounterForwardDrop), drop))
	rules = append(rules, rule(iifIn("wan"), portIn(qos.UDP, "dport", "listen"), notrack))
	rules = append(rules, p.untrack()...)
	rules = append(rules, p.untrackMedia()...)
	lans := slices.Concat(p.Voice, p.Data)
	for _, l := range lans {
		rules = append(rules, rule(iif(l.Device), goTo("from_"+chainName(l.Device))))
	}
	p.base("guard", "filter", "prerouting", hookRaw, "accept", rules)
	p.base("sent", "filter", "output", hookRaw, "accept",
		one(markAny(qos.MarkOuterMask), notrack), p.sentToLANs(), p.sentMedia())

	for _, l := range lans {
		sets := networkSets("net_"+chainName(l.Device)+"_", l.Networks)
		p.state.Sets = append(p.state.Sets, sets...)
		set := "net_" + chainName(l.Device) + "_"
		p.chain("from_"+chainName(l.Device), []Rule{
			rule(addrIn(ipv4, "saddr", set), accept),
			rule(addrIn(ipv6, "saddr", set), accept),
			// DHCP: no address yet
			rule(addrIs("saddr", netip.MustParsePrefix("0.0.0.0/32")), portIs(qos.UDP, "dport", 67), accept),
			rule(addrIs("saddr", netip.MustParsePrefix("fe80::/10")), accept),
			// duplicate address detection
			rule(addrIs("saddr", netip.MustParsePrefix("::/128")), isICMP(ipv6), accept),
			rule(counter(CounterSpoofLAN), drop),
		})
	}
}

// chainName escapes a device name for use in a chain or set: nft allows letters, digits, / \ _ and dots.
func chainName(device string) string {
	var b strings.Builder
	for _, r := range []byte(device) {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' {
			b.WriteByte(r)
			continue
		}
		const hex = "0123456789abcdef"
		b.Write([]byte{'/', hex[r>>4], hex[r&15]})
	}
	return b.String()
}

// classify gives every arriving packet its class. The first of these that decides wins:
//
//	from a voice LAN:      ports (to or from a port of the class), DSCP, the connection's class, data
//	from the voice tunnel: ports of media and signalling, DSCP of the two, the connection's class if
//	                       it is one of the two, media
//	from the data tunnel:  DSCP of background, the connection's class if it is background, data
//	from a data LAN:       to a voice network, ports of media; the connection's class if it is media or
//	                       signalling, DSCP of background (yielding needs no trust), the connection's class, data
//	from anywhere else:    the connection's class, data
//
// Where signalling is read, a hole takes precedence over all of these, except from the data tunnel and from
// WANs: what has one is media (mediaByHole).
//
// A port takes precedence over a DSCP, because badly configured phones mark SIP and RTP alike. A DSCP takes
// precedence over the connection's class, because one flow may change (fax to voice). The connection's
// class is that of its first packet, so that a reply gets the class of the request, until a voice network says better
// (raise).
//
// A packet from a tunnel only gets a class that is routed back through the same tunnel, and it gets the
// inner bit: the strict reverse path check looks up the source with the packet's mark. A site with one
// tunnel only is classified like a voice LAN, since both routing tables lead to its tunnel.
func (p *plan) classify() {
	inner := func(f family) Rule {
		return rule(addrIn(f, "daddr", "sites"), addrNotIn(f, "daddr", "own"), markOr("meta", qos.MarkInner))
	}
	p.base("classify", "filter", "prerouting", hookMangle, "accept",
		one(iif("lo"), leave),
		one(markClear(p.ownMark())),
		// Ciphertext: the packet inside is classified when it arrives from the tunnel.
		one(iifIn("wan"), portIn(qos.UDP, "dport", "listen"), leave),
		p.followLine(),
		both(inner),
		one(iifIn("tunnel"), markOr("meta", qos.MarkInner)),
		one(iifIn("voice_lan"), goTo("trusted")),
		one(iifIn("voice_tunnel"), goTo("from_voice_tunnel")),
		one(iifIn("tunnel"), goTo("from_data_tunnel")),
		one(iifIn("data_lan"), goTo("from_data_lan")),
		one(goTo("remembered")))

	single := both(func(f family) Rule { return rule(addrIn(f, "saddr", "single"), goTo("trusted")) })
	if len(p.SingleSiteNetworks) == 0 {
		single = nil
	}
	holes := p.mediaByHole()
	if holes != nil {
		p.chain("set_media_by_hole",
			one(markReplace("ct", qos.MarkClassMask, qos.ClassMark(qos.Media))), one(goTo("set_media")))
	}
	p.chain("trusted", holes, p.byPort(qos.ClassNames...), p.byDSCP(false, qos.ClassNames...), one(goTo("remembered")))
	p.chain("from_voice_tunnel", holes, single,
		p.byPort(qos.Signalling, qos.Media),
		p.byDSCP(true, qos.Media, qos.Signalling),
		remember(qos.Signalling),
		one(goTo("set_media")))
	p.chain("from_data_tunnel", single,
		p.byDSCP(true, qos.Background),
		remember(qos.Background),
		one(goTo("set_data")))
	p.chain("from_data_lan", holes,
		p.mediaToVoice(),
		remember(qos.Media, qos.Signalling),
		p.byDSCP(false, qos.Background),
		one(goTo("remembered")))
	p.chain("remembered", remember(qos.Media, qos.Signalling, qos.Background), one(goTo("set_data")))
	for _, c := range qos.ClassNames {
		p.chain("set_"+string(c),
			one(markOr("meta", qos.ClassMark(c))),
			one(markIs("ct", qos.MarkClassMask, 0), markOr("ct", qos.ClassMark(c))),
			raise(c),
			one(counter(ClassCounter(c))))
	}
}

func remember(classes ...qos.ClassName) []Rule {
	var rules []Rule
	for _, c := range classes {
		rules = append(rules, rule(markIs("ct", qos.MarkClassMask, qos.ClassMark(c)), goTo("set_"+string(c))))
	}
	return rules
}

func (p *plan) class(name qos.ClassName) qos.Class {
	for _, c := range p.Classes {
		if c.Name == name {
			return c
		}
	}
	return qos.Class{Name: name}
}

// byPort matches both ends: the phone calls the port, or serves on it.
func (p *plan) byPort(classes ...qos.ClassName) []Rule {
	var rules []Rule
	for _, name := range classes {
		for _, proto := range []qos.Protocol{qos.UDP, qos.TCP} {
			if !slices.ContainsFunc(
				p.class(name).Ports, func(m qos.PortMatch) bool { return m.Protocol == proto },
			) {
				continue // every packet would be looked up in an empty set
			}
			set := string(name) + "_" + string(proto)
			rules = append(
				rules, rule(portIn(proto, "dport", set), goTo("set_"+string(name))),
				rule(portIn(proto, "sport", set), goTo("set_"+string(name))),
			)
		}
	}
	return rules
}

// codePoints are those by which a class is known. From a far box, the code point that this box would have
// set counts too.
func (p *plan) codePoints(name qos.ClassName, far bool) []qos.DSCP {
	c := p.class(name)
	points := slices.Clone(c.DSCP)
	if far && c.Outer != 0 && !slices.Contains(points, c.Outer) {
		points = append(points, c.Outer)
	}
	return points
}

// byDSCP matches the code points of the classes.
func (p *plan) byDSCP(far bool, classes ...qos.ClassName) []Rule {
	var rules []Rule
	seen := map[qos.DSCP]bool{}
	for _, name := range classes {
		for _, d := range p.codePoints(name, far) {
			if seen[d] {
				continue
			}
			seen[d] = true
			for _, f := range families {
				rules = append(rules, rule(dscp(f, "eq", d), goTo("set_"+string(name))))
			}
		}
	}
	return rules
}

// outgoing classifies the box's own packets. Ciphertext carries the mark of its socket and is left alone;
// Ringway's own relays choose their class themselves (relayedConnections).
func (p *plan) outgoing() {
	p.base("own", "route", "output", hookMangle, "accept",
		one(oif("lo"), leave),
		one(markAny(qos.MarkOuterMask), leave),
		p.keepLine(),
		both(func(f family) Rule {
			return rule(
				addrIn(f, "daddr", "sites"), addrNotIn(f, "daddr", "own"), markOr("meta", qos.MarkInner),
			)
		}),
		p.relayedConnections(),
		one(markAny(qos.MarkClassMask), leave),
		// A probe to a far reflector chooses its tunnel by code point: EF is a call's packet, whatever code
		// points the classes have. The answer gets the class of the question, which its connection
		// remembers.
		both(func(f family) Rule {
			return rule(
				addrIn(f, "daddr", "sites"), dscp(f, "eq", probeDSCP),
				portIs(qos.UDP, "dport", units.STAMPPort), goTo("set_"+string(qos.Media)),
			)
		}),
		one(goTo("remembered")))
}

// probeDSCP is EF: a probe between appliances (RFC 8762) that carries it is queued as a call's packet.
const probeDSCP = 46

// clamp limits TCP segments to the MTU of the tunnels, in both directions, to what sites with a shorter path take,
// and those between LANs and the internet to what a WAN may send or receive. A segment is the MTU less 40 (IPv4) or
// 60 bytes (IPv6) of headers (RFC 9293, section 3.7.1). A host respects the size that the other one announces, so the
// SYN that arrives by a WAN limits what is sent there.
func (p *plan) clamp() {
	if p.lacks(FeatureMSS) {
		return
	}
	var rules []Rule
	clamped := func(dev statement, mtu4, mtu6 int) {
		if mtu4 < minMTU4 { // no segment size helps
			return
		}
		rules = append(
			rules, rule(dev, isFamily(ipv4), segment(uint16(mtu4-40))),
			rule(dev, isFamily(ipv6), segment(uint16(mtu6-60))),
		)
	}
	for _, t := range p.Tunnels {
		clamped(oif(t.Device), t.MTU, t.MTU)
		clamped(iif(t.Device), t.MTU, t.MTU)
	}
	for _, s := range p.ShortPaths {
		for _, side := range []string{"daddr", "saddr"} {
			rules = append(rules,
				rule(addrIn(ipv4, side, s.set()), segment(uint16(max(s.MTU, minMTU4)-40))),
				rule(addrIn(ipv6, side, s.set()), segment(uint16(max(s.MTU, minMTU6)-60))))
		}
	}
	for _, w := range p.Slow {
		clamped(oif(w.Device), w.Received, max(w.Received, minMTU6))
		clamped(iif(w.Device), w.Sent, max(w.Sent, minMTU6))
	}
	if len(rules) == 0 {
		return
	}
	p.base("clamp", "filter", "forward", hookMangle, "accept", one(syn, goTo("segments")))
	p.chain("segments", rules)
}

// downlink chooses the queue on a LAN for forwarded packets: that of the WAN they arrived by, unless they
// are calls. Ciphertext is not forwarded, and the packets inside it arrive from a tunnel. The hook is
// forward, where every kernel knows the input device, and where IPv4 has already derived skb->priority from
// the TOS, which would overwrite ours.
func (p *plan) downlink() {
	if len(p.Downlink.WANs) == 0 || len(p.Downlink.LANs) == 0 {
		return
	}
	p.base("downlink", "filter", "forward", hookMangle, "accept", one(oifIn("shaped_lan"), goTo("arriving")))
	var rules []Rule
	for _, c := range []qos.ClassName{qos.Media, qos.Signalling} {
		rules = append(
			rules,
			rule(markIs("meta", qos.MarkClassMask, qos.ClassMark(c)), priority(p.Downlink.CallsID), leave),
		)
	}
	for _, w := range p.Downlink.WANs {
		rules = append(rules, rule(iif(w.WAN), priority(w.ClassID)))
	}
	p.chain("arriving", rules)
}
