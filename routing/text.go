package routing

import (
	"fmt"
	"strings"
)

// Text is the whole state as ip(8) and sysctl(8) commands, in the order for a machine that has none of it:
// run by a shell, they make the state. Devices are assumed to exist, VLANs are not.
func (s State) Text() []string {
	bare := State{NoIPv6: s.NoIPv6}
	for _, l := range s.Links {
		if l.VLAN == 0 || !l.Own {
			bare.Links = append(bare.Links, Link{Name: l.Name, Parent: l.Parent, VLAN: l.VLAN})
		}
	}
	return Text(diff(s, bare, nil, true))
}

// Text is the changes as commands of the tools, one in a line.
func Text(changes []Change) []string {
	out := []string{}
	for _, c := range changes {
		out = append(out, strings.Split(c.String(), "\n")...)
	}
	return out
}

// String is the command that does the same.
func (c Change) String() string {
	switch {
	case c.Link != nil:
		return c.Link.text(c.Verb, c.Down)
	case c.Address != nil:
		return c.Address.text(c.Verb)
	case c.Route != nil:
		return c.Route.text(c.Verb)
	case c.Rule != nil:
		return c.Rule.text(c.Verb)
	case c.Sysctl != nil:
		return c.Sysctl.text()
	}
	return "true"
}

func (l Link) text(v Verb, down bool) string {
	switch {
	case v == Add:
		return fmt.Sprintf("ip link add link %s name %s type vlan id %d\nip link set dev %s alias %s",
			l.Parent, l.Name, l.VLAN, l.Name, LinkAlias)
	case v == Delete:
		return "ip link del dev " + l.Name
	case down:
		return "ip link set dev " + l.Name + " down"
	case l.MTU != 0:
		return fmt.Sprintf("ip link set dev %s mtu %d", l.Name, l.MTU)
	case l.TxQueueLen != 0:
		return fmt.Sprintf("ip link set dev %s txqueuelen %d", l.Name, l.TxQueueLen)
	case l.GSOMax != 0:
		return fmt.Sprintf("ip link set dev %s gso_max_size %d", l.Name, l.GSOMax)
	case l.EgressMap != "":
		return fmt.Sprintf("ip link set dev %s type vlan egress-qos-map %s", l.Name, l.EgressMap)
	}
	return "ip link set dev " + l.Name + " up"
}

// Broadcast reports whether the address has its network's broadcast address (IPv4; RFC 3021: not in a /31).
func (a Address) Broadcast() bool { return a.Prefix.Addr().Is4() && a.Prefix.Bits() <= 30 }

// text omits the protocol: ip(8) can set it since 6.2, and Debian's is older.
func (a Address) text(v Verb) string {
	b := ipCommand(a.Prefix.Addr().Is6()) + " address " + string(v) + " " + a.Prefix.String()
	if v == Add && a.Broadcast() {
		b += " brd +"
	}
	b += " dev " + a.Device
	if v == Delete {
		return b
	}
	if a.Prefix.Addr().Is6() {
		// Without nodad the address is tentative until there is a carrier, and a tentative address cannot be
		// the source of a route.
		b += " nodad"
	}
	return b
}

func (r Route) text(v Verb) string {
	var b strings.Builder
	b.WriteString(ipCommand(r.Prefix.Addr().Is6()) + " route " + string(v) + " ")
	if r.Type != Unicast {
		b.WriteString(string(r.Type) + " ")
	}
	if r.Prefix.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(r.Prefix.String())
	}
	if r.Gateway.IsValid() {
		b.WriteString(" via " + r.Gateway.String())
	}
	if r.Type == Local {
		b.WriteString(" dev lo")
	} else if r.Device != "" {
		b.WriteString(" dev " + r.Device)
	}
	if r.OnLink {
		b.WriteString(" onlink")
	}
	fmt.Fprintf(&b, " table %d", r.Table)
	if r.Protocol != 0 {
		fmt.Fprintf(&b, " proto %d", r.Protocol)
	}
	if r.Source.IsValid() {
		b.WriteString(" src " + r.Source.String())
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.MTU != 0 && v != Delete {
		lock := ""
		if r.MTULock {
			lock = "lock "
		}
		fmt.Fprintf(&b, " mtu %s%d", lock, r.MTU)
	}
	return b.String()
}

func (r Rule) text(v Verb) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s rule %s pref %d", ipCommand(r.Family == 6), v, r.Priority)
	if r.Source.IsValid() {
		b.WriteString(" from " + r.Source.String())
	}
	if r.Network.IsValid() {
		b.WriteString(" from " + r.Network.String())
	}
	if r.Input != "" {
		b.WriteString(" iif " + r.Input)
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark 0x%x/0x%x", r.Mark, r.Mask)
	}
	fmt.Fprintf(&b, " lookup %d", r.Table)
	if r.More {
		b.WriteString(" (and more)")
	}
	if r.Protocol != 0 {
		fmt.Fprintf(&b, " protocol %d", r.Protocol)
	}
	return b.String()
}

// text writes the key as sysctl(8) does: with dots, and slashes for the dots in a device's name.
func (s Sysctl) text() string {
	key := strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, s.Key)
	ignore := ""
	if s.Optional {
		ignore = "-e " // no error if the kernel does not have the key
	}
	return fmt.Sprintf("sysctl -q %s-w %s=%d", ignore, key, s.Value)
}

func ipCommand(six bool) string {
	if six {
		return "ip -6"
	}
	return "ip -4"
}
