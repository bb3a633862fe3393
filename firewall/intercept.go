package firewall

import (
	"encoding/hex"
	"slices"

	"ringway/qos"
	"ringway/units"
)

// hookIntercept comes after conntrack's NAT (-100): the answer of a server on the internet has the phone's address
// again, and a connection whose packets are not translated yet is not mistaken for another one.
const hookIntercept = -90

// The way of a SIP packet that a relay on this box takes, in the order of the hooks:
//
//	guard      from a LAN: no conntrack (untrack)
//	classify   its class, as for every packet
//	intercept  bans, limits, TPROXY, MarkRelayed; a routing rule then delivers it to this box
//	input      accepted by the mark
//	(relay)
//	sent       to a LAN: no conntrack
//	own        to a site or WAN: the connection gets its class and MarkRelayed
//	egress     DSCP and queue, on LANs as well
//
// Both halves of what the relay passes on have the same addresses and ports. With one conntrack entry for both, the
// sequence numbers of one TCP connection are out of the window of the other, and NAT ignores what comes second. So
// the LAN's half is never tracked, in either direction, and the other one always is.

// candidates lead to chain what is signalling by its ports and addresses.
func (p *plan) candidates(chain string) []Rule {
	var rules []Rule
	add := func(sts ...statement) { rules = append(rules, rule(append(sts, goTo(chain))...)) }
	// Nobody expects SIP on a port below 1024 unless it is a SIP port: what is sent there from a SIP port is not
	// for the relay.
	answered := portFrom1024(qos.UDP)

	s := p.Signalling
	if hasPorts(qos.UDP, s.Ports) {
		add(portIn(qos.UDP, "dport", "sip_ports_udp"))
		add(portIn(qos.UDP, "sport", "sip_ports_udp"), answered)
	}
	if hasPorts(qos.TCP, s.Ports) {
		add(portIn(qos.TCP, "dport", "sip_ports_tcp"))
		add(portIn(qos.TCP, "sport", "sip_ports_tcp"))
	}
	for _, f := range families {
		if s.ownPorts(qos.UDP) {
			add(endpointIn(f, "daddr", qos.UDP, "sip_servers_udp"))
			add(endpointIn(f, "saddr", qos.UDP, "sip_servers_udp"), answered)
		}
		if len(s.Servers) > 0 { // its connections may have any port
			add(addrIn(f, "saddr", "sip_servers"), isTCP)
			add(addrIn(f, "daddr", "sip_servers"), isTCP)
		}
	}
	return rules
}

// notForRelay is what is signalling, but for this box or for everybody on a link.
func notForRelay() []Rule {
	return []Rule{rule(notUnicast, leave), rule(toLocalAddress, leave)}
}

// tcpOpenings match the packets of TCP that go to the relay's listener. The first packet of a connection does, and
// what belongs to none of the relay's: the listener resets it, so that a connection that was opened while no relay ran
// is opened again, through it. A server's connection to a phone may have any port, so that only its first packet is
// known.
func (p *plan) tcpOpenings() [][]statement {
	var all [][]statement
	s := p.Signalling
	if hasPorts(qos.TCP, s.Ports) {
		all = append(all, []statement{portIn(qos.TCP, "dport", "sip_ports_tcp")})
	}
	for _, f := range families {
		if s.ownPorts(qos.TCP) {
			all = append(all, []statement{endpointIn(f, "daddr", qos.TCP, "sip_servers_tcp")})
		}
		if len(s.Servers) > 0 {
			all = append(all, []statement{
				addrIn(f, "saddr", "sip_servers"), addrIn(f, "daddr", "voice_networks"),
				portFrom1024(qos.TCP), firstSegment,
			})
		}
	}
	return all
}

// bypassed are the TCP connections to destinations that do not answer the relay: the phone has to see that itself.
func (p *plan) bypassed() []Rule {
	var rules []Rule
	for _, d := range p.used(UseBypass) {
		rules = append(rules, rule(endpointIn(d.family(), "daddr", qos.TCP, setSIPBypass), leave))
	}
	return rules
}

// untrack keeps what the relay takes from LANs out of conntrack. It matches what the chain intercept takes, and looks
// in the same sets of devices: a packet that is not tracked and not taken either could not be translated by NAT.
func (p *plan) untrack() []Rule {
	if !p.intercepts() {
		return nil
	}
	udp := one(isUDP, leave)
	for _, d := range p.used(UseInterceptUDP) {
		udp = slices.Insert(udp, 0, rule(iifIn(d.Name), isUDP, notrack))
	}
	tcp := append(one(transparent, notrack, leave), p.bypassed()...)
	for _, d := range p.used(UseInterceptTCP) {
		for _, opening := range p.tcpOpenings() {
			tcp = append(tcp, rule(append(append([]statement{iifIn(d.Name)}, opening...), notrack)...))
		}
	}
	p.chain("untrack", p.candidates("untracked"))
	p.chain("untracked", notForRelay(), udp, tcp)
	return one(iifIn("lan"), jump("untrack"))
}

// intercept gives signalling to the relay. In every rule tproxy comes before the mark: where nobody listens the rule
// ends there, and the packet is forwarded unread. What forward would never pass is left to it: the relay's own packets
// do not meet that chain.
func (p *plan) intercept() {
	if !p.intercepts() {
		return
	}
	p.base("intercept", "filter", "prerouting", hookIntercept, "accept",
		one(iif("lo"), leave), p.candidates("signalling"), p.errorsToRelay())

	var banned []Rule
	for _, d := range p.used(UseBan) {
		banned = append(banned, rule(addrIn(d.family(), "saddr", setBanned), counter(CounterSIPBanned), drop))
	}
	p.chain("signalling", notForRelay(),
		both(func(f family) Rule { return rule(iifIn("tunnel"), addrNotIn(f, "daddr", "own"), leave) }),
		one(iifIn("wan"), ctState("new,invalid,untracked"), leave),
		banned,
		one(isTCP, goTo("signalling_tcp")),
		p.limited(),
		p.take(qos.UDP, UseInterceptUDP),
		p.requiredWaits())

	var openings []Rule
	for _, opening := range p.tcpOpenings() {
		openings = append(openings, rule(append(opening, goTo("signalling_opening"))...))
	}
	// What bypasses the relay waits as well, where it must not pass unread: the phone does not see the failure itself, but
	// no answer.
	p.chain("signalling_tcp", one(transparent, toRelay, accept), p.waitingBypass(), p.bypassed(), openings,
		p.requiredWaits())
	p.chain("signalling_opening", p.limited(firstSegment), p.take(qos.TCP, UseInterceptTCP), p.requiredWaits())
	p.waits()
	p.limits()
}

// take delivers to the relay's two ports.
func (p *plan) take(proto qos.Protocol, u Use) []Rule {
	transport := map[qos.Protocol]statement{qos.UDP: isUDP, qos.TCP: isTCP}[proto]
	var rules []Rule
	for _, d := range p.used(u) {
		rules = append(rules,
			rule(iifIn(d.Name), iifIn("lan"), transport, tproxy(SignallingPortLAN), toRelay, accept),
			rule(iifIn(d.Name), transport, tproxy(SignallingPortFar), toRelay, accept))
	}
	return rules
}

// limited sends packets to the chain that drops what its source has no room for. One phone could otherwise fill the
// listener's buffer, which all phones share. Segments of a connection are not counted: TCP waits for a slow reader.
func (p *plan) limited(which ...statement) []Rule {
	if p.lacks(FeatureFlowLimit) {
		return nil
	}
	return one(append(which, jump("signalling_limit"))...)
}

func (p *plan) limits() {
	if p.lacks(FeatureFlowLimit) {
		return
	}
	verdict := drop
	if p.Signalling.Mode != Enforce { // nothing is blocked: what is beyond passes unread
		verdict = accept
	}
	over := func(set string, l MessageLimit) []Rule {
		return both(func(f family) Rule {
			return rule(sourceLimit(f, set, l), counter(CounterSIPFlood), verdict)
		})
	}
	var servers []Rule
	if len(p.Signalling.Servers) > 0 {
		servers = both(func(f family) Rule {
			return rule(addrIn(f, "saddr", "sip_servers"), goTo("signalling_limit_far"))
		})
	}
	p.chain("signalling_limit", servers,
		one(iifIn("voice_lan"), goTo("signalling_limit_lan")), one(goTo("signalling_limit_far")))
	p.chain("signalling_limit_lan", over("sip_rate_lan", p.Signalling.LANLimit.or(defaultLANLimit)))
	p.chain("signalling_limit_far", over("sip_rate_far", p.Signalling.FarLimit.or(defaultFarLimit)))
}

// errorsToRelay deliver ICMP errors about what the relay sent, which bears the address of a phone or server. Its TCP
// gets all of them, its UDP over IPv6 only which size fits (IPv4's routers fragment, if the relay sets no DF): that a
// port is closed is to be known where the datagram came from. Without them, a path whose MTU is smaller than the
// tunnel's swallows every large message. The mark of the connection distinguishes the relay's from one that passed
// unread, whose ends need their errors themselves.
func (p *plan) errorsToRelay() []Rule {
	relayed := markIs("ct", qos.MarkRelayed, qos.MarkRelayed)
	rules := both(func(f family) Rule { return rule(icmpIn(f, "icmp_errors"+f.suffix()), relayed, goTo("sip_errors")) })

	tcp := both(func(f family) Rule { return rule(isFamily(f), ctProtocol(protoTCP, "tcp"), toRelay, accept) })
	var udp []Rule
	for _, d := range p.used(UseInterceptUDP) {
		udp = append(udp, rule(iifIn(d.Name), icmpIs(ipv6, packetTooBig), toRelay, accept))
	}
	p.chain("sip_errors", tcp, udp)
	return rules
}

const packetTooBig = 2 // RFC 4443, section 3.2

// untrackedToWAN drops what untrack kept out of conntrack for a relay that is gone by now: NAT does not translate it.
func (p *plan) untrackedToWAN() []Rule {
	if !p.intercepts() {
		return nil
	}
	return one(oifIn("wan"), ctState("untracked"), addrIn(ipv4, "saddr", "nat"), counter(CounterInvalidWAN), drop)
}

// privateFromRelay does for the relay's own packets to a WAN what forward does for those of the LANs.
func (p *plan) privateFromRelay() []Rule {
	switch {
	case !p.intercepts():
		return nil
	case !p.canNAT():
		return one(addrIn(ipv4, "saddr", "nat"), counter(CounterForwardDrop), drop)
	}
	return one(ctState("invalid,untracked"), addrIn(ipv4, "saddr", "nat"), counter(CounterInvalidWAN), drop)
}

// sentToLANs are the relay's packets to LANs: its sockets' mark has the class signalling, and no tunnel.
func (p *plan) sentToLANs() []Rule {
	if !p.intercepts() {
		return nil
	}
	return one(oifIn("lan"), markIs("meta", qos.MarkInner|qos.MarkClassMask, qos.ClassMark(qos.Signalling)), notrack)
}

// relayedConnections notes the class of the connections that the relay has with far ends: answers from a WAN are
// classified by it. conntrack has no entry for what goes to a LAN.
//
// The relay's sockets send from any address to any other, past forward. What it did not take it has no reason to send:
// a relay that was taken over reaches the ports of signalling only.
func (p *plan) relayedConnections() []Rule {
	if !p.intercepts() {
		return nil
	}
	signalling := qos.ClassMark(qos.Signalling)
	p.chain("relayed",
		one(portIs(qos.UDP, "sport", units.STAMPPort), leave), // the reflector's sockets have marks, too
		p.keyChannelSent(),
		p.candidates("relayed_connection"), one(counter(CounterSIPStrayed), drop))
	p.chain("relayed_connection", one(markReplace("ct", qos.MarkClassMask, signalling|qos.MarkRelayed)))
	return one(markIs("meta", qos.MarkClassMask, signalling), goTo("relayed"))
}

// relayedFirst chooses the queue of the relay's packets to LANs. Those that are forwarded have it from the chain
// downlink, which output packets do not pass.
func (p *plan) relayedFirst() []Rule {
	if !p.intercepts() || len(p.Downlink.WANs) == 0 || len(p.Downlink.LANs) == 0 {
		return nil
	}
	return one(oifIn("shaped_lan"), markIs("meta", qos.MarkClassMask, qos.ClassMark(qos.Signalling)),
		priority(p.Downlink.CallsID))
}

// acceptRelayed lets in what the chains intercept and intercept_media took; nobody else can set the mark (classify).
func (p *plan) acceptRelayed() []Rule {
	if !p.intercepts() && !p.terminates() {
		return nil
	}
	return one(markIs("meta", qos.MarkRelayed, qos.MarkRelayed), accept)
}

// Statements that only signalling needs.

var toRelay = markOr("meta", qos.MarkRelayed)

func isTCP(l *line) {
	l.say("meta l4proto tcp")
	l.isL4(protoTCP)
}

// endpointIn looks up an address and its port. The set is named without its family's suffix.
func endpointIn(f family, field string, proto qos.Protocol, set string) statement {
	return func(l *line) {
		l.isFamily(f)
		l.isL4(l4(proto))
		port := map[string]string{"saddr": "sport", "daddr": "dport"}[field]
		l.say("%s %s . %s %s @%s", f.ip(), field, proto, port, set+f.suffix())
		second := uint32(9) // the 32-bit register after an IPv4 address in register 1
		if f == ipv6 {
			second = 2 // an IPv6 address fills register 1
		}
		l.add(addrLoad(f, field, 1), portLoad(port, second), in(set+f.suffix(), false))
	}
}

func portFrom1024(proto qos.Protocol) statement {
	return portCompare(proto, "dport", "gte", ">=", 1024)
}

func portCompare(proto qos.Protocol, field, op, sign string, port uint16) statement {
	return func(l *line) {
		l.isL4(l4(proto))
		l.say("%s %s %s %d", proto, field, sign, port)
		l.add(portLoad(field, 1), cmp(op, net16(port)))
	}
}

// firstSegment is a SYN alone, which opens a connection.
func firstSegment(l *line) {
	const fin, syn, rst, ack = 1, 2, 4, 16
	l.isL4(protoTCP)
	l.say("tcp flags & (fin | syn | rst | ack) == syn")
	l.add(
		Expr{Op: "payload", Key: "transport", Reg: 1, Offset: 13, Len: 1},
		and([]byte{fin | syn | rst | ack}, []byte{0}), eq([]byte{syn}),
	)
}

// notUnicast is what a link brought to several stations.
func notUnicast(l *line) {
	l.say("meta pkttype != unicast")
	l.add(Expr{Op: "meta", Key: "pkttype", Reg: 1}, cmp("neq", []byte{0})) // PACKET_HOST
}

func toLocalAddress(l *line) {
	const local = 2 // RTN_LOCAL
	l.say("fib daddr type local")
	l.add(Expr{Op: "fib", Key: "daddr type", Reg: 1}, eq(host32(local)))
}

// transparent matches what a transparent socket of this box has a connection for.
func transparent(l *line) {
	l.say("socket transparent 1")
	l.add(Expr{Op: "socket", Key: "transparent", Reg: 1}, eq([]byte{1}))
}

// tproxy matches where a transparent socket has the connection, or listens on port, and gives it the packet.
func tproxy(port uint16) statement {
	return func(l *line) {
		l.say("tproxy to :%d", port)
		l.add(
			Expr{Op: "immediate", Reg: 1, Data: hex.EncodeToString(net16(port))},
			Expr{Op: "tproxy", Reg: 1},
		)
	}
}

func sourceLimit(f family, set string, limit MessageLimit) statement {
	return func(l *line) {
		l.isFamily(f)
		l.say(
			"update @%s { %s saddr limit rate over %d/second burst %d packets }", set+f.suffix(), f.ip(),
			limit.Rate, limit.Burst,
		)
		l.add(addrLoad(f, "saddr", 1), Expr{
			Op: "dynset", Key: "packets", Reg: 1, Name: set + f.suffix(), Rate: limit.Rate, Burst: limit.Burst,
		})
	}
}

// ctProtocol is the transport of the connection; of an ICMP error, of the one that it is about.
func ctProtocol(proto byte, word string) statement {
	return func(l *line) {
		l.say("ct protocol %s", word)
		l.add(Expr{Op: "ct", Key: "protocol", Reg: 1}, eq([]byte{proto}))
	}
}

// markReplace clears mask and sets value, in one write.
func markReplace(key string, mask, value qos.Mark) statement {
	return func(l *line) {
		l.say("%s mark set %s mark & 0x%x | 0x%x", key, key, ^uint32(mask), uint32(value))
		l.add(
			Expr{Op: key, Key: "mark", Reg: 1}, and(host32(^uint32(mask|value)), host32(uint32(value))),
			Expr{Op: key, Key: "mark", Reg: 1, Write: true},
		)
	}
}
