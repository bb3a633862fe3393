package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// DynamicSet describes a set whose elements one component adds and removes while the box runs: holes for
// calls, banned addresses, devices whose SIP is intercepted. The plan declares the set and the rules that
// look it up; what is in it belongs to the owner (nft.SetOwner). Elements are part of no State, so that
// neither Diff nor the watch of the ruleset takes one for a change.
type DynamicSet struct {
	Name  string
	Owner string // the component that changes it, for status and error texts
	Use   Use

	Type string // of the key in nft's words: ipv4_addr . ipv4_addr . inet_service

	// SourceBits is how many bits of the source address the key of a hole has; 0: all of them. A set of ranges would
	// hold networks of any length, but the kernel copies such a set for each transaction that changes it.
	SourceBits int

	MaxElements int
	MaxLife     time.Duration // longest life of an element, in whole seconds
}

// Use says what the plan's rules do with the packets that match an element.
type Use string

const (
	// UseNone is a set that no rule of this package looks up.
	UseNone Use = ""
	// UseHole forwards UDP from a source address to a destination address and port, whatever the policy
	// between the networks says.
	UseHole Use = "hole"
	// UseInterceptUDP and UseInterceptTCP are the devices (ifname) whose SIP over that transport goes to the relay.
	UseInterceptUDP Use = "intercept_udp"
	UseInterceptTCP Use = "intercept_tcp"
	// UseEnforce are the voice LANs (ifname) where SignallingMode Enforce blocks. Without such a set it always does;
	// with one, only as long as its owner renews the elements.
	UseEnforce Use = "enforce"
	// UseBan drops SIP from a source address.
	UseBan Use = "ban"
	// UseBypass forwards SIP over TCP to a destination address and port unread.
	UseBypass Use = "bypass"
)

// Check says what is wrong with the description. Whether the kernel knows the key's type is the adapter's
// to say.
func (d DynamicSet) Check() error {
	switch {
	case d.Name == "" || d.Owner == "" || d.Type == "":
		return fmt.Errorf("dynamic set %q: name, owner and key type must be set", d.Name)
	case d.MaxElements < 1 || d.MaxElements > 1<<16:
		return fmt.Errorf(
			"dynamic set %s: a bound of %d elements (allowed: 1 to %d)", d.Name, d.MaxElements, 1<<16,
		)
	case d.MaxLife < time.Second || d.MaxLife%time.Second != 0 || d.MaxLife > 7*24*time.Hour:
		return fmt.Errorf(
			"dynamic set %s: a longest life of %s (allowed: 1s to 168h, whole seconds)", d.Name, d.MaxLife,
		)
	case d.SourceBits < 0 || d.SourceBits > d.family().bits():
		return fmt.Errorf("dynamic set %s: a key with %d bits of the source address (allowed: 0 to %d)",
			d.Name, d.SourceBits, d.family().bits())
	}
	return nil
}

// Declaration is the set as the plan declares it.
//
// The kernel's own bound is twice the owner's: it still counts elements that have expired until they are
// collected, up to a second later, and would refuse one that the owner has room for.
func (d DynamicSet) Declaration() Set {
	return Set{
		Name: d.Name, Type: d.Type, Owned: true,
		Size: 2 * uint32(d.MaxElements), Timeout: uint32(d.MaxLife / time.Second),
	}
}

// holes begins the names of the sets of holes: source address . destination address . destination port.
const holes = "media"

// HoleSets are the sets of holes that owner opens for calls: for each family one of holes for one address, of at most
// max elements, and one for each length of the networks, of at most maxNetwork elements, of holes for a whole network,
// for as long as only the offer is known.
func HoleSets(owner string, max, maxNetwork int, maxLife time.Duration, networks []netip.Prefix) []DynamicSet {
	var sets []DynamicSet
	for _, f := range families {
		exact := DynamicSet{
			Name: holes + f.suffix(), Owner: owner, Use: UseHole,
			Type:        fmt.Sprintf("ipv%[1]s_addr . ipv%[1]s_addr . inet_service", f.suffix()),
			MaxElements: max, MaxLife: maxLife,
		}
		sets = append(sets, exact)
		for _, bits := range lengths(f, networks) {
			network := exact
			network.Name, network.SourceBits, network.MaxElements = holeSet(f, bits), bits, maxNetwork
			sets = append(sets, network)
		}
	}
	return sets
}

// lengths are those of the networks of a family that are more than an address, the longest first.
func lengths(f family, networks []netip.Prefix) (bits []int) {
	for _, n := range networks {
		if familyOf(n.Addr()) == f && !n.IsSingleIP() && n.Bits() > 0 && !slices.Contains(bits, n.Bits()) {
			bits = append(bits, n.Bits())
		}
	}
	slices.SortFunc(bits, func(a, b int) int { return b - a })
	return bits
}

func holeSet(f family, sourceBits int) string {
	if sourceBits == 0 || sourceBits == f.bits() {
		return holes + f.suffix()
	}
	return holes + f.suffix() + "_" + strconv.Itoa(sourceBits)
}

// HoleSet is the name of the set of holes for a source of as many addresses as this one.
func HoleSet(source netip.Prefix) string { return holeSet(familyOf(source.Addr()), source.Bits()) }

// holes are the rules that let packets through the holes, and those that block what has none where that is enforced.
// They stand before `ct state established`: an element that is gone then closes its hole for every packet that starts
// a connection; the connection that is there already is closed by the rules that block or, without them, ends when its
// entry is deleted (firewall/conntrack).
func (p *plan) holes() []Rule {
	rules := p.atHoles(accept)
	if p.Signalling.Mode == Enforce {
		rules = append(rules, p.enforce()...)
	}
	if rules == nil {
		return nil
	}
	p.chain("holes", rules)
	return one(isUDP, jump("holes"))
}

// atHoles match what has a hole.
func (p *plan) atHoles(do statement) []Rule {
	var rules []Rule
	for _, d := range p.used(UseHole) {
		rules = append(rules, rule(holeIn(d), do))
	}
	return rules
}

// mediaByHole gives the class media to what has a hole, whatever its ports and DSCP say. The connection is of that
// class from now on, even if its first packet was not: answers from a WAN, whose addresses NAT has changed, match no
// hole where they are classified.
//
// It is not for what arrives from the data tunnel: a class of the voice tunnel would make its packets martians
// (classify).
func (p *plan) mediaByHole() []Rule {
	if p.Signalling.Mode == "" {
		return nil
	}
	return p.atHoles(goTo("set_media_by_hole"))
}

func holeIn(d DynamicSet) statement {
	return func(l *line) {
		f := d.family()
		l.isFamily(f)
		l.isL4(protoUDP)

		// Registers of 32 bits are numbered from 8, those of 128 from 1: 2 is 12, 3 is 16.
		dest, dport := uint32(9), uint32(10)
		if f == ipv6 {
			dest, dport = 2, 3
		}
		l.add(addrLoad(f, "saddr", 1))
		mask := ""
		if d.SourceBits > 0 && d.SourceBits < f.bits() {
			m := f.mask(d.SourceBits)
			mask = " & " + m.String()
			l.add(and(m.AsSlice(), make([]byte, f.bits()/8)))
		}
		l.say("%[1]s saddr%[2]s . %[1]s daddr . udp dport @%[3]s", f.ip(), mask, d.Name)
		l.add(addrLoad(f, "daddr", dest), portLoad("dport", dport), in(d.Name, false))
	}
}
