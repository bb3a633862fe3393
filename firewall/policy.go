package firewall

import (
	"fmt"
	"slices"

	"ringway/qos"
	"ringway/units"
)

// forward says who may talk to whom through the box. Nothing leaves by a device that the config does not name, not even
// what is established: a WAN that left the config, or a management port that a route suddenly leads to.
func (p *plan) forward() {
	est := ctState("established,related")
	split := func(field, mine, other, otherChain string) []Rule {
		return slices.Concat(
			both(func(f family) Rule { return rule(addrIn(f, field, "sites_"+mine), accept) }),
			both(func(f family) Rule { return rule(addrIn(f, field, "sites_"+other), goTo(otherChain)) }),
			one(accept))
	}
	p.base("forward", "filter", "forward", hookFilter, "drop",
		one(oifNotIn("named"), counter(CounterForwardDrop), drop),
		// Nothing of a site's goes to the internet here, and nothing from there into a tunnel, whatever
		// conntrack says.
		one(iifIn("tunnel"), oifIn("wan"), counter(CounterHairpinWAN), drop),
		one(iifIn("wan"), oifIn("tunnel"), counter(CounterForwardDrop), drop),
		p.delegatedApart(),
		// NAT does not translate packets of no connection: they would leave with their private address.
		one(oifIn("wan"), ctState("invalid"), counter(CounterInvalidWAN), drop),
		p.untrackedToWAN(),
		p.refuseForwarded(),
		p.unread(),
		p.seen(),
		p.holes(),
		one(est, accept),
		one(iifIn("voice_lan"), oifIn("tunnel"), goTo("voice_to_sites")),
		one(iifIn("data_lan"), oifIn("tunnel"), goTo("data_to_sites")),
		one(iifIn("tunnel"), oifIn("voice_lan"), goTo("sites_to_voice")),
		one(iifIn("tunnel"), oifIn("data_lan"), goTo("sites_to_data")),
		one(iifIn("voice_lan"), oifIn("data_lan"), goTo("services")),
		one(iifIn("data_lan"), oifIn("voice_lan"), goTo("calls")),
		one(iifIn("voice_lan"), oifIn("voice_lan"), accept),
		one(iifIn("data_lan"), oifIn("data_lan"), accept),
		p.internet(),
		one(counter(CounterForwardDrop), drop))

	p.chain("voice_to_sites", split("daddr", "voice", "data", "services"))
	p.chain("data_to_sites", split("daddr", "data", "voice", "calls"))
	p.chain("sites_to_voice", split("saddr", "voice", "data", "calls"))
	p.chain("sites_to_data", split("saddr", "data", "voice", "services"))
	// Phones reach servers on the ports of the classes; only calls reach phones, since a phone's web page
	// is of no use to the data network. Replies are established.
	p.chain("services",
		p.tftpAsks(),
		one(portIn(qos.UDP, "dport", "services_udp"), accept),
		one(portIn(qos.TCP, "dport", "services_tcp"), accept),
		p.mediaFrom(),
		p.droppedMedia(),
		one(counter(CounterVoiceDataApart), drop))
	p.chain("calls",
		one(portIn(qos.UDP, "dport", "calls_udp"), accept),
		one(portIn(qos.TCP, "dport", "calls_tcp"), accept),
		p.mediaFrom(),
		p.tftpAnswers(),
		p.droppedMedia(),
		one(counter(CounterVoiceDataApart), drop))
}

// delegatedApart keeps networks of delegated prefixes out of the tunnels: a site knows the configured networks only,
// and would drop what comes from them.
func (p *plan) delegatedApart() []Rule {
	if !p.Subnets {
		return nil
	}
	return []Rule{
		rule(oifIn("tunnel"), addrIn(ipv6, "saddr", "delegated"), counter(CounterForwardDrop), drop),
		rule(iifIn("tunnel"), addrIn(ipv6, "daddr", "delegated"), counter(CounterForwardDrop), drop),
	}
}

// internet lets the LANs reach the internet locally. Without NAT, private addresses stay in, rather than
// leave with a source that nobody can answer.
func (p *plan) internet() []Rule {
	var rules []Rule
	if !p.canNAT() {
		rules = one(iifIn("lan"), oifIn("wan"), addrIn(ipv4, "saddr", "nat"), counter(CounterForwardDrop), drop)
	}
	return append(rules, rule(iifIn("lan"), oifIn("wan"), accept))
}

func (p *plan) canNAT() bool { return !p.lacks(FeatureMasquerade) && !p.lacks(FeatureNAT) }

func (p *plan) nat() {
	if p.canNAT() {
		p.base(
			"nat", "nat", "postrouting", hookSrcNAT, "accept",
			one(oifIn("wan"), addrIn(ipv4, "saddr", "nat"), masquerade),
		)
	}
}

// input says what reaches the box itself:
//
//   - from WANs: ciphertext, what the link and path MTU discovery need, and replies
//   - from LANs: ICMP and DHCP; from data networks, here and at the sites, LocalServices. There is no remote shell
//     unless it is listed there
//   - from sites only: probes to the reflector, where there is one
//   - what a relay takes, for whatever address
//
// Devices that the config does not name (a management port) are left alone, so that the box cannot lock out
// its operator. A WAN that the config no longer names is such a device; routing removes the box's addresses
// from it (routing.Diff looks at every device).
func (p *plan) input() {
	est := ctState("established,related")
	ping := func(f family, typ byte) []Rule {
		if p.lacks(FeatureLimit) {
			return nil
		}
		return one(icmpIs(f, typ), limit(20, 40), accept)
	}
	p.base("input", "filter", "input", hookFilter, "accept",
		p.acceptRelayed(),
		one(iifIn("wan"), goTo("input_wan")),
		one(iifIn("lan"), goTo("input_lan")),
		one(iifIn("tunnel"), goTo("input_tunnel")))
	linkLocal := addrIs("saddr", prefixLinkLocal)
	p.chain("input_wan",
		one(portIn(qos.UDP, "dport", "listen"), accept),
		one(est, accept),
		one(icmpIn(ipv4, "icmp_errors4"), accept), one(icmpIn(ipv6, "icmp_errors6"), accept),
		one(icmpIn(ipv6, "nd"), hopLimit255, accept),
		// Multicast listener query (RFC 3810): without a report, switches stop forwarding multicast to us.
		one(icmpIs(ipv6, 130), linkLocal, accept),
		ping(ipv4, 8), ping(ipv6, 128),
		one(iifIn("wan_dhcp"), isFamily(ipv4), ports(qos.UDP, 67, 68), accept),
		one(iifIn("wan_dhcp"), linkLocal, ports(qos.UDP, 547, 546), accept),
		one(counter(CounterInputWANDrop), drop))
	p.chain("input_lan",
		one(est, accept),
		one(isICMP(ipv4), accept), one(isICMP(ipv6), accept),
		one(portIs(qos.UDP, "dport", 67), accept), one(portIs(qos.UDP, "dport", 547), accept),
		one(iifIn("data_lan"), portIn(qos.UDP, "dport", "served_udp"), accept),
		one(iifIn("data_lan"), portIn(qos.TCP, "dport", "served_tcp"), accept),
		one(counter(CounterInputLANDrop), drop))

	// The data networks of sites may manage this box, as its own may; phones may not, wherever they are.
	served := func(f family) []Rule {
		return []Rule{
			rule(addrIn(f, "saddr", "sites_data"), portIn(qos.UDP, "dport", "served_udp"), accept),
			rule(addrIn(f, "saddr", "sites_data"), portIn(qos.TCP, "dport", "served_tcp"), accept),
		}
	}
	var probes []Rule
	if p.Reflector {
		probes = both(func(f family) Rule {
			return rule(addrIn(f, "saddr", "sites"), portIs(qos.UDP, "dport", units.STAMPPort), accept)
		})
	}
	// A tunnel has no neighbours: the kernel's own address on it serves nobody.
	unserved := one(addrIs("daddr", prefixLinkLocal), counter(CounterInputTunnelDrop), drop)
	p.chain("input_tunnel", unserved, one(est, accept), one(isICMP(ipv4), accept), one(isICMP(ipv6), accept),
		probes, p.keyChannel(), served(ipv4), served(ipv6), one(counter(CounterInputTunnelDrop), drop))
}

// egress is the last chain before NAT: nothing for a site, for a network of ours or for a private address leaves on
// a WAN unencrypted, the DSCP is set to the class's (towards phones, into tunnels, on the WAN), and the queue is
// chosen. Ciphertext is recognized by the mark of its socket. Its class is the tunnel's or, where an engine marks
// packets differently, that of its DSCP.
func (p *plan) egress() {
	p.base("egress", "filter", "postrouting", hookMangle, "accept",
		p.relayedFirst(),
		p.terminatedFirst(),
		one(oifIn("wan"), goTo("egress_wan")),
		one(oifIn("voice_lan"), goTo("remark")),
		one(oifIn("tunnel"), goTo("remark")))
	leak := func(f family) Rule {
		return rule(addrIn(f, "daddr", "sites"), addrNotIn(f, "daddr", "own"), counter(CounterLeakWAN), drop)
	}
	queue := func(c qos.ClassName) Rule {
		return rule(markIs("meta", qos.MarkClassMask, qos.ClassMark(c)), goTo("wan_"+string(c)))
	}
	p.chain("egress_wan",
		one(markIs("meta", qos.MarkOuterMask, qos.MarkOuterVoice), goTo("wan_outer_voice")),
		p.meteredTunnel(),
		one(markIs("meta", qos.MarkOuterMask, qos.MarkOuterData), goTo("wan_outer_data")),
		both(leak),
		p.fenceDestinations(),
		p.privateFromRelay(),
		p.noteLine(),
		[]Rule{queue(qos.Media), queue(qos.Signalling), queue(qos.Background)},
		one(goTo("wan_data")))
	p.chain("wan_outer_voice", p.outer(qos.Signalling, qos.Media))
	p.chain("wan_outer_data", p.outer(qos.Background, qos.Data))

	var remark []Rule
	for _, c := range qos.ClassNames {
		remark = append(
			remark, rule(markIs("meta", qos.MarkClassMask, qos.ClassMark(c)), goTo("dscp_"+string(c))),
		)
	}
	p.chain("remark", remark)
	for _, c := range qos.ClassNames {
		d := p.class(c).Outer
		// Written only where it differs: a write copies a shared packet.
		p.chain("dscp_"+string(c), both(func(f family) Rule { return rule(dscp(f, "neq", d), dscpSet(f, d)) }))
		rules := one(jump("dscp_" + string(c)))
		for _, q := range p.Priorities {
			if q.Class == c {
				rules = append(rules, rule(oif(q.WAN), priority(q.ClassID)))
			}
		}
		if p.shapedPeers() {
			rules = append(
				rules, both(func(f family) Rule { return rule(priorityFrom(f, "prio_"+string(c))) })...,
			)
		}
		p.chain("wan_"+string(c), rules)
	}
}

// outer classifies one tunnel's ciphertext: special if its DSCP says so, else usual.
func (p *plan) outer(special, usual qos.ClassName) []Rule {
	d := p.class(special).Outer
	var rules []Rule
	if d != p.class(usual).Outer {
		rules = both(func(f family) Rule { return rule(dscp(f, "eq", d), goTo("wan_"+string(special))) })
	}
	return append(rules, rule(goTo("wan_"+string(usual))))
}

// A media flow may exceed its rate by flowBurst bytes at once. maxFlows flows are known; one that pauses
// for flowPause seconds counts as new.
const (
	flowBurst = 3000
	flowPause = 30
	maxFlows  = 16384
)

// flows limits the rate of each media flow that leaves the branch. The queue limits all calls together to
// the voice budget, but cannot tell one from another, least of all when they are encrypted: one misbehaving
// phone, or a forged flow, would starve the other calls. Packets from sites have passed the far box's
// limit, and the box's own packets (probes) are not limited.
func (p *plan) flows() {
	rate := p.class(qos.Media).FlowLimit
	if rate == 0 || p.lacks(FeatureFlowLimit) {
		return
	}
	bytes := uint64(rate / 8)
	for _, f := range families {
		addr := fmt.Sprintf("ipv%[1]s_addr . ipv%[1]s_addr", f.suffix())
		p.state.Sets = append(p.state.Sets,
			Set{
				Name: "media_flows" + f.suffix(), Type: addr + " . inet_service . inet_service",
				Size: maxFlows, Timeout: flowPause,
			},
			Set{Name: "media_hosts" + f.suffix(), Type: addr, Size: maxFlows, Timeout: flowPause})
	}
	media := markIs("meta", qos.MarkClassMask, qos.ClassMark(qos.Media))
	p.base("flows", "filter", "forward", hookMangle, "accept",
		one(oifIn("tunnel"), media, goTo("media_flow")), one(oifIn("wan"), media, goTo("media_flow")))
	over := func(set string, ports bool) []Rule {
		return both(func(f family) Rule {
			return rule(flowLimit(f, set, bytes, flowBurst, ports), counter(CounterMediaFlow), drop)
		})
	}
	p.chain("media_flow", one(isUDP, goTo("media_flow_udp")), over("media_hosts", false))
	p.chain("media_flow_udp", over("media_flows", true))
}
