package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"ringway/qos"
	"ringway/units"
)

// Reach is which private addresses may be reached over a WAN. All others may not.
type Reach struct {
	Device   string
	Networks []netip.Prefix // by anybody here
	Gateways []netip.Addr   // by the box itself
	DNS      []netip.Addr   // by the box itself, port 53
	DHCP     []netip.Addr   // by the box itself, UDP port 67
}

// hookFence comes after the NAT of sources (hookSrcNAT): what has a private source there was not translated.
const hookFence = 150

// fenceDestinations drops what is not for the internet, whatever routes, leases and advertisements say. Of private
// destinations only those of Reach are left. Ciphertext has left the chain egress_wan by then.
func (p *plan) fenceDestinations() []Rule {
	own := func(f family) Rule { return rule(addrIn(f, "daddr", "own"), counter(CounterOwnWAN), drop) }
	private := func(f family) Rule { return rule(addrIn(f, "daddr", "private"), jump("private_wan")) }
	p.state.Sets = append(p.state.Sets, networkSets("private", units.Private)...)

	var reach []Rule
	for _, r := range p.Reach {
		reach = append(reach, rule(oif(r.Device), goTo("private_"+chainName(r.Device))))
	}
	p.chain("private_wan", reach, one(counter(CounterPrivateWAN), drop))
	for _, r := range p.Reach {
		p.reach(r)
	}
	return slices.Concat(both(own), both(private))
}

// reach makes the chain of private destinations on one WAN. What returns from it passes.
func (p *plan) reach(r Reach) {
	name := chainName(r.Device)
	hosts := func(kind string, addresses []netip.Addr) {
		p.state.Sets = append(p.state.Sets, hostSets(kind+"_"+name+"_", addresses)...)
	}
	p.state.Sets = append(p.state.Sets, networkSets("reach_"+name+"_", r.Networks)...)
	hosts("gateway", append(slices.Clone(r.Gateways), p.Endpoints...))
	hosts("dns", r.DNS)
	hosts("dhcp", r.DHCP)

	// A host behind the box, or the relay on behalf of one, has another source than the box itself.
	closed := one(counter(CounterPrivateWAN), drop)
	p.chain("private_"+name, p.reached(r, one(foreignSource, counter(CounterPrivateWAN), drop)), closed)
}

// reached returns what may go to private destinations on one WAN. others decide what only the box itself may reach.
func (p *plan) reached(r Reach, others []Rule) []Rule {
	name := chainName(r.Device)
	to := func(kind string, what ...statement) []Rule {
		return both(func(f family) Rule {
			return rule(append(append([]statement{addrIn(f, "daddr", kind+"_"+name+"_")}, what...), leave)...)
		})
	}
	if p.lacks(FeatureFib) {
		others = nil
	}
	linkLocal := addrIs("daddr", prefixLinkLocal)
	var neighbours []Rule
	if slices.Contains(p.DHCP, r.Device) { // DHCPv6, DNS and pings of a router that is known by its advertisements alone
		neighbours = slices.Concat(
			one(linkLocal, icmpIs(ipv6, 128), leave),
			one(linkLocal, portIs(qos.UDP, "dport", 547), leave),
			one(linkLocal, portIs(qos.UDP, "dport", 53), leave), one(linkLocal, portIs(qos.TCP, "dport", 53), leave))
	}
	return slices.Concat(
		to("reach"),
		others,
		one(icmpIn(ipv6, "nd"), leave),
		to("gateway"),
		to("dns", portIs(qos.UDP, "dport", 53)), to("dns", portIs(qos.TCP, "dport", 53)),
		to("dhcp", portIs(qos.UDP, "dport", 67)),
		neighbours,
		one(ctState("established"), ctReply, leave)) // a ping's, for example: input_wan let the question in
}

// fenceSources drops what would leave with a private source other than the WAN's: NAT has not translated it, because
// its connection began elsewhere, or because there is no NAT for its family.
func (p *plan) fenceSources() {
	if p.lacks(FeatureFib) {
		return
	}
	var reached []Rule
	for _, r := range p.Reach {
		if slices.ContainsFunc(r.Networks, func(n netip.Prefix) bool { return n.Addr().Is6() }) {
			reached = append(reached, rule(oif(r.Device), addrIn(ipv6, "daddr", "reach_"+chainName(r.Device)+"_"), leave))
		}
	}
	var elsewhere []Rule
	for _, e := range p.Elsewhere { // the provider would drop it, or answer over another line
		elsewhere = append(elsewhere, rule(oif(e.Device), addrIn(ipv6, "saddr", "elsewhere_"+chainName(e.Device)+"_"),
			counter(CounterSourceWAN), drop))
	}
	p.base("fence", "filter", "postrouting", hookFence, "accept",
		one(markIs("meta", qos.MarkOuterMask, 0), oifIn("wan"), goTo("fence_wan")))
	p.chain("fence_wan", elsewhere, reached, both(func(f family) Rule {
		return rule(addrIn(f, "saddr", "private"), foreignSource, counter(CounterSourceWAN), drop)
	}))
}

// foreignSource matches a source that is not an address of the device that the packet leaves by.
func foreignSource(l *line) {
	const local = 2 // RTN_LOCAL
	l.say("fib saddr . oif type != local")
	l.add(Expr{Op: "fib", Key: "saddr . oif type", Reg: 1}, cmp("neq", host32(local)))
}

// hostSets makes the pair name4, name6 of sets of addresses. Only private ones are ever looked up.
func hostSets(name string, addresses []netip.Addr) []Set {
	sets := make([]Set, 0, 2)
	for _, f := range families {
		s := Set{Name: name + f.suffix(), Type: fmt.Sprintf("ipv%s_addr", f.suffix())}
		for _, a := range addresses {
			if a = a.WithZone(""); units.IsPrivate(a) && a.Is4() == (f == ipv4) {
				s.Elements = append(s.Elements, Element{Key: a.String()})
			}
		}
		sets = append(sets, s.Canonical())
	}
	return sets
}
