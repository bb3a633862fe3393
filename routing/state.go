package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Numbers by which Ringway's own routes, rules and addresses are recognised in the kernel.
const (
	Protocol = 82 // of routes, of rules and (Linux 5.18 and newer) of addresses

	TableMain    = 254
	TableVoice   = 5271 // packets marked media or signalling
	TableData    = 5272 // packets marked data or background
	TableGuard   = 5273 // packets without a mark: a site's prefix is unreachable
	TableOwn     = 5274 // packets of this machine before they have a mark
	TableRelayed = 5275 // packets for a relay on this machine, whatever address they have
	TableWAN     = 5281 // the first table of packets from an address of a WAN
	TablesOfWANs = 64   // how many there are
	TableLine    = 5345 // the first table of connections that began on a WAN; as many
	MaxWANs      = 8

	PriorityFirst   = 5190 // Ringway's rules have priorities from here …
	PriorityRelayed = 5190
	PrioritySource  = 5195 // ciphertext from a WAN's address
	PriorityOuter   = 5200
	PriorityVoice   = 5210
	PriorityData    = 5220
	PriorityOwn     = 5225
	PriorityGuard   = 5230
	PriorityLine    = 5235 // connections that began on a WAN
	PriorityAnswer  = 5240 // what this machine itself sends from a WAN's address
	PriorityLast    = 5240 // … to here

	// LinkAlias marks the VLAN devices that Ringway made: only those are ever deleted.
	LinkAlias = "ringway"
)

// OwnTable reports whether a whole route table is Ringway's.
func OwnTable(t uint32) bool { return t >= TableVoice && t <= TableRelayed || isTableOfWAN(t) }

func isTableOfWAN(t uint32) bool { return t >= TableWAN && t < TableLine+TablesOfWANs }

// RouteType is what a route does.
type RouteType string

// The types that Ringway uses, as ip-route(8) calls them.
const (
	Unicast     RouteType = "unicast"
	Throw       RouteType = "throw"       // go on with the next rule
	Unreachable RouteType = "unreachable" // answer with ICMP, send nothing
	Blackhole   RouteType = "blackhole"   // send nothing; who sends from this machine gets EINVAL
	Local       RouteType = "local"       // to this machine itself; its device is lo, and Route.Device empty
)

// State is the part of a machine's network that routing is responsible for, wanted or observed. The journal
// holds it as JSON. All lists are in canonical order (Sort).
type State struct {
	NoIPv6    bool      `json:"no_ipv6,omitempty"` // observed only: the kernel has no IPv6
	Links     []Link    `json:"links,omitempty"`   // what is not listed does not exist or does not matter
	Addresses []Address `json:"addresses,omitempty"`
	Routes    []Route   `json:"routes,omitempty"`
	Rules     []Rule    `json:"rules,omitempty"`
	Sysctls   []Sysctl  `json:"sysctls,omitempty"`

	// WANs are devices on which the kernel itself may have taken advertisements, and Private the networks that none of
	// them may be about. Wanted only.
	WANs    []string       `json:"wans,omitempty"`
	Private []netip.Prefix `json:"private,omitempty"`

	Endpoints []netip.Addr `json:"-"` // wanted only: where the tunnels' packets go
	Others    Others       `json:"-"` // observed only
}

// Values of the protocol of routes and addresses that the kernel makes of router advertisements (rtnetlink(7),
// linux/if_addr.h).
const (
	protocolKernel   = 2 // RTPROT_KERNEL: of a prefix on the link
	protocolRA       = 9 // RTPROT_RA
	protocolKernelRA = 2 // IFAPROT_KERNEL_RA: of an address
)

// IntrudingRoute reports whether the kernel made h of an advertisement about a private network: at boot it took
// advertisements until the first start.
func (s State) IntrudingRoute(h Route) bool {
	advertised := h.Protocol == protocolRA || h.Protocol == protocolKernel
	return advertised && h.Table == TableMain && h.Type == Unicast && s.overlapsPrivate(h.Device, h.Prefix)
}

// IntrudingAddress is the same of an address. Before Linux 5.18 it is not seen; its route is.
func (s State) IntrudingAddress(h Address) bool {
	return h.Protocol == protocolKernelRA && s.overlapsPrivate(h.Device, h.Prefix.Masked())
}

func (s State) overlapsPrivate(device string, p netip.Prefix) bool {
	if !p.Addr().Is6() || p.Bits() == 0 || !slices.Contains(s.WANs, device) {
		return false
	}
	return slices.ContainsFunc(s.Private, p.Overlaps)
}

// Link is a network device.
type Link struct {
	Name       string `json:"name"`
	Parent     string `json:"parent,omitempty"` // of a VLAN device
	VLAN       uint16 `json:"vlan,omitempty"`   // 0: not a VLAN device
	Own        bool   `json:"own,omitempty"`    // made by Ringway
	Up         bool   `json:"up"`
	MTU        int    `json:"mtu,omitempty"`        // bytes; 0: left as it is
	TxQueueLen int    `json:"txqueuelen,omitempty"` // packets; 0: left as it is
	GSOMax     int    `json:"gso_max,omitempty"`    // largest super-packet in bytes; 0: left as it is
	// EgressMap is the priority in the tag of a VLAN device (802.1p, 1-7; 0 where nothing is listed) by skb->priority,
	// as "0:6 65552:5": pairs in decimal, by rising skb->priority. Of a Set: the pairs that change.
	EgressMap string `json:"egress_map,omitempty"`
	// Dialed says that another process makes the device and sets it up and down, as pppd does: it may be missing.
	Dialed bool `json:"dialed,omitempty"`
}

// Address is an address on a device. Only those with Protocol 82 are added or removed; observed ones of
// others stay.
type Address struct {
	Device   string       `json:"device"`
	Prefix   netip.Prefix `json:"prefix"` // with the prefix length of its network
	Protocol uint8        `json:"protocol,omitempty"`
}

// Route is one route. An IPv6 route always has a metric: the kernel's default is 1024.
type Route struct {
	Table    uint32       `json:"table"`
	Type     RouteType    `json:"type"`
	Prefix   netip.Prefix `json:"prefix"`
	Device   string       `json:"device,omitempty"` // of a unicast route
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	OnLink   bool         `json:"on_link,omitempty"` // the gateway is not in a network of the device
	Source   netip.Addr   `json:"source,omitzero"`   // preferred source of what this machine sends
	Metric   uint32       `json:"metric,omitempty"`
	MTU      int          `json:"mtu,omitempty"`      // bytes; 0: that of the device
	MTULock  bool         `json:"mtu_lock,omitempty"` // ICMP about the path's MTU is not believed; IPv4 only
	Protocol uint8        `json:"protocol,omitempty"`
}

// Rule is one rule of the routing policy.
type Rule struct {
	Family   int    `json:"family"` // 4 or 6
	Priority int    `json:"priority"`
	Mark     uint32 `json:"mark,omitempty"`
	Mask     uint32 `json:"mask,omitempty"` // 0: any mark
	Input    string `json:"input,omitempty"`
	// Source is the address that a packet comes from; zero: any.
	Source netip.Addr `json:"source,omitzero"`
	// Network is one that a packet comes from; zero: any.
	Network  netip.Prefix `json:"network,omitzero"`
	Table    uint32       `json:"table"`
	Protocol uint8        `json:"protocol,omitempty"`
	More     bool         `json:"more,omitempty"` // of others only: it has selectors that the fields here cannot hold
}

// sameAs reports whether h is r, whoever made it: the kernel refuses a second one.
func (r Rule) sameAs(h Rule) bool {
	h.Protocol = r.Protocol
	return r == h
}

// Sysctl is one value under /proc/sys.
type Sysctl struct {
	Key      string `json:"key"` // path below /proc/sys; device names may have dots
	Value    int    `json:"value"`
	UpTo     int    `json:"up_to,omitempty"`    // wanted only: every value from Value to UpTo will do
	Optional bool   `json:"optional,omitempty"` // wanted only: some kernels do not have it
}

// accepts reports whether the observed value v will do.
func (s Sysctl) accepts(v int) bool { return v == s.Value || (v >= s.Value && v <= s.UpTo) }

// Notified reports whether the kernel tells of every change of the value (RTM_NEWNETCONF).
func (s Sysctl) Notified() bool {
	return isForwarding(s.Key) || strings.HasPrefix(s.Key, "net/ipv4/conf/") && strings.HasSuffix(s.Key, "/rp_filter")
}

// Unmet lists the wanted values that others have replaced. What is not observed is not there.
func Unmet(want, have []Sysctl) (out []Sysctl) {
	for _, w := range want {
		i := slices.IndexFunc(have, func(h Sysctl) bool { return h.Key == w.Key })
		if i >= 0 && !w.accepts(have[i].Value) {
			out = append(out, w)
		}
	}
	return out
}

// Sort brings the state into its canonical order.
func (s *State) Sort() {
	slices.SortFunc(s.Links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Addresses, func(a, b Address) int {
		return cmp.Or(strings.Compare(a.Device, b.Device), comparePrefix(a.Prefix, b.Prefix))
	})
	slices.SortFunc(s.Routes, compareRoutes)
	slices.SortFunc(s.Rules, compareRules)
	slices.SortFunc(s.Sysctls, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })

	s.Links = slices.Compact(s.Links)
	s.Addresses = slices.Compact(s.Addresses)
	s.Routes = slices.Compact(s.Routes)
	s.Rules = slices.Compact(s.Rules)
	s.Sysctls = slices.Compact(s.Sysctls)
}

// Foreign is the state without everything that is Ringway's: what the first start, which may find the
// leftovers of a crash, records as the state to restore at a stop.
func (s State) Foreign() State {
	out := State{NoIPv6: s.NoIPv6, Sysctls: slices.Clone(s.Sysctls)}
	own := map[string]bool{}
	for _, l := range s.Links {
		own[l.Name] = l.Own
		if !l.Own {
			out.Links = append(out.Links, l)
		}
	}
	for _, a := range s.Addresses {
		if a.Protocol != Protocol && !own[a.Device] {
			out.Addresses = append(out.Addresses, a)
		}
	}
	for _, r := range s.Routes {
		if r.Protocol != Protocol {
			out.Routes = append(out.Routes, r)
		}
	}
	for _, r := range s.Rules {
		if r.Protocol != Protocol {
			out.Rules = append(out.Rules, r)
		}
	}
	out.Sysctls = slices.DeleteFunc(out.Sysctls, func(c Sysctl) bool { return own[sysctlDevice(c.Key)] })
	return out
}

// Extend adds to a recorded state what a later config touches for the first time: links and sysctls that s
// does not have yet, as observed now, and the addresses on them.
func (s State) Extend(now State) State {
	now = now.Foreign()
	links, keys := map[string]bool{}, map[string]bool{}
	for _, l := range s.Links {
		links[l.Name] = true
	}
	for _, c := range s.Sysctls {
		keys[c.Key] = true
	}

	out := State{
		NoIPv6: s.NoIPv6,
		Links:  slices.Clone(s.Links), Addresses: slices.Clone(s.Addresses),
		Routes: slices.Clone(s.Routes), Rules: slices.Clone(s.Rules), Sysctls: slices.Clone(s.Sysctls),
	}
	for _, l := range now.Links {
		if !links[l.Name] {
			out.Links = append(out.Links, l)
		}
	}
	for _, a := range now.Addresses {
		if !links[a.Device] {
			out.Addresses = append(out.Addresses, a)
		}
	}
	for _, c := range now.Sysctls {
		if !keys[c.Key] {
			out.Sysctls = append(out.Sysctls, c)
		}
	}
	out.Sort()
	return out
}

// WithRestored is s and, as they were before, the sysctls of the whole machine that last wanted and s does
// not.
func (s State) WithRestored(last, before State) State {
	wanted := func(list []Sysctl, key string) bool {
		return slices.ContainsFunc(list, func(c Sysctl) bool { return c.Key == key })
	}
	sysctls := slices.Clone(s.Sysctls)
	for _, c := range before.Sysctls {
		if sysctlDevice(c.Key) == "" && wanted(last.Sysctls, c.Key) && !wanted(s.Sysctls, c.Key) {
			sysctls = append(sysctls, c)
		}
	}
	slices.SortFunc(sysctls, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	s.Sysctls = sysctls
	return s
}

// Scope joins wanted states: what has to be observed when one config follows another. The first state that
// has a link or sysctl decides.
func Scope(wants ...State) State {
	var out State
	for _, w := range wants {
		for _, l := range w.Links {
			if findLink(out.Links, l.Name) == nil {
				out.Links = append(out.Links, l)
			}
		}
		for _, c := range w.Sysctls {
			if !slices.ContainsFunc(out.Sysctls, func(o Sysctl) bool { return o.Key == c.Key }) {
				out.Sysctls = append(out.Sysctls, c)
			}
		}
		out.Addresses = append(out.Addresses, w.Addresses...)
		out.Routes = append(out.Routes, w.Routes...)
		out.Rules = append(out.Rules, w.Rules...)
		out.Endpoints = append(out.Endpoints, w.Endpoints...)
	}
	if len(wants) > 0 {
		out.WANs, out.Private = wants[0].WANs, wants[0].Private
	}
	out.Sort()
	return out
}

// Missing lists what the wanted state needs, the observed one does not have and Diff cannot make: a network
// card that is not there, a tunnel device that is gone, a VLAN whose name another device has.
func Missing(want, have State) []string {
	usable := usableLinks(want, have)
	var out []string
	for _, l := range want.Links {
		switch {
		case usable[l.Name], l.Dialed:
		case findLink(have.Links, l.Name) != nil:
			out = append(out, fmt.Sprintf("%s: exists, but is not VLAN %d of %s", l.Name, l.VLAN, l.Parent))
		case l.VLAN != 0:
			out = append(out, fmt.Sprintf("%s: its network device %s does not exist", l.Name, l.Parent))
		default:
			out = append(out, fmt.Sprintf("%s: no such network device", l.Name))
		}
	}
	return out
}

// Conflicts lists the routes and rules of others in places that the wanted state needs. Diff leaves them as
// they are.
func Conflicts(want, have State) []string {
	var out []string
	for _, r := range want.Routes {
		h := foreignIn(have.Routes, r)
		if h != nil && (h.Gateway != r.Gateway || h.Device != r.Device) {
			out = append(out, fmt.Sprintf("another program's route is in the place of %q: %q", r.text(Add), h.text(Add)))
		}
	}
	for _, h := range have.Rules {
		wanted := slices.ContainsFunc(want.Rules, func(r Rule) bool { return r.sameAs(h) })
		if h.Protocol != Protocol && !wanted {
			out = append(out, fmt.Sprintf("another program's rule is among Ringway's (priorities %d to %d): %q",
				PriorityFirst, PriorityLast, h.text(Add)))
		}
	}
	return out
}

func compareRoutes(a, b Route) int {
	return cmp.Or(
		cmp.Compare(a.Table, b.Table), comparePrefix(a.Prefix, b.Prefix), cmp.Compare(a.Metric, b.Metric),
		cmp.Compare(a.Type, b.Type), cmp.Compare(a.Device, b.Device),
		a.Gateway.Compare(b.Gateway), a.Source.Compare(b.Source), cmp.Compare(a.MTU, b.MTU),
		cmp.Compare(lockOrder(a), lockOrder(b)))
}

func lockOrder(r Route) int {
	if r.MTULock {
		return 1
	}
	return 0
}

func compareRules(a, b Rule) int {
	return cmp.Or(
		cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Mark, b.Mark), cmp.Compare(a.Mask, b.Mask),
		cmp.Compare(a.Input, b.Input), a.Source.Compare(b.Source), comparePrefix(a.Network, b.Network),
		cmp.Compare(a.Table, b.Table))
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(
		cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// sysctlDevice is the network device that a key belongs to; empty: it is not a device's.
func sysctlDevice(key string) string {
	p := strings.Split(key, "/")
	if len(p) == 5 && p[0] == "net" && p[2] == "conf" && p[3] != "all" && p[3] != "default" {
		return p[3]
	}
	return ""
}
