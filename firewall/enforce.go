package firewall

import (
	"fmt"
	"net/netip"

	"ringway/qos"
)

// enforcementSets declare the ports that are open without a hole: those of the policy between the networks, and those
// of SIP.
func (p *plan) enforcementSets() {
	all, calls := p.classPorts()
	sip := p.Signalling.Ports
	p.state.Sets = append(p.state.Sets,
		portSet("open_from_voice_udp", qos.UDP, append(all, sip...)),
		portSet("open_to_voice_udp", qos.UDP, append(calls, sip...)))
	for i, a := range p.Signalling.Allow {
		// of the two families, the one that is not the network's stays empty
		p.state.Sets = append(p.state.Sets, networkSets(allowedSet(i)+"_", []netip.Prefix{a.Network})...)
		p.state.Sets = append(p.state.Sets, portSet(allowedSet(i)+"_udp", qos.UDP, a.Ports))
	}
}

// allowedSet begins the names of the sets of the i-th entry of Allow.
func allowedSet(i int) string { return fmt.Sprintf("allowed_%d", i+1) }

// enforce blocks UDP between a phone and anything outside its box's voice LANs if it has no hole. It comes before
// `ct state established`, so that a hole that is gone ends its flow with the next packet. What returns from here goes
// on in forward, by the policy between the networks.
//
// What opens a port is the destination. An answer is known by conntrack, and only then by the port that it comes from:
// a forged source port alone opens nothing.
func (p *plan) enforce() []Rule {
	p.chain("no_hole",
		// Media uses ports from 1024 up.
		one(portCompare(qos.UDP, "sport", "lt", "<", 1024), leave),
		one(portCompare(qos.UDP, "dport", "lt", "<", 1024), leave),
		one(iifIn("voice_lan"), goTo("no_hole_from_voice")),
		one(goTo("no_hole_to_voice")))

	closed := one(counter(CounterSIPClosed), drop)
	answer := func(chain string) []Rule { return one(ctState("established"), ctReply, goTo(chain)) }
	p.chain("no_hole_from_voice",
		one(portIn(qos.UDP, "dport", "open_from_voice_udp"), leave),
		p.openEndpoints("daddr", "dport"),
		p.tftpOpen("daddr"),
		p.markedMedia(false),
		answer("answer_from_voice"), closed)
	p.chain("answer_from_voice",
		one(portIn(qos.UDP, "sport", "open_to_voice_udp"), leave), p.answerToMedia(), closed)

	p.chain("no_hole_to_voice",
		one(portIn(qos.UDP, "dport", "open_to_voice_udp"), leave),
		p.tftpOpen("saddr"),
		p.markedMedia(true),
		answer("answer_to_voice"), closed)
	p.chain("answer_to_voice",
		one(portIn(qos.UDP, "sport", "open_from_voice_udp"), leave),
		p.openEndpoints("saddr", "sport"), p.answerToMedia(), closed)

	phones := "voice_lan"
	for _, d := range p.used(UseEnforce) {
		phones = d.Name
	}
	return append(p.requiredClosed(),
		rule(iifIn("voice_lan"), oifIn("voice_lan"), leave),
		rule(iifIn(phones), goTo("no_hole")),
		rule(oifIn(phones), goTo("no_hole")))
}

// openEndpoints are the servers' own ports and what Allow lists, as destination or, in an answer, as source.
func (p *plan) openEndpoints(address, port string) []Rule {
	var rules []Rule
	if p.Signalling.ownPorts(qos.UDP) {
		rules = both(func(f family) Rule { return rule(endpointIn(f, address, qos.UDP, "sip_servers_udp"), leave) })
	}
	for i, a := range p.Signalling.Allow {
		match := []statement{addrIn(familyOf(a.Network.Addr()), address, allowedSet(i)+"_")}
		if len(a.Ports) > 0 {
			match = append(match, portIn(qos.UDP, port, allowedSet(i)+"_udp"))
		}
		rules = append(rules, rule(append(match, leave)...))
	}
	return rules
}

// markedMedia passes what a voice network marks as media, where signalling need not be read for that. far: the network
// is a site's, and the code point that its box set counts too.
func (p *plan) markedMedia(far bool) []Rule {
	if !p.Signalling.Unread {
		return nil
	}
	var rules []Rule
	from := []string{"sites_voice"}
	if len(p.SiteFlatNetworks) > 0 {
		from = append(from, "sites_flat")
	}
	for _, d := range p.codePoints(qos.Media, far) {
		for _, f := range families {
			if !far {
				rules = append(rules, rule(dscp(f, "eq", d), leave))
				continue
			}
			for _, set := range from {
				rules = append(rules, rule(addrIn(f, "saddr", set), dscp(f, "eq", d), leave))
			}
		}
	}
	return rules
}

// answerToMedia passes the answers to what markedMedia passes, whatever they are marked with.
func (p *plan) answerToMedia() []Rule {
	if !p.Signalling.Unread {
		return nil
	}
	return one(markIs("ct", qos.MarkClassMask, qos.ClassMark(qos.Media)), leave)
}

// ctReply matches the direction of the answers: not that of the connection's first packet.
func ctReply(l *line) {
	l.say("ct direction reply")
	l.add(Expr{Op: "ct", Key: "direction", Reg: 1}, eq([]byte{1}))
}
