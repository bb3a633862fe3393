package routing

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
)

// Input is everything that the wanted state depends on.
type Input struct {
	WANs    []Upstream // in order of preference
	LANs    []LAN      // voice and data
	Tunnels []TunnelDevice
	Sites   []SiteRoute
	// Parents are network cards and VLANs of ours that carry no network of ours by themselves: what is on them is in
	// VLANs or in PPP sessions.
	Parents []string
	Leases  map[string]Lease // by WAN interface; a WAN without a lease yet has no entry
	Silent  []string         // interfaces of WANs that deliver nothing: every other one is preferred
	Metered []string         // interfaces of WANs that every other one is preferred to, unless that is silent
	// Advertised is what router advertisements gave the WANs that have a lease, or want one.
	Advertised map[string]Advertised
	// Delegated are the prefixes that WANs have for the LANs.
	Delegated map[string][]Delegation
	Marks     Marks
	// VoiceSource and DataSource are the addresses that this machine itself uses towards sites:
	// FirstAddresses of its voice and data LANs. The kernel chooses in a family that is missing.
	VoiceSource, DataSource []netip.Addr
	// LockedMTUs are the WANs' MTUs, by interface, where the kernel encrypts: its sockets believe any ICMP about a path's
	// MTU, unless the route is locked. A WAN that is not listed has no lock.
	LockedMTUs map[string]int
	Endpoints  []netip.Addr // where the tunnels' packets go, as far as that is known
	// SoftirqBudget is how many packets the kernel takes from its network cards before a waiting thread may
	// run; 0: left as it is. Only the first network namespace has this value.
	SoftirqBudget int
}

// TunnelDevice is the tunnel device of a class. An engine makes it.
type TunnelDevice struct {
	Class      string // voice or data
	Name       string
	MTU        int // bytes
	TxQueueLen int // packets; 0: left as it is
	GSOMax     int // largest super-packet in bytes, since its queue counts packets; 0: left as it is
}

// SiteRoute is what is behind another site, and the devices that lead there.
type SiteRoute struct {
	Name        string
	Prefixes    []netip.Prefix
	VoiceDevice string // the same as DataDevice if the site has one tunnel only
	DataDevice  string
	MTU         int // of packets to it, if it is less than the devices'; 0: it is not
	DataMTU     int // of data to it, if it is even less; 0: it is not
}

// Lease is what DHCP or PPP granted a WAN.
type Lease struct {
	Address  netip.Prefix
	Gateways []netip.Addr // an unspecified one: whatever leaves by the device gets to the only other end
	Server   netip.Addr
	DNS      []netip.Addr
}

// Advertised is what a WAN gets from router advertisements.
type Advertised struct {
	Addresses []netip.Prefix
	Gateway   netip.Addr // link-local; zero: none
}

// Marks is the part of the layout of marks that rules read.
type Marks struct {
	OuterValues []uint32 // ciphertext, one value for each tunnel
	OuterMask   uint32
	VoiceValues []uint32 // for a site, in a class that the voice tunnel carries
	DataValues  []uint32 // the same for the data tunnel
	ClassMask   uint32   // of the two above
	Relayed     uint32   // for a relay on this machine; with RelayedMask zero there is none
	RelayedMask uint32
	Lines       map[string]uint32 // of connections that began on a WAN, by its interface; empty with one WAN
	LineMask    uint32
}

// FirstAddresses returns the first address of each family on the LANs.
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
	metricIPv6 = 1024 // the kernel's default
	// metricDefault is that of the first WAN's default route: it takes effect before a network manager's (100
	// and more), and after one set by hand (0).
	metricDefault = 10
	metricSilent  = 1000    // added for a WAN that delivers nothing
	metricMetered = 500     // added for one whose volume counts
	metricLast    = 1 << 30 // behind every other route of a table
	// metricOwn is that of the end of our own networks in table main: every other route of theirs takes effect before.
	metricOwn = 1_000_000_000
	// metricSites is the smallest that IPv6 has. Of IPv4's, a route of the kernel's for an address takes effect before,
	// as that of a LAN whose network is about to be a site's.
	metricSites = 1
	minMTUIPv6  = 1280 // RFC 8200, section 5: below it a device has no IPv6 at all
)

// cards are the devices below the WANs' own that carry no network: those of PPPoE, and network cards of VLANs.
func (in Input) cards() (names []string) {
	for _, w := range in.WANs {
		for _, name := range []string{w.Card, w.Under()} {
			if name != w.Interface && slices.Contains(in.Parents, name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// Values of the reverse path check, rp_filter (Linux, networking/ip-sysctl).
const (
	strict = 1 // the route to the source must leave by the device that the packet came in on
	loose  = 2 // there must be some route to the source
)

// Values of arp_ignore and arp_announce (Linux, networking/ip-sysctl).
const (
	answerOwn  = 1 // only for addresses of the device that was asked
	answerNone = 8
	askFromOwn = 2 // from the address that fits the one asked for
)

// Want is the network that the input asks for.
func Want(in Input) State {
	var s State
	s.links(in)
	s.mainRoutes(in)
	s.mainFence(in)
	s.classTables(in)
	s.rules(in.Marks)
	s.sourceTables(in)
	s.lineTables(in)
	s.relayed(in)
	s.sysctls(in)
	s.private(in)
	s.Endpoints = in.Endpoints
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
		if w.Card != "" {
			add(Link{Name: w.Card, MTU: w.FrameMTU})
		}
		if w.VLAN != 0 {
			add(Link{
				Name: w.Under(), Parent: w.Card, VLAN: w.VLAN, Own: true, MTU: w.FrameMTU, EgressMap: w.EgressMap,
			})
		}
		add(Link{Name: w.Interface, Dialed: w.PPPoE})
		for _, a := range w.Addresses {
			s.Addresses = append(s.Addresses, Address{Device: w.Interface, Prefix: a, Protocol: Protocol})
		}
		if l, ok := in.Leases[w.Interface]; ok && w.DHCP && l.Address.IsValid() {
			s.Addresses = append(s.Addresses, Address{Device: w.Interface, Prefix: l.Address, Protocol: Protocol})
		}
		if w.Autoconf() {
			for _, a := range in.Advertised[w.Interface].Addresses {
				s.Addresses = append(s.Addresses, Address{Device: w.Interface, Prefix: a, Protocol: Protocol})
			}
		}
	}
	for _, l := range in.LANs {
		add(Link{Name: l.Interface})
		if l.VLAN != 0 {
			add(Link{Name: l.Device(), Parent: l.Interface, VLAN: l.VLAN, Own: true})
		}
		for _, a := range slices.Concat(l.Addresses, l.Delegated) {
			s.Addresses = append(s.Addresses, Address{Device: l.Device(), Prefix: a, Protocol: Protocol})
		}
	}
	// This is the only owner of a tunnel device's MTU, queue length and GSO size. Engines make the device and
	// leave it as the kernel made it: the state of links is compared with what is observed, so it is printed
	// by a plan, set before the device is up and repaired after a change by hand, for every engine alike.
	for _, t := range in.Tunnels {
		add(Link{Name: t.Name, MTU: t.MTU, TxQueueLen: t.TxQueueLen, GSOMax: t.GSOMax})
	}
}

func (s *State) private(in Input) {
	for _, w := range in.WANs {
		s.WANs = append(s.WANs, w.Interface)
	}
	for _, l := range in.LANs {
		s.Private = append(s.Private, l.Networks()...)
	}
	for _, site := range in.Sites {
		for _, p := range site.Prefixes {
			s.Private = append(s.Private, p.Masked())
		}
	}
}

// mainFence ends networks in table main, which alone decides where neither rules nor the firewall are left: a site's
// is reached through the other tables or not at all, and one of ours is not reached elsewhere while its LAN is down.
func (s *State) mainFence(in Input) {
	for _, l := range in.LANs {
		for _, n := range l.Networks() {
			s.Routes = append(s.Routes, Route{
				Table: TableMain, Type: Unreachable, Prefix: n, Metric: metricOwn, Protocol: Protocol,
			})
		}
	}
	for _, p := range delegated(in) { // what no LAN has of a prefix would go back to the provider (RFC 7084, WPD-5)
		s.Routes = append(s.Routes, Route{
			Table: TableMain, Type: Unreachable, Prefix: p, Metric: metricOwn, Protocol: Protocol,
		})
	}
	for _, site := range in.Sites {
		for _, p := range site.Prefixes {
			s.Routes = append(s.Routes, Route{
				Table: TableMain, Type: Unreachable, Prefix: p.Masked(), Metric: metricSites, Protocol: Protocol,
			})
		}
	}
}

// delegated are all prefixes of all WANs.
func delegated(in Input) (all []netip.Prefix) {
	for _, w := range in.WANs {
		for _, d := range in.Delegated[w.Interface] {
			all = append(all, d.Prefix.Masked())
		}
	}
	return all
}

// uplink is how a WAN leads out, by its config and its lease.
type uplink struct {
	device    string
	addresses []netip.Prefix
	gateways  []netip.Addr // at most one per family
	lockedMTU int          // of IPv4 routes, in bytes; 0: they have none
}

// uplinks are the WANs of the input, in its order.
func uplinks(in Input) (all []uplink) {
	for _, w := range in.WANs {
		u := uplink{device: w.Interface, addresses: slices.Clone(w.Addresses), lockedMTU: in.LockedMTUs[w.Interface]}
		gateways := slices.Clone(w.Gateways)
		if l, ok := in.Leases[w.Interface]; ok && w.Leased() {
			gateways = append(gateways, l.Gateways...)
			if l.Address.IsValid() {
				u.addresses = append(u.addresses, l.Address)
			}
		}
		if a := in.Advertised[w.Interface]; w.Autoconf() {
			u.addresses = append(u.addresses, a.Addresses...)
			if a.Gateway.IsValid() {
				gateways = append(gateways, a.Gateway)
			}
		}
		for _, g := range gateways { // a static gateway takes precedence over the lease's
			if _, have := u.gateway(g); !have {
				u.gateways = append(u.gateways, g)
			}
		}
		all = append(all, u)
	}
	return all
}

// gateway is the one of the family of a.
func (u uplink) gateway(a netip.Addr) (g netip.Addr, ok bool) {
	i := slices.IndexFunc(u.gateways, func(g netip.Addr) bool { return g.Is4() == a.Is4() })
	if i < 0 {
		return g, false
	}
	return u.gateways[i], true
}

// defaultRoute leads everything to a gateway, or into a device that has one other end only.
func (u uplink) defaultRoute(table uint32, g netip.Addr, metric int) Route {
	r := Route{
		Table: table, Type: Unicast, Prefix: everywhere(g), Device: u.device, Metric: uint32(metric), Protocol: Protocol,
	}
	if !g.IsUnspecified() {
		r.Gateway, r.OnLink = g.WithZone(""), !g.IsLinkLocalUnicast() && !inAny(g, u.addresses)
	}
	if g.Is4() { // the kernel has no lock for IPv6
		r.MTU, r.MTULock = u.lockedMTU, u.lockedMTU > 0
	}
	return r
}

// mainRoutes adds a default route for each WAN and family; the first WAN's is preferred.
func (s *State) mainRoutes(in Input) {
	for i, u := range uplinks(in) {
		for _, g := range u.gateways {
			metric := metricDefault * (i + 1)
			if slices.Contains(in.Silent, u.device) {
				metric += metricSilent
			}
			if slices.Contains(in.Metered, u.device) {
				metric += metricMetered
			}
			s.Routes = append(s.Routes, u.defaultRoute(TableMain, g, metric))
		}
	}
}

// sourceTables has what this machine sends from an address of a WAN leave by that WAN, whatever the default route is:
// a provider drops the addresses of others (BCP 38), and the far end expects its answer from where it called. Each WAN
// has a table of its networks and its gateways. With one WAN there is nothing to choose.
//
// Ciphertext is looked for before PriorityOuter, and everything else behind the guard: a rule for an address alone that
// came before would lead what is meant for a site out of the WAN.
//
// A table ends in a blackhole. Without a carrier the routes through the device do not count
// (ignore_routes_with_linkdown), the sender has EINVAL, and lets the kernel choose another address; if the look-up went
// on in main, the packet would leave by another WAN with an address that is not of it.
func (s *State) sourceTables(in Input) {
	if len(in.WANs) < 2 {
		return
	}
	add := func(r Route) {
		r.Protocol = Protocol
		s.Routes = append(s.Routes, r)
	}
	tables := wanTables(in)
	for _, u := range uplinks(in) {
		table := tables[u.device]
		for _, g := range u.gateways {
			add(u.defaultRoute(table, g, metricDefault))
			add(Route{Table: table, Type: Blackhole, Prefix: everywhere(g), Metric: metricLast})
		}
		if prefixes := in.Delegated[u.device]; len(prefixes) > 0 {
			// What the LANs send from this WAN's prefix leaves by it or not at all: another provider drops it.
			add(Route{Table: table, Type: Blackhole, Prefix: everywhere(netip.IPv6Unspecified()), Metric: metricLast})
			for _, d := range prefixes {
				s.Rules = append(s.Rules, Rule{
					Family: 6, Priority: PriorityAnswer, Network: d.Prefix.Masked(), Table: table, Protocol: Protocol,
				})
			}
			for _, p := range delegated(in) {
				add(Route{Table: table, Type: Throw, Prefix: p, Metric: metricOf(p)})
			}
		}
		s.throws(in, u, table)
		for _, a := range u.addresses {
			if _, ok := u.gateway(a.Addr()); !ok {
				continue // nothing is known of how it leads out
			}
			if n := a.Masked(); !n.IsSingleIP() {
				add(Route{Table: table, Type: Unicast, Prefix: n, Device: u.device, Metric: metricOf(n)})
			}
			s.sourceRules(in.Marks, a.Addr(), table)
		}
	}
}

// throws has what a table of u would lead to our own LANs go on in main.
func (s *State) throws(in Input, u uplink, table uint32) {
	for _, l := range in.LANs {
		for _, n := range l.Networks() {
			_, ok := u.gateway(n.Addr())
			if ok || n.Addr().Is6() && len(in.Delegated[u.device]) > 0 {
				s.Routes = append(s.Routes, Route{
					Table: table, Type: Throw, Prefix: n, Metric: metricOf(n), Protocol: Protocol,
				})
			}
		}
	}
}

// lineTables has connections go on by the WAN by which they began, known by the mark that the firewall gives them: they
// have an address of that WAN, or their far end expects it. The rules come behind the guard, as those for addresses do.
// The tables have no end: what a line without a carrier cannot take goes on in main, by another line, where NAT sees
// that and begins again. A silent line has no rule, so that its connections go on by another one, too.
func (s *State) lineTables(in Input) {
	if len(in.WANs) < 2 {
		return
	}
	tables := wanTables(in)
	for _, u := range uplinks(in) {
		mark, marked := in.Marks.Lines[u.device]
		if !marked || slices.Contains(in.Silent, u.device) {
			continue
		}
		table := tables[u.device] - TableWAN + TableLine
		for _, g := range u.gateways {
			s.Routes = append(s.Routes, u.defaultRoute(table, g, metricDefault))
			family := 4
			if g.Is6() {
				family = 6
			}
			s.Rules = append(s.Rules, Rule{
				Family: family, Priority: PriorityLine, Mark: mark, Mask: in.Marks.LineMask, Table: table, Protocol: Protocol,
			})
		}
		for _, a := range u.addresses {
			if _, ok := u.gateway(a.Addr()); ok && !a.IsSingleIP() {
				n := a.Masked()
				s.Routes = append(s.Routes, Route{
					Table: table, Type: Unicast, Prefix: n, Device: u.device, Metric: metricOf(n), Protocol: Protocol,
				})
			}
		}
		s.throws(in, u, table)
	}
}

// LineNumbers numbers WANs, from 1 to limit, by the names of their interfaces: where WANs are added, removed or
// reordered, the connections of the others keep their marks.
func LineNumbers(names []string, limit int) map[string]int {
	numbers := map[string]int{}
	for name, slot := range slots(names, uint32(limit)) {
		numbers[name] = int(slot) + 1
	}
	return numbers
}

// wanTables chooses the table of each WAN by the name of its interface: where WANs are added, removed or reordered, the
// others keep theirs, so that no rule leads to the table of another WAN for a moment.
func wanTables(in Input) map[string]uint32 {
	var names []string
	for _, w := range in.WANs {
		names = append(names, w.Interface)
	}
	tables := slots(names, TablesOfWANs)
	for name := range tables {
		tables[name] += TableWAN
	}
	return tables
}

// slots gives each name one of the numbers from 0 to below limit, of which there are enough, by its hash.
func slots(names []string, limit uint32) map[string]uint32 {
	names = slices.Sorted(slices.Values(names))
	numbers, taken := map[string]uint32{}, map[uint32]bool{}
	for _, name := range names {
		h := fnv.New32a()
		_, _ = h.Write([]byte(name))
		n := h.Sum32() % limit
		for taken[n] {
			n = (n + 1) % limit
		}
		taken[n] = true
		numbers[name] = n
	}
	return numbers
}

func (s *State) sourceRules(m Marks, from netip.Addr, table uint32) {
	r := Rule{Family: 4, Source: from, Table: table, Protocol: Protocol}
	if from.Is6() {
		r.Family = 6
	}
	for _, v := range m.OuterValues {
		r.Priority, r.Mark, r.Mask = PrioritySource, v, m.OuterMask
		s.Rules = append(s.Rules, r)
	}
	r.Priority, r.Mark, r.Mask = PriorityAnswer, 0, 0
	s.Rules = append(s.Rules, r)
}

// classTables adds the tables for packets with and without a class:
//
//	voice, data: own networks continue in main (throw; otherwise the reverse path look-up with the mark of a packet
//	             that leaves would find no route back to the LAN), sites are behind the class's device, everything
//	             else is unreachable
//	own:         sites are behind the data device: what this machine sends has no mark before the first look-up, and
//	             a connect() without a route fails before the firewall could set one
//	guard:       sites are unreachable: a packet that gets here has lost its mark, and must not leave in clear
func (s *State) classTables(in Input) {
	add := func(r Route) {
		r.Protocol = Protocol
		r.Metric = metricOf(r.Prefix)
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

	noIPv6 := map[string]bool{}
	for _, t := range in.Tunnels {
		noIPv6[t.Name] = t.MTU > 0 && t.MTU < minMTUIPv6
	}
	for _, site := range in.Sites {
		for _, p := range site.Prefixes {
			p = p.Masked()
			add(Route{Table: TableGuard, Type: Unreachable, Prefix: p})

			through := func(device string, r Route, source []netip.Addr) {
				if device == "" || p.Addr().Is6() && noIPv6[device] {
					return // the table's unreachable default applies
				}
				r.Type, r.Prefix, r.Device, r.Source = Unicast, p, device, sameFamily(p, source)
				add(r)
			}
			data := cmp.Or(site.DataMTU, site.MTU)
			through(site.VoiceDevice, Route{Table: TableVoice, MTU: site.MTU}, in.VoiceSource)
			through(site.DataDevice, Route{Table: TableData, MTU: data}, in.DataSource)
			through(site.DataDevice, Route{Table: TableOwn, MTU: data}, in.DataSource)
		}
	}
}

func (s *State) rules(m Marks) {
	for _, family := range []int{4, 6} {
		add := func(priority int, table uint32, mark, mask uint32, input string) {
			s.Rules = append(s.Rules, Rule{
				Family: family, Priority: priority, Mark: mark, Mask: mask, Input: input, Table: table, Protocol: Protocol,
			})
		}
		for _, v := range m.OuterValues { // a rule cannot match "not zero", so there is one for each value
			add(PriorityOuter, TableMain, v, m.OuterMask, "")
		}
		for _, v := range m.VoiceValues {
			add(PriorityVoice, TableVoice, v, m.ClassMask, "")
		}
		for _, v := range m.DataValues {
			add(PriorityData, TableData, v, m.ClassMask, "")
		}
		add(PriorityOwn, TableOwn, 0, 0, "lo") // iif lo: sent by this machine
		add(PriorityGuard, TableGuard, 0, 0, "")
	}
}

// relayed delivers the packets that the firewall marks for a relay to this machine, whatever address they have.
//
// Each rule names a device. A rule for the mark alone would also match the reverse path look-up, which carries the
// mark of the packet (src_valid_mark): it would find that the source is this machine itself, and the packet would
// vanish as a martian, without any counter. In that look-up the input device is lo.
func (s *State) relayed(in Input) {
	m := in.Marks
	if m.RelayedMask == 0 {
		return
	}
	devices := map[string]bool{}
	for _, w := range in.WANs {
		devices[w.Interface] = true
	}
	for _, l := range in.LANs {
		devices[l.Device()] = true
	}
	for _, t := range in.Tunnels {
		devices[t.Name] = true
	}
	for _, family := range []int{4, 6} {
		for device := range devices {
			s.Rules = append(s.Rules, Rule{
				Family: family, Priority: PriorityRelayed, Mark: m.Relayed, Mask: m.RelayedMask, Input: device,
				Table: TableRelayed, Protocol: Protocol,
			})
		}
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		all := netip.PrefixFrom(a, 0)
		s.Routes = append(s.Routes, Route{
			Table: TableRelayed, Type: Local, Prefix: all, Metric: metricOf(all), Protocol: Protocol,
		})
	}
}

// Keys of sysctls of the whole machine.
const (
	keyForward4      = "net/ipv4/ip_forward"
	keyForward6      = "net/ipv6/conf/all/forwarding"
	keyAllRedirects4 = "net/ipv4/conf/all/accept_redirects"
	nameSecondaries  = "promote_secondaries"
)

func (s *State) set(key string, value int) {
	s.Sysctls = append(s.Sysctls, Sysctl{Key: key, Value: value})
}

func (s *State) setOptional(key string, value int) {
	s.Sysctls = append(s.Sysctls, Sysctl{Key: key, Value: value, Optional: true})
}

// sysctls adds those of the machine and of its devices. How "all" and a device's own value combine differs
// from key to key (include/linux/inetdevice.h): rp_filter is the larger of the two; src_valid_mark,
// send_redirects and promote_secondaries are one OR the other; accept_redirects (on a router) and
// accept_source_route one AND the other. "default" is not touched.
func (s *State) sysctls(in Input) {
	s.machineSysctls(in)

	seen := map[string]bool{}
	device := func(name string, rpFilter int) {
		if !seen[name] {
			seen[name] = true
			s.deviceSysctls(name, rpFilter)
		}
	}
	wan := strict
	if len(in.WANs) > 1 {
		wan = loose // an answer may come in on another WAN than the preferred route back
	}
	for _, w := range in.WANs {
		device(w.Interface, wan)
		if len(in.WANs) > 1 { // without it the default route of a WAN stays chosen when its cable is out
			s.set("net/ipv4/conf/"+w.Interface+"/ignore_routes_with_linkdown", 1)
			s.setOptional("net/ipv6/conf/"+w.Interface+"/ignore_routes_with_linkdown", 1)
		}
		// The kernel would answer ARP for every address of the box, the LANs' too, and ask from any of them.
		s.set("net/ipv4/conf/"+w.Interface+"/arp_ignore", answerOwn)
		s.set("net/ipv4/conf/"+w.Interface+"/arp_announce", askFromOwn)
		// Advertisements are an untrusted network's. The kernel would set every route that they name, so package
		// advert takes them, where the WAN wants any.
		s.setOptional("net/ipv6/conf/"+w.Interface+"/accept_ra", 0)
	}
	for _, name := range in.cards() {
		s.setOptional("net/ipv6/conf/"+name+"/accept_ra", 0)
	}
	for _, l := range in.LANs {
		device(l.Device(), strict)
	}
	for _, name := range in.Parents { // the firewall does not see ARP
		s.set("net/ipv4/conf/"+name+"/arp_ignore", answerNone)
	}
	for _, t := range in.Tunnels {
		// Strict works because the firewall marks what comes out of a tunnel with a class of that tunnel
		// before the look-up: the route back is then through the same device.
		device(t.Name, strict)
	}
}

func (s *State) machineSysctls(in Input) {
	s.set(keyForward4, 1)
	s.setOptional(keyForward6, 1)
	// The kernel writes this one whenever ip_forward changes, so it is kept, and restored at a stop.
	s.set(keyAllRedirects4, 0)
	s.set("net/ipv4/conf/all/send_redirects", 0)
	// 2 (systemd's default) would make every strict device loose. 0 leaves each device its own value; 1 does
	// no harm.
	s.Sysctls = append(s.Sysctls, Sysctl{Key: "net/ipv4/conf/all/rp_filter", Value: 0, UpTo: strict})
	s.setOptional("net/netfilter/nf_conntrack_helper", 0) // the kernel's SIP helper would rewrite what the relay reads

	if in.SoftirqBudget > 0 {
		s.setOptional("net/core/netdev_budget", in.SoftirqBudget)
	}
}

func (s *State) deviceSysctls(name string, rpFilter int) {
	v4, v6 := "net/ipv4/conf/"+name+"/", "net/ipv6/conf/"+name+"/"
	s.set(v4+"rp_filter", rpFilter)
	// Without it the reverse path look-up ignores the mark and ends in table guard, and the kernel drops
	// every packet that comes out of a tunnel.
	s.set(v4+"src_valid_mark", 1)
	s.set(v4+"accept_redirects", 0)
	s.set(v4+"send_redirects", 0)
	s.set(v4+"accept_source_route", 0)
	s.set(v4+nameSecondaries, 1) // otherwise the removal of an address removes the others of its network
	s.setOptional(v6+"accept_redirects", 0)
	s.setOptional(v6+"accept_source_route", 0)
}

// metricOf is the metric of a route that is not compared with others.
func metricOf(p netip.Prefix) uint32 {
	if p.Addr().Is6() {
		return metricIPv6
	}
	return 0
}

// everywhere is the prefix of a default route.
func everywhere(a netip.Addr) netip.Prefix {
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
