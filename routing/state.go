package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Numbers by which Ringway's own routes, rules and addresses are known in the kernel.
const (
	Protocol = 82 // of routes, of rules and (Linux 5.18 and newer) of addresses

	TableMain  = 254
	TableVoice = 5271 // packets marked media or signalling
	TableData  = 5272 // packets marked data or background
	TableGuard = 5273 // packets without a mark: a site's prefix is unreachable
	TableOwn   = 5274 // packets of the box itself before they have a mark

	PriorityFirst = 5200 // rules of ours have priorities from here …
	PriorityOuter = 5200
	PriorityVoice = 5210
	PriorityData  = 5220
	PriorityOwn   = 5225
	PriorityGuard = 5230
	PriorityLast  = 5230 // … to here

	// LinkAlias marks the VLAN devices that Ringway made, so that they alone are ever deleted.
	LinkAlias = "ringway"
)

// OwnTable says whether a route table belongs to Ringway whole.
func OwnTable(t uint32) bool { return t >= TableVoice && t <= TableOwn }

// RouteType is what a route does.
type RouteType string

// The types that Ringway uses, in ip-route(8)'s words.
const (
	Unicast     RouteType = "unicast"
	Throw       RouteType = "throw"       // go on with the next rule
	Unreachable RouteType = "unreachable" // answer with ICMP, send nothing
)

// State is the part of a box's network that routing is responsible for, wanted or observed.
// It survives a round trip through JSON. All lists are in canonical order (Sort).
type State struct {
	NoIPv6    bool      `json:"no_ipv6,omitempty"` // observed only: this kernel runs without IPv6
	Links     []Link    `json:"links,omitempty"`   // a link that is not listed does not exist, or is nobody's business
	Addresses []Address `json:"addresses,omitempty"`
	Routes    []Route   `json:"routes,omitempty"`
	Rules     []Rule    `json:"rules,omitempty"`
	Sysctls   []Sysctl  `json:"sysctls,omitempty"`
}

// Link is a network device.
type Link struct {
	Name       string `json:"name"`
	Parent     string `json:"parent,omitempty"` // of a VLAN device
	VLAN       uint16 `json:"vlan,omitempty"`   // 0: no VLAN device
	Own        bool   `json:"own,omitempty"`    // Ringway makes or made it
	Up         bool   `json:"up"`
	MTU        int    `json:"mtu,omitempty"`        // bytes; 0: left as it is
	TxQueueLen int    `json:"txqueuelen,omitempty"` // packets; 0: left as it is
	GSOMax     int    `json:"gso_max,omitempty"`    // largest super-packet in bytes; 0: left as it is
}

// Address is an address on a device. Only those with Protocol 82 are added or removed; the
// others are listed because they are there, and stay.
type Address struct {
	Device   string       `json:"device"`
	Prefix   netip.Prefix `json:"prefix"` // the box's own address with its network's length
	Protocol uint8        `json:"protocol,omitempty"`
}

// Route is one route. IPv6 routes always have a metric: the kernel gives 1024 where none is set.
type Route struct {
	Table    uint32       `json:"table"`
	Type     RouteType    `json:"type"`
	Prefix   netip.Prefix `json:"prefix"`
	Device   string       `json:"device,omitempty"` // empty but for unicast
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	OnLink   bool         `json:"on_link,omitempty"` // the gateway is in none of the device's networks
	Source   netip.Addr   `json:"source,omitzero"`   // preferred source of what the box itself sends
	Metric   uint32       `json:"metric,omitempty"`
	MTU      int          `json:"mtu,omitempty"` // longest packet, bytes; 0: the device's
	Protocol uint8        `json:"protocol,omitempty"`
}

// Rule is one rule of the routing policy.
type Rule struct {
	Family   int    `json:"family"` // 4 or 6
	Priority int    `json:"priority"`
	Mark     uint32 `json:"mark,omitempty"`
	Mask     uint32 `json:"mask,omitempty"` // 0: any mark
	Input    string `json:"input,omitempty"`
	Table    uint32 `json:"table"`
	Protocol uint8  `json:"protocol,omitempty"`
	More     bool   `json:"more,omitempty"` // somebody else's, which asks for more than the fields here can say
}

// does is whether h is r, whoever made it: the kernel refuses a second one.
func (r Rule) does(h Rule) bool {
	h.Protocol = r.Protocol
	return r == h
}

// Sysctl is one value under /proc/sys.
type Sysctl struct {
	Key      string `json:"key"` // path below /proc/sys: device names may hold dots
	Value    int    `json:"value"`
	UpTo     int    `json:"up_to,omitempty"`    // wanted only: Value to UpTo are all as good
	Optional bool   `json:"optional,omitempty"` // wanted only: not every kernel has it
}

// Has is whether the observed value v serves.
func (s Sysctl) has(v int) bool { return v == s.Value || (v >= s.Value && v <= s.UpTo) }

// Sort brings the state into its canonical order.
func (s *State) Sort() {
	slices.SortFunc(s.Links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Addresses, func(a, b Address) int {
		return or(strings.Compare(a.Device, b.Device), comparePrefix(a.Prefix, b.Prefix))
	})
	slices.SortFunc(s.Routes, func(a, b Route) int {
		return or(int(a.Table)-int(b.Table), comparePrefix(a.Prefix, b.Prefix), int(a.Metric)-int(b.Metric),
			strings.Compare(string(a.Type), string(b.Type)), strings.Compare(a.Device, b.Device), a.Gateway.Compare(b.Gateway), a.Source.Compare(b.Source), a.MTU-b.MTU)
	})
	slices.SortFunc(s.Rules, func(a, b Rule) int {
		return or(a.Priority-b.Priority, a.Family-b.Family, compare(a.Mark, b.Mark), compare(a.Mask, b.Mask),
			strings.Compare(a.Input, b.Input), compare(a.Table, b.Table))
	})
	slices.SortFunc(s.Sysctls, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	s.Links = slices.Compact(s.Links)
	s.Addresses = slices.Compact(s.Addresses)
	s.Routes = slices.Compact(s.Routes)
	s.Rules = slices.Compact(s.Rules)
	s.Sysctls = slices.Compact(s.Sysctls)
}

// Foreign is the state without all that is Ringway's: what to keep at the first start of all
// (also when that start finds the leftovers of a crash) as the state to go back to at stop.
func (s State) Foreign() State {
	out := State{NoIPv6: s.NoIPv6, Sysctls: slices.Clone(s.Sysctls)}
	own := map[string]bool{}
	for _, l := range s.Links {
		if own[l.Name] = l.Own; !l.Own {
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

// Extend adds to a kept before-state what a later configuration touches for the first time:
// links and sysctls that s does not mention yet, as now observed, and their addresses.
func (s State) Extend(now State) State {
	now = now.Foreign()
	links, keys := map[string]bool{}, map[string]bool{}
	for _, l := range s.Links {
		links[l.Name] = true
	}
	for _, c := range s.Sysctls {
		keys[c.Key] = true
	}
	out := State{NoIPv6: s.NoIPv6, Links: slices.Clone(s.Links), Addresses: slices.Clone(s.Addresses),
		Routes: slices.Clone(s.Routes), Rules: slices.Clone(s.Rules), Sysctls: slices.Clone(s.Sysctls)}
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

// GiveBack is s with those values of the whole machine that last wanted and s leaves alone, as they were before.
func (s State) GiveBack(last, before State) State {
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

// Scope joins wanted states: what Observe has to look at when one configuration follows another.
// The first to mention a thing decides.
func Scope(wants ...State) State {
	var out State
	for _, w := range wants {
		have := out
		known := map[string]bool{}
		for _, l := range have.Links {
			known[l.Name] = true
		}
		for _, c := range have.Sysctls {
			known["/"+c.Key] = true
		}
		for _, l := range w.Links {
			if !known[l.Name] {
				out.Links = append(out.Links, l)
			}
		}
		for _, c := range w.Sysctls {
			if !known["/"+c.Key] {
				out.Sysctls = append(out.Sysctls, c)
			}
		}
		out.Addresses = append(out.Addresses, w.Addresses...)
		out.Routes = append(out.Routes, w.Routes...)
		out.Rules = append(out.Rules, w.Rules...)
	}
	out.Sort()
	return out
}

// Missing lists what the wanted state needs and the observed one lacks and Diff cannot make:
// a network card that is not there, a tunnel device that is gone, a VLAN name taken by another device.
// What is there and in the way, Conflicts lists.
func Missing(want, have State) []string {
	usable := usableLinks(want, have)
	var out []string
	for _, l := range want.Links {
		switch {
		case usable[l.Name]:
		case findLink(have.Links, l.Name) != nil:
			out = append(out, fmt.Sprintf("%s: is there, but is not VLAN %d of %s", l.Name, l.VLAN, l.Parent))
		case l.VLAN != 0:
			out = append(out, fmt.Sprintf("%s: its network device %s does not exist", l.Name, l.Parent))
		default:
			out = append(out, fmt.Sprintf("%s: no such network device", l.Name))
		}
	}
	return out
}

// Conflicts lists what somebody else made in places that the wanted state needs for itself. Diff leaves it as it is.
func Conflicts(want, have State) []string {
	var out []string
	for _, r := range want.Routes {
		if h := foreignIn(have.Routes, r); h != nil && !(h.Gateway == r.Gateway && h.Device == r.Device) {
			out = append(out, fmt.Sprintf("somebody else's route is where %q should be: %q", r.text(Add), h.text(Add)))
		}
	}
	for _, h := range have.Rules {
		if h.Protocol != Protocol && !slices.ContainsFunc(want.Rules, func(r Rule) bool { return r.does(h) }) {
			out = append(out, fmt.Sprintf("somebody else's rule is among Ringway's (priorities %d to %d): %q", PriorityFirst, PriorityLast, h.text(Add)))
		}
	}
	return out
}

func or(values ...int) int {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

func compare(a, b uint32) int { return int(int64(a) - int64(b)) }

func comparePrefix(a, b netip.Prefix) int {
	return or(a.Addr().BitLen()-b.Addr().BitLen(), a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
}

// sysctlDevice is the network device that a key belongs to, empty for all others.
func sysctlDevice(key string) string {
	p := strings.Split(key, "/")
	if len(p) == 5 && p[0] == "net" && p[2] == "conf" && p[3] != "all" && p[3] != "default" {
		return p[3]
	}
	return ""
}
