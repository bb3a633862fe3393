package routing

import "net/netip"

// Input is all that the plan depends on.
type Input struct {
	WANs    []WAN // in order of preference
	LANs    []LAN // voice and data
	Tunnels []TunnelDevice
	Sites   []SiteRoute
	Leases  map[string]Lease // by WAN interface; a WAN without a lease yet has no entry
	Marks   Marks
	// VoiceSource and DataSource are LANs' addresses that the box itself uses towards sites; where a
	// family is missing the kernel chooses. Usually FirstAddresses of the voice and the data LANs.
	VoiceSource, DataSource []netip.Addr
	// SoftirqBudget is how many packets the kernel takes from its network cards at once before a thread that waits may run; 0: left
	// as it is. It is the machine's, not a network namespace's: another than the first does not have it.
	SoftirqBudget int
}

// TunnelDevice is a class's tunnel device. Who makes it is another room's business.
type TunnelDevice struct {
	Class      string // voice or data
	Name       string
	MTU        int // bytes
	TxQueueLen int // packets; 0: left as it is
	GSOMax     int // largest super-packet in bytes, for its queue counts packets; 0: left as it is
}

// SiteRoute is what lies behind another site and which devices lead there.
type SiteRoute struct {
	Name        string
	Prefixes    []netip.Prefix
	VoiceDevice string // the same as DataDevice where the site has one tunnel only
	DataDevice  string
	DataMTU     int // longest packet of data to it, where that is less than the device's; 0: it is not
}

// Lease is what DHCP gave a WAN.
type Lease struct {
	Address  netip.Prefix
	Gateways []netip.Addr
}

// Marks is the part of the mark's layout that rules read.
type Marks struct {
	OuterValues []uint32 // ciphertext, one value a tunnel
	OuterMask   uint32
	VoiceValues []uint32 // bound for a site, in a class that the voice tunnel carries
	DataValues  []uint32 // likewise, data tunnel
	ClassMask   uint32   // of the two above
}

// FirstAddresses is the first address of each family on the LANs.
func FirstAddresses(lans []LAN) []netip.Addr {
	var v4, v6 netip.Addr
	for _, l := range lans {
		for _, p := range l.Addresses {
			switch a := p.Addr(); {
			case a.Is4() && !v4.IsValid():
				v4 = a
			case a.Is6() && !a.IsLinkLocalUnicast() && !v6.IsValid():
				v6 = a
			}
		}
	}
	var out []netip.Addr
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

const (
	metricIPv6    = 1024 // what the kernel gives an IPv6 route that names none
	metricDefault = 10   // of the first WAN's default route; before a network manager's (100 and more), after one set by hand (0)
	minMTUIPv6    = 1280 // RFC 8200 section 5: below it a device has no IPv6 at all
)

// Reverse path check (rp_filter) values, Linux networking/ip-sysctl.
const (
	strict = 1 // the way back to the source must leave by the device the packet came in on
	loose  = 2 // there must be some way back
)

// Want is the network that the input asks for.
func Want(in Input) State {
	var s State
	s.links(in)
	s.mainRoutes(in)
	s.classTables(in)
	s.rules(in.Marks)
	s.sysctls(in)
	s.Sort()
	return s
}

func (s *State) links(in Input) {
	seen := map[string]bool{}
	add := func(l Link) {
		if !seen[l.Name] {
			seen[l.Name] = true
			l.Up = true
			s.Links = append(s.Links, l)
		}
	}
	for _, w := range in.WANs {
		add(Link{Name: w.Interface})
		for _, a := range w.Addresses {
			s.Addresses = append(s.Addresses, Address{Device: w.Interface, Prefix: a, Protocol: Protocol})
		}
		if l, ok := in.Leases[w.Interface]; ok && w.DHCP && l.Address.IsValid() {
			s.Addresses = append(s.Addresses, Address{Device: w.Interface, Prefix: l.Address, Protocol: Protocol})
		}
	}
	for _, l := range in.LANs {
		add(Link{Name: l.Interface})
		if l.VLAN != 0 {
			add(Link{Name: l.Device(), Parent: l.Interface, VLAN: l.VLAN, Own: true})
		}
		for _, a := range l.Addresses {
			s.Addresses = append(s.Addresses, Address{Device: l.Device(), Prefix: a, Protocol: Protocol})
		}
	}
	for _, t := range in.Tunnels {
		add(Link{Name: t.Name, MTU: t.MTU, TxQueueLen: t.TxQueueLen, GSOMax: t.GSOMax})
	}
}

// mainRoutes: a default route per WAN and family; the first WAN's is preferred.
func (s *State) mainRoutes(in Input) {
	for i, w := range in.WANs {
		gateways, addresses := w.Gateways, w.Addresses
		if l, ok := in.Leases[w.Interface]; ok && w.DHCP {
			gateways = append(gateways[:len(gateways):len(gateways)], l.Gateways...)
			addresses = append(addresses[:len(addresses):len(addresses)], l.Address)
		}
		var have4, have6 bool
		for _, g := range gateways {
			if have := map[bool]*bool{true: &have4, false: &have6}[g.Is4()]; *have {
				continue // a static gateway goes before the lease's
			} else {
				*have = true
			}
			s.Routes = append(s.Routes, Route{Table: TableMain, Type: Unicast, Prefix: everything(g), Device: w.Interface,
				Gateway: g.WithZone(""), OnLink: !g.IsLinkLocalUnicast() && !inAny(g, addresses), Metric: uint32(metricDefault * (i + 1)), Protocol: Protocol})
		}
	}
}

// classTables: what a packet that has its class, or has none yet, may do.
//
//	voice, data: own networks fall through to main (throw; else a reverse path look-up with the mark of a packet
//	             that leaves would find no way back to the LAN), sites go to the class's device, all else nowhere
//	own:         sites go to the data device: what the box itself sends has no mark before the first look-up, and a
//	             connect() that finds no route fails before the firewall could mark anything
//	guard:       sites are unreachable: whoever gets here has lost its mark, and must not leave in clear
func (s *State) classTables(in Input) {
	add := func(r Route) {
		r.Protocol = Protocol
		if r.Prefix.Addr().Is6() {
			r.Metric = metricIPv6
		}
		s.Routes = append(s.Routes, r)
	}
	for _, table := range []uint32{TableVoice, TableData} {
		for _, d := range []string{"0.0.0.0/0", "::/0"} {
			add(Route{Table: table, Type: Unreachable, Prefix: netip.MustParsePrefix(d)})
		}
		for _, l := range in.LANs {
			for _, n := range l.Networks() {
				add(Route{Table: table, Type: Throw, Prefix: n})
			}
		}
	}
	small := map[string]bool{}
	for _, t := range in.Tunnels {
		small[t.Name] = t.MTU > 0 && t.MTU < minMTUIPv6
	}
	for _, site := range in.Sites {
		for _, p := range site.Prefixes {
			p = p.Masked()
			add(Route{Table: TableGuard, Type: Unreachable, Prefix: p})
			for _, w := range []struct {
				table  uint32
				device string
				source []netip.Addr
				mtu    int
			}{{TableVoice, site.VoiceDevice, in.VoiceSource, 0}, {TableData, site.DataDevice, in.DataSource, site.DataMTU}, {TableOwn, site.DataDevice, in.DataSource, site.DataMTU}} {
				if w.device == "" || p.Addr().Is6() && small[w.device] {
					continue // the table's unreachable default holds
				}
				add(Route{Table: w.table, Type: Unicast, Prefix: p, Device: w.device, Source: sameFamily(p, w.source), MTU: w.mtu})
			}
		}
	}
}

func (s *State) rules(m Marks) {
	for _, family := range []int{4, 6} {
		add := func(priority int, table uint32, mark, mask uint32, input string) {
			s.Rules = append(s.Rules, Rule{Family: family, Priority: priority, Mark: mark, Mask: mask, Input: input, Table: table, Protocol: Protocol})
		}
		for _, v := range m.OuterValues { // a rule cannot say "not zero": one per value
			add(PriorityOuter, TableMain, v, m.OuterMask, "")
		}
		for _, v := range m.VoiceValues {
			add(PriorityVoice, TableVoice, v, m.ClassMask, "")
		}
		for _, v := range m.DataValues {
			add(PriorityData, TableData, v, m.ClassMask, "")
		}
		add(PriorityOwn, TableOwn, 0, 0, "lo") // iif lo: from the box itself
		add(PriorityGuard, TableGuard, 0, 0, "")
	}
}

// Keys of values that hold for the box as a whole.
const (
	keyForward4      = "net/ipv4/ip_forward"
	keyForward6      = "net/ipv6/conf/all/forwarding"
	keyAllRedirects4 = "net/ipv4/conf/all/accept_redirects"
	nameSecondaries  = "promote_secondaries"
)

// sysctls. How "all" and a device's own value combine differs from key to key (include/linux/inetdevice.h):
// rp_filter is the larger of the two, src_valid_mark, send_redirects and promote_secondaries are one OR
// the other, accept_redirects (on a router) and accept_source_route one AND the other. "default" is not touched.
func (s *State) sysctls(in Input) {
	set := func(key string, v int) { s.Sysctls = append(s.Sysctls, Sysctl{Key: key, Value: v}) }
	optional := func(key string, v int) {
		s.Sysctls = append(s.Sysctls, Sysctl{Key: key, Value: v, Optional: true})
	}
	set(keyForward4, 1)
	optional(keyForward6, 1)
	// The kernel writes this one itself whenever ip_forward changes, so it is held, and put back at stop.
	set(keyAllRedirects4, 0)
	set("net/ipv4/conf/all/send_redirects", 0)
	// 2 (systemd's default) would make every strict device loose. 0 leaves each device its own value; 1 does no harm.
	s.Sysctls = append(s.Sysctls, Sysctl{Key: "net/ipv4/conf/all/rp_filter", Value: 0, UpTo: strict})
	optional("net/netfilter/nf_conntrack_helper", 0) // the kernel's SIP helper would rewrite what the relay reads

	if in.SoftirqBudget > 0 {
		optional("net/core/netdev_budget", in.SoftirqBudget)
	}

	device := func(name string, rpFilter int) {
		v4, v6 := "net/ipv4/conf/"+name+"/", "net/ipv6/conf/"+name+"/"
		set(v4+"rp_filter", rpFilter)
		// Without it the reverse look-up ignores the mark, ends in table guard, and the kernel drops
		// every packet that comes out of a tunnel.
		set(v4+"src_valid_mark", 1)
		set(v4+"accept_redirects", 0)
		set(v4+"send_redirects", 0)
		set(v4+"accept_source_route", 0)
		set(v4+nameSecondaries, 1) // else removing an address takes the others of its network along
		optional(v6+"accept_redirects", 0)
		optional(v6+"accept_source_route", 0)
	}
	wan := strict
	if len(in.WANs) > 1 {
		wan = loose // an answer may come in on the WAN that is not the preferred way back
	}
	seen := map[string]bool{}
	for _, w := range in.WANs {
		device(w.Interface, wan)
		seen[w.Interface] = true
		if w.DHCP {
			optional("net/ipv6/conf/"+w.Interface+"/accept_ra", 2) // forwarding would end the provider's IPv6 autoconfiguration
		}
	}
	for _, l := range in.LANs {
		if d := l.Device(); !seen[d] {
			seen[d] = true
			device(d, strict)
		}
	}
	for _, t := range in.Tunnels {
		if !seen[t.Name] {
			seen[t.Name] = true
			// Strict works here because the firewall marks what comes out of a tunnel with a class of that
			// tunnel before the look-up: the way back then is the same device.
			device(t.Name, strict)
		}
	}
}

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func inAny(a netip.Addr, networks []netip.Prefix) bool {
	for _, n := range networks {
		if n.Masked().Contains(a) {
			return true
		}
	}
	return false
}

func sameFamily(p netip.Prefix, addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if a.Is4() == p.Addr().Is4() {
			return a
		}
	}
	return netip.Addr{}
}
