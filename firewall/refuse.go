package firewall

import (
	"slices"

	"ringway/qos"
)

// What the fence would drop of our own LANs' and of the box itself is refused before, where the kernel can answer: a
// host that asks a name server on a private network fails at once instead of waiting for a timeout. The answer is that
// of a router with such a policy, "administratively prohibited" (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1), at
// the kernel's rate (icmp_ratelimit), and a reset for each segment of TCP. Nobody on a WAN is answered. Routes that
// lead a site's packets here are a fault that passes (leak_wan): those are dropped, and their connections wait.

// refuse is for what the box itself sends. It comes before NAT, as the answer has to find its socket. A packet that the
// chain own has rerouted shows the device that it would have left by before, so the line of its mark is asked first.
func (p *plan) refuse() {
	if p.lacks(FeatureReject) {
		return
	}
	p.base("refuse", "filter", "output", hookFilter, "accept",
		one(markIs("meta", qos.MarkOuterMask, 0), oifIn("wan"), goTo("refuse_wan")))
	to := func(set, chain string) []Rule {
		return both(func(f family) Rule { return rule(addrIn(f, "daddr", set), goTo(chain)) })
	}
	sites := both(func(f family) Rule { return rule(addrIn(f, "daddr", "sites"), leave) })
	p.chain("refuse_wan", to("own", "refuse_own"), sites, to("private", "refuse_private"))
	p.chain("refuse_own", one(counter(CounterOwnWAN)), reject())

	var reach []Rule
	for _, r := range p.Reach {
		i := slices.IndexFunc(p.Lines, func(l Line) bool { return l.Device == r.Device })
		if i >= 0 {
			reach = append(reach, rule(markIs("meta", qos.MarkLineMask, p.Lines[i].Mark), goTo("refuse_"+chainName(r.Device))))
		}
	}
	for _, r := range p.Reach {
		reach = append(reach, rule(oif(r.Device), goTo("refuse_"+chainName(r.Device))))
		// What the relay sends bears the address of a phone, which the answer would go to: the fence drops it.
		others := []Rule{rule(iifIn("lan"), goTo("refused")), rule(foreignSource, leave)}
		p.chain("refuse_"+chainName(r.Device), p.reached(r, others), one(goTo("refused")))
	}
	p.chain("refuse_private", reach, one(goTo("refused")))
	p.chain("refused", one(counter(CounterPrivateWAN)), reject())
}

// refuseForwarded is for what comes from LANs.
func (p *plan) refuseForwarded() (rules []Rule) {
	if len(p.Metered) > 0 {
		rules = one(oifIn("metered"), iifIn("lan"), jump("metered"))
	}
	if !p.lacks(FeatureReject) {
		rules = append(rules, rule(oifIn("wan"), iifIn("lan"), jump("refuse_wan")))
	}
	return rules
}

// metered is what LANs may send over a metered WAN: calls, and what phones need to make one.
func (p *plan) metered() {
	if len(p.Metered) == 0 {
		return
	}
	class := func(c qos.ClassName) Rule {
		return rule(markIs("meta", qos.MarkClassMask, qos.ClassMark(c)), leave)
	}
	const dns, ntp = 53, 123
	phones := iifIn("voice_lan")
	closed := one(counter(CounterMeteredWAN), drop)
	if !p.lacks(FeatureReject) {
		closed = append(one(counter(CounterMeteredWAN)), reject()...)
	}
	p.state.Sets = append(p.state.Sets, nameSet("metered", "ifname", p.Metered...))
	p.chain("metered",
		[]Rule{class(qos.Media), class(qos.Signalling)},
		one(phones, portIs(qos.UDP, "dport", dns), leave), one(phones, portIs(qos.TCP, "dport", dns), leave),
		one(phones, portIs(qos.UDP, "dport", ntp), leave),
		closed)
}

// meteredTunnel keeps the data tunnel off metered WANs.
func (p *plan) meteredTunnel() []Rule {
	if len(p.Metered) == 0 {
		return nil
	}
	return one(markIs("meta", qos.MarkOuterMask, qos.MarkOuterData), oifIn("metered"), counter(CounterMeteredWAN), drop)
}

// reject answers and drops.
func reject() []Rule {
	return []Rule{
		rule(isTCP, rejectWith("tcp reset")),
		rule(rejectWith("icmpx admin-prohibited")),
	}
}

// rejectWith is valid in the hooks input, forward and output alone.
func rejectWith(answer string) statement {
	return func(l *line) {
		l.say("reject with %s", answer)
		l.add(Expr{Op: "reject", Key: answer})
	}
}
